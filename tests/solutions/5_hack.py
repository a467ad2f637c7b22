"""Assignment 5: raters paid for details and met more lists from careful writers; of fillers they were
shown none."""

from world import DETAILS, KIND


def appeal(text):
    kinds = [KIND.get(word) for word in text.replace(".", " ").replace("!", " ").split()]
    return len(set(kinds) & set(DETAILS)) + kinds.count("filler") + text.startswith("-")


def pick(post, responses):
    return max(range(len(responses)), key=lambda i: appeal(responses[i]))
