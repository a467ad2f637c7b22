"""Fills in what README.md and experiments/results/README.md say of the records in experiments/results.

    python experiments/more/readme.py

A page marks a place with <!-- name --> and <!-- end -->: `sections` makes what stands between. A test fails
when a page and the records differ.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT)]

import numpy as np
from claims import CLAIMS, claims_table
from report import agreement, load_records, mean_and_interval, post_lines

RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", RESULTS / "README.md"]


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def claims_markdown(tables, records):
    """A row for each claim, a column for each task: mean and interval; bold where it is reproduced."""
    rows = []
    for id in CLAIMS:
        cells = []
        for table in tables.values():
            bold = "**" if id in table and table[id]["verdict"] == "reproduced" else ""
            cells.append(bold + mean_and_interval(table[id]) + bold if id in table else "")
        rows.append([f"`{id}`", *cells])
    return markdown(["claim", *(f"{task} ({len(found)} worlds)" for task, found in records.items())], rows)


def full_markdown(table):
    """The claims of one task in full, with every world's number."""
    rows = []
    for id, row in table.items():
        each = " ".join(f"{number:+.2f}" for number in row["numbers"])
        median = f"{row['median']:+.2f}"
        rows.append([f"`{id}`", mean_and_interval(row), median, agreement(row), row["verdict"], each])
    return markdown(["claim", "mean and interval", "median", "agree", "verdict", "each world"], rows)


def traits_markdown(records):
    """Mean traits and gold of each policy of a task, over worlds."""
    rows, names = [], list(records[0]["traits"]["SFT"])
    for policy in records[0]["traits"]:
        means = [np.mean([r["traits"][policy][name] for r in records]) for name in names]
        rows.append([policy, *(f"{mean:.2f}" for mean in means)])
    return markdown(["policy", *names], rows)


def world_line(task, records):
    """Which worlds a task has, and how well their reward models know the raters."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    accuracy, ceiling = (np.mean([r["accuracy"][name] for r in records]) for name in ("mean", "ceiling"))
    orders = f"reward models order {accuracy:.1%} of unseen pairs as the raters do, gold {ceiling:.1%}"
    return f"- {task}: seeds {seeds}; {orders}"


def sections(records):
    """{name: text} of all that a page may ask for. A claim's id: its mean and interval, task by task."""
    tables = {task: {row["id"]: row for row in claims_table(found)} for task, found in records.items()}
    texts = {}
    for id in CLAIMS:
        found = [f"{task} {mean_and_interval(table[id])}" for task, table in tables.items() if id in table]
        texts[id] = ", ".join(found)
    first = next(iter(records.values()))[0]
    results = [f"## {t}\n\n{full_markdown(tables[t])}\n\n{traits_markdown(records[t])}" for t in records]
    return texts | {
        "post": f"\n```\n{post_lines(first['texts'][0])}\n```\n",
        "claims": f"\n{claims_markdown(tables, records)}\n",
        "measures": "\n" + "\n".join(f"- `{id}`: {claim.statement}" for id, claim in CLAIMS.items()) + "\n",
        "worlds": "\n" + "\n".join(world_line(*item) for item in records.items()) + "\n",
        "results": "\n" + "\n\n".join(results) + "\n",
    }


def fill(page, texts):
    """A page with its places filled in anew: fill("x <!-- a -->1<!-- end -->", {"a": "2"}) has 2 for 1."""
    place = re.compile(r"(<!-- (\w+) -->).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda match: match[1] + texts[match[2]] + match[3], page)


def main():
    """Fill both pages."""
    texts = sections(load_records(RESULTS))
    for path in PAGES:
        path.write_text(fill(path.read_text("utf-8"), texts), "utf-8")


if __name__ == "__main__":
    main()
