"""Assignment 4: both estimators, the bias, and who is biased."""

import torch
from expect import MEASURED, expect_close

P, Q, NEAR = (torch.tensor(p) for p in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.32, 0.29, 0.39]))
X = (P / Q).log()
FLIPPED = "the sign of x is flipped: it is log p - log q, and the samples are p's"


def check_k2(their):
    slips = {"the half is missing": X**2, "that is k1": X}
    expect_close("k2 of x = log p - log q", their.k2(X.clone()), X**2 / 2, slips)


def check_k3(their):
    slips = {
        FLIPPED: torch.exp(X) - 1 - X,
        "that has exp(x) for exp(-x), and is not even positive everywhere": torch.exp(X) - 1 + X,
        "the - 1 is missing: at p = q the KL is 0": torch.exp(-X) + X,
        "the + x is missing": torch.exp(-X) - 1,
        "the sign: k3 is never negative": 1 - X - torch.exp(-X),
    }
    expect_close("k3 of x = log p - log q", their.k3(X.clone()), torch.exp(-X) - 1 + X, slips)


def check_bias(their):
    estimators = {"k1": lambda x: x, "k3": lambda x: torch.exp(-x) - 1 + x, "k2": lambda x: x**2 / 2}
    kl, reverse = (P * X).sum(), -(Q * X).sum()
    for name, f in estimators.items():
        mean = (P * f(X)).sum()
        slips = {
            "that is the average itself: subtract the true KL": mean,
            "that is the true KL minus the average: flip it": kl - mean,
            "the average is over samples of q; they are p's": (Q * f(X)).sum() - kl,
            "the average is over words; a word is drawn with probability p": f(X).mean() - kl,
            "that is the bias against KL(q || p)": mean - reverse,
            FLIPPED: (P * f(-X)).sum() - kl,
            "that is a share of the KL, not nats": (mean - kl) / kl,
            "the sign is lost: an estimator can be too low": (mean - kl).abs(),
        }
        hint = "is it exact? A sum over all words needs no samples"
        expect_close(f"the bias of {name}", their.bias(f, P, Q), mean - kl, slips, hint)


def check_who_is_biased(their):
    for place, p in (("close (KL 0.001)", NEAR), ("far (KL 0.37)", P)):
        x = (p / Q).log()
        kl, k2_bias = (p * x).sum(), (p * (x**2 / 2 - x)).sum()
        hint = "k3 has none anywhere, k2 has one: see which of the other checks fails"
        expect_close("the bias of your k3", their.bias(their.k3, p, Q), 0.0, hint=hint)
        expect_close("the bias of your k2", their.bias(their.k2, p, Q), k2_bias, hint=hint)
        MEASURED[f"bias of k2 where the policy is {place}"] = f"{k2_bias / kl:+.1%}"
