"""Assignments: stubs fail in words, solutions pass, mistakes are named, and cheating earns nothing. And the
worked example: a habit more."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import figures
from conftest import ROOT, TINY

ASSIGNMENTS, SOLUTIONS = ROOT / "experiments/assignments", ROOT / "tests/solutions"
sys.path.append(str(ASSIGNMENTS))

import check  # noqa: E402
import grade  # noqa: E402

NUMBERS = sorted(grade.POINTS)


def said(number, folder):
    """What each check says of the answer in a folder; None where it passes."""
    return [wrong for _, wrong in check.verdicts(number, folder)]


def hand_in(folder, number, text, after_solution=False):
    """A student's folder with one file: this text, or the solution with some functions written anew."""
    folder.mkdir(exist_ok=True)
    solution = check.answer_file(number, SOLUTIONS)
    (folder / solution.name).write_text(solution.read_text("utf-8") * after_solution + text)
    return folder


@pytest.mark.parametrize("number", NUMBERS)
def test_stubs_fail_in_words_and_solutions_pass(number):
    """A stub that passes or stops in a traceback, or a solution that fails."""
    assert said(number, SOLUTIONS) == [None] * len(said(number, SOLUTIONS))
    for words in said(number, ASSIGNMENTS / "stubs"):
        assert words and len(words) >= 20 and "Error" not in words


def test_the_readmes_table():
    """An assignment without a row, or with other points than the grader gives."""
    rows = re.findall(
        r"^\| (\d) \| `(\w+\.py)` .* (\d+) \|$", (ASSIGNMENTS / "README.md").read_text("utf-8"), re.M
    )
    assert {int(number): int(points) for number, _, points in rows} == grade.POINTS
    assert [name for _, name, _ in rows] == [path.name for path in sorted(ASSIGNMENTS.glob("stubs/*.py"))]


LOSS = "def ranking_loss(rewards, eta):\n    best = -rewards.log_softmax(1)[:, 0]\n    "
SECOND = "second = rewards[:, 1:].logsumexp(1) - rewards[:, 1]\n    "
RANK = "def expected_kth_of_n(proxy, values, n, k):\n    "
WEIGHTS = "w = [comb(i, n - k) * comb(len(proxy[0]) - 1 - i, k - 1) for i in range(len(proxy[0]))]\n    "
MASK = (
    "def real_tokens(responses, eos):\n    stopped = (responses == eos).int()\n    before = stopped.cumsum(1)"
)
PICK = "def pick(post, responses):\n    return max(range(64), key=lambda i: "
CONTROL = "def control(careless, careful):\n    return "
WRONG = [
    (1, LOSS + "return (best + eta * rewards.sum(1) ** 2).mean()", "second best is missing"),
    (1, LOSS + SECOND + "return (best + second + eta * (rewards**2).sum(1)).mean()", "square their sum"),
    (1, LOSS + SECOND + "return best + second + eta * rewards.sum(1) ** 2", "one for each"),
    (1, LOSS + SECOND + "return (best + second + eta * rewards.sum(1) ** 2).mean().item()", "its gradient"),
    (1, "def same_rankings(rewards):\n    return rewards + 5", "divides an ensemble"),
    (1, "def same_rankings(rewards):\n    return 2 * rewards", "on what does it depend"),
    (2, "def aggregator(r):\n    return r.mean(-1)", "dim=0"),
    (2, "def aggregator(r):\n    return r.max(0)", "take .values"),
    (2, "def aggregator(r):\n    return r.mean(0) + r[0]", "in another order"),
    (2, "def aggregator(r):\n    return -r.std(0, correction=0)", "must not decide alone"),
    (3, RANK + WEIGHTS + "return values @ np.array(w) / comb(len(proxy[0]), n)", "not sorted by the proxy"),
    (3, RANK + "k = n + 1 - k\n    " + WEIGHTS + "w = np.array(w) / sum(w)\n    "
        "return np.take_along_axis(values, proxy.argsort(1), 1) @ w", "k counts from the worst"),
    (3, RANK + "return np.sort(values, 1)[:, -k]", "the plain mean"),
    (4, "def k2(x):\n    return x**2", "the half is missing"),
    (4, "def k3(x):\n    return torch.exp(x) - 1 - x", "the sign of x is flipped"),
    (4, "def bias(f, p, q):\n    return (p * f((p / q).log())).sum()", "subtract the true KL"),
    (5, PICK + "len(responses[i]))", "ensemble gives them"),
    (5, PICK + "-len(set(responses[i].split()) - set(post.split())))", "no hack"),
    (5, "def pick(post, responses):\n    return responses[0]", "must return an index"),
    (6, CONTROL + "replace(careless, states=careful.states), careful", "Keep the mean"),
    (6, CONTROL + "careless, careful", "nothing is taken out"),
    (6, "def gap(s, careful):\n    return s[~careful].mean() - s[careful].mean()", "careless minus careful"),
    (7, MASK + "\n    return before < 1", "EOS is a decision"),
    (7, MASK + " - stopped\n    return (before < 1) & stopped.any(1, keepdim=True)", "left out altogether"),
    (8, "def proxy(rewards, seeds, texts):\n    return 2 * rewards.mean(0)", "picks what `mean`"),
    (8, "def proxy(rewards, seeds, texts):\n    return rewards[0]", "Read your picks"),
    (8, "def proxy(rewards, seeds, texts):\n    return rewards.mean(1)", "must have shape"),
    (4, "def k2(x):\n    return x + undefined", "line \\d+: NameError"),
    (4, "def k2(x:\n", r"line \d+: SyntaxError: .*4_kl.py"),
]  # fmt: skip


