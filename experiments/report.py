"""Text about a run: its lines of progress, its summary, and the tables of all worlds in a folder.

    python experiments/report.py runs/overopt            # every claim of every task, over the worlds there
    python experiments/report.py runs/overopt --readme   # and fill the READMEs' tables from those records

It draws the figures in the folder again, too. Everything is made from the records, world-SEED-TASK.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import figures
import numpy as np
from claims import CLAIMS, KINDS, claims_table
from stages import write_whole
from world import TASKS

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "experiments/results/README.md"]
KEYS = set("seed task settings accuracy claims best_of_n traits ppo texts".split())


# ----- records ------------------------------------------------------------------------------------
def write_json(record, path):
    """Indented JSON, lists of numbers on one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text)
    write_whole(path, lambda file: file.write(text.encode()))


def load_records(folder):
    """{task: its records, ordered by seed} of a folder; ValueError, naming the file, if one is damaged."""
    records = {}
    for path in sorted(folder.glob("world-*.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError:
            record = None
        if not isinstance(record, dict) or not record.keys() >= KEYS:
            raise ValueError(f"{path} is not a world's record. Delete it, and make that world again.")
        records.setdefault(record["task"], []).append(record)
    tasks = [task for task in TASKS if task in records]
    return {task: sorted(records[task], key=lambda record: record["seed"]) for task in tasks}


# ----- scripts ------------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    """Shows a script's docstring as its help, and raises ValueError where argparse would exit."""

    def __init__(self, description, **options):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, **options)

    def error(self, message):
        raise ValueError(f"{message}. See --help.")


def exit_status(function, *args):
    """0; after a user's mistake one line and 2, after Ctrl-C one line and 130."""
    try:
        function(*args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept: the same command continues.", file=sys.stderr)
        return 130
    return 0


# ----- a run's lines of progress ------------------------------------------------------------------
def sparkline(values, width=12):
    """Numbers as a row of bars: sparkline([0, 1, 2, 3]) is "▁▃▆█"."""
    values = [np.mean(part) for part in np.array_split(values, min(width, len(values)))]
    low, spread = min(values), max(values) - min(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / spread)] for value in values)


def accuracy_line(accuracies, ceiling):
    """How well the reward models tell which response a rater prefers."""
    found = f"{np.mean(accuracies):.1%} (std {np.std(accuracies):.1%})"
    return f"They order {found} of unseen pairs as the raters do; the true reward orders {ceiling:.1%}."


def best_of_n_lines(curves):
    """Gold of the best of n by each kind, a line each."""
    lines = ["Best of n: the true reward (gold) of the sample that is rated best."]
    lines.append(f"    {'n':>18} " + " ".join(f"{n:>6}" for n in curves["n"]))
    for kind, name in KINDS.items():
        lines.append(f"    {name:>18} " + " ".join(f"{gold:6.2f}" for gold in curves[kind]["gold"]))
    return "\n".join(lines)


def ppo_line(run):
    """A PPO run: how proxy and gold went, and where they and the KL ended."""
    curve = run["curve"]
    bars = [f"{name} {sparkline(curve[name])} {curve[name][-1]:5.2f}" for name in ("proxy", "gold")]
    where = f"{KINDS[run['kind']]}, KL weight {run['kl_weight']:g}"
    return f"    {where:<32} {bars[0]}   {bars[1]}   KL {curve['kl'][-1]:4.1f}"


def post_lines(text):
    """A post and what each policy made of it; proxy is the reward that the policy was aligned to."""
    lines = [f"A post: {text['post']}", f"    {'':>22}  proxy   gold"]
    for response in text["responses"]:
        policy, proxy, gold = response["policy"], response["proxy"], response["gold"]
        lines.append(f"    {policy:>22} {proxy:6.2f} {gold:6.2f}  {response['text']}")
    return "\n".join(lines)


# ----- tables -------------------------------------------------------------------------------------
def mean_and_interval(row):
    """A claim's: "+0.15 [+0.06, +0.24]", or the mean alone of one world."""
    if not np.isfinite(row["low"]):
        return f"{row['mean']:+.2f}"
    return f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def agreement(row):
    """In how many worlds a claim's number has its sign: "7 of 8"."""
    return f"{row['agree']} of {len(row['numbers'])}" if row["sign"] else ""


