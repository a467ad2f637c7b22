"""Assignment 4: an experience computed row by row, beside the answer's."""

import numpy as np
import torch
from expect import Wrong, expect, expect_numbers

EOS, BETA = 8, 0.3
SHAPES = ((64, 12), (40, 30))  # of the responses


def sampled(given, B, R):
    """Responses, their lengths, whether each has stopped, and what comes with them. After a response's end
    stands what may: any token (EOS too), numbers, or NaN."""
    rng = given.rng()
    responses = torch.tensor(rng.integers(9, size=(B, R)))
    stopped = (responses == EOS).any(1)
    lengths = torch.tensor([row.index(EOS) + 1 if EOS in row else R for row in responses.tolist()])
    after = torch.arange(R) >= lengths[:, None]
    responses[after] = torch.tensor(rng.integers(10, size=(B, R)))[after]
    scores, logp, ref_logp, values = given.normal(B), *given.normal(3, B, R)
    for row in range(0, B, 2):
        logp[row, after[row]] = values[row, after[row]] = float("nan")
    return lengths, stopped, [responses, scores, logp, ref_logp, values]


def definition(lengths, sample):
    """The experience by loops over rows and tokens, if each response had so many tokens."""
    _, scores, logp, ref_logp, values = sample
    B, R = logp.shape
    mask, returns = torch.zeros(B, R, dtype=torch.bool), torch.zeros(B, R)
    for row, length in enumerate(lengths.tolist()):
        mask[row, :length] = True
        for t in range(length):
            returns[row, t] = scores[row] - BETA * (logp - ref_logp)[row, t:length].sum()
    raw = (returns - values)[mask]
    advantages = torch.zeros(B, R)
    advantages[mask] = (raw - raw.mean()) / raw.std(correction=0)
    return {
        "mask": mask,
        "kl": (logp - ref_logp)[mask].sum() / B,
        "returns": returns,
        "advantages": advantages,
    }


def compare(their, name):
    """Wrong if the answer's `name` differs in any response; it says in how many, and not in which."""
    for shape in SHAPES:
        compare_on(their, name, *shape)


def compare_on(their, name, B, R):
    lengths, stopped, sample = sampled(their.given, B, R)
    given = their.experience(*sample, BETA, EOS)
    expect(isinstance(given, dict) and name in given, f"experience must return a dict with {name}")
    right = definition(lengths, sample)[name].float()
    padded = "after a response's end stands anything, NaN too: does padding count as text?"
    numbers = isinstance(given[name], torch.Tensor | np.ndarray | float)
    expect(not numbers or np.isfinite(np.asarray(given[name])).all(), f"{name} has NaN or infinity: {padded}")
    mine = torch.tensor(expect_numbers(name, given[name], tuple(right.shape))).float()
    repairs = {
        "the EOS is a decision too: it must count": lengths - stopped.int(),
        "the last token of some responses is left out": lengths - (~stopped).int(),
        "some responses are left out altogether": lengths * stopped,
        "padding counts as text": lengths * 0 + R,
    }
    if not torch.allclose(mine, right, atol=1e-4):
        for words, other in repairs.items():
            theirs = definition(other, sample)[name].float()
            expect(not torch.allclose(mine, theirs, atol=1e-4), f"{name}: {words}")
        if name == "kl":
            raise Wrong(f"over {B} responses the KL is {right:.3f} nats per response, yours is {mine:.3f}")
        rows = ((mine - right).abs() > 1e-4).any(1).sum()
        raise Wrong(f"of {B} responses, {rows} have wrong {name}")


def check_mask(their):
    compare(their, "mask")


def check_kl(their):
    compare(their, "kl")


def check_returns(their):
    compare(their, "returns")


def check_advantages(their):
    compare(their, "advantages")
