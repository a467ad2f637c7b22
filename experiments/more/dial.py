"""The dial from helping to herding: does how much an ensemble helps depend on what the raters have seen?

    python experiments/more/dial.py --quick              # one small world: minutes
    python experiments/more/dial.py --seeds 1 2 3 4 5    # five worlds, with intervals
    python experiments/more/dial.py --seen list list,filler,chatter      # two settings of the dial

Raters see lists alone, then one more of the writers' habits, and so on up to all of them. What they have
not seen, each pretraining extrapolates in its own way, and an ensemble averages that away; where they have
seen all, the reward models agree more. Lists are taught by the preferences themselves: there all members err
alike.

A world's language models and samples are made once; each set of seen habits has reward models of its own, and
best-of-n shows what they do (no PPO: its flags change nothing). An interrupted run continues, and --out
runs/overopt uses what that run has made. Into --out go dial.json, a row for each seed and set, and dial.png.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # overopt.py and what it imports
sys.path.insert(0, str(Path(__file__).parents[2]))  # the five files of the core

import numpy as np

import overopt
from claims import KINDS, interval, pair_means, rank_correlation
from figures import COLOURS, GREY, band, plt, write_png
from pool import Pool, processes
from report import exit_status, parser_of, write_json
from world import HABIT_NAMES


def measure(evidence):
    """What the reward models of a world do: {name: number}."""
    gold, lists, F = evidence.gold, evidence.traits["list"], evidence.F
    best = {kind: evidence.mean("gold", "best of n", kind) for kind in KINDS}
    _, within, between = pair_means(rank_correlation(evidence.scores.reshape(len(evidence.scores), -1)), F)
    return {
        "accuracy": evidence.accuracy.mean(),
        "gold SFT": gold.mean(),
        **{f"gold {kind}": best[kind] for kind in KINDS},
        "gain finetune": best["finetune"] - best["single"],
        "gain pretrain": best["pretrain"] - best["single"],
        "lists SFT": lists.mean(),
        "lists pretrain": evidence.mean("list", "best of n", "pretrain"),
        "correlation within": within,
        "correlation between": between,
    }


def over_seeds(rows, sets, name):
    """One quantity of all rows: (seeds, sets)."""
    return np.transpose([[row[name] for row in rows if row["seen"] == seen] for seen in sets])


def table(rows, sets):
    """Means over the worlds, a column for each set; gains and lists with their 95 % intervals."""
    lines = [f"{'habits seen':<20}" + "".join(f"{len(seen):>22}" for seen in sets)]
    for name in [name for name in rows[0] if name not in ("seed", "seen")]:
        cells = []
        for column in over_seeds(rows, sets, name).T:
            mean, low, high = interval(column)
            bounded = len(column) >= 3 and name.startswith(("gain", "lists"))
            cells.append(f"{mean:.2f}" + (f" [{low:5.2f}, {high:5.2f}]" if bounded else ""))
        lines.append(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def draw(rows, sets):
    """Gain of each ensemble, and lists, against the number of habits that raters see: means over worlds,
    bands from three worlds on."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    counts = [len(seen) for seen in sets]
    for i, name in enumerate(["gain finetune", "gain pretrain", "lists SFT", "lists pretrain"]):
        values, kind = over_seeds(rows, sets, name), name.split()[1]
        band(axes[i // 2], counts, values, COLOURS.get(kind, GREY), KINDS.get(kind, kind))
    titles = ("Gold: gain over one reward model", "Lists: the error that all members share")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel=f"habits that raters see, of {len(HABIT_NAMES)}", xticks=counts)
        axis.legend()
    figure.tight_layout()
    return figure


def rows_of_world(s, seed, sets, task, device, pool):
    """One world: a row for each set of seen habits. Language models and samples are the same for all."""
    rows = []
    for seen in sets:
        trained = overopt.train_models(replace(s, seen=seen), seed, task, device, pool)
        row = measure(overopt.evaluate_samples(trained, pool))
        rows.append({"seed": seed, "seen": seen, **row})
        pool.say(f"    raters see {', '.join(seen)}: {row['lists pretrain']:.0%} lists")
    return rows


def habits(text):
    """One value of --seen, always with lists: habits("filler,chatter") -> ("list", "filler", "chatter")."""
    return tuple(dict.fromkeys(["list", *text.split(",")]))


def main(argv=None):
    """The command line, checked as far as can be before the work, then the work."""
    parser = parser_of(__doc__, conflict_handler="resolve")
    overopt.add_flags(parser)  # --seen is one of them; here it takes several sets
    others = [name for name in HABIT_NAMES if name != "list"]
    growing = [("list", *others[:count]) for count in range(len(others) + 1)]
    sets = {"type": habits, "nargs": "+", "default": growing, "metavar": "HABIT,HABIT"}
    parser.add_argument("--seen", **sets, help="sets of habits (default: lists, then one more at a time)")
    given = parser.parse_args(argv)
    sets, given.seen = sorted(dict.fromkeys(given.seen), key=len), None
    s, out = overopt.settings_from(given), given.out or Path("runs/dial")
    for seen in sets:
        replace(s, seen=seen)  # ValueError if there is no such habit
    if min(s.pretrain_seeds, s.finetune_seeds) < 2:
        raise ValueError("--pretrain-seeds and --finetune-seeds must be >= 2: ensembles are compared")
    overopt.check_folder(out, s, given.seeds, given.task)
    with processes(given.processes) as executor:
        pool, rows = Pool(executor, out / "cache"), []
        for seed in given.seeds:
            rows += rows_of_world(s, seed, sets, given.task, given.device, pool)
    found = {"task": given.task, "settings": asdict(s) | {"seen": sets}, "rows": overopt.rounded(rows)}
    write_json(found, out / "dial.json")
    write_png(draw(rows, sets), out / "dial.png")
    print(f"\n{given.task}, best of {s.n}; dial.json and dial.png are in {out}\n{table(rows, sets)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
