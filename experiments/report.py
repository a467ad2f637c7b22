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
from claims import KINDS, claims_table

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "experiments/results/README.md"]
RECORD_KEYS = set("seed task settings accuracy claims best_of_n agreement traits ppo texts".split())
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
            missing = RECORD_KEYS.difference(record)
        except (ValueError, TypeError):
            missing = RECORD_KEYS
        if missing:
            raise ValueError(f"{path} is not a world's record. Delete it, and make that world again.")
        records.setdefault(record["task"], []).append(record)
    return {task: sorted(found, key=lambda record: record["seed"]) for task, found in records.items()}


# ----- a run's lines of progress ------------------------------------------------------------------


def sparkline(values, width=12):
    """Numbers as a row of bars: sparkline([0, 1, 2, 3]) is "▁▃▆█"."""
    values = [np.mean(part) for part in np.array_split(values, min(width, len(values)))]
    low, spread = min(values), max(values) - min(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / spread)] for value in values)


def accuracy_line(accuracies, ceiling):
    """How well the reward models tell which response a rater prefers."""
    mean, std = np.mean(accuracies), np.std(accuracies)
    return (
        f"They order {mean:.1%} (std {std:.1%}) of unseen pairs as the raters do; "
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
    seeds = ", ".join(str(record["seed"]) for record in records)
    title = f"{records[0]['task']}: {worlds} world{'s' if worlds > 1 else ''} (seed {seeds})"
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
    """The claims of one task in full, with every world's number."""
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


# ----- the READMEs --------------------------------------------------------------------------------


def found_bullets(records):
    """The main README's four findings, each for every task."""
    tables = {task: {row["id"]: row for row in claims_table(found)} for task, found in records.items()}

    def each_task(name):
        rows = {task: table[name] for task, table in tables.items() if name in table}
        return ", ".join(f"{task} {number(row)}" for task, row in rows.items())

    def shares(policy, trait):
        means = {
            task: np.mean([r["traits"][policy][trait] for r in found]) for task, found in records.items()
        }
        return ", ".join(f"{task} {mean:.0%}" for task, mean in means.items())

    return f"""\
- **Overoptimisation of one reward model.** True reward lost from the best of 8 to the best of 64:
  {each_task("overopt_bon")}; in PPO, from the larger KL weight to the smaller: {each_task("overopt_rl")}.
- **Ensembles against one reward model.** True reward gained by a pretrain ensemble, best of 64:
  {each_task("bon_pretrain_vs_single")}; PPO: {each_task("rl_pretrain_vs_single")}.
- **Pretraining seeds against finetuning seeds.** True reward gained by a pretrain ensemble over a finetune
  ensemble, best of 64: {each_task("bon_pretrain_vs_finetune")}; PPO: {each_task("rl_pretrain_vs_finetune")}.
- **What ensembles do not eliminate.** Lists, which nobody rewards, are {shares("SFT", "list")} of SFT's
  responses, and {shares("PPO, pretrain", "list")} under PPO on pretrain ensembles. Change in length there,
  in words: {each_task("herd_length")}."""


def sections(records):
    """{name: text} of what the READMEs fill in between <!-- name --> and <!-- end -->."""
    first = next(iter(records.values()))
    worlds = [
        f"- {task}: seeds {', '.join(str(r['seed']) for r in found)}" for task, found in records.items()
    ]
    results = [
        f"## {task}\n\n{full_markdown(found)}\n\n{traits_markdown(found)}" for task, found in records.items()
    ]
    return {
        "found": found_bullets(records),
        "post": f"```\n{post_lines(first[0]['texts'][0])}\n```",
        "claims": claims_markdown(records),
        "worlds": "\n".join(worlds),
        "results": "\n\n".join(results),
    }


def fill(page, records):
    """A README's text with its sections filled in anew."""
    for name, text in sections(records).items():
        pattern = f"(<!-- {name} -->\n).*?(<!-- end -->)"
        page = re.sub(
            pattern, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL
        )
    return page


def main():
    """The claims of every task in a folder, printed, or filled into the READMEs -> exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--readme", action="store_true", help="fill the READMEs' tables from these records")
    arguments = parser.parse_args()
    try:
        records = load_records(arguments.folder)
        if not records:
            raise ValueError(
                f"{arguments.folder} has no world-*.json: see python experiments/overopt.py --help"
            )
        for found in records.values():
            print(summary(found) + "\n")
        if arguments.readme:
            for path in READMES:
                path.write_text(fill(path.read_text(), records))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
