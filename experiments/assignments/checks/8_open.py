"""Assignment 8: gold of the best of n, against the best aggregator of all reward models."""

import numpy as np
import torch
from expect import MEASURED, expect, expect_numbers, gold_of_best, paired, shuffled_bank

from ensemble import AGGREGATORS


def check_it_beats_the_ensemble(their):
    bank = shuffled_bank()
    gold, rewards = bank["gold"], torch.tensor(bank["rewards"])
    ensembles = {name: function(rewards).numpy() for name, function in AGGREGATORS.items()}
    given = their.proxy(bank["rewards"].copy(), bank["pretrain_seed"].copy(), bank["responses"].copy())
    mine = expect_numbers("proxy", given, gold.shape)
    expect(np.ptp(mine, axis=1).any(), "your proxy gives all responses to a post one score: it picks nothing")
    for name, ensemble in ensembles.items():
        words = f"your proxy picks what `{name}` of all reward models picks: start from it, but go on"
        expect((mine.argmax(1) != ensemble.argmax(1)).any(), words)
    golds = {name: gold_of_best(ensemble, gold) for name, ensemble in ensembles.items()}
    best = max(golds, key=lambda name: golds[name].mean())
    yours, theirs = gold_of_best(mine, gold), golds[best]
    gain, error = paired(yours, theirs)
    MEASURED["gain"], MEASURED["standard error"] = round(float(gain), 4), round(float(error), 4)
    found = {f"`{best}`": theirs.mean(), "yours": yours.mean(), "gold itself": gold.max(1).mean()}
    MEASURED["gold of the best"] = ", ".join(f"by {name} {x:.2f}" for name, x in found.items())
    advice = "It may be luck" if gain > 0 else "Read your picks beside its picks: which are worse, why?"
    words = f"your picks' gold is {gain:+.3f} over that of `{best}`, two standard errors {2 * error:.3f}"
    expect(gain > 2 * error, f"{words}. {advice}")
