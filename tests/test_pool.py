"""The engine: what a key depends on, and that a value is kept whole or not at all."""

import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import overopt
import pool
from pool import Pool, code_of, key, write_whole

CALLS = []
pool.MODULES["test_pool"] = Path(__file__).read_text("utf-8")  # jobs are functions of our own modules


def double(x):
    CALLS.append(x)
    return 2 * x


def test_map_keeps_the_order_and_computes_once(tmp_path):
    """Values are mixed up, equal jobs are done twice, or all is computed again."""
    with ThreadPoolExecutor(2) as executor:
        jobs = [{"x": 3}, {"x": 1}, {"x": 3}]
        assert Pool(executor, tmp_path).map(double, jobs) == [6, 2, 6]
        assert sorted(CALLS) == [1, 3]
        assert Pool(executor, tmp_path).map(double, jobs) == [6, 2, 6]
        assert sorted(CALLS) == [1, 3]


def test_an_equal_argument_has_an_equal_key():
    """A key depends on where a tensor lies, or not on its values, its shape or the code."""
    zeros = torch.zeros(2, 3)
    assert key(double, {"a": zeros}) == key(double, {"a": torch.zeros(3, 2).T})
    values = [zeros, zeros + 1, zeros.T, zeros.double(), [zeros], "0", 0, 0.0]
    keys = {key(double, {"x": x}) for x in values} | {key(double, {"y": 0}), key(other, {"x": 0})}
    assert len(keys) == len(values) + 2


def other(x):
    return 3 * x


def test_a_key_has_the_code_of_its_arguments(monkeypatch):
    """A dataclass changes what its property says, or a lambda is taken for another, and no key changes."""
    config = overopt.Config(vocab_size=9)
    before = key(double, {"x": config})
    edited = pool.MODULES["policy"].replace("self.vocab_size - 1)", "self.vocab_size - 3)")
    monkeypatch.setitem(pool.MODULES, "policy", edited)
    codes()
    assert key(double, {"x": config}) != before
    monkeypatch.undo()
    codes()
    for x in (lambda: 1, max, torch.amax, {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            key(double, {"x": x})


def test_a_worker_with_other_code_is_refused():
    """A file is edited during a run, and the old code's value is kept under the new code's key."""
    with pytest.raises(ValueError, match="a worker has other code"):
        pool.run(double, pickle.dumps({"x": 1}), "0123456789abcdef")


STAGES = ("pretrain", "train_reward_model", "score", "align")


def codes():
    """{stage: the code that it reaches}, of the files as they are now."""
    pool.definitions.cache_clear()
    code_of.cache_clear()
    return {stage: code_of("overopt", stage) for stage in STAGES}


@pytest.mark.parametrize("module, old, new, changed", [
    ("policy", "The training loop of every model", "A loop, in words", ""),
    ("ensemble", "AGGREGATORS = {", "AGGREGATORS = {'max': max, ", ""),
    ("policy", "head_dim**-0.5", "head_dim**-0.4", "pretrain train_reward_model score align"),
    ("world", "LIST_RATE = ", "LIST_RATE = 0.5 * ", "pretrain align"),
    ("rm", "eta=0.01", "eta=0.02", "train_reward_model"),
    ("ppo", "(std + 1e-8)", "(std + 1e-6)", "align"),
    ("world", "EOS, PAD", "PRICES['list']['nli'] = 1\nEOS, PAD", "align"),
    ("overopt", "VALIDATION_PAIRS = 1000", "VALIDATION_PAIRS = 10", ""),
])  # fmt: skip
def test_an_edit_reruns_what_it_reaches(monkeypatch, module, old, new, changed):
    """An edit of a docstring reruns all, or an edit of a constant leaves what used it as it was."""
    before, source = codes(), pool.MODULES[module]
    assert old in source
    with monkeypatch.context() as context:
        context.setitem(pool.MODULES, module, source.replace(old, new))
        after = codes()
    assert {stage for stage in STAGES if after[stage] != before[stage]} == set(changed.split())
    assert codes() == before


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tmp_path):
    """torch.save on a full disk is a RuntimeError, and half a file is taken for a value."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write_whole(tmp_path / "value.pt", pool.saved(torch.zeros(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_seeds_are_unlike():
    """Two random things of a world, or of two worlds, share a seed."""
    names = [(seed, *name) for seed in (1, 2) for name in (("texts", 0), ("texts", 1), ("order", 0))]
    assert len({overopt.seed_for(*name) for name in names}) == len(names)
