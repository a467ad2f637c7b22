"""The figures of a task: report.py draws them from records.

Lines are means over worlds, bands their 95 % t-intervals (from three worlds on), dots single worlds; edits
are of the first world.
"""

import io
import os

os.environ["MPLBACKEND"] = "Agg"  # files only: no window, no display, and no backend that a notebook has set
import matplotlib.pyplot as plt
import numpy as np

from claims import KINDS, interval, runs_at, smooth
from pool import write_whole

COLOURS = {"single": "#d55e00", "finetune": "#e69f00", "pretrain": "#0072b2"}
GREY = "#777777"  # SFT, and proxies
plt.rcParams |= {
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.grid": True,
    "grid.alpha": 0.25, "axes.titlelocation": "left", "font.size": 12, "axes.titlesize": 13,
}  # fmt: skip


def band(axis, x, values, colour, label, style="o-"):
    """Mean line and band of values (worlds, points) over x (points,)."""
    mean, low, high = np.array([interval(column) for column in np.transpose(values)]).T
    axis.plot(x, mean, style, color=colour, label=label, linewidth=2, markersize=5)
    if len(values) >= 3:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def along_ppo(records, kind, weight, name):
    """A curve of each world, mean over its runs and five updates: (worlds, updates - 4)."""
    runs = [runs_at(record["ppo"], kind, weight) for record in records]
    return np.array([smooth(np.mean([run["curve"][name] for run in in_world], axis=0)) for in_world in runs])


def overoptimisation(records):
    """Along PPO, for each kind: proxy and gold against KL, at the largest and at the smallest KL weight."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), sharey=True, sharex=True)
    weights = weights_of(records)
    for axis, kind in zip(axes, KINDS, strict=True):
        for weight, style in {weights[0]: ":", weights[-1]: "-"}.items():
            kl, proxy, gold = (along_ppo(records, kind, weight, name) for name in ("kl", "proxy", "gold"))
            gold = [in_std(record, curve) for record, curve in zip(records, gold, strict=True)]
            band(axis, kl.mean(0), proxy, GREY, None, style)
            band(axis, kl.mean(0), gold, COLOURS[kind], f"gold, KL weight {weight:g}", style)
        axis.set(title=f"PPO on {KINDS[kind]}", xlabel="KL to SFT (nats, mean of 5 updates)")
        axis.legend(fontsize=9, loc="upper left")
    axes[0].set(ylabel="gain over SFT (std)")
    title = "The proxy, which PPO raises (grey), keeps rising. Does gold, the true reward?"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def in_std(record, gold):
    """Gold as its gain over SFT, in the std of SFT's samples."""
    return (np.asarray(gold) - record["traits"]["SFT"]["gold"]) / record["gold_std"]


def weights_of(records):
    """The KL weights of PPO's runs, the largest first."""
    return sorted({run["kl_weight"] for run in records[0]["ppo"]}, reverse=True)


def ends_of_ppo(records, kind, weight, name):
    """Where PPO's runs ended, a mean for each world: (worlds,)."""
    runs = [runs_at(record["ppo"], kind, weight) for record in records]
    return [np.mean([run[name] for run in in_world]) for in_world in runs]


def best_of_n(records):
    """Proxy and gold against n, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    ns = records[0]["best_of_n"]["n"]
    for axis, name in zip(axes, ("proxy", "gold"), strict=True):
        for kind in KINDS:
            band(axis, ns, [r["best_of_n"][kind][name] for r in records], COLOURS[kind], KINDS[kind])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ns, ns)
        axis.set(xlabel="n (best of n)")
    axes[0].set(title="Best of n: what does the proxy do?", ylabel="proxy: the reward that picks (std)")
    axes[1].set(title="What does the true reward do?", ylabel="true reward (gold)")
    axes[0].legend()
    return figure


def anatomy(records):
    """Where the proxy's rise comes from: lines for best of n; a bar for PPO at the smallest KL weight."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), sharey=True)
    labels = {"proxy": ("itself", GREY), "same": ("others of its pretraining", "#56b4e9")}
    labels |= {"jury": ("the jury", "#cc79a7"), "gold": ("gold", "#009e73")}
    ns, weight = records[0]["best_of_n"]["n"], weights_of(records)[-1]
    for axis, kind in zip(axes, KINDS, strict=True):
        for name in records[0]["best_of_n"][kind]:
            label, colour = labels[name]
            scaled = in_std if name == "gold" else lambda record, x: np.asarray(x)
            values = [scaled(r, r["best_of_n"][kind][name]) for r in records]
            band(axis, ns, values, colour, f"by {label}")
            ends = ends_of_ppo(records, kind, weight, name)
            ends = [scaled(r, end) for r, end in zip(records, ends, strict=True)]
            axis.plot([ns[-1] * 2.5] * len(ends), ends, ".", color=colour, alpha=0.4)
            axis.plot(ns[-1] * 2.5, np.mean(ends), "_", color=colour, markersize=22, markeredgewidth=3)
        axis.set_xscale("log", base=2)
        axis.set_xticks([*ns, ns[-1] * 2.5], [*ns, "PPO"])
        axis.set(title=KINDS[kind], xlabel="n (best of n)")
    axes[0].set(ylabel="gain over SFT (std)")
    axes[0].legend(fontsize=10)
    figure.suptitle("Whose reward rises with the proxy?", x=0.01, ha="left")
    return figure


