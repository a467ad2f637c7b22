"""Assignment 1: the loss, what it leaves free without its second term, and what the term fixes."""

from itertools import combinations

import torch
import torch.nn.functional as F
from expect import MEASURED, expect, expect_close, expect_numbers

REWARDS = torch.tensor([[2.0, 1.0, -0.5], [-1.0, 0.5, 1.5], [0.5, -2.0, 1.0], [3.0, 2.5, -1.0]])


def minus_log_probability(r):
    p = r.exp()
    return -(p[:, 0] / p.sum(1) * p[:, 1] / p[:, 1:].sum(1)).log()


def check_the_loss(their):
    r, eta = REWARDS, 0.1
    term, square = minus_log_probability(r), eta * r.sum(1) ** 2
    best, any_second = -r.log_softmax(1)[:, 0], -r.log_softmax(1)[:, 1]
    pairs = sum(-F.logsigmoid(r[:, i] - r[:, j]) for i, j in combinations(range(3), 2))
    slips = {
        "the term with eta is missing": term.mean(),
        "that is the sum over rankings, not the mean": (term + square).sum(),
        "the term squares each reward: square their sum": (term + eta * (r**2).sum(1)).mean(),
        "the term squares the mean of the three rewards, not their sum": (term + square / 9).mean(),
        "the sign: a log-probability is negative, the loss is minus that": (square - term).mean(),
        "rows are best first; yours are worst first": (minus_log_probability(r.flip(1)) + square).mean(),
        "the draw of the second best is missing": (best + square).mean(),
        "the second best is drawn from two, not from all three": (best + any_second + square).mean(),
        "that compares all pairs, as if they were independent": (pairs + square).mean(),
    }
    given = their.ranking_loss(r.clone(), eta)
    one = not isinstance(given, torch.Tensor) or given.dim() == 0
    expect(one, "ranking_loss must be one number, the mean over rankings; yours has one for each")
    expect_close("ranking_loss", given, (term + square).mean(), slips)
    far = torch.tensor([[-100.0, 100.0, 0.0]])
    expect_close("ranking_loss of rewards 200 apart", their.ranking_loss(far, 0.0), 200.0)


def check_what_is_left_free(their):
    given = their.same_rankings(REWARDS.clone())
    moved = torch.tensor(expect_numbers("same_rankings", given, (4, 3))).float()
    before, after = (minus_log_probability(r) for r in (REWARDS, moved))
    i = (after - before).abs().argmax()
    words = f"one ranking's loss was {before[i]:.2f} and is {after[i]:.2f}: on what does it depend?"
    expect(torch.allclose(before, after, atol=1e-3), words)
    moves = moved - REWARDS
    least = moves.abs().min()
    expect(least > 0.999, f"every reward must move by at least 1, one has moved by {least:.2f}")
    words = "Normalising the rewards undoes that, but not a shift for each post, which divides an ensemble"
    expect(moves.max() - moves.min() > 1e-3, f"all rankings have moved by the same. {words}")


def check_what_the_term_fixes(their):
    rewards = torch.tensor([[4.0] * 3, [-3.0] * 3], requires_grad=True)  # two posts, each with an offset
    optimizer = torch.optim.Adam([rewards], lr=0.1)
    for _ in range(200):
        loss = their.ranking_loss(rewards, 0.1)
        kept = isinstance(loss, torch.Tensor) and loss.requires_grad
        expect(kept, "the loss has lost its gradient: no float(), .item(), .detach() or numpy on the way")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    means = [round(mean, 2) for mean in rewards.mean(1).tolist()]
    MEASURED["mean reward of two posts"] = f"[4.0, -3.0] before training with your loss, {means} after it"
    expect(
        max(map(abs, means)) < 0.1, f"training with your loss must centre the rewards; they are at {means}"
    )
