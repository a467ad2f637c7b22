"""What the READMEs say is there: links, functions, flags, code, and numbers from the records."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / ".ci"))

import readme

EXPERIMENTS = ["experiments/README.md", "experiments/results/README.md", "experiments/assignments/README.md"]
PAGES = ["README.md", *EXPERIMENTS]
OTHER_FLAGS = set("--bank --difficulty --index-url --limit --models --nthreads --nworkers --of".split())
OTHER_FLAGS |= set(
    "--memory --network --only --ppo --pids-limit --prefix --remedies --reward --rm --seed --words".split()
)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """A file was moved, and a page still links its old place."""
    folder = (ROOT / page).parent
    targets = [target for _, target in LINK.findall((ROOT / page).read_text("utf-8")) if "://" not in target]
    assert not [target for target in targets if not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_named_functions_are_in_the_linked_file(page):
    """A function was renamed, and a page still names it."""
    folder = (ROOT / page).parent
    for name, target in LINK.findall((ROOT / page).read_text("utf-8")):
        if target.endswith(".py") and re.fullmatch(r"\w+", name):
            source = (folder / target).read_text("utf-8")
            assert re.search(rf"(def|class) {name}\b|^{name} =", source, re.MULTILINE), (name, target)


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    """A page shows a flag of overopt.py that it no longer has. (Others: of pip, dask, docker, git, ...)"""
    command = [sys.executable, ROOT / "experiments/overopt.py", "--help"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    shown, known = (
        re.findall(r"(?<![\w-])--[a-z][a-z-]*", x) for x in ((ROOT / page).read_text("utf-8"), said)
    )
    assert set(shown) - set(known) <= OTHER_FLAGS


def test_snippet_runs():
    """The README's reward of one's own does not run."""
    code = re.findall(r"```python\n(import sys.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[0]
    code = code.replace("updates=25", "updates=1")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("proxy ")


def test_numbers_are_the_records():
    """A number in a README drifted from the records it claims to come from."""
    texts = readme.sections(readme.load_records(readme.RESULTS))
    for path in readme.PAGES:
        assert readme.fill(path.read_text("utf-8"), texts) == path.read_text("utf-8"), path
        filled = readme.fill(path.read_text("utf-8"), dict.fromkeys(texts, "\0")).count("\0")
        assert path.read_text("utf-8").count("<!--") == 2 * filled >= 6, "a place that is not filled in"