def edits(records):
    """What every reward model of the first world pays for an edit of a perfect summary, and gold beside."""
    record = records[0]
    names = [name for name in record["edits"] if name != "none"]
    paid = np.array([record["edits"][name]["models"] for name in names])
    price = np.array([[record["edits"][name]["gold"] / record["gold_std"]] for name in names])
    F, M, limit = record["settings"]["finetune_seeds"], paid.shape[1], 1.5
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[M, 1.6], sharey=True)
    for axis, values in zip(axes, (paid, price), strict=True):
        axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axis.grid(False)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "white" if abs(value) > 0.8 * limit else "black"
                text = f"{round(value, 1) + 0:.1f}"  # + 0: not "-0.0"
                axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    for x in range(F, M, F):
        axes[0].axvline(x - 0.5, color="black", linewidth=2)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_xticks(np.arange(M // F) * F + (F - 1) / 2, [f"pretraining {p + 1}" for p in range(M // F)])
    axes[1].set_xticks([0], ["gold"])
    title = "What does each reward model pay (blue) or charge (red) for an edit of a perfect summary? (std)"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def ranking(records):
    """On which texts a reward model still orders pairs as gold does: a dot for each world."""
    figure, axis = plt.subplots(figsize=(7.5, 4.4))
    kinds = list(records[0]["ranking"])
    values = np.array([[np.mean(np.array(r["ranking"][kind], float)) for kind in kinds] for r in records])
    band(axis, range(len(kinds)), values, COLOURS["pretrain"], None)
    axis.plot(range(len(kinds)), values.T, ".", color=COLOURS["pretrain"], alpha=0.3)
    axis.axhline(0.5, color=GREY, linestyle=":")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set(title="On which texts does a reward model still order pairs as gold does?", ylim=(0.3, 1))
    axis.set(ylabel="share of pairs (.5: a coin)")
    return figure


def frontier(records):
    """Gold against KL: PPO at each KL weight, from SFT outwards."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    weights = weights_of(records)
    for kind, name in KINDS.items():
        kl, gold = [np.zeros(len(records))], [[r["traits"]["SFT"]["gold"] for r in records]]
        for weight in weights:
            kl.append(ends_of_ppo(records, kind, weight, "kl"))
            gold.append(ends_of_ppo(records, kind, weight, "gold"))
        x = np.mean(kl, axis=1)
        band(axis, x, np.transpose(gold), COLOURS[kind], name)
        axis.plot(kl[-1], gold[-1], ".", color=COLOURS[kind], alpha=0.5)
        if kind == "single":  # the lowest line
            for where, y, weight in zip(x[1:], np.mean(gold, axis=1)[1:], weights, strict=True):
                axis.annotate(f"{weight:g}", (where, y), (-4, -18), textcoords="offset points", fontsize=10)
    axis.set(title="Where does PPO end at each KL weight? From SFT outwards")
    xlabel = f"KL to SFT (nats per response). Dots: single worlds at {weights[-1]:g}"
    axis.set(xlabel=xlabel, ylabel="true reward (gold)")
    axis.legend()
    return figure


def traits(records):
    """What SFT and the aligned policies write, a dot for a world: traits, and how PPO overuses one fact."""
    titles = {"list": "share that are lists", "length": "tokens", "wrong_facts": "wrong facts in a text"}
    names = {"SFT": "SFT", **{kind: f"PPO, {kind}" for kind in KINDS}}  # in records
    panels = {}
    for trait, title in titles.items():
        panels[title] = {x: [r["traits"][name][trait] for r in records] for x, name in names.items()}
    weight = weights_of(records)[-1]
    panels["overuse of the favourite fact"] = {x: ends_of_ppo(records, x, weight, "overuse") for x in KINDS}
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.6))
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for policy, values in bars.items():
            axis.bar(policy, np.mean(values), color=COLOURS.get(policy, GREY), alpha=0.6)
            axis.plot([policy] * len(values), values, ".", color="black", alpha=0.4)
        axis.tick_params(labelsize=10)
        axis.set(title=title)
    figure.suptitle("What does PPO change in the texts? (smallest KL weight)", x=0.01, ha="left")
    return figure


FIGURES = (overoptimisation, best_of_n, anatomy, edits, ranking, frontier, traits)


def draw(records, folder):
    """Write the figures of a task's records into the folder, as frontier-tldr.png and so on."""
    for function in FIGURES:
        figure = function(records)
        figure.tight_layout()
        write_png(figure, folder / f"{function.__name__}-{records[0]['task']}.png")


def write_png(figure, path):
    """Write a figure, whole or not at all, and forget it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    write_whole(path, file.getvalue())
    plt.close(figure)
