"""Points of handed-in assignments, one row a student.

    python experiments/assignments/grade.py handed-in/*              # a folder for each student, with the test_0*.py as handed in
    python experiments/assignments/grade.py handed-in/* --words      # and each failed check in words
    python experiments/assignments/grade.py handed-in/* --only 8 --bank runs/other/bank-tldr.npz

Only the functions that are a student's to write are taken from a folder; the checks are those beside this script, so run it from a clean copy
of the repository. Each check that passes gives its share of the assignment's points. Students' code runs as you: read it first if you must.
Assignment 5 needs a finished run (RUN, else runs/overopt, else runs/quick), on which any student is graded alike. Assignment 8 is scored anew, into
--leaderboard. A student's folder holds test_01_*.py or solution_01.py and so on; what is missing is worth nothing.
"""
import argparse
from concurrent.futures import ThreadPoolExecutor
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from cache import write_whole
from checks import find_run

FILES = {int(path.stem.split("_")[1]): path for path in sorted(HERE.glob("test_*.py"))}
POINTS = {number: int(re.search(r"^Points +(\d+)$", path.read_text(), re.M)[1]) for number, path in FILES.items()}


def grade(folder, numbers, scratch, bank=None, limit=200):
    """Some assignments of one student -> {number: (points, [what is wrong, in words])}. In a process of its own, for at most `limit` seconds;
    if that ends without verdicts, each assignment in one of its own, so that one endless loop costs one assignment."""
    xml = scratch / "verdicts.xml"
    xml.unlink(missing_ok=True)
    files = {"LEADERBOARD": scratch / "leaderboard.jsonl", "BANK": bank, "RUN": find_run()}
    files = {name: str(path.resolve()) for name, path in files.items() if path}        # the checks run in the repository, not here
    environment = os.environ | files | {"STUDENT": folder.resolve().name, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *(FILES[number] for number in numbers), "--of", folder.resolve(), "--junitxml", xml,
               "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True, timeout=limit)
        why = (done.stderr.strip() or done.stdout.strip() or "ended without a verdict").splitlines()[-1]
    except subprocess.TimeoutExpired:
        why = f"not done after {limit} seconds"
    cases = list(ElementTree.parse(xml).iter("testcase")) if xml.exists() else []
    if not cases and len(numbers) > 1:
        return {number: verdict for one in numbers for number, verdict in grade(folder, [one], scratch, bank, limit).items()}
    found = {}
    for number in numbers:
        own = [case for case in cases if case.get("classname").endswith(FILES[number].stem)]
        words = {case.get("name"): wrong.get("message", "").removeprefix("Failed: ") for case in own for wrong in case
                 if wrong.tag in ("failure", "error", "skipped")}
        share = 1 - len(words) / len(own) if own else 0
        found[number] = round(POINTS[number] * share, 1), [f"{name}: {message}" for name, message in words.items()] if own else [why]
    return found


def table(grades, numbers):
    """{student: {number: (points, words)}} -> lines."""
    width = max(len("student"), *map(len, grades))
    cells = lambda name, row: f"{name:{width}}" + "".join(f"{x:>7}" for x in row)
    rows = {"points": [POINTS[number] for number in numbers]} | {name: [row[number][0] for number in numbers] for name, row in grades.items()}
    heading = cells("student", [f"{number:02}" for number in numbers] + ["total"])
    return [heading] + [cells(name, [f"{x:g}" for x in [*points, round(sum(points), 1)]]) for name, points in rows.items()]


def leaderboard(folders):
    """Rows of the leaderboards in these folders, the largest gain first."""
    rows = [json.loads(line) for folder in folders for path in folder.glob("leaderboard.jsonl") for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: -row["difference"])


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="one student's files; the folder's name is the student's")
    parser.add_argument("--only", nargs="+", type=int, choices=FILES, metavar="N", help="these assignments (default: all)")
    parser.add_argument("--bank", type=Path, default=os.environ.get("BANK"), help="the bank that assignments 2 and 8 are scored on (default: the stored one)")
    parser.add_argument("--words", action="store_true", help="say what each failed check said")
    parser.add_argument("--leaderboard", type=Path, default=Path("leaderboard.jsonl"),
                        help="where the scores of assignment 8 go, best first (default: leaderboard.jsonl in the current folder)")
    args = parser.parse_args(argv)
    names = [folder.resolve().name for folder in args.folders]
    for folder in args.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
        if not any(folder.glob("*_0*.py")) and any(folder.glob("*/*_0*.py")):
            parser.error(f"{folder} is not one student's folder, but has such folders in it: give {folder}/*")
    if args.bank and not args.bank.is_file():
        parser.error(f"--bank: {args.bank} is no file")
    if len(set(names)) < len(names):
        parser.error(f"two folders have one name: {', '.join(sorted(names))}")
    numbers = sorted(set(args.only or FILES))
    if 5 in numbers and not find_run():
        parser.error("assignment 5 needs a finished run: set RUN to its folder, or run `python experiments/overopt.py --quick`, or leave 5 out by --only")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        scratches = [Path(scratch) / name for name in names]
        for path in scratches:
            path.mkdir()
        grades = dict(zip(names, pool.map(lambda folder, path: grade(folder, numbers, path, args.bank), args.folders, scratches)))
        rows = leaderboard(scratches)
    print("\n".join(table(grades, numbers)))
    if args.words:
        for name, row in grades.items():
            print("".join(f"\n{name} {number:02} {words}" for number, (_, said) in row.items() for words in dict.fromkeys(said)))
    if rows:
        write_whole(args.leaderboard, lambda file: file.write("".join(json.dumps(row) + "\n" for row in rows).encode()))
        print(f"\nassignment 8, gold over the ensemble's (in {args.leaderboard}):")
        print("\n".join(f"{row['difference']:+.3f} +- {row['standard_error']:.3f}  {row['student']}" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
