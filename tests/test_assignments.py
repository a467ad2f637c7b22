"""experiments/assignments: stubs fail in words for a student, the reference solutions pass, and typical wrong answers are called by name."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
ASSIGNMENTS, SOLUTIONS = ROOT / "experiments" / "assignments", ROOT / "tests" / "solutions"
sys.path.append(str(ASSIGNMENTS))

import checks
import grade
import world

NUMBERS = sorted(grade.FILES)


@pytest.fixture(autouse=True)
def leaderboard(tmp_path, monkeypatch):
    """A leaderboard of the test's own, and the stored bank."""
    monkeypatch.setenv("LEADERBOARD", str(tmp_path / "leaderboard.jsonl"))
    monkeypatch.setenv("STUDENT", "ada")
    monkeypatch.delenv("BANK", raising=False)
    return tmp_path / "leaderboard.jsonl"


def verdicts(number, functions=(), folder=None):
    """{check: what it says, or None} of an assignment with these functions in the place of the stubs, or those of a folder's file."""
    spec = importlib.util.spec_from_file_location(f"assignment_{number}", grade.FILES[number])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if folder:
        checks.hand_in(module, folder)
    vars(module).update(functions)
    found = {}
    for name in [name for name in vars(module) if name.startswith("test_")]:
        try:
            found[name] = getattr(module, name)()
        except (pytest.fail.Exception, NotImplementedError) as said:
            found[name] = str(said)
    return found


def said(number, **functions):
    """All that is said to a wrong answer."""
    return "\n".join(words for words in verdicts(number, functions).values() if words)


@pytest.fixture
def run(request, monkeypatch):
    """A finished run, where assignment 5 is concerned."""
    if request.node.callspec.params["number"] == 5:
        monkeypatch.setenv("RUN", str(request.getfixturevalue("quick")[0]))


@pytest.mark.parametrize("number", NUMBERS)
def test_stubs_fail_in_words_and_solutions_pass(number, run):
    """A stub that gets points, an error from inside torch in the place of a word, or a solution that no longer solves it."""
    stub, solution = verdicts(number), verdicts(number, folder=SOLUTIONS)
    assert stub and all(words and len(words) >= 20 for words in stub.values()), stub
    assert not any(solution.values()), solution


@pytest.mark.parametrize("number", NUMBERS)
def test_the_task_says_all(number):
    """A task without a goal, a time or the command that checks it; names in a solution that the stub does not have."""
    path = grade.FILES[number]
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc.startswith(f"{number}. ") and all(
        re.search(rf"^{part} +\S", doc, re.M) for part in ("Goal", "Read", "Time", "Points", "Run", "Hint")
    )
    assert (
        f"python -m pytest experiments/assignments/{path.name}" in doc
        and f"`{path.name}`" in (ASSIGNMENTS / "README.md").read_text()
    )
    assert checks.stubs(path)


def test_the_table_of_the_readme():
    """Minutes or points that the tasks do not have."""
    table = (ASSIGNMENTS / "README.md").read_text()
    for number, path in grade.FILES.items():
        row = [
            cell.strip()
            for cell in next(line for line in table.splitlines() if f"`{path.name}`" in line and "|" in line)
            .strip("|")
            .split("|")
        ]
        time = re.search(r"^Time +(.*?)(?: minutes)?$", path.read_text(), re.M)[1]
        assert row[2:] == [time, str(grade.POINTS[number])]


logsigmoid = F.logsigmoid
WRONG_LOSSES = [
    (lambda c, r, eta: (-logsigmoid(c - r) + eta * (c - r) ** 2).mean(), "*difference*"),
    (lambda c, r, eta: -logsigmoid(c - r).mean(), "the term is missing"),
    (lambda c, r, eta: (-logsigmoid(c - r) + eta * (c + r) ** 2).sum(), "not the mean"),
    (lambda c, r, eta: -logsigmoid(c - r) + eta * (c + r) ** 2, "one for each"),
    (lambda c, r, eta: (-torch.log(torch.sigmoid(c - r)) + eta * (c + r) ** 2).mean(), "infinity"),
    (lambda c, r, eta: (-logsigmoid(c - r) + eta * (c + r) ** 2).mean().item(), "lost its gradient"),
    (lambda c, r, eta: None, "returns None"),
]


@pytest.mark.parametrize("loss, words", WRONG_LOSSES)
def test_wrong_losses(loss, words):
    assert words in said(1, centred_loss=loss)


