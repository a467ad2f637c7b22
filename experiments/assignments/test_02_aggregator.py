"""2. An aggregator of your own.

Goal    Make one reward of M reward models' scores, in a way that ensemble.py does not have, such that the best of 64 responses
        by it is truly better (gold) than by one reward model. (It need not beat ensemble.py's.) The score is measured on the stored bank and printed beside the four
        aggregators of ensemble.py, and beside the oracle, which picks by gold.
Read    ensemble.py up to `aggregate`; README.md, "What comes out"
Time    45 minutes
Points  10
Run     python -m pytest experiments/assignments/test_02_aggregator.py
Hint    `bank = np.load("experiments/results/bank-tldr.npz")` has all that the check looks at: bank["rewards"] is (25, posts, n).
        Once it passes, put it into AGGREGATORS: PPO can use it too.
"""
import torch


def aggregator(rewards):
    """Scores of M reward models, a tensor (M, ...) -> a tensor (...). Any M, any shape behind it; the members have no order."""
    raise NotImplementedError("aggregator is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

import numpy as np

from checks import NOTES, expect, expect_numbers, gold_of_best, load_bank, paired
from ensemble import AGGREGATORS, pretrain_ensembles


def aggregated(rewards):
    """The student's aggregate as an array; fails in words if it is none, or one of ensemble.py's."""
    shape, given = tuple(rewards.shape), aggregator(rewards.clone())
    if isinstance(given, (torch.Tensor, np.ndarray)) and given.shape != shape[1:] and given.shape == shape[:-1]:
        expect(False, f"rewards {shape} became {tuple(given.shape)}: you took the last axis. The members are the first: dim=0")
    given = expect_numbers(f"aggregator of rewards {shape}", given, shape[1:])
    for name, function in AGGREGATORS.items():
        expect(len(rewards) == 1 or not np.allclose(given, function(rewards), atol=1e-5),
               f"that is `{name}`, which ensemble.py has already: one of your own, please")
    return given


def test_shapes():
    for shape in ((5, 3, 2), (5, 7), (1, 4), (25, 2, 3, 4)):
        rewards = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        given = aggregated(rewards)
        alone = np.stack([aggregated(rewards[:, [i]])[0] for i in range(shape[1])])
        expect(np.allclose(given, alone, atol=1e-5),
               "what a response gets depends on other responses' scores: aggregate over the members (dim=0) alone")


def test_members_have_no_order():
    rewards = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    given = aggregated(rewards)
    for other in (rewards.flip(0), rewards.roll(1, 0)):
        expect(np.allclose(given, aggregated(other), atol=1e-5),
               "the same members in another order give another reward: is it one member's score, or a weight for each place?")


def test_it_beats_one_reward_model():
    bank, _ = load_bank()
    rewards, gold = torch.tensor(bank["rewards"]), bank["gold"]
    sizes = (len(np.unique(bank[name])) for name in ("pretrain_seed", "finetune_seed"))
    ensembles = pretrain_ensembles(*sizes)
    score = lambda function: np.mean([gold_of_best(np.asarray(function(rewards[members])), gold) for members in ensembles], 0)
    single = np.mean([gold_of_best(x.numpy(), gold) for x in rewards], 0)
    mine = score(aggregated)
    table = {"SFT": gold.mean(), "one reward model": single.mean(), **{name: score(f).mean() for name, f in AGGREGATORS.items()},
             "yours": mine.mean(), "oracle": gold.max(1).mean()}
    n = gold.shape[1]
    NOTES.append(f"gold of the best of {n}, by pretrain ensembles: " + ", ".join(f"{name} {x:.2f}" for name, x in table.items()))
    gain, error = paired(mine, single)
    expect(gain > 2 * error, f"the best of {n} by yours has gold {mine.mean():.2f}, by one reward model {single.mean():.2f}: the difference {gain:+.2f} "
           f"is not above two standard errors ({2 * error:.2f}). Is a high score high in yours too? One member that is fooled must not decide alone")
