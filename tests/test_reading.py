"""experiments/README.md: what it names exists, what it documents is so, what it shows runs."""
import ast
import json
import re
import textwrap
import time

import matplotlib
import numpy as np
import pytest

from conftest import ROOT

PAGE = ROOT / "experiments" / "README.md"
TEXT = PAGE.read_text()
LINKS = re.findall(r"\[([^\]]+)\]\(([^)#\s]+)\)", TEXT)


def defined(path):
    """Names of all functions, classes, methods and constants of a Python file."""
    tree = ast.parse(path.read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return functions | {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.fixture(scope="module")
def bank():
    with np.load(ROOT / "experiments" / "results" / "bank-tldr.npz") as arrays:
        return dict(arrays)


def test_links_name_what_is_in_the_file():
    """A function that was renamed or moved to another file: the page would send its reader to nothing."""
    code = [(name, PAGE.parent / target) for name, target in LINKS if target.endswith(".py")]
    assert len(code) > 50
    assert [(name, str(path)) for name, path in code if not path.exists() or name not in defined(path)] == []


def test_links_lead_somewhere():
    """A figure that is no longer drawn, or has another name: every question speaks of one."""
    assert [target for _, target in LINKS if not (PAGE.parent / target).exists()] == []
    questions = re.split(r"^\d+\. ", TEXT.split("## 4.")[1], flags=re.M)[1:]
    assert 8 <= len(questions) <= 12 and all(".png)" in question and ".py)" in question for question in questions)


def test_formulas_survive_markdown():
    """GitHub reads Markdown before mathematics: a backslash before punctuation vanishes, and an underscore after punctuation, an asterisk
    or a bar starts something else."""
    formulas = re.findall(r"\$([^$]+)\$", re.sub(r"```.*?```", "", TEXT, flags=re.S))
    assert len(formulas) > 30 and TEXT.count("$") == 2 * len(formulas)
    assert [f for f in formulas if re.search(r"\\[!-/:-@\[-`{-~]|(?<![A-Za-z0-9])_|[*|<>`\n]|^\s|\s$", f)] == []
    assert [f for f in formulas if f.count("{") != f.count("}")] == []


def test_bank_is_documented_field_by_field(bank):
    """A field that is not documented, one that is gone, or one of another shape than the table says."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\([^|]*\)) \|", TEXT, flags=re.M))
    sizes = dict(zip(("M", "posts", "n"), bank["rewards"].shape))
    documented = {name: tuple(sizes[axis] for axis in re.findall(r"\w+", shape)) for name, shape in rows.items()}
    assert documented == {name: x.shape for name, x in bank.items()}
    assert all(f"(here {size})" in TEXT for size in sizes.values())


def test_what_the_page_says_of_the_bank(bank):
    """Parts that do not add up to gold, prices or a seed that are not those of the file, a piece of advice that does not run."""
    np.testing.assert_allclose(sum(x for name, x in bank.items() if name.startswith("part_")), bank["gold"], atol=1e-4)
    for part, price in re.findall(r"^\| `part_(\w+)` .*: (-?[\d.]+)(?: each)? \|$", TEXT, flags=re.M):
        counts = bank[f"part_{part}"] / float(price)
        np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
        assert np.gcd.reduce(counts.round().astype(int), axis=None) == 1, "the price is not a multiple of the true one"
    assert f"`--seed {json.loads(bank['settings'].item())['seed']}`" in TEXT
    assert bank["rewards"][bank["pretrain_seed"] == 0].mean(0).shape == bank["gold"].shape


def test_the_example_runs(tmp_path, monkeypatch):
    """An example that fails, takes long, draws nothing, or is another one than the copy in the main README."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    blocks = re.findall(r"```python\n(.*?)```", TEXT + (ROOT / "README.md").read_text(), flags=re.S)
    examples = {textwrap.dedent(block).strip() for block in blocks if "bank-" in block}
    assert len(examples) == 1, "the copy differs"
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    plt.close("all")
    start = time.process_time()
    exec(compile(examples.pop(), "example", "exec"), {})
    assert time.process_time() - start < 3
    one, several = (line.get_ydata() for line in plt.gca().get_lines())
    plt.close("all")
    assert (tmp_path / "bank.png").stat().st_size > 5000
    assert one[0] == pytest.approx(several[0]), "at n = 1 there is no choice"
