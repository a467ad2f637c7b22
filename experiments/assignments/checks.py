"""What the checks share: verdicts in words, handed-in functions, the stored bank, the reward models of a finished run."""
import ast
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bon import best_of_n
from cache import Cache, ROOT, write_whole

HERE = Path(__file__).parent
LINE = "# ----- the check: nothing to change below"
NOTES = []                # what was measured: shown after the verdicts


# ----- verdicts -------------------------------------------------------------------------------------

def expect(condition, words):
    """Fail in these words, without a traceback, unless the condition holds."""
    if not condition:
        pytest.fail(words, pytrace=False)


def expect_numbers(name, given, shape):
    """Fail in words unless `given` is a tensor or array of finite numbers of this shape; returns it as an array."""
    expect(given is not None, f"{name} returns None: is its `return` missing?")
    expect(not isinstance(given, tuple), f"{name} returns a tuple: of torch's max, min, median and sort along an axis take .values")
    expect(isinstance(given, (torch.Tensor, np.ndarray, float, int, np.number)), f"{name} returns a {type(given).__name__}, not numbers")
    given = given.detach().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    expect(given.shape == shape, f"{name} returns shape {given.shape}, expected {shape}: over which axis do you sum?")
    expect(np.isfinite(given).all(), f"{name} returns NaN or infinity: a logarithm of 0, a division by 0, or exp of a large number?")
    return given


def expect_close(name, given, right, slips={}, hint=""):
    """Fail unless `given` is `right` up to rounding. slips: {a typical slip in words: what it would give}; the one that fits is named."""
    right = np.asarray(right)
    given = expect_numbers(name, given, right.shape)
    same = lambda x: np.allclose(given, np.asarray(x), rtol=1e-4, atol=1e-5)
    slip = next((words for words, x in slips.items() if same(x)), hint)
    where, shown = "", lambda x: np.array2string(x, precision=4, suppress_small=True)
    if right.ndim > 1:                # the place where they differ most says more than two tables
        place = np.unravel_index(np.abs(given - right).argmax(), right.shape)
        where, shown = f" at {[int(i) for i in place]}", lambda x: f"{x[place]:.4f}"
    expect(same(right), f"{name} must be {shown(right)}{where}, yours is {shown(given)}" + f": {slip}" * bool(slip))


# ----- handed-in files ------------------------------------------------------------------------------

def stubs(path):
    """Names of the functions above the line: what is a student's to write."""
    head = Path(path).read_text().split(LINE)[0]
    return [node.name for node in ast.parse(head).body if isinstance(node, ast.FunctionDef)]


def hand_in(module, folder):
    """Put the functions of the folder's file of the same number into a module of checks. ValueError, in words, if that can't be done."""
    number = Path(module.__file__).stem.split("_")[1]
    files = sorted(Path(folder).glob(f"*_{number}*.py"))
    if len(files) != 1:
        raise ValueError(f"{folder}: has {len(files)} files *_{number}*.py, not one" + "".join(f", {file.name}" for file in files))
    spec = importlib.util.spec_from_file_location(f"handed_in_{number}", files[0])
    theirs = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(theirs)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{files[0].name}: can't be imported ({type(error).__name__}: {error})") from None
    for name in stubs(module.__file__):
        if not callable(getattr(theirs, name, None)):
            raise ValueError(f"{files[0].name}: has no function {name}")
        setattr(module, name, getattr(theirs, name))


# ----- the bank -------------------------------------------------------------------------------------

def load_bank():
    """(The bank as a dict of arrays, its file): scores and gold of n SFT responses to each post. BANK names another file."""
    path = Path(os.environ.get("BANK") or ROOT / "experiments" / "results" / "bank-tldr.npz")
    expect(path.is_file(), f"there is no bank {path}: set BANK to the bank-TASK.npz of a finished run, or leave it unset")
    with np.load(path) as bank:
        return dict(bank), path


def gold_of_best(proxy, gold):
    """Gold of each post's best response by proxy: (posts, n), (posts, n) -> (posts,)."""
    return np.take_along_axis(gold, best_of_n(proxy)[:, None], 1)[:, 0].astype(float)


def paired(a, b):
    """Mean of a - b over posts, and its standard error."""
    return (a - b).mean(), (a - b).std(ddof=1) / len(a) ** 0.5


# ----- a finished run's reward models ---------------------------------------------------------------

def find_run():
    """The folder of a finished run: RUN, else runs/overopt, else runs/quick; None if there is none."""
    folders = [Path(os.environ["RUN"])] if os.environ.get("RUN") else [ROOT / "runs" / name for name in ("overopt", "quick")]
    return next((folder for folder in folders if (folder / "results.json").exists()), None)


def load_run():
    """(reward models, bank, task) of a finished run, read from its cache; nothing is trained."""
    from overopt import Settings, pick_device
    from pipeline import Pipeline
    from report import load_results

    folder = find_run()
    sought = os.environ.get("RUN") or "runs/overopt or runs/quick"
    expect(folder, f"this check needs trained reward models, and there is no finished run in {sought}. "
           "Run `python experiments/overopt.py --quick` first (a minute or two), or set RUN to the folder of a run")

    def read(name, inputs, compute):
        def refuse():
            raise ValueError(f"{folder} was made by other code: {name} is not in its cache under this code's key. "
                             "Run the command that made it again, then come back")
        return cache(name, inputs, refuse)

    try:
        results = load_results(folder)
        settings = {name: tuple(x) if isinstance(x, list) else x for name, x in results["settings"].items()}
        settings["task"] = next(iter(results["tasks"]))
        device = pick_device(results["device"])
        cache = Cache(folder / "cache", device)
        rms = Pipeline(Settings(**settings), device, read, say=lambda text: None).grid()[0]
        with np.load(folder / f"bank-{settings['task']}.npz") as bank:
            return rms, dict(bank), settings["task"]
    except (ValueError, OSError, RuntimeError) as error:
        expect(False, str(error))


# ----- the leaderboard ------------------------------------------------------------------------------

def enter(path, row):
    """Put a student's row into a leaderboard, one JSON object a line, in place of the student's earlier one on that bank. Lines that
    can't be read stay as they are; readers see the old file or the new one."""
    def same(line):
        try:
            old = json.loads(line)
            return (old["student"], old["bank"]) == (row["student"], row["bank"])
        except (ValueError, TypeError, KeyError):
            return False

    lines = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in lines if not same(line)] + [json.dumps(row)]
    write_whole(path, lambda file: file.write("".join(line + "\n" for line in lines).encode()))
