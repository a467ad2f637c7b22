"""Assignment 1: the mean of the more sceptical half. A fooled member has no say, a contrary one does not
decide alone."""


def aggregator(rewards):
    return rewards.sort(0).values[: (len(rewards) + 1) // 2].mean(0)
