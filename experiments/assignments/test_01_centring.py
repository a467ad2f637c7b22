"""1. The centring term, and what it fixes.

Goal    Write the loss of a reward model on preference pairs, with the term that centres its rewards, and show what the loss
        without that term leaves free:

            mean over pairs of  -log sigmoid(r+ - r-) + eta (r+ + r-)^2

Read    README.md up to "The claims"; the docstrings of rm.py (write the loss before you look at its code)
Time    45 minutes
Points  10
Run     python -m pytest experiments/assignments/test_01_centring.py
Hint    For large differences log(sigmoid(x)) is -inf. torch.nn.functional has a function that is not.
"""
import torch


def centred_loss(chosen, rejected, eta):
    """Rewards of the chosen and of the rejected responses, tensors (B,) each -> the loss, a tensor of one number, in nats."""
    raise NotImplementedError("centred_loss is yours to write")


def same_preferences(chosen, rejected):
    """Two tensors (B,) -> two others (B,), with the same loss without the term (eta = 0) in *every pair*, in which each pair's
    rewards have moved by at least 1, and not all pairs' by the same: what one reward model of an ensemble could say as well."""
    raise NotImplementedError("same_preferences is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

import torch.nn.functional as F

from checks import NOTES, expect, expect_close, expect_numbers

CHOSEN, REJECTED = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([1.0, 0.5, -2.0, 2.5])


def one_loss(chosen, rejected, eta):
    """The student's loss; fails in words if it has one for each pair."""
    loss = centred_loss(chosen, rejected, eta)
    expect(not isinstance(loss, torch.Tensor) or loss.dim() == 0, "centred_loss must be one number, the mean over pairs; yours has one for each")
    return loss


def test_the_loss():
    c, r, eta = CHOSEN, REJECTED, 0.1
    term = -F.logsigmoid(c - r)
    slips = {
        "that is the square of the *difference*. It works against the first term and centres nothing: take the sum":
            (term + eta * (c - r) ** 2).mean(),
        "that is r+^2 + r-^2, which also pulls the two together. Square their sum": (term + eta * (c ** 2 + r ** 2)).mean(),
        "the term is missing": term.mean(),
        "that is the sum over pairs, not the mean": (term + eta * (c + r) ** 2).sum(),
        "the term is squared after the mean; square each pair's sum, or pairs above and below 0 cancel":
            term.mean() + eta * (c + r).mean() ** 2,
        "the sign of the difference: the chosen response should get the higher reward": (-F.logsigmoid(r - c) + eta * (c + r) ** 2).mean(),
        "the sign of the first term: log sigmoid is negative, the loss is minus that": (F.logsigmoid(c - r) + eta * (c + r) ** 2).mean(),
        "eta is the argument, not 0.01": (term + 0.01 * (c + r) ** 2).mean(),
    }
    expect_close("centred_loss", one_loss(c, r, eta), (term + eta * (c + r) ** 2).mean(), slips)
    expect_numbers("centred_loss of rewards 200 apart", one_loss(torch.tensor([-100.0]), torch.tensor([100.0]), 0.0), ())


def test_what_is_left_free():
    moved = same_preferences(CHOSEN, REJECTED)
    expect(isinstance(moved, tuple) and len(moved) == 2, "same_preferences must return two tensors: the chosen and the rejected responses' rewards")
    c, r = (torch.tensor(expect_numbers(f"{name} rewards", x, (4,))) for name, x in zip(("chosen", "rejected"), moved))
    expect(torch.allclose(c - r, CHOSEN - REJECTED, atol=1e-4),
           f"the loss of a pair depends on r+ - r-. That was {(CHOSEN - REJECTED).tolist()} and is now {(c - r).tolist()}: "
           "move both of a pair by the same")
    moves = c - CHOSEN
    expect((moves.abs() > 0.999).all(), f"the pairs have moved by {moves.tolist()}, some of them by less than 1")
    expect(moves.max() - moves.min() > 1e-3, "all pairs have moved by the same. That much is undone when rewards are brought to mean 0; a shift of its "
           "own for each prompt is not, and with it members of an ensemble mean different things by the same number")


def test_what_it_fixes():
    ends = []
    for eta in (0.0, 0.1):
        rewards = torch.tensor([[4.0, 4.0], [-3.0, -3.0]], requires_grad=True)        # two prompts, each with an offset of its own
        optimizer = torch.optim.Adam([rewards], lr=0.1)
        for _ in range(200):
            loss = one_loss(rewards[:, 0], rewards[:, 1], eta)
            expect(isinstance(loss, torch.Tensor) and loss.requires_grad,
                   "the loss has lost its gradient: no float(), .item(), .detach() or numpy in it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(rewards.detach())
    offsets = [[round(x, 2) for x in (end.mean(1) + 0.0).tolist()] for end in ends]
    NOTES.append(f"mean reward of two prompts, at first [4.0, -3.0]: after training without the term {offsets[0]}, with it {offsets[1]}")
    expect((ends[0].mean(1) - torch.tensor([4.0, -3.0])).abs().max() < 0.1,
           f"trained with eta = 0 the offsets 4 and -3 must stay; they became {offsets[0]}")
    expect(ends[1].mean(1).abs().max() < 0.1, f"trained with eta = 0.1 the offsets 4 and -3 must go to 0; they became {offsets[1]}: "
           "does your term pull at the *sum* of the two rewards?")
    expect((ends[1][:, 0] > ends[1][:, 1] + 0.5).all(), "trained with your loss the chosen response does not end up above the rejected one")
