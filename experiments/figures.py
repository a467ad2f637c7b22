"""The figures of a task, averaged over its worlds: overopt.py and report.py draw them from records.

Lines are means over worlds, bands their 95 % t-intervals (from three worlds on), dots single worlds.
"""

import io
import os

os.environ["MPLBACKEND"] = "Agg"  # files only: no window, no display, and no backend that a notebook has set
import matplotlib.pyplot as plt
import numpy as np
from claims import KINDS, claims_table, interval
from pool import write_whole

COLOURS = {"single": "#d55e00", "finetune": "#e69f00", "pretrain": "#0072b2"}
GREY = "#777777"  # SFT, and claims without a verdict
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.25, "axes.titlelocation": "left"}
plt.rcParams |= {"font.size": 12, "axes.titlesize": 13}


def band(axis, x, values, colour, label, style="o-"):
    """Mean line and band of values (worlds, points) over x (points,)."""
    mean, low, high = np.array([interval(column) for column in np.transpose(values)]).T
    axis.plot(x, mean, style, color=colour, label=label, linewidth=2, markersize=5)
    if len(values) >= 3:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def runs_at(record, kind, kl_weight):
    """The PPO runs of a kind at a KL weight."""
    return [run for run in record["ppo"] if (run["kind"], run["kl_weight"]) == (kind, kl_weight)]


def frontier(records):
    """Gold against KL: PPO at each KL weight, from SFT outwards."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    weights = sorted({run["kl_weight"] for run in records[0]["ppo"]}, reverse=True)
    for kind, name in KINDS.items():
        kl, gold = [np.zeros(len(records))], [[r["traits"]["SFT"]["gold"] for r in records]]
        for weight in weights:
            runs = [runs_at(r, kind, weight) for r in records]
            kl.append([np.mean([run["kl"] for run in found]) for found in runs])
            gold.append([np.mean([run["gold"] for run in found]) for found in runs])
        band(axis, np.mean(kl, axis=1), np.transpose(gold), COLOURS[kind], name)
        axis.plot(kl[-1], gold[-1], ".", color=COLOURS[kind], alpha=0.5)
    axis.set(title="PPO: true reward against distance from SFT")
    axis.set(xlabel="KL to SFT (nats per response)", ylabel="true reward (gold)")
    axis.legend()
    return figure


def best_of_n(records):
    """Proxy and gold against n, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    ns = records[0]["best_of_n"]["n"]
    for axis, name in zip(axes, ("proxy", "gold"), strict=True):
        for kind in KINDS:
            band(axis, ns, [r["best_of_n"][kind][name] for r in records], COLOURS[kind], KINDS[kind])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ns, [str(n) for n in ns])
        axis.set(xlabel="n")
    axes[0].set(title="Best of n: the proxy keeps rising", ylabel="proxy: the reward that picks")
    axes[1].set(title="What does the true reward do?", ylabel="true reward (gold)")
    axes[0].legend()
    return figure


def training(records):
    """Proxy and gold during PPO at the smallest KL weight, averaged over runs and worlds."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    weight = min(run["kl_weight"] for run in records[0]["ppo"])
    for axis, kind in zip(axes, KINDS, strict=True):
        for name, style in (("proxy", "--"), ("gold", "-")):
            runs = [runs_at(r, kind, weight) for r in records]
            curves = [np.mean([run["curve"][name] for run in found], axis=0) for found in runs]
            band(axis, range(len(curves[0])), curves, COLOURS[kind], name, style)
        axis.set(title=KINDS[kind], xlabel="PPO update")
        axis.legend()
    axes[0].set(ylabel="reward (proxy: in SFT's std)")
    figure.suptitle("PPO: the proxy rises; what does the true reward do?", x=0.01, ha="left")
    return figure


def claims(records):
    """Every tested claim: each world a dot, mean and interval; in units of its largest world."""
    rows = [row for row in claims_table(records) if row["sign"] != 0][::-1]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.3))
    colours = {"reproduced": COLOURS["pretrain"], "opposite": COLOURS["single"]}
    for y, row in enumerate(rows):
        scale = row["sign"] / (np.abs(row["numbers"]).max() or 1.0)
        colour = colours.get(row["verdict"], GREY)
        axis.plot(np.array(row["numbers"]) * scale, [y] * len(row["numbers"]), "o", color=colour, alpha=0.35)
        if np.isfinite(row["low"]):
            axis.plot([row["low"] * scale, row["high"] * scale], [y, y], color=colour, linewidth=3)
        axis.plot(row["mean"] * scale, y, "D", color=colour)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [row["id"] for row in rows])
    axis.set(title="The claims: right of zero is the paper's side", xlim=(-1.1, 1.1))
    axis.set(xlabel="each claim in units of its largest world (dots: worlds; bar: 95 % interval)")
    return figure


def traits(records):
    """What SFT and the aligned policies write: traits of each, a dot for a world."""
    names = [name for name in records[0]["traits"]["SFT"] if name != "gold"]
    policies = {"SFT": GREY} | {f"PPO, {kind}": COLOURS[kind] for kind in KINDS}
    figure = plt.figure(figsize=(12, 8))
    for i, name in enumerate(names):
        axis = figure.add_subplot(-(-len(names) // 3), 3, i + 1)
        for x, (policy, colour) in enumerate(policies.items()):
            values = [r["traits"][policy][name] for r in records]
            axis.bar(x, np.mean(values), color=colour, alpha=0.6)
            axis.plot([x] * len(values), values, ".", color="black", alpha=0.4)
        axis.set_xticks(range(len(policies)), ["SFT", *KINDS], fontsize=10)
        axis.set_title(name.replace("_", " "), fontsize=12)
    figure.suptitle("What PPO changes in the texts, at the smallest KL weight", x=0.01, ha="left")
    return figure


def draw(records, folder):
    """Write the figures of a task's records into the folder, as frontier-tldr.png and so on."""
    functions = [frontier, best_of_n, training, traits]
    if len(records) >= 3:  # with fewer, claims have no verdicts
        functions.append(claims)
    for function in functions:
        figure = function(records)
        figure.tight_layout()
        write_png(figure, folder / f"{function.__name__}-{records[0]['task']}.png")


def write_png(figure, path):
    """Write a figure, whole or not at all, and forget it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    write_whole(path, file.getvalue())
    plt.close(figure)