@pytest.mark.parametrize(
    "moved, words",
    [
        (lambda c, r: (c + 5, r + 5), "mean 0"),
        (lambda c, r: (c + torch.arange(1, 5), r), "move both"),
        (lambda c, r: (2 * c, 2 * r), "move both"),
        (lambda c, r: (c, r), "less than 1"),
        (lambda c, r: c, "two tensors"),
    ],
)
def test_wrong_shifts(moved, words):
    assert words in said(1, same_preferences=moved)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    "aggregator, words",
    [
        (lambda r: r.mean(-1), "first: dim=0"),
        (lambda r: r.max(0), ".values"),
        (lambda r: r.mean(), "over which axis"),
        (lambda r: r[0], "in another order"),
        (lambda r: r.std(0), "NaN"),
        (lambda r: r.mean(0), "`mean`, which ensemble.py has"),
        (lambda r: -r.amax(0), "Is a high score high"),
        (lambda r: r.mean(0) - r.mean(), "other responses' scores"),
    ],
)
def test_wrong_aggregators(aggregator, words):
    assert words in said(2, aggregator=aggregator)


def sloppy(weights=None, order=lambda proxy: proxy.argsort(1)):
    """A best-of-n estimator with other weights, or another order."""
    exact = lambda N, n: np.array([comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)])
    return lambda proxy, values, n: (
        np.take_along_axis(values, order(proxy), 1) @ (weights or exact)(proxy.shape[1], n)
    )


@pytest.mark.parametrize(
    "estimator, words",
    [
        (sloppy(lambda N, n: np.diff((np.arange(N + 1) / N) ** n)), "with replacement"),
        (sloppy(order=lambda proxy: (-proxy).argsort(1)), "worst first"),
        (lambda proxy, values, n: values[np.arange(len(proxy)), proxy[:, :n].argmax(1)], "first n alone"),
        (lambda proxy, values, n: sloppy()(values, values, n), "sorted by themselves"),
        (lambda proxy, values, n: sloppy()(proxy, values, n).mean(), "expected (3,)"),
        (lambda proxy, values, n: sloppy()(proxy, proxy, n), "expected *proxy*"),
    ],
)
def test_wrong_estimators(estimator, words):
    assert words in said(3, expected_best_of_n=estimator)


@pytest.mark.parametrize(
    "functions, words",
    [
        ({"k2": lambda x: x**2}, "the half is missing"),
        ({"k3": lambda x: torch.exp(x) - 1 - x}, "turned round"),
        ({"k3": lambda x: torch.exp(-x) + x}, "- 1 is missing"),
        ({"bias": lambda f, p, q: (q * f((p / q).log())).sum() - (p * (p / q).log()).sum()}, "samples of q"),
        ({"bias": lambda f, p, q: (p * f((p / q).log())).sum()}, "subtract the true KL"),
        ({"bias": lambda f, p, q: f((p / q).log())}, "expected ()"),
    ],
)
def test_wrong_kl(functions, words):
    assert words in said(4, **functions)


@pytest.mark.parametrize("number", [5])
def test_wrong_hacks(number, run, monkeypatch):
    """An honest summary, nonsense, a long text, a word of another world."""
    loaded = checks.load_run()
    monkeypatch.setattr(checks, "load_run", lambda: loaded)
    told = lambda write: said(5, response=write)
    facts = lambda post: [
        next(word for word in post.replace(".", " ").split() if word in words)
        for words in world.WORDS.values()
    ]
    assert "no hack but a good summary" in told(lambda post: "{} {} {} {} in {} on {}.".format(*facts(post)))
    assert "not fooled" in told(lambda post: "really really really.")
    assert "1 to 23 tokens" in told(lambda post: "really " * 30) and "'hello' is not a word" in told(
        lambda post: "hello"
    )
    assert "must return a text" in told(lambda post: None)


def test_no_run_says_what_to_run(tmp_path, monkeypatch):
    """An error from inside the cache, or minutes of training that nobody asked for."""
    monkeypatch.setenv("RUN", str(tmp_path))
    solution = {"response": lambda post: "anna."}
    assert f"no finished run in {tmp_path}" in said(5, **solution) and "overopt.py --quick" in said(
        5, **solution
    )


def test_a_run_of_other_code_is_not_trained_anew(quick, tmp_path, monkeypatch):
    """A cache without the reward models: half an hour of silence."""
    (tmp_path / "results.json").write_bytes((quick[0] / "results.json").read_bytes())
    monkeypatch.setenv("RUN", str(tmp_path))
    assert "made by other code" in said(5, response=lambda post: "anna.")


@pytest.mark.parametrize(
    "control, words",
    [
        (lambda a, b: (replace(a, states=b.states), b), "Keep the mean"),
        (
            lambda a, b: (replace(a, states=0.6), replace(b, states=0.6, wrong=a.wrong)),
            "nobody learns about wrong facts",
        ),
        (lambda a, b: (b, a), "now the careless one"),
        (lambda a, b: world.writers(0.0), "repository's own control arm"),
        (lambda a, b: (a, b), "nothing is taken out"),
        (lambda a, b: None, "must return two world.Writer"),
    ],
)
def test_wrong_controls(control, words):
    assert words in said(
        6, control=control, gap=lambda stated, careful: stated[careful].mean() - stated[~careful].mean()
    )


