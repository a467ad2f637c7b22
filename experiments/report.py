"""What was found, as text: a run's lines of progress, its summary, and the tables of all worlds in a folder.

python experiments/report.py runs/overopt            # every claim of every task, over the worlds there
python experiments/report.py runs/overopt --readme   # and fill the tables of the READMEs from those records
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import numpy as np

from claims import KINDS, claims_table, interval

ROOT = Path(__file__).parent.parent
NAMES = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}


# ----- records ------------------------------------------------------------------------------------


def to_json(record):
    """Bytes of indented JSON, lists of numbers on one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text).encode()


def load_records(folder):
    """{task: its records, ordered by seed} of a folder; ValueError, naming the file, if one is damaged."""
    records = {}
    for path in sorted(folder.glob("world-*.json")):
        try:
            record = json.loads(path.read_text())
            records.setdefault(record["task"], []).append(record)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} is not a world's record. Delete it, and make that world again."
            ) from None
    return {task: sorted(found, key=lambda record: record["seed"]) for task, found in records.items()}


# ----- a run's lines of progress ------------------------------------------------------------------


def sparkline(values, width=12):
    """Numbers as a row of bars: sparkline([0, 1, 2, 3]) is "▁▃▆█"."""
    values = [np.mean(part) for part in np.array_split(values, min(width, len(values)))]
    low, spread = min(values), max(values) - min(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / spread)] for value in values)


def accuracy_line(accuracies, ceiling):
    """How well the reward models tell which response a rater prefers."""
    return (
        f"They order {np.mean(accuracies):.1%} (std {np.std(accuracies):.1%}) of unseen pairs as the raters do; "
        f"the true reward itself orders {ceiling:.1%}, since raters are noisy."
    )


def best_of_n_lines(curves):
    """Gold of the best of n by each kind, a line each."""
    lines = ["Best of n: the true reward (gold) of the sample that is rated best."]
    lines.append(f"    {'n':>18} " + " ".join(f"{n:>6}" for n in curves["n"]))
    for kind in KINDS:
        lines.append(f"    {NAMES[kind]:>18} " + " ".join(f"{gold:6.2f}" for gold in curves[kind]["gold"]))
    return "\n".join(lines)


def ppo_line(run):
    """A PPO run: how proxy and gold went, and where they and the KL ended."""
    curve = run["curve"]
    bars = [f"{name} {sparkline(curve[name])} {curve[name][-1]:5.2f}" for name in ("proxy", "gold")]
    where = f"{NAMES[run['kind']]}, KL weight {run['kl_weight']:g}"
    return f"    {where:<32} {bars[0]}   {bars[1]}   KL {curve['kl'][-1]:4.1f}"


def post_lines(text):
    """A post and what each policy made of it; proxy is the reward that the policy was aligned to."""
    lines = [f"A post: {text['post']}", f"    {'':>22}  proxy   gold"]
    for response in text["responses"]:
        policy, proxy, gold = response["policy"], response["proxy"], response["gold"]
        lines.append(f"    {policy:>22} {proxy:6.2f} {gold:6.2f}  {response['text']}")
    return "\n".join(lines)


# ----- tables -------------------------------------------------------------------------------------


def number(row):
    """A claim's mean and interval: "+0.15 [+0.06, +0.24]", or the mean alone of one world."""
    if not np.isfinite(row["low"]):
        return f"{row['mean']:+.2f}"
    return f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def claims_lines(records):
    """The claims of a task for the terminal, a line each."""
    lines = []
    for row in claims_table(records):
        agree = f"{row['agree']} of {len(row['numbers'])}" if row["sign"] else ""
        lines.append(f"  {row['id']:<24} {number(row):<22} {agree:>8}  {row['verdict']}")
    return lines


def summary(records):
    """What the worlds of a task say: at most 40 lines."""
    worlds = len(records)
    title = f"{records[0]['task']}: {worlds} world{'s' if worlds > 1 else ''} (seed {', '.join(str(r['seed']) for r in records)})"
    lines = [
        title,
        f"  {'claim':<24} {'mean [95 % interval]':<22} {'agree':>8}  verdict",
        *claims_lines(records),
    ]
    if worlds < 3:
        lines.append("  One world shows numbers, not verdicts: three or more have intervals (--seeds 1 2 3).")
    return "\n".join(lines)


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def claims_markdown(records):
    """A row for each claim, a column for each task: mean and interval; bold where it is reproduced."""
    tables = {task: {row["id"]: row for row in claims_table(found)} for task, found in records.items()}
    statements = {row["id"]: row["statement"] for table in tables.values() for row in table.values()}
    rows = []
    for name, statement in statements.items():
        found = [table.get(name) for table in tables.values()]
        cells = [
            "" if row is None else f"**{number(row)}**" if row["verdict"] == "reproduced" else number(row)
            for row in found
        ]
        rows.append([f"`{name}`", statement, *cells])
    worlds = [f"{task} ({len(found)} worlds)" for task, found in records.items()]
    return markdown(["claim", "what is measured", *worlds], rows)


def full_markdown(records):
    """The claims of one task in full: mean, interval, median, agreement, verdict, and every world's number."""
    rows = []
    for row in claims_table(records):
        agree = f"{row['agree']} of {len(row['numbers'])}" if row["sign"] else ""
        dots = " ".join(f"{x:+.2f}" for x in row["numbers"])
        rows.append([f"`{row['id']}`", number(row), f"{row['median']:+.2f}", agree, row["verdict"], dots])
    return markdown(["claim", "mean and interval", "median", "agree", "verdict", "each world"], rows)


def traits_markdown(records):
    """Mean traits and gold of each policy of a task, over worlds."""
    policies, names = list(records[0]["traits"]), list(records[0]["traits"]["SFT"])
    rows = [
        [p, *(f"{np.mean([r['traits'][p][name] for r in records]):.2f}" for name in names)] for p in policies
    ]
    return markdown(["policy", *names], rows)


def main():
    """Print every claim of every task in a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    arguments = parser.parse_args()
    records = load_records(arguments.folder)
    for found in records.values():
        print(summary(found) + "\n")


if __name__ == "__main__":
    main()
