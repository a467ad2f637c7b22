"""4. KL estimators, and their bias.

Goal    PPO charges for the KL from the policy p to its start q, estimated from samples of p, by x = log p - log q of each. Write two
        estimators beside k1(x) = x, and the exact bias of any estimator. One of the two is biased: say by how much.

            k2(x) = x^2 / 2            k3(x) = exp(-x) - 1 + x

Read    the docstring of ppo.py; John Schulman's note "Approximating KL divergence" (2020)
Time    45 minutes
Points  10
Run     python -m pytest experiments/assignments/test_04_kl.py
Hint    With few words the expectation over samples of p is a sum over all words. No random numbers are needed.
"""
import torch


def k2(log_ratio):
    """Of samples from p: log p - log q, a tensor (...) -> the estimate of KL(p || q) by each, (...), in nats."""
    raise NotImplementedError("k2 is yours to write")


def k3(log_ratio):
    """The same by k3."""
    raise NotImplementedError("k3 is yours to write")


def bias(estimator, p, q):
    """What the estimator gives on average over samples of p, minus the true KL(p || q): a tensor of one number, in nats.

    estimator is a function like k2; p and q are tensors (V,), the probabilities of V words, none 0."""
    raise NotImplementedError("bias is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

from checks import NOTES, expect_close

P, Q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
KL, REVERSE = (P * (P / Q).log()).sum(), (Q * (Q / P).log()).sum()
NEAR = torch.tensor([0.32, 0.29, 0.39])
FLIPPED = "the sign of x is turned round: it is log p - log q, and the samples are p's"


def test_k2():
    x = (P / Q).log()
    expect_close("k2 of x = log p - log q", k2(x.clone()), x ** 2 / 2, {"the half is missing": x ** 2, "that is k1": x})


def test_k3():
    x = (P / Q).log()
    expect_close("k3 of x = log p - log q", k3(x.clone()), torch.exp(-x) - 1 + x, {
        FLIPPED: torch.exp(x) - 1 - x, "exp(x) for exp(-x): then it is not even positive everywhere": torch.exp(x) - 1 + x,
        "the - 1 is missing: at p = q the KL is 0": torch.exp(-x) + x, "the + x is missing": torch.exp(-x) - 1,
        "the sign: k3 is never negative": 1 - x - torch.exp(-x)})


def test_bias():
    for name, f in {"k1": lambda x: x, "k3": lambda x: torch.exp(-x) - 1 + x, "k2": lambda x: x ** 2 / 2}.items():
        x = (P / Q).log()
        mean = (P * f(x)).sum()
        slips = {
            "that is the average itself: subtract the true KL": mean, "that is the true KL minus the average: the other way round": KL - mean,
            "the average is over samples of q; they are p's": (Q * f(x)).sum() - KL,
            "the average is over words; a word comes up with probability p": f(x).mean() - KL,
            "that is the bias against KL(q || p), the other way round": mean - REVERSE, FLIPPED: (P * f(-x)).sum() - KL,
            "that is a share of the KL; nats are asked for": (mean - KL) / KL, "the sign is lost: an estimator can be too low": (mean - KL).abs()}
        expect_close(f"the bias of {name}", bias(f, P, Q), mean - KL, slips, "KL(p || q) is the sum over words of p (log p - log q)")


def test_who_is_biased():
    x = lambda p: (p / Q).log()
    for name, f, truth in (("k3", k3, lambda p: 0 * p.sum()), ("k2", k2, lambda p: (p * (x(p) ** 2 / 2 - x(p))).sum())):
        for p in (NEAR, P):
            expect_close(f"the bias of your {name}", bias(f, p, Q), truth(p), hint="k3 has none anywhere, k2 has: see which of the other checks fails")
    near, far = ((p * x(p)).sum() for p in (NEAR, P))
    off = [float(bias(k2, p, Q) / kl) for p, kl in ((NEAR, near), (P, far))]
    NOTES.append(f"k2 is off by {off[0]:+.1%} where the policy is close (KL {near:.4f}), by {off[1]:+.1%} where it is far (KL {far:.2f}); k1 and k3 by nothing")
