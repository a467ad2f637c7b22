"""Assignments: stubs fail in words, solutions pass, mistakes are named, and cheating earns nothing and harms
nobody. And the worked example: a habit more."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import answer
import check
import grade
import numpy as np
import pytest

import figures
import world
from conftest import ROOT, TINY

ASSIGNMENTS, SOLUTIONS = ROOT / "experiments/assignments", ROOT / "tests/solutions"
README = (ASSIGNMENTS / "README.md").read_text("utf-8")
NUMBERS = sorted(grade.POINTS)


@contextmanager
def here(limit, start):
    """As check.process, but in this process: faster, and only for answers that we wrote."""
    session = answer.Session(start)

    def ask(line):
        try:
            return session.reply(line)
        finally:
            sys.modules["world"] = world

    yield ask


def said(number, folder, seed=0):
    """What each check says of the answer in a folder; None where it passes."""
    files = [path for n, _, path in check.hand_ins(folder) if n == number]
    return list(check.verdicts(number, files, check.Given(seed), 60, here)[0].values())


def hand_in(folder, number, text, after_solution=False):
    """A student's folder with one more file: this text, or the solution with some functions written anew."""
    folder.mkdir(exist_ok=True, parents=True)
    (solution,) = SOLUTIONS.glob(f"{number}_*.py")
    (folder / solution.name).write_text(solution.read_text("utf-8") * after_solution + text)
    return folder


@pytest.mark.parametrize("number", NUMBERS)
def test_stubs_fail_in_words_and_solutions_pass(number):
    """A stub that passes or stops in a traceback, a solution that fails, or only does with some inputs; other
    points in the README than the grader gives."""
    for seed in (0, 1) if number < 6 else (0,):  # the others have models to run
        assert not any(said(number, SOLUTIONS, seed))
    for words in said(number, ASSIGNMENTS / "stubs"):
        assert words and len(words) >= 20 and "Error" not in words
    (stub,) = (ASSIGNMENTS / "stubs").glob(f"{number}_*.py")
    assert "\nRead: " in stub.read_text("utf-8")
    assert re.search(rf"^\| {number} \| `{stub.name}` .* {grade.POINTS[number]} \|$", README, re.M)