@pytest.mark.parametrize("number, text, words", WRONG)
def test_mistakes_are_named(number, text, words, tmp_path):
    """A typical mistake that passes, or is answered with the right number alone."""
    found = said(number, hand_in(tmp_path, number, "\n\n" + text, after_solution=True))
    assert re.search(words, "\n".join(filter(None, found)))


AGGREGATOR = "def aggregator(rewards):\n    return "
CHEATS = [
    (3, "from tests.solutions import x", "imports tests.solutions.x"),
    (3, "from bon import expected_best_of_n as expected_kth_of_n", "imports bon.expected_best_of_n"),
    (1, "import rm", "imports rm"),
    (7, "from ppo import *", "imports ppo"),
    (3, "import importlib", "imports importlib"),
    (3, "from torch import os", "uses os"),
    (3, "import numpy as np\nnp.lib.npyio.os.abort()", "uses os"),
    (8, "import numpy as np\ngold = np.load('experiments/results/bank-tldr.npz')['gold']", "uses load"),
    (5, "from world import gold", "imports world.gold"),
    (5, "import world", "imports world"),
    (3, "solution = open('tests/solutions/3_rank.py').read()", "uses open"),
    (3, "x = ().__class__", "uses __class__"),
    (3, "import numpy as np\nnp.allclose = lambda *a, **k: True", "sets np.allclose"),
    (3, "def check_the_ends(their):\n    pass", "has no function expected_kth_of_n"),
    (3, "raise SystemExit(0)", "SystemExit"),
    (2, AGGREGATOR + "2 * rewards.mean(0)", "picks are those of `mean`"),
    (2, AGGREGATOR + "rewards.sum(0) + 1", "picks are those of `mean`"),
    (2, AGGREGATOR + "rewards.amax(0) + rewards.amin(0)", "picks are those of `midrange`"),
    (8, "def proxy(rewards, seeds, texts):\n    return rewards.min(0)", "picks what `min`"),
    (8, "import numpy as np\nnp.savetxt('/dev/stdout', ['[]'], fmt='%s')", "uses savetxt"),
]


@pytest.mark.parametrize("number, text, words", CHEATS)
def test_cheats_earn_nothing(number, text, words, tmp_path):
    """A folder with no work of its own gets points."""
    assert all(wrong and words in wrong for wrong in said(number, hand_in(tmp_path, number, text)))


