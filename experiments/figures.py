"""The figures of a folder of worlds: for each task five PNG files, averaged over its worlds.

    python experiments/figures.py runs/overopt        # draw them again from the records

Lines are means over worlds, bands their 95 % t-intervals (from three worlds on), dots single worlds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display needed
import matplotlib.pyplot as plt
import numpy as np
from claims import KINDS, claims_table, interval
from report import NAMES, load_records
from stages import write_whole

COLOURS = {"single": "#d55e00", "finetune": "#e69f00", "pretrain": "#0072b2"}
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 12,
        "axes.titlesize": 13,
        "axes.titlelocation": "left",
        "legend.frameon": False,
    }
)


def band(axis, x, values, colour, label, style="-"):
    """Mean line and band of values (worlds, points) over x (points,)."""
    mean, low, high = np.array([interval(column) for column in np.transpose(values)]).T
    axis.plot(x, mean, "o" + style, color=colour, label=label, linewidth=2, markersize=5)
    if len(values) >= 3:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def frontier(records):
    """Gold against KL: PPO at each KL weight, from SFT outwards."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    sft = [r["traits"]["SFT"]["gold"] for r in records]
    weights = sorted({run["kl_weight"] for run in records[0]["ppo"]}, reverse=True)
    for kind in KINDS:
        kl, gold = [np.zeros(len(records))], [sft]
        for weight in weights:
            runs = [[x for x in r["ppo"] if (x["kind"], x["kl_weight"]) == (kind, weight)] for r in records]
            kl.append([np.mean([run["kl"] for run in found]) for found in runs])
            gold.append([np.mean([run["gold"] for run in found]) for found in runs])
        band(axis, np.mean(kl, axis=1), np.transpose(gold), COLOURS[kind], NAMES[kind])
        axis.plot(kl[-1], gold[-1], ".", color=COLOURS[kind], alpha=0.5)
    axis.set(title="PPO: pushed far from SFT, ensembles hold", xlabel="KL to SFT (nats per response)")
    axis.set(ylabel="true reward (gold)")
    axis.legend()
    return figure


def best_of_n(records):
    """Proxy and gold against n, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    ns = records[0]["best_of_n"]["n"]
    titles = {"proxy": "Best of n: the proxy keeps rising", "gold": "The true reward does not"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for kind in KINDS:
            band(axis, ns, [r["best_of_n"][kind][name] for r in records], COLOURS[kind], NAMES[kind])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ns, [str(n) for n in ns])
        axis.set(
            title=title, xlabel="n", ylabel={"proxy": "reward that picks", "gold": "true reward (gold)"}[name]
        )
    axes[0].legend()
    return figure


def training(records):
    """Proxy and gold during PPO at the smallest KL weight, averaged over runs and worlds."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        for name, style in (("proxy", "--"), ("gold", "-")):
            curves = []
            for r in records:
                weight = min(run["kl_weight"] for run in r["ppo"])
                runs = [run for run in r["ppo"] if (run["kind"], run["kl_weight"]) == (kind, weight)]
                curves.append(np.mean([run["curve"][name] for run in runs], axis=0))
            mean, low, high = np.array([interval(column) for column in np.transpose(curves)]).T
            axis.plot(mean, style, color=COLOURS[kind], label=name, linewidth=2)
            if len(records) >= 3:
                axis.fill_between(range(len(mean)), low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
        axis.set(title=NAMES[kind], xlabel="PPO update")
        axis.legend()
    axes[0].set(ylabel="reward")
    figure.suptitle("PPO: the proxy rises; what does the true reward do?", x=0.01, ha="left")
    return figure


def claims(records):
    """Every tested claim: each world a dot, mean and interval; in units of the worlds' spread."""
    rows = [row for row in claims_table(records) if row["sign"] != 0][::-1]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.3))
    colours = {"reproduced": "#0072b2", "opposite": "#d55e00"}
    for y, row in enumerate(rows):
        scale = row["sign"] / (np.abs(row["numbers"]).max() or 1.0)
        colour = colours.get(row["verdict"], "#777777")
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
    policies = {"SFT": "#777777"} | {f"PPO, {kind}": COLOURS[kind] for kind in KINDS}
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(13, 5.5))
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for x, (policy, colour) in enumerate(policies.items()):
            values = [r["traits"][policy][name] for r in records]
            axis.bar(x, np.mean(values), color=colour, alpha=0.6)
            axis.plot([x] * len(values), values, ".", color="black", alpha=0.4)
        axis.set_xticks(range(len(policies)), ["SFT", "single", "fine", "pre"], fontsize=9)
        axis.set_title(name.replace("_", " "), fontsize=11)
    figure.suptitle("What PPO changes in the texts, at the smallest KL weight", x=0.01, ha="left")
    return figure


FIGURES = {f.__name__: f for f in (frontier, best_of_n, training, claims, traits)}


def draw(records, folder):
    """Write every figure of a task's records into the folder, as frontier-tldr.png and so on."""
    for name, function in FIGURES.items():
        figure = function(records)
        figure.tight_layout()
        path = folder / f"{name}-{records[0]['task']}.png"
        write_whole(path, lambda file, figure=figure: figure.savefig(file, format="png", dpi=120))
        plt.close(figure)


def main():
    """Draw the figures of a folder again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    folder = parser.parse_args().folder
    try:
        records = load_records(folder)
        if not records:
            raise ValueError(
                f"{folder} has no world-*.json: run python experiments/overopt.py --out {folder}"
            )
        for found in records.values():
            draw(found, folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
