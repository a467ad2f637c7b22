"""Assignment 2: shapes, members without order, picks of its own, and gold above that of one reward model."""

import numpy as np
import torch
from expect import MEASURED, expect, expect_numbers, gold_of_best, load_bank, paired

from ensemble import AGGREGATORS, pretrain_ensembles

TAKEN = AGGREGATORS | {"midrange": lambda r: (r.amin(0) + r.amax(0)) / 2}  # the README's example


def aggregated(their, rewards):
    shape, given = tuple(rewards.shape), their.aggregator(rewards.clone())
    last = getattr(given, "shape", None) == shape[:-1] != shape[1:]
    expect(
        not last,
        f"rewards {shape} became {shape[:-1]}: that is the last axis. The members are the first: dim=0",
    )
    return expect_numbers(f"aggregator of rewards {shape}", given, shape[1:])


def check_shapes(their):
    for shape in ((5, 3, 2), (5, 7), (1, 4), (25, 2, 3, 4)):
        rewards = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        given = aggregated(their, rewards)
        alone = np.stack([aggregated(their, rewards[:, [i]])[0] for i in range(shape[1])])
        words = "a response's reward depends on other responses: aggregate over the members (dim=0) alone"
        expect(np.allclose(given, alone, atol=1e-5), words)


def check_members_have_no_order(their):
    rewards = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    given, rolled = aggregated(their, rewards), aggregated(their, rewards.roll(1, 0))
    words = "the same members in another order give another reward: does one place count more than another?"
    expect(np.allclose(given, rolled, atol=1e-5), words)


def check_new_and_better_than_one(their):
    bank = load_bank()
    rewards, gold = torch.tensor(bank["rewards"]), bank["gold"]
    grid = np.arange(len(rewards)).reshape(len(np.unique(bank["pretrain_seed"])), -1)
    ensembles = [rewards[members] for members in pretrain_ensembles(grid)]
    proxies = np.stack([aggregated(their, members) for members in ensembles])
    for name, function in TAKEN.items():
        theirs = np.stack([function(members).numpy() for members in ensembles])
        same = (theirs.argmax(-1) == proxies.argmax(-1)).mean()
        expect(
            same < 0.98,
            f"{same:.0%} of its picks are those of `{name}`, which the repository has: it is not new",
        )
    mine = np.mean([gold_of_best(proxy, gold) for proxy in proxies], 0)
    single = np.mean([gold_of_best(proxy, gold) for proxy in bank["rewards"]], 0)
    mean = np.mean([gold_of_best(members.mean(0).numpy(), gold) for members in ensembles])
    found = {
        "all responses": gold.mean(),
        "one reward model": single.mean(),
        "`mean`": mean,
        "yours": mine.mean(),
    }
    MEASURED[f"gold of the best of {gold.shape[1]}"] = ", ".join(
        f"{name} {x:.2f}" for name, x in found.items()
    )
    gain, error = paired(mine, single)
    words = f"gold of its picks - that of one model's is {gain:+.2f}, two standard errors {2 * error:.2f}"
    expect(
        gain > 2 * error,
        f"{words}. Is a high score good in yours too? One fooled member must not decide alone",
    )
