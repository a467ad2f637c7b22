"""5. Play the policy: find the hack by hand.

A policy that is optimised against reward models finds responses that they like and that are bad. Find them
yourself: of the 64 stored responses to each post pick one, by its text alone, such that over all posts, on
average,

- your picks are bad: their gold is at least 0.3 below that of all responses;
- the ensemble, the mean of all 25 reward models, gives them at least 0.1 more than all responses, and more
  by two standard errors;
- at least 20 of the 25 reward models give them more than all responses.

`pick` sees only texts, so it cannot search the scores. But do look at them beforehand.

Read: the docstring of experiments/world.py, and the README up to "Why".
Hint: np.load("experiments/results/bank-tldr.npz") has "posts", "responses", "rewards" (25, posts, 64) and
"gold". What goes with good summaries in all that the raters saw, though nobody pays for it? A fault hides
there best.
"""


def pick(post, responses):
    """A post's text and the texts of 64 responses to it -> the index of your pick. You may import SLOTS,
    WORDS, DETAILS and KIND from world: KIND["lamps"] == "obj", KIND["really"] == "filler"."""
    raise NotImplementedError("pick is yours to write")
