"""The figures of a run, from its results alone: draw_figures(results, folder) writes seven PNG files of the first task, and for each
further task (--task all) those that carry its claims, as frontier-nli.png.

    python experiments/figures.py runs/overopt        # draw them again from results.json
"""
import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")              # files only: no window, no display needed
import matplotlib.pyplot as plt

from cache import write_whole
from report import KINDS, least_weight, load_results, policy_name, view

COLOURS = {"single": "#d55e00", "finetune": "#e69f00", "pretrain": "#0072b2"}
RELATIONS = {"self": ("#d55e00", "itself"), "same": ("#e69f00", "same pretraining"), "other": ("#0072b2", "other pretraining")}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 12,
         "axes.titlesize": 13, "axes.titlelocation": "left", "lines.linewidth": 2, "legend.frameon": False, "savefig.dpi": 130}
plt.rcParams.update(STYLE)


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
    """Gold against the square root of KL (Gao et al. 2022), for best-of-n (along its bound) and for PPO (measured)."""
    bon, aggregator = results["bon"], results["settings"]["aggregator"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for kind, colour in COLOURS.items():
        left.plot([kl**0.5 for kl in bon["kl"]], bon[kind][aggregator]["gold"], "o-", color=colour, label=KINDS[kind])
        runs = [{**run, "root": max(0.0, run["kl"]) ** 0.5} for run in results["ppo"]["runs"] if run["kind"] == kind]
        right.plot([run["root"] for run in runs], [run["gold"] for run in runs], ".", color=colour, alpha=0.45)
        right.plot(*mean_by_weight(runs, "gold", results["sft"]["gold"]), "o-", color=colour)
    for axis in (left, right):
        axis.axhline(results["sft"]["gold"], color="grey", linestyle=":")
        axis.set_ylabel("gold reward")
    right.annotate("SFT", (1, results["sft"]["gold"]), xycoords=("axes fraction", "data"), color="grey", va="bottom", ha="right")
    left.set(title="Best-of-n", xlabel="square root of KL to the SFT policy (bound)")
    right.set(title="PPO: one point per KL weight (dots: seeds)", xlabel="square root of KL to the SFT policy (measured)")
    left.legend()
    return figure


def mean_by_weight(rows, name, start, x="root"):
    """`x` and the named value, mean over the runs of each KL weight, from the largest weight to the smallest, after (0, start)."""
    xs, ys = [0], [start]
    for weight in sorted({row["kl_weight"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["kl_weight"] == weight]
        xs.append(sum(row[x] for row in mine) / len(mine))
        ys.append(sum(row[name] for row in mine) / len(mine))
    return xs, ys


def agreement_figure(results):
    """How far reward models agree on what one of them picked, and on what the PPO policies write."""
    agreement, ns = results["agreement"], results["bon"]["n"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for relation, (colour, label) in RELATIONS.items():
        if agreement["bon_reward"][relation] is not None:
            left.plot(ns, agreement["bon_reward"][relation], "o-", color=colour, label=label)
    over_n(left, ns)
    left.set(title="One reward model's pick, scored by ...", ylabel="reward (std of SFT samples)")
    ranks = agreement["rank_correlation"]
    for relation in ("same", "other"):
        colour, label = RELATIONS[relation]
        if ranks["sft"][relation] is not None:
            right.scatter([row["kl"] for row in ranks["ppo"]], [row[relation] for row in ranks["ppo"]], color=colour, s=22, alpha=0.5)
            right.plot(*mean_by_weight(ranks["ppo"], relation, ranks["sft"][relation], x="kl"), "o-", color=colour, label=label)
    right.set(title="Agreement on PPO policies' texts (KL 0: on SFT's)", xlabel="KL to the SFT policy (nats)", ylabel="Spearman between reward models")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:      # with one pretraining there is nothing to compare
            axis.legend()
    return figure


def traits_against_kl_figure(results):
    """Traits of the PPO policies against KL, and how far the members of the ensemble disagree about their texts."""
    traits = {"list": "lists (share)", "numbers": "states a number (share)", "length": "length (tokens)", "wrong_facts": "wrong facts"}
    figure, axes = plt.subplots(1, 5, figsize=(19, 4))
    for kind, colour in COLOURS.items():
        runs = [{**run, **run["traits"], "root": max(0.0, run["kl"]) ** 0.5} for run in results["ppo"]["runs"] if run["kind"] == kind]
        start = {**results["traits"]["sft"], "disagreement": results["sft"]["disagreement"][kind]}
        for axis, name in zip(axes, [*traits, "disagreement"][:4 if kind == "single" else 5]):      # one member has none to disagree with
            axis.plot([run["root"] for run in runs], [run[name] for run in runs], ".", color=colour, alpha=0.4)
            axis.plot(*mean_by_weight(runs, name, start[name]), "o-", color=colour, label=KINDS[kind])
    for axis, title in zip(axes, [*traits.values(), "members disagree (std)"]):
        axis.set(title=title, xlabel="square root of KL to SFT")
    axes[0].legend(fontsize=10)
    return figure


def forest_figure(results):
    """Every claim of every task with its 95 % interval, in three panels by unit."""
    def unit(row):
        if any(word in row["id"] for word in ("length", "wrong_facts")):
            return "tokens, wrong facts"
        return "shares, correlations" if any(word in row["id"] for word in ("_win", "rank_corr", "list", "numbers")) else "rewards"

    rows = [row for row in results["claims"] if row["ci_low"] is not None and row["id"] != "accuracy_spread"]      # its bound is not zero
    colours, tasks = {"reproduced": "#0072b2", "opposite": "#d55e00", "inconclusive": "#999999"}, list(results["tasks"])
    markers = dict(zip(tasks, "osD"))
    figure, axes = plt.subplots(1, 3, figsize=(18, 8.5))
    for axis, title in zip(axes, ("rewards", "shares, correlations", "tokens, wrong facts")):
        mine = [row for row in rows if unit(row) == title]
        names = list(dict.fromkeys(row["id"] for row in mine))
        for row in mine:
            y = names.index(row["id"]) + 0.22 * (tasks.index(row["task"]) - (len(tasks) - 1) / 2)
            axis.plot([row["ci_low"], row["ci_high"]], [y, y], color=colours[row["verdict"]], linewidth=1.6)
            axis.plot(row["estimate"], y, markers[row["task"]], color=colours[row["verdict"]], markersize=6)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(f"95 % intervals: {title}")
    handles = [plt.Line2D([], [], color=colour, marker="s", linestyle="", label=verdict) for verdict, colour in colours.items()]
    if len(tasks) > 1:
        handles += [plt.Line2D([], [], color="black", marker=marker, linestyle="", label=task) for task, marker in markers.items()]
    axes[2].legend(handles=handles, fontsize=10)
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


def real_figure(results):
    """real.py: how far reward models agree on the best of n, how far they can be believed, and what they make of length."""
    figure, (picks, calibration, length) = plt.subplots(1, 3, figsize=(16, 4.2))
    pool = results["bon"]["pool"]
    for relation, (colour, label) in RELATIONS.items():
        if pool[relation] is not None:
            picks.plot(pool["n"], pool[relation], "o-", color=colour, label=label)
    over_n(picks, pool["n"])
    picks.set(title="One reward model's pick, scored by ...", ylabel="reward over the pair's mean (std)")
    calibration.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":")
    for key, colour, label in (("single", COLOURS["single"], "one reward model"), ("all", COLOURS["pretrain"], "mean of all")):
        calibration.plot(results["calibration"][key]["chance"], results["calibration"][key]["right"], "o-", color=colour, label=label)
    calibration.set(title="Calibration on held-out pairs", xlabel="chance it gives to its favourite", ylabel="share right")
    found = results["length"]
    bars = {"all pairs": results["accuracy"]["mean"], "the longer chosen": found["accuracy_longer_chosen"], "the shorter chosen": found["accuracy_shorter_chosen"],
            "longer preferred: the file": found["chosen_longer"], "by reward models": (found["rm_prefers_longer"] or {"mean": None})["mean"]}
    drawn = length.barh(list(bars), [value or 0 for value in bars.values()], color=["#888888"] * 3 + ["#0072b2"] * 2)
    length.bar_label(drawn, fmt="%.2f", padding=2, fontsize=10)
    length.invert_yaxis()
    length.margins(x=0.18)
    length.set(title="Accuracy; longer preferred")
    for axis in (picks, calibration):
        axis.legend(fontsize=10)
    return figure


def draw_figures(results, folder):
    """Write the figures into the folder: see the top of this file."""
    of_each = {"bon": best_of_n_figure, "frontier": frontier_figure, "agreement": agreement_figure, "traits": traits_figure, "traits-kl": traits_against_kl_figure}
    write_figure(forest_figure(results), Path(folder) / "claims.png")
    for i, task in enumerate(results["tasks"]):
        for name, draw in (of_each | ({"training": training_figure} if i == 0 else {})).items():
            write_figure(draw(view(results, task)), Path(folder) / f"{name}{f'-{task}' if i else ''}.png")


def write_figure(figure, path):
    """One PNG, whole or not at all."""
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_whole(Path(path), lambda file: file.write(picture.getvalue()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    out = parser.parse_args().out
    try:
        draw_figures(load_results(out), out)
    except ValueError as error:
        parser.error(str(error))
