"""Assignment 7: an experience computed row by row, beside the answer's."""

import torch
from expect import Wrong, expect, expect_numbers

EOS, PAD, B, R, BETA = 8, 9, 64, 12, 0.3
GENERATOR = torch.Generator().manual_seed(0)
RESPONSES = torch.randint(9, (B, R), generator=GENERATOR)
STOPPED = (RESPONSES == EOS).any(1)
LENGTHS = torch.tensor([row.index(EOS) + 1 if EOS in row else R for row in RESPONSES.tolist()])
RESPONSES[torch.arange(R) >= LENGTHS[:, None]] = PAD
SCORES = torch.randn(B, generator=GENERATOR)
LOGP, REF_LOGP, VALUES = torch.randn(3, B, R, generator=GENERATOR)  # noise after a response's end


def definition(lengths):
    """The experience by loops over rows and tokens, if each response had so many tokens."""
    mask, returns = torch.zeros(B, R, dtype=torch.bool), torch.zeros(B, R)
    for row, length in enumerate(lengths.tolist()):
        mask[row, :length] = True
        for t in range(length):
            returns[row, t] = SCORES[row] - BETA * (LOGP - REF_LOGP)[row, t:length].sum()
    raw = returns - VALUES
    advantages = (raw - raw[mask].mean()) / raw[mask].std(correction=0) * mask
    return {"kl": (LOGP - REF_LOGP)[mask].sum() / B, "returns": returns, "advantages": advantages}


def compare(their, name):
    """Wrong if the answer's `name` differs in any response; it says in how many, and not in which."""
    inputs = [x.clone() for x in (RESPONSES, SCORES, LOGP, REF_LOGP, VALUES)]
    given = their.experience(*inputs, BETA, EOS)
    expect(isinstance(given, dict) and name in given, f"experience must return a dict with {name}")
    right = definition(LENGTHS)[name]
    mine = torch.tensor(expect_numbers(name, given[name], tuple(right.shape))).float()
    repairs = {
        "the EOS is a decision too: it must count": LENGTHS - STOPPED.int(),
        "the last token of some responses is left out": LENGTHS - (~STOPPED).int(),
        "some responses are left out altogether": LENGTHS * STOPPED,
        "padding counts as text": LENGTHS * 0 + R,
    }
    if not torch.allclose(mine, right, atol=1e-4):
        for words, lengths in repairs.items():
            expect(not torch.allclose(mine, definition(lengths)[name], atol=1e-4), f"{name}: {words}")
        if name == "kl":
            raise Wrong(f"over {B} responses the KL is {right:.3f} nats per response, yours is {mine:.3f}")
        rows = ((mine - right).abs() > 1e-4).any(1).sum()
        raise Wrong(f"of {B} responses, {rows} have wrong {name}")


def check_kl(their):
    compare(their, "kl")


def check_returns(their):
    compare(their, "returns")


def check_advantages(their):
    compare(their, "advantages")
