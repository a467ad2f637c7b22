"""Assignment 8: gold of the best of n, against the best aggregator of all reward models and length."""

import numpy as np
import torch
from expect import expect, expect_numbers, gold_of_best, paired, shuffled_bank

from ensemble import AGGREGATORS

PER_WORD = np.arange(-5, 31) / 100  # what a baseline takes off for each word
LEAST = 0.1  # gold to gain: less is a baseline's coefficient, tuned


def check_it_beats_the_ensemble(their):
    bank = shuffled_bank(their.given)
    gold, rewards, length = bank["gold"], torch.tensor(bank["rewards"]), bank["trait_length"]
    mine = their.proxy(bank["rewards"], bank["pretrain_seed"], bank["responses"])
    mine = expect_numbers("proxy", mine, gold.shape)
    expect(np.ptp(mine, axis=1).any(), "your proxy gives all responses to a post one score: it picks nothing")
    golds = {}
    for name, function in AGGREGATORS.items():
        ensemble = function(rewards).numpy()
        golds |= {f"{name} - {c:g} * length": gold_of_best(ensemble - c * length, gold) for c in PER_WORD}
    best = max(golds, key=lambda name: golds[name].mean())
    yours, theirs = gold_of_best(mine, gold), golds[best]
    gain, error = paired(yours, theirs)
    their.measured["gain"], their.measured["standard error"] = f"{gain:+.3f}", f"{error:.3f}"
    found = {f"`{best}`": theirs.mean(), "yours": yours.mean(), "gold itself": gold.max(1).mean()}
    golds = ", ".join(f"by {name} {x:.2f}" for name, x in found.items())
    their.measured["gold of the best"] = golds
    advice = "Read your picks beside its picks: which are worse, why?"
    if gain > 0:
        advice = "More than luck, but too little" if gain > 2 * error else "It may be luck"
    words = f"your picks' gold is {gain:+.3f} over that of `{best}`, two standard errors {2 * error:.3f}"
    expect(gain > max(2 * error, LEAST), f"{words}, {LEAST} wanted. {advice}")
