"""Grade handed-in assignments: a row of points for each student.

    python experiments/assignments/grade.py handed-in/*/             # a folder for each student
    python experiments/assignments/grade.py handed-in/*/ --words     # and what the failed checks say
    python experiments/assignments/grade.py handed-in/*/ --only 8 --bank runs/other/bank-7-tldr.npz

Only the functions of the stubs are taken from a folder; the checks are those beside this script, so run it
from a clean copy of the repository. Each check that passes gives an equal share of the assignment's points.
An assignment is checked in a process of its own, for --limit seconds at most, if `refusal` in check.py
allows it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from check import CHECKS, HERE, answer_file, functions
from expect import Wrong, describe_bank

POINTS = {1: 10, 2: 10, 3: 10, 4: 10, 5: 15, 6: 15, 7: 15, 8: 15}
MISSING = ["not handed in"]


def grade(folder, limit, number):
    """One assignment of one student -> (points, a list of what is wrong, a dict of what was measured)."""
    try:
        answer_file(number, folder)
    except Wrong as wrong:
        return 0, [str(wrong)], {}
    command = [sys.executable, HERE / "check.py", str(number), "--of", folder, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        output = subprocess.run(command, capture_output=True, env=environment, timeout=limit).stdout
        otherwise = "ended without a verdict"
    except subprocess.TimeoutExpired as stopped:  # what it had said by then still counts
        output, otherwise = stopped.stdout or b"", f"not finished after {limit:g} seconds"
    said = dict(map(json.loads, output.splitlines()))
    words = [said.get(check, otherwise) for check in functions(CHECKS[number], "check_")]
    points = round(POINTS[number] * words.count(None) / len(words), 1)
    return points, list(dict.fromkeys(filter(None, words))), said.get("measured", {})


def grade_student(folder, numbers, limit):
    """{number: (points, words, measured)}, the assignments side by side; prints a line when done."""
    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        grades = dict(zip(numbers, pool.map(partial(grade, folder, limit), numbers), strict=True))
    total, missing = sum(row[0] for row in grades.values()), [n for n in numbers if grades[n][1] == MISSING]
    lacking = f", not handed in: {' '.join(map(str, missing))}" if missing else ""
    print(f"{folder.name}: {total:g} points{lacking} ({time.monotonic() - start:.0f} s)", flush=True)
    return grades


def print_table(students, numbers):
    rows = {"student": [*numbers, "total"], "points": [POINTS[n] for n in numbers]}
    for name, grades in students.items():
        rows[name] = [grades[n][0] for n in numbers]
    width = max(map(len, rows)) + 1
    for name, row in rows.items():
        cells = row if name == "student" else [f"{points:g}" for points in [*row, sum(row)]]
        print(f"{name:{width}}" + "".join(f"{cell:>6}" for cell in cells))


def print_leaderboard(students):
    """Assignment 8: gains over the best aggregator, the largest first."""
    found = [(grades[8][2], name) for name, grades in students.items() if 8 in grades and grades[8][2]]
    for measured, name in sorted(found, key=lambda row: -row[0]["gain"]):
        gain, error = measured["gain"], measured["standard error"]
        print(f"8: gold {gain:+.3f} +- {error:.3f} over the best aggregator: {name}")


def main(argv=None):
    """The command line: grade every folder given."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a student's, named so")
    parser.add_argument("--only", nargs="+", type=int, choices=CHECKS, default=list(CHECKS), metavar="N")
    parser.add_argument("--bank", type=Path, help="the bank for 2, 5 and 8 (default: the repository's)")
    parser.add_argument("--words", action="store_true", help="say what the failed checks say")
    parser.add_argument("--limit", type=float, default=60, help="seconds for an assignment (%(default)s)")
    args = parser.parse_args(argv)
    folders = {folder.resolve().name: folder.resolve() for folder in args.folders}
    if len(folders) < len(args.folders):
        parser.error("two folders have the same name")
    for folder in args.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
        if not any(folder.glob("[0-9]_*.py")) and any(folder.glob("*/[0-9]_*.py")):
            parser.error(f"{folder} holds students' folders: give {folder}/*/")
    if args.bank:
        os.environ["BANK"] = str(args.bank.resolve())
    try:
        print(describe_bank())
    except Wrong as wrong:
        parser.error(str(wrong))
    students = {name: grade_student(folder, args.only, args.limit) for name, folder in folders.items()}
    print_table(students, args.only)
    print_leaderboard(students)
    if args.words:
        for name, grades in students.items():
            print(*(f"\n{name} {n}: {words}" for n in args.only for words in grades[n][1]), sep="")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
