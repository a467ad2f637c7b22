"""Assignment 3: against every subset of six samples, at the ends, and with 64 samples."""

from itertools import combinations, product
from math import comb

import numpy as np
from expect import MEASURED, expect_close, load_bank

RNG = np.random.default_rng(0)
PROXY, VALUES = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 6))


def by_all_subsets(proxy, values, n, k, draws=combinations):
    """The definition: the mean over all draws, one by one."""
    found = []
    for draw in map(list, draws(range(proxy.shape[1]), n)):
        kth = proxy[:, draw].argsort(axis=1)[:, -k]
        found.append(np.take_along_axis(values[:, draw], kth[:, None], axis=1)[:, 0])
    return np.mean(found, axis=0)


def expect_estimate(their, n, k, right, hint):
    p, v = PROXY, VALUES
    slips = {
        "k is ignored: that is the best of n": by_all_subsets(p, v, n, 1),
        "k counts from the worst: k = 1 is the best": by_all_subsets(p, v, n, n + 1 - k),
        "k is off by one: k = 1 is the best": by_all_subsets(p, v, n, min(k + 1, n)),
        "that draws with replacement": by_all_subsets(p, v, n, k, lambda items, n: product(items, repeat=n)),
        "that is the k-th of the first n alone: right on average, but noisy": by_all_subsets(
            p[:, :n], v, n, k
        ),
        "that is the expected *proxy*; average the values": by_all_subsets(p, p, n, k),
        "the values must come in the order of the proxy": by_all_subsets(np.sort(p, 1), np.sort(v, 1), n, k),
        "the values are not sorted by the proxy": by_all_subsets(np.sort(p, 1), v, n, k),
        "the weights do not add up to 1: divide by the number of subsets": right * comb(6, n),
    }
    given = their.expected_kth_of_n(p.copy(), v.copy(), n, k)
    expect_close(f"the estimate for N = 6, n = {n}, k = {k}", given, right, slips, hint)


def check_every_subset_counts(their):
    for n, k in ((3, 2), (4, 2), (4, 3)):
        hint = "weight each sample by the share of subsets in which it is the k-th best"
        expect_estimate(their, n, k, by_all_subsets(PROXY, VALUES, n, k), hint)


def check_the_ends(their):
    rows = np.arange(3)
    expect_estimate(their, 1, 1, VALUES.mean(1), "one sample is its own best: the plain mean")
    expect_estimate(their, 6, 1, VALUES[rows, PROXY.argmax(1)], "all six are drawn: the best of all")
    expect_estimate(their, 6, 6, VALUES[rows, PROXY.argmin(1)], "all six are drawn: the worst of all")


def check_64_samples(their):
    proxy = np.random.default_rng(1).permuted(np.tile(np.arange(64.0), (4, 1)), axis=1)
    for n, k in ((2, 1), (32, 5)):
        given, right = their.expected_kth_of_n(proxy, proxy, n, k), np.full(4, (n + 1 - k) * 65 / (n + 1) - 1)
        hint = "if small numbers pass, has one overflowed? math.comb is exact: divide only at the end"
        expect_close(f"number {k} of {n} of the numbers 0 to 63", given, right, hint=hint)
    bank = load_bank()
    proxies = bank["rewards"].argsort(-1).argsort(-1)  # ranks: scores without ties
    for k in (1, 2, 4, 16):
        gold = np.mean([their.expected_kth_of_n(proxy, bank["gold"], 64, k) for proxy in proxies])
        MEASURED[f"gold of number {k} of 64 by one reward model"] = round(float(gold), 2)
