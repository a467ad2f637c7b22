"""A solution of experiments/assignments/test_08_open.py: the mean of all, less what no reward model was ever told to dislike."""
import numpy as np

from world import KIND_OF, SLOTS, encode


def faults(text):
    """Fillers, chatter and facts said again, weighted by what a reader might mind."""
    tokens = encode(text)
    kinds = [KIND_OF[token] for token in tokens]
    facts = [token for token, kind in zip(tokens, kinds) if kind in SLOTS]
    return 0.2 * kinds.count("filler") + 0.25 * kinds.count("chat") + 0.25 * (len(facts) - len(set(facts)))


def proxy(rewards, pretrain_seed, responses):
    return rewards.mean(0) - np.vectorize(faults)(responses)
