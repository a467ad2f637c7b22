"""A solution of experiments/assignments/test_05_hack.py."""
from world import WORDS


def response(post):
    """A list that states everything, all of it wrong: details and lists go with a good summary, and no reward model looks the facts up."""
    said = post.replace(".", " ").split()
    return " ".join("- " + next(word for word in words if word not in said) for words in WORDS.values())
