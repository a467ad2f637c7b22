"""Best-of-n: draw n responses, keep the one that the proxy likes best. Arrays in, arrays out.

From one bank of N samples per prompt comes the *expected* result for every n <= N, not one noisy draw each:

    proxy, gold  # (prompts, N) each: rewards of the same samples
    expected_best_of_n(proxy, gold, [1, 4, 16])  # (prompts, 3): gold of the best of n by proxy
"""

from math import comb, log

import numpy as np


def bon_weights(N, n):
    """Chance that the sample of rank i (i = 1 is the worst of N) is the best of a random n-subset, as (N,):
    C(i - 1, n - 1) / C(N, n), of exact integers. bon_weights(N=3, n=2) -> [0, 1/3, 2/3]."""
    if not 1 <= n <= N:
        raise ValueError(f"n must be in 1 to {N}, the samples of a prompt, got {n}")
    return np.array([comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)])


def ascending(proxy):
    """Indices (..., N) that sort by proxy, worst first: ascending(proxy=[2, 5, 5, 1]) -> [3, 0, 2, 1].
    Of equal rewards the one drawn first ranks higher: so flip, sort stably, and flip back."""
    proxy = np.asarray(proxy)
    if not np.isfinite(proxy).all():
        raise ValueError("proxy must be finite, got NaN or infinite rewards")
    return proxy.shape[-1] - 1 - np.argsort(proxy[..., ::-1], axis=-1, kind="stable")


def best_of_n(proxy):
    """The pick itself, (..., N) -> (...): index of the highest proxy reward, the first of equal ones."""
    return ascending(proxy)[..., -1]


def expected_best_of_n(proxy, values, ns):
    """Expected `values` of the best of n by `proxy`, for each n: (..., N), (..., N) -> (..., len(ns)), the
    leading axes broadcast. `values`: any quantity of the same samples (gold, another RM's reward, a trait).
    Unbiased: the mean over all n-subsets (as in Coste et al. 2023).
    expected_best_of_n(proxy=[1, 3], values=[7, 5], ns=[1, 2]) -> [6, 5]."""
    values, order = np.broadcast_arrays(values, ascending(proxy))
    weights = np.stack([bon_weights(order.shape[-1], n) for n in ns], axis=-1)
    return np.take_along_axis(values, order, axis=-1) @ weights


def bon_kl(n):
    """Upper bound on KL(best-of-n policy || base policy), in nats: bon_kl(n=1) -> 0, bon_kl(n=64) -> 3.17."""
    return log(n) - (n - 1) / n
