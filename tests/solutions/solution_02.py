"""A solution of experiments/assignments/test_02_aggregator.py."""


def aggregator(rewards):
    """The mean of the more sceptical half: one member that is fooled has no say, one that is contrary does not decide alone."""
    return rewards.sort(0).values[:(len(rewards) + 1) // 2].mean(0)
