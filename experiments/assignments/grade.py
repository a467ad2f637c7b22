"""Grade a class: a row of points for each student.

    python experiments/assignments/grade.py handed-in --out grades     # grades.csv, and a NAME.md for each
    python experiments/assignments/grade.py handed-in --words          # or what they say, on the screen
    python experiments/assignments/grade.py handed-in --only 8 --bank runs/other/bank-7-tldr.npz

In handed-in, each student has a folder, or files with a name in front as learning platforms make them, such
as ada_123_3_kl.py. Each check that passes gives an equal share of the assignment's points. An answer runs in
a process of its own (see check.py), for --limit seconds at most.
"""

import argparse
import csv
import html
import io
import os
import platform
import re
import secrets
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from answer import resource, syntax_tree
from check import CHECKS, HERE, check_names, hand_ins, report, verdicts
from expect import Given, Wrong, clean, describe

from models import commit
from pool import write_whole

RESERVED = ("points", "the solution")  # no student is shown by these names
POINTS = {1: 5, 2: 5, 3: 10, 4: 10, 5: 10, 6: 10, 7: 20, 8: 30}


def owner(name):
    """A student's name from what platforms make of it: ada_LATE_12_345 and ada_12_assignsubmission_file are
    ada_12."""
    return re.sub(r"(_LATE)?(_\d+)(_\d+|_assignsubmission_\w+)?$", r"\2", name)


def students_of(folder):
    """{student: {number: paths}}: each folder in it is a student's; files are by their prefix, "ada_123" of
    ada_123_3_kl.py and of ada_123_45678_3_kl.py. A folder that holds plain answers is one student's. The
    number of files that are not named as the stubs is None."""
    students, found = defaultdict(lambda: defaultdict(list)), hand_ins(folder, depth=7)
    one = any(number and not prefix and path.parent == folder for number, prefix, path in found)
    for number, prefix, path in found:
        inside = path.relative_to(folder).parts
        if not number and not one and len(inside) == 1:
            if not (start := re.match(r".+?(_LATE)?_\d+(_\d+|_assignsubmission_[a-z]+)?(?=_)", path.stem)):
                continue  # nobody's
            prefix = start[0]
        students[owner(inside[0] if len(inside) > 1 else prefix) or folder.name][number].append(path)
    for place in folder.iterdir():  # who handed in nothing of use has a row too
        if place.is_dir() and not place.name.startswith((".", "__")):
            students[owner(place.name)]  # a defaultdict: that makes one
    shown = {}
    for name in sorted(students):
        words = clean(name, 50).strip() or "?"
        while words.casefold() in {*map(str.casefold, shown), *RESERVED}:
            words += " (another)"
        shown[words] = students[name]
    return shown


def grade(given, limit, number, files):
    """One assignment of one student -> {check: points}, what is said, what was measured, and a digest."""
    try:
        found, measured, tree = verdicts(number, files, given, limit)
    except (Wrong, OSError) as wrong:
        found, measured, tree = dict.fromkeys(check_names(number), clean(wrong)), {}, None
    marks = {check: (wrong is None) * POINTS[number] / len(found) for check, wrong in found.items()}
    return marks, list(report(found, measured)), measured, tree