def test_a_teachers_command(tmp_path, capsys, monkeypatch):
    """A loop takes the points of the checks before it, or stops the grading of all; a missing file is an
    error, or is repeated for every check; a student prints verdicts."""
    loop = "while n == 6 and k == n: pass\n    return right(proxy, values, n, k)"
    hand_in(tmp_path / "loop", 3, "\nright = expected_kth_of_n\n" + RANK + loop, True)
    hand_in(tmp_path / "liar", 3, "print('[\"check_the_ends\", null]')\n" + RANK + "return 0")
    folders = [str(folder) for folder in (SOLUTIONS, tmp_path / "loop", tmp_path / "liar")]
    grade.main([*folders, "--only", "3", "--limit", "10", "--words"])
    out = capsys.readouterr().out
    assert re.search(r"^bank: .*bank-tldr.npz \(25 reward models, .*sha256", out)
    rows = "solutions +10 +10", "loop +3.3 +3.3", "liar +0 +0", "loop 3: not finished after 10 seconds"
    assert not [row for row in rows if not re.search(f"^{row}$", out, re.M)], out
    (tmp_path / "empty").mkdir()
    grade.main([str(tmp_path / "empty"), "--words"])
    out = capsys.readouterr().out
    assert (
        "empty: 0 points, not handed in: 1 2 3 4 5 6 7 8" in out and out.count("empty 1: not handed in") == 1
    )
    monkeypatch.setenv("BANK", "")  # so that it is as before after the test
    no_bank = [str(SOLUTIONS), "--bank", "nowhere.npz"], "there is no bank"
    not_folders = (["nobody"], "is not a folder"), ([str(tmp_path)], "holds students' folders")
    for wrong, why in (*not_folders, no_bank):
        with pytest.raises(SystemExit):
            grade.main(wrong)
        assert why in capsys.readouterr().err


def test_the_class_copy_has_no_solutions(tmp_path):
    """The command that packs the class's copy hands out the solutions, or tests that need them."""
    readme = (ASSIGNMENTS / "README.md").read_text("utf-8")
    (command,) = [line for line in readme.splitlines() if line.startswith("git archive")]
    packed = tmp_path / "class.zip"
    subprocess.run(command.replace("class.zip", str(packed)), shell=True, cwd=ROOT, check=True)
    shutil.unpack_archive(packed, tmp_path)
    assert (tmp_path / "class/experiments/assignments/stubs").is_dir()
    for left_out in ("solutions", "test_assignments.py"):
        assert not (tmp_path / "class/tests" / left_out).exists()
    command = [sys.executable, "-m", "pytest", "-q", "-k", "lead_somewhere or in_the_linked"]  # imports all
    done = subprocess.run(command, cwd=tmp_path / "class", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


HEDGING = """
from world import *
assert TRAITS[-1] == PARTS[-1] == "hedging" and "allegedly" in KIND
parts, traits = judge_rows(*sample_texts(500, 0, writers(0.15)))
assert 0.15 < traits["hedging"].mean() < 0.35
assert abs(parts["hedging"] + 0.2 * traits["hedging"]).max() < 1e-6
"""


def test_add_a_habit(tmp_path):
    """The worked example no longer applies, its habit is lost on the way from the table to the figure, or a
    mistake in it ends in other words than the page says. (Not in the class's copy: students apply it.)"""
    page = (ROOT / "experiments/README.md").read_text("utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.S)
    errors = re.findall(r"^ValueError: .*$", page, re.M)
    mistakes = diff.replace(', "nli": 0', ""), diff.replace("allegedly", "really")
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("experiments/*.py")]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    command = [sys.executable, "experiments/overopt.py", *TINY, "--processes", "1", "--out", "out"]
    for changed, error in zip((*mistakes, diff), (*errors, None), strict=True):
        shutil.copy(ROOT / "experiments/world.py", experiments)
        subprocess.run(["git", "apply", "-"], input=changed, text=True, cwd=tmp_path, check=True)
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0 if error is None else run.stderr.splitlines()[-1] == error, run.stderr
    subprocess.run([sys.executable, "-c", HEDGING], cwd=experiments, check=True)
    assert {"part_hedging", "trait_hedging"} <= set(np.load(tmp_path / "out/bank-1-tldr.npz"))
    record = json.loads((tmp_path / "out/world-1-tldr.json").read_text("utf-8"))
    assert all("hedging" in traits for traits in record["traits"].values())
    assert record["edits"]["hedging"]["gold"] == pytest.approx(-0.2)
    assert "hedging" in [label.get_text() for label in figures.edits([record]).axes[0].get_yticklabels()]
