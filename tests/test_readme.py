"""What the READMEs say is there: links, functions, flags, code, and numbers from the records."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import readme

PAGES = ["README.md", "experiments/README.md", "experiments/assignments/README.md"]
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """A file was moved, and a page still links its old place."""
    folder = (ROOT / page).parent
    targets = [target for _, target in LINK.findall((ROOT / page).read_text()) if "://" not in target]
    assert not [target for target in targets if not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_named_functions_are_in_the_linked_file(page):
    """A function was renamed, and a page still names it."""
    folder = (ROOT / page).parent
    for name, target in LINK.findall((ROOT / page).read_text()):
        if target.endswith(".py") and re.fullmatch(r"\w+", name):
            source = (folder / target).read_text()
            assert re.search(rf"(def|class) {name}\b|^{name} =", source, re.MULTILINE), (name, target)


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    """A page shows a flag of overopt.py that it no longer has."""
    help = subprocess.run(
        [sys.executable, ROOT / "experiments/overopt.py", "--help"], capture_output=True, text=True
    ).stdout
    lines = [line for line in (ROOT / page).read_text().splitlines() if "overopt.py" in line]
    for flag in re.findall(r" (--[a-z-]+)", "\n".join(lines)):
        assert flag in help or flag in ("--nnodes", "--nproc-per-node"), flag  # the last two are torchrun's


def test_snippet_runs(tiny):
    """The README's reward of one's own fails, or shows other lines than it prints."""
    code = re.findall(r"```python\n(import sys.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    code = code.replace("runs/quick/policy-1.pt", str(tiny / "policy-3.pt")).replace(
        "updates=20", "updates=2"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("proxy ")


def test_numbers_are_the_records():
    """A number in a README drifted from the records it claims to come from."""
    texts = readme.sections(readme.load_records(readme.RESULTS))
    for path in readme.PAGES:
        assert readme.fill(path.read_text(), texts) == path.read_text(), path
        assert readme.fill(path.read_text(), dict.fromkeys(texts, "?")).count("?") >= 3, (
            "nothing is filled in"
        )
