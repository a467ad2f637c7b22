"""Assignment 8: the mean of all, less where they disagree, less what all like in a list, and a little for
each fact that is stated once."""

import numpy as np

from world import KIND, SLOTS


def worth(text):
    words = text.replace(".", " ").replace("!", " ").split()
    slots = [KIND[word] for word in words if KIND.get(word) in SLOTS]
    said_again = len(slots) - len(set(slots))
    return 0.3 * len(set(slots)) - 0.3 * said_again - 0.5 * text.startswith("-")


def proxy(rewards, pretrain_seed, responses):
    return rewards.mean(0) - 0.7 * rewards.std(0) + np.vectorize(worth)(responses)
