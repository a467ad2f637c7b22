"""7. Defence.

The mean of five reward models, one from each pretraining, likes some bad summaries more than good ones of the
same post: exploits. `check.py 7` shows a handful, with rewards and true rewards. Patch the reward so that

- fresh exploits of these kinds get less than the good text that they beat;
- so do exploits made by other rules, which you have not seen;
- of two good texts, long or short, as sentences or as lists, the better one stays ahead where it was.

The patch sees one response at a time, and its post.

Read: the docstring of experiments/world.py, and "What you will see" in the README.
Hint: a patch that knows the exploits it has seen stops those. What do all of them get wrong?
"""


def patched(reward, post, response):
    """The reward of a response, a number, and both texts -> the reward that it should have. You may import
    SLOTS, WORDS, DETAILS and KIND from world: KIND["lamps"] == "obj", KIND["really"] == "filler"."""
    raise NotImplementedError("patched is yours to write")
