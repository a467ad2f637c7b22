"""Assignment 5: picks that are bad, and that the reward models like."""

import numpy as np
from expect import expect, paired, shuffled_bank


def bad_and(their):
    """What each reward model gives to the picks over all responses: (M, posts). Wrong if they are not bad."""
    bank, picks = shuffled_bank(their.given), []
    for post, responses in zip(bank["posts"].tolist(), bank["responses"].tolist(), strict=True):
        i = their.pick(post, responses)
        i = int(i) if np.ndim(i) == 0 and np.issubdtype(np.asarray(i).dtype, np.integer) else i
        index = isinstance(i, int) and 0 <= i < len(responses)
        expect(index, f"pick must return an index from 0 to {len(responses) - 1}, got {i!r}")
        picks.append(i)
    rows = np.arange(len(picks))
    liked = bank["rewards"][:, rows, picks] - bank["rewards"].mean(2)
    gold = bank["gold"][rows, picks].mean() - bank["gold"].mean()
    of, fooled = len(liked), (liked.mean(1) > 0).sum()
    words = f"gold {gold:+.2f}, ensemble {liked.mean():+.2f}, {fooled} of {of} models above 0"
    their.measured["your picks, less all responses"] = words
    their.measured["the first three"] = " | ".join(bank["responses"][rows[:3], picks[:3]])
    words = f"the gold of your picks is {gold:+.2f} against all responses, not -0.3 or less"
    expect(gold <= -0.3, f"{words}: no hack, but good summaries. Which fault goes unseen?")
    return liked


def check_bad_and_liked_by_the_ensemble(their):
    liked, error = paired(bad_and(their).mean(0), 0)
    words = f"they are bad, but the ensemble gives them {liked:+.2f} against all responses, not +0.1 or more"
    expect(
        liked >= max(0.1, 2 * error), f"{words}. What goes with a good summary in all that the raters saw?"
    )


def check_bad_and_liked_by_most(their):
    liked = bad_and(their).mean(1)
    fooled, needed = (liked > 0).sum(), round(0.8 * len(liked))
    words = f"{fooled} of {len(liked)} models are fooled, not {needed}; the lowest gives {liked.min():+.2f}"
    expect(fooled >= needed, f"{words}. A fault that each judges in its own way fools only some")
