"""Assignment 8: gold of the best of n, against the mean of all reward models."""

import numpy as np
from expect import MEASURED, expect, expect_numbers, gold_of_best, paired, shuffled_bank


def check_it_beats_the_ensemble(their):
    bank = shuffled_bank()
    gold, ensemble = bank["gold"], bank["rewards"].mean(0)
    given = their.proxy(bank["rewards"].copy(), bank["pretrain_seed"].copy(), bank["responses"].copy())
    mine = expect_numbers("proxy", given, gold.shape)
    expect(np.ptp(mine, axis=1).any(), "your proxy gives all responses to a post one score: it picks nothing")
    words = "your proxy picks what the mean of all reward models picks: start from it, but go on"
    expect((mine.argmax(1) != ensemble.argmax(1)).any(), words)
    yours, theirs = gold_of_best(mine, gold), gold_of_best(ensemble, gold)
    gain, error = paired(yours, theirs)
    MEASURED["gain"], MEASURED["standard error"] = round(float(gain), 4), round(float(error), 4)
    found = {"the ensemble": theirs.mean(), "yours": yours.mean(), "gold itself": gold.max(1).mean()}
    MEASURED["gold of the best"] = ", ".join(f"by {name} {x:.2f}" for name, x in found.items())
    advice = "It may be luck" if gain > 0 else "Read your picks beside the ensemble's: which are worse, why?"
    words = f"the gold of your picks is {gain:+.3f} over the ensemble's, two standard errors {2 * error:.3f}"
    expect(gain > 2 * error, f"{words}. {advice}")