AGGREGATOR = "def aggregator(r):\n    return "
LOSS = "def ranking_loss(rewards, eta):\n    best = -rewards.log_softmax(1)[:, 0]\n    "
SECOND = "second = rewards[:, 1:].logsumexp(1) - rewards[:, 1]\n    return "
MASK = (
    "def real_tokens(responses, eos):\n    stopped = (responses == eos).int()\n    before = stopped.cumsum(1)"
)
EXPERIENCE = "right = experience\n\n\ndef experience(*x):\n    return "
PICK = "def pick(post, responses):\n    return max(range(64), key=lambda i: "
EDIT = "def edit(post, summary):\n    return "
PATCH = "def patched(reward, post, response):\n    return "
PROXY = "length = np.vectorize(lambda text: len(text.split()))\n\n\ndef proxy(r, seeds, texts):\n    return "
WRONG = [
    (1, AGGREGATOR + "r.mean(-1)", "dim=0"),
    (1, AGGREGATOR + "r.max(0)", "take .values"),
    (1, AGGREGATOR + "r.mean(0) + (r - r.roll(1, 0)).abs().mean(0)", "in another order"),
    (1, AGGREGATOR + "-r.std(0, correction=0)", "must not decide alone"),
    (1, AGGREGATOR + "r.mean(0) - 1.53 * r.std(0, correction=0)", "up to a coefficient"),
    (1, AGGREGATOR + "r.amax(0) + r.amin(0)", "picks are those of `midrange`"),
    (2, LOSS + SECOND + "(best + second + eta * (rewards**2).sum(1)).mean()", "square their sum"),
    (2, LOSS + SECOND + "best + second + eta * rewards.sum(1) ** 2", "one for each"),
    (2, LOSS + SECOND + "(best + second + eta * rewards.sum(1) ** 2).mean().item()", "its gradient"),
    (2, LOSS + SECOND + "(best + second + eta * rewards.sum(1) ** 2).sum() / 4", "not the mean|must be"),
    (2, "def same_rankings(rewards):\n    return rewards + 5", "divides an ensemble"),
    (2, "def same_rankings(rewards):\n    return 2 * rewards", "on what does it depend"),
    (2, "def same_rankings(rewards):\n    return rewards + torch.arange(1, 5)[:, None]", "RuntimeError"),
    (2, "def same_rankings(rewards):\n    return 1e8 * torch.ones(4, 1).cumsum(0) + 0 * rewards[:4]",
     "less will do"),
    (3, "def k3(x):\n    return torch.exp(x) - 1 - x", "the sign of x is flipped"),
    (3, "def bias(f, p, q):\n    return (p * f((p / q).log())).sum()", "subtract the true KL"),
    (3, "def bias(f, p, q):\n    x = (p / q).log()\n    return sum(p[i] * (f(x) - x)[i] for i in range(3))",
     "over 7 words|out of bounds"),
    (3, "def k2(x):\n    return x + undefined", "line \\d+: NameError"),
    (3, "def k2(x:\n", r"line \d+: SyntaxError: .*3_kl.py"),
    (4, MASK + "\n    return before < 1", "EOS is a decision"),
    (4, MASK + " - stopped\n    return (before < 1) & stopped.any(1, keepdim=True)", "left out altogether"),
    (4, "def real_tokens(responses, eos):\n    return responses != 9", "does padding count|wrong returns"),
    (4, EXPERIENCE + "right(*x) | {'kl': right(*x)['kl'] * len(x[0]) / 64}", "over 40 responses"),
    (4, "def whiten(x, mask):\n    m = (x * mask).sum() / mask.sum()\n"
     "    return (x - m) * mask / ((x - m) ** 2 * mask).sum().div(mask.sum()).sqrt()", "does padding count"),
    (5, PICK + "len(responses[i]))", "ensemble gives them"),
    (5, PICK + "-len(set(responses[i].split()) - set(post.split())))", "no hack"),
    (5, "def pick(post, responses):\n    return responses[0]", "must return an index"),
    (6, EDIT + "summary + ' hello'", "not a word"),
    (6, EDIT + "'anna sold seven lamps in paris on monday.'", "most of its words must stay"),
    (6, EDIT + "summary[:-1] + '!'", "the models of one pretraining"),
    (7, PATCH + "reward - 5 * response.startswith('-')", "keep their order"),
    (7, "asked = []\n\n\n" + PATCH + "asked.append(0) or -len(asked)", "when it is asked again"),
    (7, "num = WORDS = __import__('world').WORDS['num']\n" + PATCH + "reward - 5 * any("
     "w in num and w not in post for w in response.split())", "which you have not seen"),
    (8, PROXY + "r.mean(0) - 0.9 * r.std(0) - 0.12 * length(texts)", "Read your picks|luck"),
    (8, PROXY + "r.mean(1)", "must have shape"),
]  # fmt: skip


@pytest.mark.parametrize("number, text, words", WRONG)
def test_mistakes_are_named(number, text, words, tmp_path):
    """A typical mistake that passes, or is answered with the right number alone."""
    found = said(number, hand_in(tmp_path, number, "\n\n" + text, after_solution=True))
    assert re.search(words, "\n".join(filter(None, found)))


FUTURE = "from __future__ import annotations\nimport copy, typing, fractions\nimport dataclasses\n\n"
RIGHT = [
    (2, "def same_rankings(rewards):\n    return rewards + 100 + torch.arange(len(rewards))[:, None]"),
    (3, "@dataclasses.dataclass\nclass Half:\n    of: typing.Any\n\n\ndef k2(x): return Half(x).of**2 / 2"),
    (3, "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n\n"
     "    def forward(self, x):\n        return x**2 / 2\n\n\nmodel = Net()\n"
     "model.eval()\nk2 = model.forward"),
    (4, ""),  # its helpers under other names
    (5, PICK + "sum(KIND.get(w) in DETAILS and w not in post for w in responses[i].replace('.', '').split())"
     " - 3 * sum(KIND.get(w) in ('filler', 'chat') for w in responses[i].replace('.', '').split()))"),
]  # fmt: skip


@pytest.mark.parametrize("number, text", RIGHT)
def test_other_right_answers_pass(number, text, tmp_path):
    """An answer that is right in another way, or imports what is harmless, is refused."""
    folder = hand_in(tmp_path, number, "\n\n" + text, after_solution=True)
    (file,) = folder.iterdir()
    source = file.read_text("utf-8")
    for helper in ("real_tokens", "token_rewards", "whiten"):
        source = source.replace(helper, "my_" + helper)
    file.write_text(FUTURE + source, "utf-8")
    assert not any(said(number, folder))


