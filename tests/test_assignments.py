"""The assignments: stubs fail in words, the solutions pass, and cheating earns nothing."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

ASSIGNMENTS, SOLUTIONS = ROOT / "experiments/assignments", ROOT / "tests/solutions"
NUMBERS = range(1, 9)


def grade(*folders, only=NUMBERS, limit=60):
    """What grade.py says of some folders, with the words of the failed checks."""
    numbers = [str(number) for number in only]
    command = [sys.executable, ASSIGNMENTS / "grade.py", *folders, "--words", "--limit", str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--only", *numbers], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hand_in(folder, number, text):
    """A student's folder with one file of this text."""
    folder.mkdir()
    name = next(SOLUTIONS.glob(f"{number}_*.py")).name
    (folder / name).write_text(text)
    return folder


def test_solutions_get_full_points():
    """A check fails a right answer."""
    assert "solutions: 100 points" in grade(SOLUTIONS)


def test_stubs_fail_in_words():
    """A stub passes, or ends in a traceback."""
    said = grade(ASSIGNMENTS / "stubs")
    assert "stubs: 0 points" in said
    assert "Traceback" not in said


def test_no_stub_gives_the_answer_away():
    """A solution's code stands in its stub."""
    for solution in SOLUTIONS.glob("[!7]_*.py"):  # 7 is a fault in code that is there
        stub = (ASSIGNMENTS / "stubs" / solution.name).read_text()
        lines = [
            line.strip() for line in solution.read_text().splitlines() if line.strip().startswith("return ")
        ]
        assert not [line for line in lines if line in stub and len(line) > 20], solution.name


CHEATS = {
    "imports the solutions": "from tests.solutions import two\n",
    "exports the repository's code": "from bon import expected_best_of_n as expected_kth_of_n\n",
    "finds other code": "import importlib\n",
    "reads files": "x = open('solution').read()\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_earn_nothing(cheat, tmp_path):
    """A folder with no work of its own gets points."""
    said = grade(hand_in(tmp_path / "cheat", 3, CHEATS[cheat]), only=[3])
    assert "cheat: 0 points" in said
    assert "line 1" in said


def test_twice_the_mean_is_not_new(tmp_path):
    """An aggregator that picks what the mean picks counts as new."""
    text = "def aggregator(rewards):\n    return 2 * rewards.mean(0)\n"
    said = grade(hand_in(tmp_path / "cheat", 2, text), only=[2])
    assert "cheat: 10 points" not in said


def test_an_endless_loop_ends(tmp_path):
    """One student's loop stops the grading of all."""
    said = grade(hand_in(tmp_path / "loop", 1, "while True:\n    pass\n"), only=[1], limit=8)
    assert "not finished after 8 seconds" in said


def test_missing_files_are_said_once(tmp_path):
    """A missing file is an error, or is repeated for every check."""
    (tmp_path / "empty").mkdir()
    said = grade(tmp_path / "empty", only=[1])
    assert said.count("not handed in") <= 2


def test_class_copy_has_no_solutions(tmp_path):
    """The command that packs the class's copy hands out the solutions."""
    readme = (ASSIGNMENTS / "README.md").read_text()
    (command,) = [line for line in readme.splitlines() if line.startswith("git archive")]
    subprocess.run(
        command.replace("class.zip", str(tmp_path / "class.zip")), shell=True, cwd=ROOT, check=True
    )
    shutil.unpack_archive(tmp_path / "class.zip", tmp_path)
    assert (tmp_path / "class/experiments/assignments/stubs").is_dir()
    assert not (tmp_path / "class/tests/solutions").exists()
    assert not (tmp_path / "class/tests/test_assignments.py").exists()
