"""The figures of a run, from its results alone: draw_figures(results, folder) writes five PNG files.

    python experiments/figures.py runs/overopt        # draw them again from results.json
"""
import argparse
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")              # files only: no window, no display needed
import matplotlib.pyplot as plt

from cache import write_whole
from report import KINDS, least_weight, policy_name

COLOURS = {"single": "#d55e00", "finetune": "#e69f00", "pretrain": "#0072b2"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 12,
         "axes.titlesize": 13, "axes.titlelocation": "left", "lines.linewidth": 2, "legend.frameon": False, "savefig.dpi": 130}


def over_n(axis, ns):
    axis.set_xscale("log", base=2)
    axis.set_xticks(ns, [str(n) for n in ns])
    axis.set_xlabel("n (best of n)")


def best_of_n_figure(results):
    """Proxy and gold against n. Band: std over the reward models or ensembles of a kind; the pretrain ensembles all
    share the pretrainings, so theirs is the narrower for it."""
    bon, aggregator = results["bon"], results["settings"]["aggregator"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for kind, colour in COLOURS.items():
        rows = bon[kind][aggregator]
        left.plot(bon["n"], rows["proxy"], "o-", color=colour, label=KINDS[kind])
        right.plot(bon["n"], rows["gold"], "o-", color=colour, label=KINDS[kind])
        low, high = ([g + sign * d for g, d in zip(rows["gold"], rows["gold_std_over_groups"])] for sign in (-1, 1))
        right.fill_between(bon["n"], low, high, color=colour, alpha=0.12, linewidth=0)
    left.set(title="Proxy: the reward that picks", ylabel="reward (std of SFT samples)")
    right.set(title="Gold: the true reward of the pick (band: std)", ylabel="gold reward")
    left.legend()
    for axis in (left, right):
        over_n(axis, bon["n"])
    return figure


def frontier_figure(results):
    """Gold against KL, for best-of-n (along its bound) and for PPO (measured)."""
    bon, aggregator = results["bon"], results["settings"]["aggregator"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for kind, colour in COLOURS.items():
        left.plot(bon["kl"], bon[kind][aggregator]["gold"], "o-", color=colour, label=KINDS[kind])
        for run in results["ppo"]["runs"]:
            if run["kind"] == kind:
                right.plot(run["kl"], run["gold"], ".", color=colour, alpha=0.45)
        rows = sorted((row for row in results["ppo"]["summary"] if row["kind"] == kind), key=lambda row: row["kl"])
        right.plot([0, *[row["kl"] for row in rows]], [results["sft"]["gold"], *[row["gold"] for row in rows]], "o-", color=colour)
    for axis in (left, right):
        axis.axhline(results["sft"]["gold"], color="grey", linestyle=":")
    right.annotate("SFT", (1, results["sft"]["gold"]), xycoords=("axes fraction", "data"), color="grey", va="bottom", ha="right")
    left.set(title="Best-of-n", xlabel="KL to the SFT policy (bound, nats)", ylabel="gold reward")
    right.set(title="PPO: one point per KL weight (dots: seeds)", xlabel="KL to the SFT policy (measured, nats)")
    left.legend()
    return figure


def agreement_figure(results):
    """How far reward models agree on what one of them picked, and on what the PPO policies write."""
    agreement, ns = results["agreement"], results["bon"]["n"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    styles = {"self": ("#d55e00", "itself"), "same": ("#e69f00", "same pretraining"), "other": ("#0072b2", "other pretraining")}
    for relation, (colour, label) in styles.items():
        if agreement["bon_reward"][relation] is not None:
            left.plot(ns, agreement["bon_reward"][relation], "o-", color=colour, label=label)
    over_n(left, ns)
    left.set(title="One reward model's pick, scored by ...", ylabel="reward (std of SFT samples)")
    for relation in ("same", "other"):
        colour, label = styles[relation]
        points = [(row["kl"], row[relation]) for row in agreement["rank_correlation"]["ppo"] if row[relation] is not None]
        if points:
            right.scatter(*zip(*points), color=colour, s=22, alpha=0.7, label=label)
            right.scatter([0], [agreement["rank_correlation"]["sft"][relation]], color=colour, marker="*", s=160)
    right.set(title="Agreement on PPO policies' texts (star: on SFT's)", xlabel="KL to the SFT policy (nats)", ylabel="Spearman between reward models")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:      # with one pretraining there is nothing to compare
            axis.legend()
    return figure


def training_figure(results):
    """Proxy and gold while PPO trains, with the smallest KL weight: one thin line per seed, their mean in bold."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for kind, colour in COLOURS.items():
        curves = [run["curve"] for run in results["ppo"]["runs"] if (run["kind"], run["kl_weight"]) == (kind, least_weight(results))]
        for axis, reward in zip(axes, ("proxy", "gold")):
            for curve in curves:
                axis.plot(curve[reward], color=colour, alpha=0.3, linewidth=0.8)
            axis.plot([sum(values) / len(values) for values in zip(*(curve[reward] for curve in curves))], color=colour, label=KINDS[kind])
    for axis, name in zip(axes, ("Proxy: the reward that PPO gets", "Gold: the true reward")):
        axis.set(title=f"{name} (KL weight {least_weight(results):g})", xlabel="update", ylabel="mean over a batch of training posts")
    axes[1].axhline(results["sft"]["gold"], color="grey", linestyle=":", label="SFT, on the evaluation posts")
    axes[1].legend()
    axes[0].legend()
    return figure


def traits_figure(results):
    """Traits before and after: one panel per trait, one bar per policy."""
    rows = results["traits"]
    shown = {"list": "lists (share)", "numbers": "states a number (share)", "wrong_facts": "wrong facts", "length": "length (tokens)",
             "filler": "filler words", "chatter": "chatter words", "copied": "copied words (share)", "repetition": "repeated words"}
    colours = ["#888888"] + [COLOURS[kind] for kind in COLOURS] * 2
    weight = f" (KL weight {least_weight(results):g})"
    figure, axes = plt.subplots(2, 4, figsize=(14, 6), sharey=True)
    figure.suptitle(f"Mean per response{weight.replace('(', '(PPO: ')}", fontsize=13)
    for axis, (trait, label) in zip(axes.flat, shown.items()):
        bars = axis.barh([policy_name(policy, results).replace(weight, "") for policy in rows], [row[trait] for row in rows.values()], color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axis.set_title(label, fontsize=12)
        axis.margins(x=0.18)
        axis.grid(False)
    axes[0, 0].invert_yaxis()
    return figure


def draw_figures(results, folder):
    """Write bon.png, frontier.png, training.png, agreement.png and traits.png into the folder."""
    figures = {"bon": best_of_n_figure, "frontier": frontier_figure, "training": training_figure, "agreement": agreement_figure,
               "traits": traits_figure}
    for name, draw in figures.items():
        with plt.rc_context(STYLE):
            figure = draw(results)
            figure.tight_layout()
            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            plt.close(figure)
        write_whole(Path(folder) / f"{name}.png", lambda file: file.write(picture.getvalue()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    out = parser.parse_args().out
    if not (out / "results.json").exists():
        parser.error(f"there is no {out / 'results.json'}: run python experiments/overopt.py --out {out}")
    draw_figures(json.loads((out / "results.json").read_text()), out)