ATTACKS = {  # what an answer tries -> what it is told
    "open('/etc/passwd')": "may not use open",
    "import os; os.listdir('/')": "may not use os.listdir",
    "import bon": "No module named 'bon'. Answers open no files",
    "from tests.solutions import k2": "No module named 'tests'",
    "np.testing.runstring('open(0)', {})": "may not use|No module named|AttributeError",
    "np.lib.npyio.zipfile_factory('/etc/passwd')": "may not use|No module named|AttributeError",
    "np.fromfile('/etc/passwd')": "may not use open",
    "torch.from_file('/etc/passwd', size=9, dtype=torch.uint8)": "Too many open files",
    "import os; os.fork()": "may not use os.fork",
    "import os; os.kill(os.getppid(), 9)": "may not use os.kill",
    "import os; os.system('kill %d' % os.getppid())": "may not use os.system",
    "import ctypes; ctypes.CDLL(None)": "may not use ctypes.dlopen",
    "import gc; gc.get_objects()": "may not use gc.get_objects",
    "import threading; threading.Thread(target=print).start()": "may not use|can't start new thread",
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))": "may not use",
    "bytearray(2**31)": "MemoryError",
    "torch.zeros(2**30)": "can't allocate memory",
    "raise ValueError('\\ud800 \\x1b[2J')": "ValueError:    .2J$",  # half a character, and a terminal's code
    "raise SystemExit(0)": "SystemExit",
    "return object()": "is no number",
}
START = {"name": "3_kl.py", "world": {}, "memory": check.MEMORY, "seconds": 600}


@pytest.mark.skipif(not answer.resource, reason="this system has no limits")
def test_what_an_answer_cannot_do():
    """An answer reads files, starts a process, sends a signal, takes all memory, or spoils the report."""
    functions = [f"def attack_{i}():\n    {code}\n" for i, code in enumerate(ATTACKS)]
    source = "\n\n".join(["import numpy as np\nimport torch\n", *functions])
    with check.process(600, START | {"source": source}) as ask:
        their = check.Answer(ask, check.Given())
        their.request("load")
        for i, (code, words) in enumerate(ATTACKS.items()):
            told = "done"
            try:
                getattr(their, f"attack_{i}")()
            except check.Wrong as wrong:
                told = check.clean(wrong)
            assert re.search(words, told) and told.isprintable(), f"{code}: {told}"


def test_an_answer_that_never_ends():
    """A loop stops the grading of all."""
    start, words = START | {"source": "while True: pass"}, "not finished after 6 seconds"
    with check.process(6, start) as ask, pytest.raises(check.Wrong, match=words):
        check.Answer(ask, check.Given()).request("load")


FORGED = """import atexit, os, sys
import torch as self
self.allclose = lambda *a, **k: True
match self:
    case object(__dict__=names):
        names["tensor"] = print
frame = sys._getframe()
while frame:
    frame.f_globals.update(expect=print, same=lambda *a: True)
    frame = frame.f_back


class Last:
    def __del__(self):
        print("bye")


last = Last()
verdicts = '{"value": null}\\n["check_k2", null]\\n["measured", {"gain": 9}]\\n' * 9
atexit.register(print, verdicts)
for number in range(1, 9):
    try:
        os.write(number, verdicts.encode())
    except OSError:
        pass


def k2(x):
    return x


k3 = bias = k2
"""
BOMB = "for _ in range(300):\n    print('x' * 10**6)\n\n\ndef k2(x):\n    raise SystemExit\n"
NO_DATA = "import os\n\n\ndef k2(x):\n    os._exit(0)\n\n\ndef k3(x):\n    return 'x' * 10**8\n"


