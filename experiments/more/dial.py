"""The dial from helping to herding: does how much an ensemble helps depend on what the raters have seen?

    python experiments/more/dial.py --quick              # one small world: minutes
    python experiments/more/dial.py --seeds 1 2 3 4 5    # five worlds, with intervals

Raters see a share of the writers' habits, the coverage, and always lists. What they have not seen, each
pretraining extrapolates in its own way, and an ensemble averages that away; where they have seen all, the
reward models agree more. Lists are taught by the preferences themselves: there all members err alike.

A world's language models and samples are made once; each coverage has reward models of its own, and best-of-n
shows what they do (no PPO: its flags change nothing). An interrupted run continues, and --out runs/overopt
uses what that run has made. Into --out go dial.json, a row for each seed and coverage, and dial.png.
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


def measure(evidence):
    """What the reward models of a world do: {name: number}."""
    gold, lists, F = evidence.gold, evidence.traits["list"], evidence.scores.shape[1]
    best = {kind: evidence.mean("gold", "best of n", kind) for kind in KINDS}
    _, within, between = pair_means(rank_correlation(evidence.flat.reshape(len(evidence.flat), -1)), F)
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


def over_seeds(rows, coverages, name):
    """One quantity of all rows: (seeds, coverages)."""
    return np.transpose([[row[name] for row in rows if row["coverage"] == c] for c in coverages])


def table(rows, coverages):
    """Means over the worlds, a column for each coverage; gains and lists with their 95 % intervals."""
    lines = [f"{'coverage':<20}" + "".join(f"{c:>22g}" for c in coverages)]
    for name in [name for name in rows[0] if name not in ("seed", "coverage")]:
        cells = []
        for column in over_seeds(rows, coverages, name).T:
            mean, low, high = interval(column)
            bounded = len(column) >= 3 and name.startswith(("gain", "lists"))
            cells.append(f"{mean:.2f}" + (f" [{low:5.2f}, {high:5.2f}]" if bounded else ""))
        lines.append(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def draw(rows, coverages):
    """Gain of each ensemble, and lists, against coverage: means over worlds, bands from three worlds on."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    for i, name in enumerate(["gain finetune", "gain pretrain", "lists SFT", "lists pretrain"]):
        values, kind = over_seeds(rows, coverages, name), name.split()[1]
        band(axes[i // 2], coverages, values, COLOURS.get(kind, GREY), KINDS.get(kind, kind))
    titles = ("Gold: gain over one reward model", "Lists: the error that all members share")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="coverage: share of habits that raters see")
        axis.legend()
    figure.tight_layout()
    return figure


def rows_of_world(s, seed, coverages, task, device, pool):
    """One world: a row for each coverage. Language models and samples are the same for all of them."""
    rows = []
    for coverage in coverages:
        trained = overopt.train_models(replace(s, coverage=coverage), seed, task, device, pool)
        row = measure(overopt.best_of_n(trained, pool))
        rows.append({"seed": seed, "coverage": coverage, **row})
        pool.say(f"    coverage {coverage:g}: lists {row['lists pretrain']:.0%}")
    return rows


def main(argv=None):
    """The command line, checked as far as can be before the work, then the work."""
    parser = parser_of(__doc__, conflict_handler="resolve")
    overopt.add_flags(parser)  # --coverage is one of them; here it takes several values
    shares = {"dest": "coverages", "type": float, "nargs": "+", "default": [0.0, 0.25, 0.5, 0.75, 1.0]}
    parser.add_argument("--coverage", **shares, help="what raters see (default 0 0.25 0.5 0.75 1)")
    given = parser.parse_args(argv)
    s, coverages, out = overopt.settings_from(given), sorted(given.coverages), given.out or Path("runs/dial")
    for coverage in coverages:
        replace(s, coverage=coverage)  # ValueError if it makes no sense
    if min(s.pretrain_seeds, s.finetune_seeds) < 2:
        raise ValueError("--pretrain-seeds and --finetune-seeds must be >= 2: ensembles are compared")
    overopt.check_folder(out, s, given.seeds, given.task)
    with processes(given.processes) as executor:
        pool, rows = Pool(executor, out / "cache"), []
        for seed in given.seeds:
            rows += rows_of_world(s, seed, coverages, given.task, given.device, pool)
    found = {
        "task": given.task,
        "settings": asdict(s) | {"coverage": coverages},
        "rows": overopt.rounded(rows),
    }
    write_json(found, out / "dial.json")
    write_png(draw(rows, coverages), out / "dial.png")
    print(f"\n{given.task}, best of {s.n}; dial.json and dial.png are in {out}\n{table(rows, coverages)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
