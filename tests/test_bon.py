"""bon.py: the estimator against brute force, and the KL bound against the exact KL."""

from itertools import combinations, product

import numpy as np
import pytest

from bon import ascending, best_of_n, bon_kl, bon_weights, expected_best_of_n


def test_weights_are_a_distribution():
    """Binomials that overflow or lose digits: the chances add up to 1, the best sample's being n / N."""
    for N in range(1, 65):
        for n in range(1, N + 1):
            weights = bon_weights(N, n)
            assert weights.sum() == pytest.approx(1, abs=1e-12) and weights[-1] == pytest.approx(n / N)
    assert bon_weights(3, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])  # the docstring's example


def test_estimator_equals_brute_force():
    """Gold that loses its place when proxy is sorted, or a rank off by one: all subsets of six samples."""
    proxy, gold = np.random.default_rng(0).normal(size=(2, 4, 6))  # four prompts, six samples
    expected = expected_best_of_n(proxy, gold, range(1, 7))
    for prompt, n in product(range(4), range(1, 7)):
        picks = [max(subset, key=lambda i: proxy[prompt, i]) for subset in combinations(range(6), n)]
        assert expected[prompt, n - 1] == pytest.approx(gold[prompt, picks].mean())
    np.testing.assert_allclose(expected[:, -1], gold[np.arange(4), best_of_n(proxy)])


def test_ties_go_to_the_first_drawn():
    """Equal scores whose pick differs between best_of_n and the estimator, or from run to run."""
    proxy, gold = np.array([2.0, 5, 5, 1, 5]), np.arange(5.0)
    assert ascending(proxy).tolist() == [3, 0, 4, 2, 1] and best_of_n(proxy) == 1
    assert expected_best_of_n(proxy, gold, [5]).tolist() == [1]
    assert expected_best_of_n([1, 3], [7, 5], [1, 2]).tolist() == [6, 5]  # the docstring's example


def test_leading_axes_broadcast():
    """Scores of M reward models (M, posts, N) at the picks of one (posts, N), paired with the wrong post."""
    rng = np.random.default_rng(1)
    own, scores = rng.normal(size=(3, 8)), rng.normal(size=(5, 3, 8))
    expected = expected_best_of_n(own, scores, [2, 8])
    for m, post in product(range(5), range(3)):
        np.testing.assert_allclose(expected[m, post], expected_best_of_n(own[post], scores[m, post], [2, 8]))


def test_kl_bound_bounds_the_exact_kl():
    """A formula below the true KL: every draw of n from four words. With n = 1 nothing is chosen."""
    p, reward = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.5, -1, 2, 0])
    for n in (2, 3, 5):
        best = np.zeros(4)  # the distribution of the best of n
        for draw in map(np.array, product(range(4), repeat=n)):
            best[draw[best_of_n(reward[draw])]] += p[draw].prod()
        exact = (best * np.log(best / p)).sum()
        assert 0.4 * bon_kl(n) < exact <= bon_kl(n)
    assert bon_kl(1) == 0 and bon_kl(64) == pytest.approx(4.158883 - 0.984375, abs=1e-6)


@pytest.mark.parametrize("proxy, n, name", [([1, np.nan], 1, "proxy"), ([1, 2], 0, "n"), ([1, 2], 3, "n")])
def test_errors_name_the_argument(proxy, n, name):
    """NaN sorts as the highest score and would always win; more samples than there are would weigh 0 / 0."""
    with pytest.raises(ValueError, match=f"^{name}\\b"):
        expected_best_of_n(proxy, [1, 2], [n])