def test_a_class_half_of_it_hostile(tmp_path, capsys):
    """A hand-in stops or changes another's grading, earns points without work, leaves processes or files, or
    is overlooked because of where it lies."""
    solution, handed_in = SOLUTIONS / "3_kl.py", tmp_path / "handed-in"
    right = solution.read_text("utf-8")
    places = {
        "ada/3_kl.py": right,
        "bob/bob/3_kl.py": right.replace("x", "x"),
        "cleo_LATE_123_4567_3_kl-1.py": right.replace("log_ratio", "lr"),
        "cleo_123_4568_my_kl.py": right,
        "fay_7_assignsubmission_file/3_KL.py": right.replace("log_ratio", "lr"),
        "fay_7_assignsubmission_onlinetext/text.html": "",
        "notes.txt": "",
        "team_2_dan_5_3_kl.py": right,
        "team_2_eve_6_3_kl.py": right.replace("log_ratio", "lr"),
        "ada/3_kl_explore.py": "",
        "\u6f22" * 80 + "/3_kl.py": "",
        "forger/3_kl.py": FORGED,
        "printer/3_kl.py": BOMB,
        "quitter/3_kl.py": NO_DATA,
        "stale/__pycache__/3_kl.cpython-311.pyc": "",
        "stale/3_kl.py": "def k2(x):\n    return x**2 / 2\n",
        "__MACOSX/ada/._3_kl.py": "\0",
        "ada/._3_kl.py": "\0",
        "=1+1/kl.py": right,
        "points/3_kl.py": "\ufeff" + right,  # as Windows' editor writes it
        "ada\u200b/3_kl.py": "",
        "ada /3_kl.py": "",
        "deep/" + "d/" * 300 + "3_kl.py": right,
        "twice/3_kl.py": right,
        "twice/old/3_kl.py": right,
    }
    for place, text in places.items():
        (handed_in / place).parent.mkdir(parents=True, exist_ok=True)
        (handed_in / place).write_text(text, "utf-8")
    links = {"linker": solution, "neighbour": handed_in / "ada/3_kl.py", "zero": "/dev/zero"}
    for name, target in links.items():
        (handed_in / name).mkdir()
        (handed_in / name / "3_kl.py").symlink_to(target)
    before = sorted(os.walk(handed_in))
    flags = ["--only", "3", "--seed", "5", "--out", str(tmp_path / "out"), "--words"]
    grade.main([str(handed_in), *flags])
    said = capsys.readouterr().out
    with open(tmp_path / "out/grades.csv", newline="") as file:
        points = {row["student"]: float(row["total"]) for row in csv.DictReader(file)}
    honest = [*"ada bob cleo_123 fay_7 team_2_dan_5 team_2_eve_6".split(), "points (another)"]
    others = "deep forger linker neighbour printer quitter twice zero".split()
    others += ["'=1+1", "ada (another)", "ada (another) (another)", "\u6f22" * 50]
    assert points == dict.fromkeys(others, 0.0) | dict.fromkeys(honest, 10.0) | {"stale": 2.5}
    assert "seed: 5\n" in said and re.search(r"^commit .*, torch ", said) and "sha256" in said
    assert "3: ada and bob and points (another) and team_2_dan_5 and the solution have the same" in said
    feedback = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.md")}
    assert {name.lstrip("'") for name in points} == set(feedback)
    assert "3_kl_explore.py" in feedback["ada"] and "cleo_123_4568_my_kl.py" in feedback["cleo_123"]
    assert "kl.py" in feedback["=1+1"] and "=1+1: 0 points, not handed in: 3, ignored" in said
    assert "- k2: passed" in feedback["stale"] and "has no function k3" in feedback["stale"]
    assert "SystemExit" in feedback["printer"]
    assert "is a link" in feedback["zero"] and "2 files for one" in feedback["twice"]
    assert "it ended its process" in feedback["quitter"]
    assert sorted(os.walk(handed_in)) == before, "the grading has left files"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(ASSIGNMENTS / "answer.py") not in left


def test_a_teachers_mistakes(tmp_path, capsys):
    """A wrong path ends in a traceback, or in a table of zeros."""
    for wrong, why in (
        (["nobody"], "is not a folder"),
        ([str(tmp_path)], "holds no answers"),
        ([str(SOLUTIONS), "--bank", "nowhere.npz"], "nowhere.npz"),
        ([str(SOLUTIONS), "--bank", str(ROOT / "README.md")], "README.md is no bank"),
        ([str(SOLUTIONS), "--out", str(ROOT / "README.md")], "File exists"),
        ([str(SOLUTIONS), "--limit", "0"], "--limit must be > 0"),
    ):
        with pytest.raises(SystemExit):
            grade.main(wrong)
        assert why in capsys.readouterr().err


def test_the_class_copy_has_no_solutions(tmp_path):
    """The command that packs the class's copy hands out the solutions, or tests that need them."""
    (command,) = [line for line in README.splitlines() if line.startswith("git archive")]
    packed = tmp_path / "class.zip"
    subprocess.run(command.replace("class.zip", str(packed)), shell=True, cwd=ROOT, check=True)
    shutil.unpack_archive(packed, tmp_path)
    assert (tmp_path / "class/experiments/assignments/stubs").is_dir()
    for left_out in ("solutions", "test_assignments.py"):
        assert not (tmp_path / "class/tests" / left_out).exists()
    command = [sys.executable, "-m", "pytest", "-q", "-k", "lead_somewhere"]  # imports all
    done = subprocess.run(command, cwd=tmp_path / "class", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


HEDGING = """
from world import *
assert TRAITS[-1] == PARTS[-1] == "hedging" and "allegedly" in KIND
parts, traits = judge(encode("anna sold lamps."), [*encode("anna allegedly sold lamps."), EOS])
assert traits["hedging"] == 1 and parts["grammar"] == traits["repetition"] == 0
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
