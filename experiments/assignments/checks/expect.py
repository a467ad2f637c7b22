"""What the checks share: verdicts in words, their inputs, and the bank of scored responses."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from models import load_models

RESULTS = Path(__file__).parents[2] / "results"
load_models = cache(load_models)


@dataclass(frozen=True)
class Given:
    """What a grading is made on."""

    seed: int = 0  # of all random inputs
    bank: Path = RESULTS / "bank-tldr.npz"
    models: Path = RESULTS / "models-tldr.pt"

    def rng(self):
        return np.random.default_rng(self.seed)

    def normal(self, *shape):
        """A tensor of standard normal numbers, the same at each call."""
        return torch.tensor(self.rng().normal(size=shape), dtype=torch.float)


class Wrong(Exception):
    """What is wrong with an answer, in words."""


def expect(condition, words):
    if not condition:
        raise Wrong(words)


def clean(text, most=600):
    """Words of an answer as they may be shown: no control characters, no half characters, no novels."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:most])


def expect_numbers(name, given, shape):
    """`given` as an array, if it is a tensor or an array of finite numbers of this shape."""
    expect(given is not None, f"{name} is None: is a `return` missing?")
    words = "torch's max, min, median and sort return two tensors along an axis: take .values"
    expect(not isinstance(given, list), f"{name} is a tuple or a list, not an array: {words}")
    numbers = isinstance(given, torch.Tensor | np.ndarray | float | int)
    expect(numbers, f"{name} must be numbers, got a {type(given).__name__}")
    given = np.asarray(given, dtype=float)
    expect(given.shape == shape, f"{name} must have shape {shape}, got {given.shape}: which axis do you sum?")
    words = "log of 0, division by 0, exp of a large number, or std of one?"
    expect(np.isfinite(given).all(), f"{name} has NaN or infinity: {words}")
    return given


def same(a, b):
    return np.allclose(a, np.asarray(b, dtype=float), rtol=1e-4, atol=1e-5)


def expect_close(name, given, right, slips=None, hint=""):
    """`given` must be `right` up to rounding. slips: {a typical mistake in words: the result it gives}; if
    one fits, its words are shown, else the hint."""
    right = np.asarray(right, dtype=float)
    given = expect_numbers(name, given, right.shape)
    advice = next((words for words, result in (slips or {}).items() if same(given, result)), hint)
    shown = [np.array2string(x, formatter={"float_kind": "{:.4g}".format}) for x in (right, given)]
    words = f"{name} must be {shown[0]}, yours is {shown[1]}"
    expect(same(given, right), f"{words}: {advice}" if advice else words)


# ----- the bank -----------------------------------------------------------------------------------


@cache
def load_bank(path):
    """The bank as a dict: rewards (M, posts, n), gold and responses (posts, n), posts (posts,), and so on."""
    try:
        with np.load(path) as bank:
            return dict(bank)
    except ValueError:
        raise ValueError(f"{path} is no bank: give bank-SEED-TASK.npz of a run") from None


def describe(given):
    """What a grading is made on, in words. ValueError or OSError if a file is none, or a seed negative."""
    given.rng()
    models, posts, n = load_bank(given.bank)["rewards"].shape
    digest = hashlib.sha256(given.bank.read_bytes()).hexdigest()[:8]
    bank = f"{given.bank} ({models} reward models, {posts} posts, {n} responses each; sha256 {digest})"
    return f"seed: {given.seed}\nbank: {bank}\nmodels: {load_models(given.models)}"


def shuffled_bank(given):
    """The bank with its posts, and the responses to each, in another order: places give nothing away."""
    bank, rng = dict(load_bank(given.bank)), given.rng()
    posts, n = bank["gold"].shape
    rows, order = rng.permutation(posts), rng.permuted(np.tile(np.arange(n), (posts, 1)), axis=1)
    for name in ("rewards", "gold", "responses", "trait_length"):
        bank[name] = bank[name][..., rows[:, None], order]
    return bank | {"posts": bank["posts"][rows]}


def gold_of_best(proxy, gold):
    """Gold of each post's best response by proxy: (posts, n), (posts, n) -> (posts,)."""
    return np.take_along_axis(gold, proxy.argmax(1)[:, None], axis=1)[:, 0].astype(float)


def paired(a, b):
    """Mean of a - b over posts, and its standard error."""
    return (a - b).mean(), (a - b).std(ddof=1) / len(a) ** 0.5
