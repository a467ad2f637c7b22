"""3. The unbiased best-of-n estimator.

Goal    From N scored samples of each post, give the *expected* value of the best of n by proxy, for any n up to N, over all ways
        to draw n of the N without replacement. It is what every best-of-n curve in the README is made of.
Read    README.md, "One task in detail"; the docstrings of bon.py (derive the weights before you look at its code)
Time    60 minutes
Points  10
Run     python -m pytest experiments/assignments/test_03_estimator.py
Hint    Sort by proxy. How many subsets of size n have the sample of rank i as their best? math.comb counts.
"""
import numpy as np


def expected_best_of_n(proxy, values, n):
    """Arrays (posts, N) of the same samples' proxy scores and values (gold, say), n from 1 to N -> (posts,): the expected value of the
    sample with the highest proxy score among n. Proxy scores of a post are all different."""
    raise NotImplementedError("expected_best_of_n is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

from itertools import combinations
from math import comb

from checks import expect_close

RNG = np.random.default_rng(0)
PROXY, VALUES = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 6))


def by_all_subsets(proxy, values, n):
    """The definition: the mean over all subsets of size n, one by one."""
    rows = np.arange(len(proxy))
    subsets = [list(subset) for subset in combinations(range(proxy.shape[1]), n)]
    return np.mean([values[:, subset][rows, proxy[:, subset].argmax(1)] for subset in subsets], 0)


def slips(proxy, values, n):
    """{a typical slip: what it gives}."""
    N, order = proxy.shape[1], proxy.argsort(1)
    ranked, rank = np.take_along_axis(values, order, 1), np.arange(1, N + 1)
    weights = np.array([comb(i - 1, n - 1) / comb(N, n) for i in rank])
    return {
        "did you sort worst first? That is the expected value of the *worst* of n": ranked[:, ::-1] @ weights,
        "you drew with replacement, (i/N)^n - ((i-1)/N)^n: the same sample twice makes it biased. Count subsets":
            ranked @ ((rank / N) ** n - ((rank - 1) / N) ** n),
        "that is the best of the first n alone: one draw, right on average but far noisier": values[np.arange(len(proxy)), proxy[:, :n].argmax(1)],
        "the values are sorted by themselves: they must come along in the order of the *proxy*": np.sort(values, 1) @ weights,
        "the values are not sorted: they must come along in the order of the proxy": values @ weights,
        "that is the expected *proxy*; the values are asked for": np.sort(proxy, 1) @ weights,
        "off by one: the others of the subset are n - 1 of the i - 1 samples below":
            ranked @ np.array([comb(i, n) / comb(N + 1, n + 1) for i in rank]),
        "the weights do not add up to 1: divide by the number of subsets of size n": ranked @ (weights * comb(N, n)),
    }


def test_every_subset_counts():
    for n in (2, 6):
        expect_close(f"the expected value if every value is 1 (n = {n})", expected_best_of_n(PROXY.copy(), np.ones((3, 6)), n), np.ones(3), {},
                     "the weights of a post's samples must add up to 1; is rank 1 the worst, and are the ranks counted from 1?")
    for n in (2, 3):
        expect_close(f"your estimate for N = 6, n = {n}", expected_best_of_n(PROXY.copy(), VALUES.copy(), n), by_all_subsets(PROXY, VALUES, n),
                     slips(PROXY, VALUES, n), "is each sample weighted by the share of subsets of size n whose best it is?")


def test_the_two_ends():
    best = VALUES[np.arange(3), PROXY.argmax(1)]
    expect_close("your estimate for n = N", expected_best_of_n(PROXY.copy(), VALUES.copy(), 6), best, slips(PROXY, VALUES, 6),
                 "for n = N it is the value of the sample with the highest proxy: did you sort worst first?")
    expect_close("your estimate for n = 1", expected_best_of_n(PROXY.copy(), VALUES.copy(), 1), VALUES.mean(1),
                 hint="one sample is its own best: it is the plain mean")


def test_64_samples():
    proxy = np.random.default_rng(1).permuted(np.tile(np.arange(64.0), (4, 1)), axis=1)
    for n in (2, 32):
        expect_close(f"your estimate of the highest of {n} of the numbers 0 to 63", expected_best_of_n(proxy, proxy, n),
                     np.full(4, n * 65 / (n + 1) - 1), slips(proxy, proxy, n), "has a number become too large? math.comb is exact; divide once, at the end")