def summary(records):
    """What the worlds of a task say, for the terminal: a line for each claim."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    lines = [f"{records[0]['task']}, worlds {seeds}"]
    lines.append(f"  {'claim':<24} {'mean [95 % interval]':<22} {'agree':>8}  verdict")
    for row in claims_table(records):
        numbers = f"{mean_and_interval(row):<22} {agreement(row):>8}"
        expected = "  (the paper: below 0)" if row["sign"] < 0 else ""
        lines.append(f"  {row['id']:<24} {numbers}  {row['verdict']}{expected}")
    if len(records) < 3:
        lines.append("  Fewer than three worlds show numbers, not verdicts: try --seeds 1 2 3.")
    return "\n".join(lines)


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def claims_markdown(records):
    """A row for each claim, a column for each task: mean and interval; bold where it is reproduced."""
    rows = {}
    for column, found in enumerate(records.values()):
        for row in claims_table(found):
            bold = "**" if row["verdict"] == "reproduced" else ""
            cells = rows.setdefault(row["id"], [f"`{row['id']}`"] + [""] * len(records))
            cells[1 + column] = bold + mean_and_interval(row) + bold
    worlds = [f"{task} ({len(found)} worlds)" for task, found in records.items()]
    return markdown(["claim", *worlds], rows.values())


def full_markdown(records):
    """The claims of one task in full, with every world's number."""
    rows = []
    for row in claims_table(records):
        each = " ".join(f"{number:+.2f}" for number in row["numbers"])
        median = f"{row['median']:+.2f}"
        rows.append([f"`{row['id']}`", mean_and_interval(row), median, agreement(row), row["verdict"], each])
    return markdown(["claim", "mean and interval", "median", "agree", "verdict", "each world"], rows)


def traits_markdown(records):
    """Mean traits and gold of each policy of a task, over worlds."""
    rows, names = [], list(records[0]["traits"]["SFT"])
    for policy in records[0]["traits"]:
        means = [np.mean([r["traits"][policy][name] for r in records]) for name in names]
        rows.append([policy, *(f"{mean:.2f}" for mean in means)])
    return markdown(["policy", *names], rows)


# ----- the READMEs --------------------------------------------------------------------------------
FINDINGS = (  # of the main README: a title, then claims in words
    ("Overoptimisation of one reward model",
        ("True reward lost from the best of 8 to the best of 64", "overopt_bon"),
        ("by PPO, as the KL weight falls from {} to {}", "overopt_rl")),
    ("Ensembles against one reward model",
        ("True reward gained by pretrain ensembles, best of 64", "bon_pretrain_vs_single"),
        ("PPO", "rl_pretrain_vs_single")),
    ("Pretraining seeds against finetuning seeds",
        ("True reward gained by pretrain over finetune ensembles, best of 64", "bon_pretrain_vs_finetune"),
        ("PPO", "rl_pretrain_vs_finetune")),
    ("What ensembles do not eliminate",
        ("PPO on pretrain ensembles changes the share of lists, which nobody rewards, by", "herd_list"),
        ("the length in words by", "herd_length")),
)  # fmt: skip


def findings(records):
    """The bullets of FINDINGS, each claim for every task that has it."""
    tables = {task: {row["id"]: row for row in claims_table(found)} for task, found in records.items()}
    weights = next(iter(records.values()))[0]["settings"]["kl_weights"]
    lines = []
    for title, *parts in FINDINGS:
        texts = []
        for words, id in parts:
            found = [f"{task} {mean_and_interval(rows[id])}" for task, rows in tables.items() if id in rows]
            words = words.format(max(weights), min(weights))
            texts.append(f"{words}: {', '.join(found)}")
        lines.append(f"- **{title}.** {'; '.join(texts)}.")
    return "\n".join(lines)


def sections(records):
    """{name: text} of what the READMEs fill in between <!-- name --> and <!-- end -->."""
    worlds, results = [], []
    for task, found in records.items():
        seeds = ", ".join(str(record["seed"]) for record in found)
        accuracy = np.mean([record["accuracy"]["mean"] for record in found])
        ceiling = np.mean([record["accuracy"]["ceiling"] for record in found])
        orders = f"reward models order {accuracy:.1%} of unseen pairs as the raters do, gold {ceiling:.1%}"
        worlds.append(f"- {task}: seeds {seeds}; {orders}")
        results.append(f"## {task}\n\n{full_markdown(found)}\n\n{traits_markdown(found)}")
    first = next(iter(records.values()))[0]
    return {
        "found": findings(records),
        "post": f"```\n{post_lines(first['texts'][0])}\n```",
        "claims": claims_markdown(records),
        "measures": "\n".join(f"- `{id}`: {claim.statement}" for id, claim in CLAIMS.items()),
        "worlds": "\n".join(worlds),
        "results": "\n\n".join(results),
    }


def fill(page, records):
    """A README's text with its sections filled in anew."""
    for name, text in sections(records).items():
        before, section, after = page.partition(f"<!-- {name} -->\n")
        if section:
            page = before + section + text + "\n<!-- end -->" + after.partition("<!-- end -->")[2]
    return page


def main():
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--readme", action="store_true", help="fill the READMEs' tables from these records")
    arguments = parser.parse_args()
    records = load_records(arguments.folder)
    if not records:
        raise ValueError(f"{arguments.folder} is no folder with world-*.json files, as overopt.py --out has")
    for found in records.values():
        print(summary(found) + "\n")
        figures.draw(found, arguments.folder)
    if arguments.readme:
        for path in READMES:
            path.write_text(fill(path.read_text(), records))


if __name__ == "__main__":
    sys.exit(exit_status(main))
