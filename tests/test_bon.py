"""bon.py: the estimator against brute force, and the KL bound against exact KL."""
from itertools import combinations, product

import numpy as np
import pytest

from bon import ascending, best_of_n, bon_kl, bon_weights, expected_best_of_n


def test_weights_are_a_distribution():
    """Binomials that overflow or lose digits: for every n <= N <= 64 the chances add up to 1, the best rank's being n / N."""
    for N in range(1, 65):
        for n in range(1, N + 1):
            weights = bon_weights(N, n)
            assert weights.sum() == pytest.approx(1, abs=1e-12) and weights[-1] == pytest.approx(n / N)
            assert (np.diff(weights) >= 0).all()                               # of a better rank never less likely
    assert bon_weights(3, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])      # the docstring's example


def test_estimator_equals_brute_force():
    """Gold that loses its place when proxy is sorted, or a rank off by one: all subsets of six samples, every n."""
    proxy, gold = np.random.default_rng(0).normal(size=(2, 4, 6))              # four prompts, six samples
    found = expected_best_of_n(proxy, gold, range(1, 7))
    for prompt, n in product(range(4), range(1, 7)):
        picks = [max(subset, key=lambda i: proxy[prompt, i]) for subset in combinations(range(6), n)]
        assert found[prompt, n - 1] == pytest.approx(gold[prompt, picks].mean())
    np.testing.assert_allclose(found[:, 0], gold.mean(1))                      # n = 1: no choice
    np.testing.assert_allclose(found[:, -1], gold[np.arange(4), best_of_n(proxy)])


def test_ties_go_to_the_first_drawn():
    """Equal scores (a constant reward, say) whose pick differs between best_of_n and the estimator, or from run to run."""
    proxy, gold = np.array([2.0, 5, 5, 1, 5]), np.arange(5.0)
    assert ascending(proxy).tolist() == [3, 0, 4, 2, 1] and best_of_n(proxy) == 1
    assert expected_best_of_n(proxy, gold, [5]).tolist() == [1]
    picks = [max(subset, key=lambda i: (proxy[i], -i)) for subset in combinations(range(5), 2)]
    assert expected_best_of_n(proxy, gold, [2])[0] == pytest.approx(np.mean(picks))


def test_leading_axes_broadcast():
    """Other RMs' rewards (M, posts, N) of one RM's picks (posts, N), paired with the wrong post."""
    rng = np.random.default_rng(1)
    own, scores = rng.normal(size=(3, 8)), rng.normal(size=(5, 3, 8))
    found = expected_best_of_n(own, scores, [2, 8])
    assert found.shape == (5, 3, 2)
    for m, post in product(range(5), range(3)):
        np.testing.assert_allclose(found[m, post], expected_best_of_n(own[post], scores[m, post], [2, 8]))


def test_kl_bound():
    """A formula below the true KL, or so far above that it means nothing: all draws from four words of different rewards;
    and 100,000 words of equal chance, where it is all but reached."""
    kl = lambda p, q: float((p * np.log(p / q)).sum())
    p, reward = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.5, -1, 2, 0])
    for n in (1, 2, 3, 5):
        chosen = np.zeros(4)
        for draws in map(np.array, product(range(4), repeat=n)):
            chosen[draws[best_of_n(reward[draws])]] += p[draws].prod()
        assert chosen.sum() == pytest.approx(1) and -1e-12 <= kl(chosen, p) <= bon_kl(n) + 1e-12
    best_of_4 = np.diff((np.arange(100_001) / 100_000) ** 4)
    assert kl(best_of_4, np.full(100_000, 1e-5)) == pytest.approx(bon_kl(4), abs=1e-3)
    assert bon_kl(1) == 0 and bon_kl(64) == pytest.approx(4.158883 - 0.984375, abs=1e-6)


@pytest.mark.parametrize("proxy, n, error", [
    ([1, np.nan, 0], 1, "proxy: "), ([1, np.inf, 0], 1, "proxy: "), ([1, 2, 3], 0, "n: 0 is not"), ([1, 2, 3], 4, "n: 4 is not")])
def test_errors(proxy, n, error):
    """NaN sorts as the highest score and would be everyone's pick; more samples than there are, weights of 0 / 0."""
    with pytest.raises(ValueError, match=f"^{error}"):
        expected_best_of_n(proxy, [1, 2, 3], [n])
