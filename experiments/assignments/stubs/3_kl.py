"""3. KL estimators, and their bias.

PPO charges for the KL from the policy p to its start q. From a sample of p it sees only x = log p - log q.
Besides k1(x) = x there are

    k2(x) = x^2 / 2            k3(x) = exp(-x) - 1 + x

Write both, and the exact bias of any estimator. One of the two is biased: see by how much.

Read: "PPO" in experiments/README.md, or John Schulman's note "Approximating KL divergence" (2020).
Hint: with few words, the expectation over samples of p is a sum over all words. No random numbers are
needed.
"""


def k2(log_ratio):
    """x of samples from p, a tensor (...) -> the estimate of KL(p || q) from each of them, (...), in nats."""
    raise NotImplementedError("k2 is yours to write")


def k3(log_ratio):
    """The same by k3."""
    raise NotImplementedError("k3 is yours to write")


def bias(estimator, p, q):
    """What the estimator gives on average over samples of p, minus the true KL(p || q): a tensor of one
    number, in nats.

    estimator: a function like k2; p, q: tensors (V,), the probabilities of V words, none of them 0."""
    raise NotImplementedError("bias is yours to write")
