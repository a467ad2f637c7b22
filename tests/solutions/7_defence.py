"""Assignment 7: a fact counts against the text unless it is the post's and said for the first time."""

from world import KIND, SLOTS


def facts(text):
    words = text.replace(".", " ").replace("!", " ").split()
    return [word for word in words if KIND.get(word) in SLOTS]


def patched(reward, post, response):
    right = set(facts(post)) & set(facts(response))
    return reward - 2 * (len(facts(response)) - len(right))
