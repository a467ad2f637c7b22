"""What remedies.py and dial.py share: policies in several variants, compared world by world.

A world's numbers are {group: {variant: {quantity: number}}}. A group is a method and what it is aligned to,
such as "best of n, pretrain"; there a quantity may be a list over n, and n = 1 is SFT.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # overopt.py, the core

import numpy as np

import overopt
from claims import KINDS, interval, powers
from figures import COLOURS, GREY, plt, write_png
from pool import Pool, cluster, processes
from report import mean_and_interval, write_json


def compare(name, given, s, measure, quantities, **own):
    """A script from its parsed flags to NAME-TASK.json and NAME-TASK.png. measure(given, s, seed, pool): the
    numbers of a world. quantities: what is drawn. own: the script's flags, to record."""
    out = overopt.folder_of(given)
    with cluster(given.scheduler) if given.scheduler else processes(given.processes) as executor:
        pool = Pool(executor, out / "cache")
        worlds = {seed: measure(given, s, seed, pool) for seed in given.seeds}
    record = {"task": given.task, "settings": asdict(s), **own, "n": powers(s.n)}
    name = f"{name}-{given.task}"
    write_json(record | {"worlds": overopt.rounded(worlds)}, out / f"{name}.json")
    write_png(draw(worlds, quantities), out / f"{name}.png")
    changed = {flag: x for flag, x in asdict(s).items() if x != getattr(overopt.Settings, flag)}
    print(f"\n{given.task}, worlds {given.seeds}, best of {s.n}; {changed | own}\n{table(worlds)}")
    print(f"\n{name}.json and {name}.png are in {out}")


def means_of_best(evidence, kind):
    """Gold, the jury's reward and every trait of the best of n by a kind: {name: (len(ns),)}."""
    values = {"gold": evidence.gold, "jury": evidence.jury.mean(0), **evidence.traits}
    return {name: evidence.mean_of_best(kind, x, powers(x.shape[1])) for name, x in values.items()}


def numbers(worlds, group, variant, quantity, at=-1):
    """One number of each world, (worlds,): of the largest n; at=0: of n = 1."""
    return np.array([np.ravel(world[group][variant][quantity])[at] for world in worlds.values()])


def table(worlds):
    """A block for each group, a line for each quantity (at the largest n), a column for each variant: the
    first as it is, the others minus the first, world by world."""
    lines = [f"Worlds: {len(worlds)}. The first column as it is, the others minus the first."]
    for group, variants in next(iter(worlds.values())).items():
        lines.append(f"\n{group:<20}" + "".join(f"{variant:>25}" for variant in variants))
        for quantity in next(iter(variants.values())):
            first, *others = (numbers(worlds, group, variant, quantity) for variant in variants)
            columns = [first, *(values - first for values in others)]
            cells = "".join(f"{mean_and_interval(values):>25}" for values in columns)
            lines.append(f"  {quantity:<18}{cells}")
    return "\n".join(lines)


def draw(worlds, quantities):
    """A row of panels for each method, a panel for each quantity: a dot for each variant and kind, the mean
    over worlds, from three on with its 95 % interval. SFT is n = 1."""
    groups = next(iter(worlds.values()))
    methods = list(dict.fromkeys(group.split(", ")[0] for group in groups))
    shape = {"figsize": (3.6 * len(quantities) + 2, 3.5 * len(methods)), "squeeze": False, "sharey": "col"}
    figure, axes = plt.subplots(len(methods), len(quantities), layout="constrained", **shape)
    for panels, method in zip(axes, methods, strict=True):
        series = [("best of n, pretrain", 0, GREY, "SFT")]
        series += [(f"{method}, {kind}", -1, COLOURS[kind], name) for kind, name in KINDS.items()]
        series = [row for row in series if row[0] in groups]
        ticks = groups[f"{method}, pretrain"]
        for axis, quantity in zip(panels, quantities, strict=True):
            for i, (group, at, colour, label) in enumerate(series):
                shown = {x: variant for x, variant in enumerate(ticks) if variant in groups[group]}
                values = [numbers(worlds, group, variant, quantity, at) for variant in shown.values()]
                mean, _, high = np.transpose([interval(x) for x in values])
                half = high - mean if len(worlds) >= 3 else None
                axis.errorbar(
                    np.array(list(shown)) + 0.12 * i, mean, half, fmt="o", color=colour, label=label
                )
            axis.set_xticks(range(len(ticks)), ticks, rotation=20, fontsize=10)
            axis.set(title=f"{method}: {quantity.replace('_', ' ')}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure
