"""What a run prints, how its records are written and read, and what all command lines share.

    python experiments/report.py runs/overopt     # every claim of every task, over the worlds there

It draws the figures in the folder again, too. Everything is made from the records, world-SEED-TASK.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import numpy as np

import figures
from claims import KINDS, claims_table, interval
from pool import write_whole
from world import TASKS, decode, judge

KEYS = set("seed task settings accuracy correlation claims gold_std best_of_n traits ppo".split())
KEYS |= {"edits", "ranking"}


def write_json(record, path):
    """Indented JSON, lists of numbers on one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text)
    write_whole(path, text.encode())


def load_records(folder):
    """{task: its records, ordered by seed} of a folder; ValueError, naming the file, if one is damaged."""
    records = {}
    for path in sorted(folder.glob("world-*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError:
            record = None
        if not isinstance(record, dict) or not record.keys() >= KEYS:
            raise ValueError(f"{path} is not a world's record. Delete it, and make that world again.")
        records.setdefault(record["task"], []).append(record)
    tasks = [task for task in TASKS if task in records]
    return {task: sorted(records[task], key=lambda record: record["seed"]) for task in tasks}


def parser_of(docstring):
    """A parser that shows a script's docstring as its help. A mistake is one line, without the usage."""
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "usage": argparse.SUPPRESS}
    return argparse.ArgumentParser(description=docstring, allow_abbrev=False, **options)


def exit_status(function, *args):
    """0; after a user's mistake one line and 2, after Ctrl-C one line and 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal or pipe that has no sparklines, say, shows "?"
    try:
        function(*args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. An experiment continues with the same command.", file=sys.stderr)
        return 130
    return 0


def sparkline(values, low, high, width=10):
    """Numbers as a row of bars: sparkline([0, 1, 2, 3], low=0, high=3) is "▁▃▆█"."""
    values = [np.mean(part) for part in np.array_split(values, min(width, len(values)))]
    heights = np.clip((np.array(values) - low) / (high - low), 0, 1)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * height)] for height in heights)


def gold_in_parts(post, response, task):
    """Gold of a response, a list of tokens: "2.10 = core +1.65, detail +1.00, wrong -0.55"."""
    parts, _ = judge(post, response, task)
    return f"{sum(parts.values()):.2f} = " + ", ".join(f"{name} {x:+.2f}" for name, x in parts.items() if x)


def texts_lines(post, responses, task):
    """A post (P,), and responses to it (n, R), each with its gold."""
    lines = [f"    post  {decode(post)}"]
    for response in responses:
        lines.append(f"          {decode(response)}")
        lines.append(f"              gold {gold_in_parts(post.tolist(), response.tolist(), task)}")
    return "\n".join(lines)


def accuracy_line(accuracies, ceiling):
    """How well the reward models know the raters."""
    spread = f"{np.mean(accuracies):.1%} (std {np.std(accuracies):.1%})"
    limit = f"A coin would order 50%, gold itself {ceiling:.1%}."
    return f"Reward models order {spread} of unseen pairs as raters do. {limit}"


def best_of_n_lines(curves):
    """Gold of the best of n by each kind, a line each."""
    lines = ["Best of n: the true reward (gold) of the sample that is rated best."]
    lines.append(f"    {'n':>18} " + " ".join(f"{n:>6}" for n in curves["n"]))
    for kind, name in KINDS.items():
        lines.append(f"    {name:>18} " + " ".join(f"{gold:6.2f}" for gold in curves[kind]["gold"]))
    return "\n".join(lines)


def ppo_line(ranges, run):
    """A PPO run: how proxy and gold went, where they and the KL ended, and how well the critic predicts.
    ranges: {"proxy": (lowest, highest), "gold": ...} of the bars."""
    curve, where = run["curve"], f"{run['kind']}, KL weight {run['kl_weight']:g}"
    bars = [f"{name} {sparkline(curve[name], *ends)} {curve[name][-1]:5.2f}" for name, ends in ranges.items()]
    critic = np.mean(curve["explained_variance"][-5:])
    return f"  {where:>25}  {bars[0]}  {bars[1]}  KL {curve['kl'][-1]:4.1f}  critic {critic:.2f}"


def film_lines(film):
    """One post, and what PPO on each kind of reward makes of it on its way."""
    lines = [f"A post: {film['post']}"]
    for kind, name in KINDS.items():
        lines.append(f"  PPO on {'a ' * (kind != 'single')}{name}")
        lines.append("    update    KL  proxy   gold")
        for frame in film[kind]["frames"]:
            numbers = f"{frame['kl']:5.1f} {frame['proxy']:6.2f} {frame['gold']:6.2f}"
            lines.append(f"    {frame['update']:6} {numbers}  {frame['text']}")
    return "\n".join(lines)


def mean_and_interval(numbers, sign="+"):
    """One number of each world as text, with an interval from three worlds on: "+0.15 [+0.06, +0.24]"."""
    mean, low, high = interval(numbers)
    bounds = f" [{low:{sign}.2f}, {high:{sign}.2f}]" if len(numbers) >= 3 else ""
    return f"{mean:{sign}.2f}{bounds}"


def agreement(row):
    """In how many worlds a claim's number has its sign: "7 of 8"."""
    return f"{row['agree']} of {len(row['numbers'])}" if row["sign"] else ""


def summary(records):
    """What the worlds of a task say, for the terminal: a line for each claim."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    lines = [f"{records[0]['task']}; seeds: {seeds}"]
    lines.append(f"  {'claim':<29} {'mean [95 % interval]':<22} {'agree':>8}  verdict")
    for row in claims_table(records):
        numbers = f"{mean_and_interval(row['numbers']):<22} {agreement(row):>8}"
        notes = ", fragile" * row["fragile"] + "  (claimed: below 0)" * (row["sign"] < 0)
        lines.append(f"  {row['id']:<29} {numbers}  {row['verdict']}{notes}")
    if len(records) < 3:
        lines.append("  Fewer than three worlds show numbers, not verdicts: try --seeds 1 2 3.")
    return "\n".join(lines)


def show(folder):
    """Print the claims of every task with records in a folder, and draw its figures."""
    records = load_records(folder)
    if not records:
        raise ValueError(f"{folder} has no world-*.json files: give the --out of a run of overopt.py")
    for found in records.values():
        print(summary(found) + "\n")
        figures.draw(found, folder)


def main():
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    show(parser.parse_args().folder)


if __name__ == "__main__":
    sys.exit(exit_status(main))