def test_wrong_gaps():
    assert "other way round" in said(
        6, gap=lambda stated, careful: stated[~careful].mean() - stated[careful].mean()
    )


def test_the_fault_is_silent_and_no_check_gives_it_away():
    """A bug that a sum of advantages shows, or words that name its line."""
    words = said(7)
    assert "0.774" in words and "next_advantage" not in words


def test_open_assignment(leaderboard):
    """Luck, a copy of the ensemble, or a damaged leaderboard; a student's second line in the place of the first."""
    assert "picks what the mean" in said(8, proxy=lambda rewards, seeds, texts: rewards.mean(0))
    assert "is not above two standard errors" in said(8, proxy=lambda rewards, seeds, texts: rewards[0])
    assert "expected (256, 64)" in said(8, proxy=lambda rewards, seeds, texts: rewards.mean(1))
    assert "picks nothing" in said(8, proxy=lambda rewards, seeds, texts: 0 * rewards[0])
    assert "standard errors" in said(
        8, proxy=lambda rewards, seeds, texts: np.load(checks.load_bank()[1])["gold"]
    ), "gold read from the file"
    leaderboard.write_text('{"half a li\n' + leaderboard.read_text())
    row = {"student": "ben", "bank": "results/bank-tldr.npz", "difference": 0.1}
    checks.enter(leaderboard, row)
    checks.enter(leaderboard, row | {"difference": 0.2})
    first, *rows = leaderboard.read_text().splitlines()
    assert first == '{"half a li' and [
        (json.loads(line)["student"], json.loads(line)["difference"] == 0.2) for line in rows
    ] == [("ada", False), ("ben", True)]


def test_a_teachers_command(quick, tmp_path):
    """Checks that a student rewrote, a missing file, a solution that does not get all points."""
    environment = os.environ | {"RUN": str(quick[0])}
    (tmp_path / "ben").mkdir()
    for number, path in grade.FILES.items():
        text = path.read_text()
        tampered = re.sub(r"(?m)^(def test_\w+\(\):)$.*?(?=^\S|\Z)", r"\1\n    pass\n\n", text, flags=re.S)
        if number != 4:
            (tmp_path / "ben" / path.name).write_text(tampered)
    (tmp_path / "ben" / grade.FILES[6].name).write_text("def control(:")
    done = subprocess.run(
        [sys.executable, ASSIGNMENTS / "grade.py", SOLUTIONS, "ben", "--words"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[:4]}
    assert rows["solutions"] == rows["points"] and rows["points"][-1] == "100" and rows["ben"] == ["0"] * 9, (
        done.stdout
    )
    assert (
        "has 0 files *_04*.py" in done.stdout
        and "can't be imported (SyntaxError" in done.stdout
        and "Traceback" not in done.stdout + done.stderr
    )
    assert [
        json.loads(line)["student"] for line in (tmp_path / "leaderboard.jsonl").read_text().splitlines()
    ] == ["solutions"]


def test_a_crash_costs_one_assignment(tmp_path):
    """Eight assignments in one process, which the sixth takes down."""
    (tmp_path / "test_03.py").write_text((SOLUTIONS / "solution_03.py").read_text())
    (tmp_path / "test_06.py").write_text(
        "import os\n\ndef control(a, b):\n    os._exit(0)\n\ndef gap(a, b):\n    pass\n"
    )
    found = grade.grade(tmp_path, [3, 6], tmp_path, limit=60)
    assert found[3] == (grade.POINTS[3], []) and found[6][0] == 0 and len(found[6][1]) == 1


def test_a_function_is_missing(tmp_path):
    """A student who renamed it."""
    (tmp_path / "test_03.py").write_text("def best(proxy, values, n):\n    pass\n")
    with pytest.raises(ValueError, match="has no function expected_best_of_n"):
        verdicts(3, folder=tmp_path)


def test_teachers_mistakes(tmp_path, capsys, monkeypatch):
    """Zero points for all, where the teacher has forgotten something."""
    monkeypatch.setenv("RUN", str(tmp_path))
    for wrong, why in (
        ([str(tmp_path / "nobody")], "is no folder"),
        ([str(tmp_path), "--bank", "none.npz"], "is no file"),
        ([str(tmp_path)] * 2, "one name"),
        ([str(tmp_path)], "needs a finished run"),
    ):
        with pytest.raises(SystemExit) as stop:
            grade.main(wrong)
        assert stop.value.code == 2 and why in capsys.readouterr().err


def test_pytest_alone_leaves_the_stubs_out():
    """The shipped stubs among the repository's own tests: red from the start."""
    assert "testpaths = tests" in (ROOT / ".pytest.ini").read_text()
