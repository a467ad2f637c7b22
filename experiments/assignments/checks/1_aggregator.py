"""Assignment 1: shapes, members without order, gold above that of one model; and always, that it is new."""

from functools import cache

import numpy as np
import torch
from expect import expect, expect_numbers, gold_of_best, load_bank, paired

from ensemble import AGGREGATORS, pretrain_ensembles

TAKEN = AGGREGATORS | {"midrange": lambda r: (r.amin(0) + r.amax(0)) / 2}  # the README's example
TAKEN |= {  # and a coefficient is no new idea
    f"mean - {c / 10} std": lambda r, c=c: r.mean(0) - c / 10 * r.std(0, correction=0) for c in range(-20, 61)
}


def aggregated(their, rewards):
    shape, given = tuple(rewards.shape), their.aggregator(rewards)
    last = getattr(given, "shape", None) == shape[:-1] != shape[1:]
    words = f"rewards {shape} became {shape[:-1]}: the members are the first axis, not the last: dim=0"
    expect(not last, words)
    return expect_numbers(f"aggregator of rewards {shape}", given, shape[1:])


@cache
def ensembles(path):
    """Each pretrain ensemble's rewards of the bank, (E, 5, posts, n)."""
    bank = load_bank(path)
    grid = np.arange(len(bank["rewards"])).reshape(len(np.unique(bank["pretrain_seed"])), -1)
    return torch.tensor(bank["rewards"][pretrain_ensembles(grid)])


@cache
def picks_taken(path, posts):
    """{aggregator: what it picks of the first posts, (E, posts)}."""
    some = ensembles(path)[:, :, :posts]
    return {name: torch.stack([f(members) for members in some]).argmax(-1) for name, f in TAKEN.items()}


def expect_new(their, posts=64):
    """Wrong if the answer's picks are those of an aggregator that is there already, whatever its values."""
    some = ensembles(their.given.bank)[:, :, :posts]
    mine = np.stack([aggregated(their, members) for members in some]).argmax(-1)
    for name, theirs in picks_taken(their.given.bank, posts).items():
        same = (theirs.numpy() == mine).mean()
        where = "which ensemble.py or the README has, up to a coefficient"
        expect(same < 0.98, f"{same:.0%} of its picks are those of `{name}`, {where}: not new")


def check_shapes(their):
    expect_new(their)
    for shape in ((5, 3, 2), (5, 7), (1, 4), (25, 2, 3, 4)):
        rewards = their.given.normal(*shape)
        given = aggregated(their, rewards)
        alone = np.stack([aggregated(their, rewards[:, [i]])[0] for i in range(shape[1])])
        words = "a response's reward depends on other responses: aggregate over the members (dim=0) alone"
        expect(np.allclose(given, alone, atol=1e-5), words)


def check_members_have_no_order(their):
    expect_new(their)
    rewards, rng = their.given.normal(5, 100), their.given.rng()
    given = aggregated(their, rewards)
    words = "the same members in another order give another reward: does one place count more than another?"
    for _ in range(8):
        other = aggregated(their, rewards[rng.permutation(5)])
        expect(np.allclose(given, other, atol=1e-5), words)


def check_better_than_one_reward_model(their):
    expect_new(their)
    gold, members = load_bank(their.given.bank)["gold"], ensembles(their.given.bank)
    mine, single, mean = (
        np.mean([gold_of_best(np.asarray(proxy), gold) for proxy in proxies], 0)
        for proxies in ([aggregated(their, m) for m in members], members.flatten(0, 1), members.mean(1))
    )
    found = {"one reward model": single, "`mean`": mean, "yours": mine}
    golds = ", ".join(f"by {name} {x.mean():.2f}" for name, x in found.items())
    their.measured["gold of the best"] = golds
    gain, error = paired(mine, single)
    words = f"its picks' gold is {gain:+.2f} over one reward model's, two standard errors {2 * error:.2f}"
    expect(gain > 2 * error, f"{words}. Is high good in yours? One fooled member must not decide alone")
