"""Assignment 8: the mean of all, less what no reward model was ever told to dislike."""

import numpy as np

from world import KIND, SLOTS


def faults(text):
    words = text.replace(".", " ").replace("!", " ").split()
    kinds = [KIND.get(word) for word in words]
    facts = [word for word, kind in zip(words, kinds, strict=True) if kind in SLOTS]
    return 0.2 * kinds.count("filler") + 0.25 * kinds.count("chat") + 0.25 * (len(facts) - len(set(facts)))


def proxy(rewards, pretrain_seed, responses):
    return rewards.mean(0) - np.vectorize(faults)(responses)
