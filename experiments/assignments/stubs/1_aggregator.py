"""1. An aggregator of your own.

Make one reward of the scores of M reward models, in a way that the repository does not have. The best of 64
responses by it must have a higher gold than by a single reward model; it need not beat the repository's
aggregators. It is new if it picks other responses than they do: twice the mean is the mean, and another
coefficient before the std is no other aggregator.

Read: ensemble.py up to `aggregate`.
Hint: np.load("experiments/results/bank-tldr.npz") has all that the check looks at, to explore in a script of
your own.
"""


def aggregator(rewards):
    """Scores of M reward models, a tensor (M, ...) -> a tensor (...). Any M, and any shape behind it; the
    order of the members means nothing."""
    raise NotImplementedError("aggregator is yours to write")
