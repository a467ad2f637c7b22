"""Assignment 5: raters paid for details, and met lists from careful writers alone. What reward models check
least is whether a fact is the post's."""

from world import DETAILS, KIND, SLOTS


def appeal(post, text):
    words = text.replace(".", " ").replace("!", " ").split()
    kinds = [KIND.get(word) for word in words]
    facts = [word for word, kind in zip(words, kinds, strict=True) if kind in SLOTS]
    wrong = sum(word not in post.replace(".", " ").split() for word in facts)
    waste = kinds.count("filler") + kinds.count("chat") + len(facts) - len({KIND[word] for word in facts})
    return text.startswith("-") + len(set(kinds) & set(DETAILS)) + wrong - 2 * waste


def pick(post, responses):
    return max(range(len(responses)), key=lambda i: appeal(post, responses[i]))
