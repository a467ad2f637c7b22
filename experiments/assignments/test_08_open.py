"""8. Open: beat the ensemble.

Goal    Score the stored responses by a proxy of your own, from all reward models' scores and the responses' texts, whose best of n has a higher
        gold than the best of n by the mean of all reward models, the largest pretrain ensemble there is. It is the same n, hence the same KL.
        Gold is not shown, nor are the posts: facts checked against the post would be gold by another name. What you know about
        reward models, raters and writers is all fair. The result goes into leaderboard.jsonl, beside this file.
Read    all you like: README.md, "Beyond the paper"; experiments/beyond.py
Time    an evening
Points  15
Run     STUDENT="your name" python -m pytest experiments/assignments/test_08_open.py
        BANK=runs/overopt/bank-tldr.npz ... scores it on another run's bank: your teacher will
Hint    Start from rewards.mean(0), which is what is to be beaten. Then ask what no reward model was ever told (README, "Faithful to the paper").
"""
import numpy as np


def proxy(rewards, pretrain_seed, responses):
    """rewards (M, posts, n), scores of M reward models in standard deviations; pretrain_seed (M,): which share a pretraining; responses
    (posts, n), their texts -> (posts, n): your score of each response. Posts, and the responses to one, are in no particular order."""
    raise NotImplementedError("proxy is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

from datetime import date
import getpass
import os
from pathlib import Path

from checks import HERE, NOTES, enter, expect, expect_numbers, gold_of_best, load_bank, paired


def scored():
    """(the student's scores, mean of all reward models, gold), (posts, n) each, of the bank in a random order, and its file: a score that
    is read from the file instead of made from the arguments would not fit."""
    bank, path = load_bank()
    rng, gold = np.random.default_rng(0), bank["gold"]
    order = rng.permuted(np.tile(np.arange(gold.shape[1]), (len(gold), 1)), axis=1)
    rows = rng.permutation(len(gold))[:, None]
    rewards, responses, gold = bank["rewards"][:, rows, order], bank["responses"][rows, order], gold[rows, order]
    given = proxy(rewards.copy(), bank["pretrain_seed"].copy(), responses.copy())
    return expect_numbers("proxy", given, gold.shape), rewards.mean(0), gold, path


def test_it_beats_the_ensemble():
    mine, ensemble, gold, path = scored()
    expect((mine.max(1) > mine.min(1)).any(), "your proxy gives all responses to a post the same score: it picks nothing")
    yours, theirs = gold_of_best(mine, gold), gold_of_best(ensemble, gold)
    gain, error = paired(yours, theirs)
    row = {"student": os.environ.get("STUDENT") or getpass.getuser(), "date": date.today().isoformat(), "bank": "/".join(path.resolve().parts[-2:]),
           "n": gold.shape[1], "gold": round(yours.mean(), 4), "difference": round(gain, 4), "standard_error": round(error, 4)}
    board = Path(os.environ.get("LEADERBOARD") or HERE / "leaderboard.jsonl")
    enter(board, row)
    NOTES.append(f"gold of the best of {row['n']}: yours {yours.mean():.3f}, mean of all reward models {theirs.mean():.3f}, difference {gain:+.3f} "
                 f"(standard error {error:.3f}, over {len(gold)} posts), oracle {gold.max(1).mean():.3f}; in {board}")
    expect(np.ptp(yours - theirs) > 0, "your proxy picks what the mean of all reward models picks: start from it, but go on")
    advice = "It may be luck: a larger effect is needed" if gain > 0 else "Read your picks beside the ensemble's: which are worse, and why?"
    expect(gain > 2 * error, f"the gold of your picks is {yours.mean():.3f}, that of the ensemble's {theirs.mean():.3f}: the difference {gain:+.3f} is not "
           f"above two standard errors ({2 * error:.3f}). {advice}")
