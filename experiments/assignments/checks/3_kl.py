"""Assignment 3: both estimators, the bias, and who is biased."""

import torch
from expect import expect_close

P, Q, NEAR = (torch.tensor(p) for p in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.32, 0.29, 0.39]))
FLIPPED = "the sign of x is flipped: it is log p - log q, and the samples are p's"
ESTIMATORS = {"k1": "lambda x: x", "k3": "lambda x: exp(-x) - 1 + x", "k2": "lambda x: x**2 / 2"}
ESTIMATORS |= {"an estimator x**4 - x": "lambda x: x**4 - x", "|x|": "lambda x: abs(x)"}


def check_k2(their):
    x = their.given.normal(5)
    slips = {"the half is missing": x**2, "that is k1": x}
    expect_close("k2 of x = log p - log q", their.k2(x), x**2 / 2, slips)


def check_k3(their):
    x = their.given.normal(5)
    slips = {
        FLIPPED: torch.exp(x) - 1 - x,
        "that has exp(x) for exp(-x), and is not even positive everywhere": torch.exp(x) - 1 + x,
        "the - 1 is missing: at p = q the KL is 0": torch.exp(-x) + x,
        "the + x is missing": torch.exp(-x) - 1,
        "the sign: k3 is never negative": 1 - x - torch.exp(-x),
    }
    expect_close("k3 of x = log p - log q", their.k3(x), torch.exp(-x) - 1 + x, slips)


def check_bias(their):
    fresh = [(their.given.normal(2, V) / 2).softmax(1) for V in (3, 2, 7)]
    for p, q in ((P, Q), *fresh):
        x = p.log() - q.log()
        kl, reverse = (p * x).sum(), -(q * x).sum()
        for name, text in ESTIMATORS.items():
            f = eval(text, {"exp": torch.exp})
            mean = (p * f(x)).sum()
            slips = {
                "that is the average itself: subtract the true KL": mean,
                "that is the true KL minus the average: flip it": kl - mean,
                "the average is over samples of q; they are p's": (q * f(x)).sum() - kl,
                "the average is over words; a word is drawn with probability p": f(x).mean() - kl,
                "that is the bias against KL(q || p)": mean - reverse,
                FLIPPED: (p * f(-x)).sum() - kl,
                "that is a share of the KL, not nats": (mean - kl) / kl,
                "the sign is lost: an estimator can be too low": (mean - kl).abs(),
            }
            hint = "is it exact? A sum over all words needs no samples"
            given = their.bias(p, q, expressions=[text])
            expect_close(f"the bias of {name} over {len(p)} words", given, mean - kl, slips, hint)


def check_who_is_biased(their):
    for place, p in (("close (KL 0.001)", NEAR), ("far (KL 0.37)", P)):
        x = (p / Q).log()
        kl, k2_bias = (p * x).sum(), (p * (x**2 / 2 - x)).sum()
        hint = "k3 has none anywhere, k2 has one: see which of the other checks fails"
        expect_close("the bias of your k3", their.bias(p, Q, expressions=["k3"]), 0.0, hint=hint)
        expect_close("the bias of your k2", their.bias(p, Q, expressions=["k2"]), k2_bias, hint=hint)
        their.measured[f"bias of k2 where the policy is {place}"] = f"{k2_bias / kl:+.1%}"