def grade_all(students, numbers, given, limit):
    """{student: {number: grade}}, several answers at a time; prints a line when a student is done."""
    start, grades = time.monotonic(), {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begin = partial(pool.submit, grade, given, limit)
        rows = {name: {n: begin(n, files[n]) for n in numbers} for name, files in students.items()}
        for name, files in students.items():
            grades[name] = {n: future.result() for n, future in rows[name].items()}
            missing = " ".join(str(n) for n in numbers if not files[n])
            lacking = f", not handed in: {missing}" if missing else ""
            lacking += f", {ignored(files)}" if files[None] else ""
            total = sum(sum(marks.values()) for marks, *_ in grades[name].values())
            print(f"{name}: {total:.3g} points{lacking} ({time.monotonic() - start:.0f} s)", flush=True)
    return grades


def ignored(files):
    """What is said of files that are not named as the stubs are."""
    return "ignored, not named as the stubs: " + clean(", ".join(path.name for path in files[None]), 200)


def table(grades, numbers):
    """Rows: the points by assignment, and in all; first those that can be had."""
    rows = {"points": [POINTS[n] for n in numbers]}
    rows |= {name: [sum(row[n][0].values()) for n in numbers] for name, row in grades.items()}
    yield ["student", *map(str, numbers), "total"]
    yield from ([name, *(f"{points:.3g}" for points in [*row, sum(row)])] for name, row in rows.items())


def by_check(grades, numbers):
    """Rows of grades.csv: the points by check, and in all."""
    yield ["student", *(f"{n} {check[6:]}" for n in numbers for check in check_names(n)), "total"]
    for name, row in grades.items():
        points = [mark for n in numbers for mark in row[n][0].values()]
        yield [
            "'" * name.startswith(tuple("=+-@")) + name,
            *(round(mark, 2) for mark in points),
            round(sum(points), 2),
        ]


def feedback(name, files, row):
    """What a student is told, as Markdown."""
    lines = [f"# {html.escape(name)}"] + ["\n" + html.escape(ignored(files), quote=False)] * bool(files[None])
    for number, (marks, said, _, _) in row.items():
        title = f"{CHECKS[number].stem}: {sum(marks.values()):.3g} of {POINTS[number]} points"
        lines += [f"\n## {title}\n", *(f"- {html.escape(line, quote=False)}" for line in said)]
    return "\n".join(lines) + "\n"


def alike(grades, numbers):
    """Warnings: answers of several students, or of one and tests/solutions, that are the same code."""
    for n in numbers:
        owners, name = defaultdict(list), CHECKS[n].name
        for student, row in grades.items():
            owners[row[n][3]].append(student)
        stub, solution = (folder / name for folder in (HERE / "stubs", HERE.parents[1] / "tests/solutions"))
        if solution.exists():
            owners[syntax_tree(solution.read_text("utf-8"), name)].append("the solution")
        for tree, names in owners.items():
            if len(names) > 1 and tree not in (None, syntax_tree(stub.read_text("utf-8"), name)):
                yield f"warning: {n}: {' and '.join(names)} have the same syntax tree"


def late(grades):
    """A warning: answers that have run out of time, perhaps on a busy machine."""
    found = [
        f"{name} {n}" for name, row in grades.items() for n in row if "not finished after" in str(row[n])
    ]
    if found:
        yield f"warning: out of time, see --limit: {', '.join(found)}"


def leaderboard(grades):
    """Assignment 8: gains over the best baseline, the largest first."""
    found = [(row[8][2], name) for name, row in grades.items() if 8 in row and row[8][2]]
    for measured, name in sorted(found, key=lambda pair: -float(pair[0]["gain"])):
        yield f"8: gold {measured['gain']} +- {measured['standard error']} over the best baseline: {name}"


def main(argv=None):
    """The command line: grade a folder of hand-ins."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path, help="of the hand-ins")
    parser.add_argument("--only", nargs="+", type=int, choices=CHECKS, default=list(CHECKS), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for grades.csv, and a NAME.md for each")
    parser.add_argument("--words", action="store_true", help="print what the NAME.md say")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of inputs; default: any")
    parser.add_argument("--bank", type=Path, default=Given.bank, help="for 1, 5, 8 (default: as shipped)")
    parser.add_argument("--models", type=Path, default=Given.models, help="for 6 and 7 (likewise)")
    parser.add_argument("--limit", type=float, default=60, help="seconds for an assignment (%(default)s)")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if not args.limit > 0:
        parser.error(f"--limit must be > 0, got {args.limit:g}")
    given = Given(args.seed, args.bank.resolve(), args.models.resolve())
    numbers = list(dict.fromkeys(args.only))
    students = students_of(args.folder.resolve())
    try:
        print(f"commit {commit()}, Python {platform.python_version()}, torch {torch.__version__}")
        print(describe(given), flush=True)
        if args.out:  # an error now, not after minutes
            args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, KeyError) as error:
        parser.error(str(error))
    if given.bank == Given.bank:
        print("note: students have this bank, so an answer may know it by heart: --bank takes another")
    if not resource:
        print("warning: this system limits no memory and no processes: read the answers first")
    if not students:
        parser.error(f"{args.folder} holds no answers, named as the stubs are")
    grades = grade_all(students, numbers, given, args.limit)
    rows = list(table(grades, numbers))
    width = max(len(row[0]) for row in rows) + 1
    for name, *cells in rows:
        print(f"{name:{width}}" + "".join(f"{cell:>6}" for cell in cells))
    for line in (*alike(grades, numbers), *late(grades), *leaderboard(grades)):
        print(line)
    texts = {f"{name}.md": feedback(name, students[name], row) for name, row in grades.items()}
    if args.words:
        print(*texts.values(), sep="\n")
    if args.out:
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows(by_check(grades, numbers))
        for name, text in {"grades.csv": rows.getvalue(), **texts}.items():
            write_whole(args.out / name, text.encode())


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a student's name may have letters that the terminal lacks
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
