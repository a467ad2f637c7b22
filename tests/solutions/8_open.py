"""Assignment 8: the other responses give the post away. Each slot's most frequent word is the post's; a text
earns something for each such word, and pays for every other fact and for waste."""

from collections import Counter

import numpy as np

from world import KIND, SLOTS


def kinds(text):
    """A text's words with their kinds."""
    return [(word, KIND.get(word)) for word in text.replace(".", " ").replace("!", " ").split()]


def worth(texts):
    votes = {
        slot: Counter(word for text in texts for word, kind in kinds(text) if kind == slot) for slot in SLOTS
    }
    facts = {count.most_common(1)[0][0] for count in votes.values() if count}
    for text in texts:
        stated = [word for word, kind in kinds(text) if kind in SLOTS]
        right, waste = len(facts & set(stated)), sum(kind in ("filler", "chat") for _, kind in kinds(text))
        yield right - (len(stated) - right) - 0.4 * waste


def proxy(rewards, pretrain_seed, responses):
    return rewards.mean(0) + np.array([list(worth(texts)) for texts in responses])
