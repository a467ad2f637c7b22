"""A solution of experiments/assignments/test_03_estimator.py."""
from math import comb

import numpy as np


def expected_best_of_n(proxy, values, n):
    N = proxy.shape[1]
    weights = np.array([comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)])
    return np.take_along_axis(values, proxy.argsort(1), 1) @ weights
