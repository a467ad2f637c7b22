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
from claims import CLAIMS, KINDS, claims_table
from world import TASKS

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "experiments/results/README.md"]
NAMES = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}
KEYS = set("seed task settings accuracy claims best_of_n traits ppo texts".split())


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


def on_folder(parser, use):
    """The start of a script on a run's folder: use(arguments, records)."""
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    arguments = parser.parse_args()
    records = load_records(arguments.folder)
    if not records:
        raise ValueError(f"{arguments.folder} has no world-*.json: see experiments/overopt.py --help")
    use(arguments, records)


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


def agree(row):
    """In how many worlds a claim's number has its sign: "7 of 8"."""
    return f"{row['agree']} of {len(row['numbers'])}" if row["sign"] else ""


def summary(records):
    """What the worlds of a task say, for the terminal: a line for each claim."""
    worlds, seeds = len(records), ", ".join(str(record["seed"]) for record in records)
    lines = [f"{records[0]['task']}: {worlds} world{'s' if worlds > 1 else ''} (seed {seeds})"]
    lines.append(f"  {'claim':<24} {'mean [95 % interval]':<22} {'agree':>8}  verdict")
    for row in claims_table(records):
        lines.append(f"  {row['id']:<24} {number(row):<22} {agree(row):>8}  {row['verdict']}")
    if worlds < 3:
        lines.append("  One world shows numbers, not verdicts: three or more have intervals (--seeds 1 2 3).")
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
            cells[1 + column] = f"{bold}{number(row)}{bold}"
    worlds = [f"{task} ({len(found)} worlds)" for task, found in records.items()]
    return markdown(["claim", *worlds], rows.values())


def full_markdown(records):
    """The claims of one task in full, with every world's number."""
    rows = []
    for row in claims_table(records):
        median, *numbers = [f"{x:+.2f}" for x in (row["median"], *row["numbers"])]
        cells = [number(row), median, agree(row), row["verdict"], " ".join(numbers)]
        rows.append([f"`{row['id']}`", *cells])
    return markdown(["claim", "mean and interval", "median", "agree", "verdict", "each world"], rows)


def traits_markdown(records):
    """Mean traits and gold of each policy of a task, over worlds."""
    rows, names = [], list(records[0]["traits"]["SFT"])
    for policy in records[0]["traits"]:
        means = [np.mean([r["traits"][policy][name] for r in records]) for name in names]
        rows.append([policy, *(f"{mean:.2f}" for mean in means)])
    return markdown(["policy", *names], rows)


# ----- the READMEs --------------------------------------------------------------------------------
def found_bullets(records):
    """The main README's four findings, each for every task that has it."""
    weights = next(iter(records.values()))[0]["settings"]["kl_weights"]
    tables = {task: {row["id"]: row for row in claims_table(found)} for task, found in records.items()}

    def each_task(name):
        rows = {task: table[name] for task, table in tables.items() if name in table}
        return ", ".join(f"{task} {number(row)}" for task, row in rows.items())

    findings = {
        "Overoptimisation of one reward model": {
            "true reward lost from the best of 8 to the best of 64": "overopt_bon",
            f"by PPO, from KL weight {max(weights)} to {min(weights)}": "overopt_rl",
        },
        "Ensembles against one reward model": {
            "true reward gained by pretrain ensembles, best of 64": "bon_pretrain_vs_single",
            "PPO": "rl_pretrain_vs_single",
        },
        "Pretraining seeds against finetuning seeds": {
            "true reward gained by pretrain over finetune ensembles, best of 64": "bon_pretrain_vs_finetune",
            "PPO": "rl_pretrain_vs_finetune",
        },
        "What ensembles do not eliminate": {
            "PPO on pretrain ensembles changes the share of lists, which nobody rewards, by": "herd_list",
            "the length in words by": "herd_length",
        },
    }
    lines = []
    for title, parts in findings.items():
        text = "; ".join(f"{words}: {each_task(name)}" for words, name in parts.items())
        lines.append(f"- **{title}.** {text[0].upper()}{text[1:]}.")
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
        "found": found_bullets(records),
        "post": f"```\n{post_lines(first['texts'][0])}\n```",
        "claims": claims_markdown(records),
        "measures": "\n".join(f"- `{claim.id}`: {claim.statement}" for claim in CLAIMS.values()),
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


def show(arguments, records):
    """Print the claims of every task, and fill the READMEs if asked to."""
    for found in records.values():
        print(summary(found) + "\n")
    if arguments.readme:
        for path in READMES:
            path.write_text(fill(path.read_text(), records))


def main():
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--readme", action="store_true", help="fill the READMEs' tables from these records")
    on_folder(parser, show)


if __name__ == "__main__":
    sys.exit(exit_status(main))
