"""Assignment 2: shapes, members without order, gold above that of one model; and always, that it is new."""

import numpy as np
import torch
from expect import MEASURED, expect, expect_numbers, gold_of_best, load_bank, paired

from ensemble import AGGREGATORS, pretrain_ensembles

TAKEN = AGGREGATORS | {"midrange": lambda r: (r.amin(0) + r.amax(0)) / 2}  # the README's example


def aggregated(their, rewards):
    shape, given = tuple(rewards.shape), their.aggregator(rewards.clone())
    last = getattr(given, "shape", None) == shape[:-1] != shape[1:]
    expect(
        not last, f"rewards {shape} became {shape[:-1]}: the members are the first axis, not the last: dim=0"
    )
    return expect_numbers(f"aggregator of rewards {shape}", given, shape[1:])


def new_proxies(their):
    """What the answer makes of each pretrain ensemble's rewards of the bank (E, posts, n), and those rewards.
    Wrong if its picks are those of an aggregator that is there already, whatever its values."""
    bank = load_bank()
    grid = np.arange(len(bank["rewards"])).reshape(len(np.unique(bank["pretrain_seed"])), -1)
    ensembles = [torch.tensor(bank["rewards"][members]) for members in pretrain_ensembles(grid)]
    mine = np.stack([aggregated(their, members) for members in ensembles])
    for name, function in TAKEN.items():
        theirs = np.stack([function(members).numpy() for members in ensembles])
        same = (theirs.argmax(-1) == mine.argmax(-1)).mean()
        where = "which ensemble.py or the README has"
        expect(same < 0.98, f"{same:.0%} of its picks are those of `{name}`, {where}: not new")
    return mine, ensembles


def check_shapes(their):
    new_proxies(their)
    for shape in ((5, 3, 2), (5, 7), (1, 4), (25, 2, 3, 4)):
        rewards = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        given = aggregated(their, rewards)
        alone = np.stack([aggregated(their, rewards[:, [i]])[0] for i in range(shape[1])])
        words = "a response's reward depends on other responses: aggregate over the members (dim=0) alone"
        expect(np.allclose(given, alone, atol=1e-5), words)


def check_members_have_no_order(their):
    new_proxies(their)
    rewards = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    given, rolled = aggregated(their, rewards), aggregated(their, rewards.roll(1, 0))
    words = "the same members in another order give another reward: does one place count more than another?"
    expect(np.allclose(given, rolled, atol=1e-5), words)


def check_better_than_one_reward_model(their):
    bank, (proxies, ensembles) = load_bank(), new_proxies(their)
    mine, single, mean = (
        np.mean([gold_of_best(np.asarray(proxy), bank["gold"]) for proxy in each], 0)
        for each in (proxies, bank["rewards"], [members.mean(0) for members in ensembles])
    )
    found = {"one reward model": single, "`mean`": mean, "yours": mine}
    MEASURED["gold of the best"] = ", ".join(f"by {name} {x.mean():.2f}" for name, x in found.items())
    gain, error = paired(mine, single)
    words = (
        f"the gold of its picks is {gain:+.2f} over one reward model's, two standard errors {2 * error:.2f}"
    )
    expect(gain > 2 * error, f"{words}. Is high good in yours? One fooled member must not decide alone")
