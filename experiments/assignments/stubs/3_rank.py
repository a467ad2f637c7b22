"""3. The k-th best of n.

Best-of-n takes the response that the proxy likes best, and just there the proxy errs most. What if we take
the second best, or the k-th? From N scored samples of each post, compute the *expected* value of the sample
that is k-th by proxy among n, over all ways to draw n of the N without replacement. Exactly: N = 64 and n =
32 must take no time.

Hint: take a sample, count those below and above it. In how many subsets of size n is it the k-th best?
math.comb.
"""


def expected_kth_of_n(proxy, values, n, k):
    """Arrays (posts, N) with proxy scores and values (gold, say) of the same samples; 1 <= k <= n <= N, k
    = 1 is the best -> an array (posts,). The proxy scores of a post are all different."""
    raise NotImplementedError("expected_kth_of_n is yours to write")
