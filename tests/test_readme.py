"""What the READMEs say is there: links, functions, flags, code, and numbers from the records."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest
import readme

import overopt
from conftest import ROOT

EXPERIMENTS = ["experiments/README.md", "experiments/results/README.md", "experiments/assignments/README.md"]
PAGES = ["README.md", *EXPERIMENTS]
OTHER_FLAGS = set("--index-url --memory --network --nthreads --nworkers --pids-limit --prefix --rm".split())
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """A file was moved, or a function renamed, and a page still links or names the old one."""
    for name, target in LINK.findall((ROOT / page).read_text("utf-8")):
        if "://" not in target:
            path = (ROOT / page).parent / target
            assert path.exists(), target
            if path.suffix == ".py" and re.fullmatch(r"\w+", name):
                defined = rf"(def|class) {name}\b|^{name} ="
                assert re.search(defined, path.read_text("utf-8"), re.MULTILINE), (name, target)


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    """A page shows a flag that our scripts no longer have. (Others: of pip, dask, docker, git.)"""
    sources = "".join(path.read_text("utf-8") for path in ROOT.glob("experiments/**/*.py"))
    settings = {overopt.flag(field.name) for field in fields(overopt.Settings)}
    shown = set(FLAG.findall((ROOT / page).read_text("utf-8")))
    assert shown - settings - set(re.findall(r"\"(--[a-z-]+)\"", sources)) <= OTHER_FLAGS


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
