"""Assignment 2: the loss, what it leaves free without its second term, and what the term fixes."""

from itertools import combinations

import torch
import torch.nn.functional as F
from expect import expect, expect_close, expect_numbers


def minus_log_probability(r):
    """Of rankings, best first: (B, 3) -> (B,)."""
    return -r.log_softmax(1)[:, 0] - r[:, 1:].log_softmax(1)[:, 0]


def check_the_loss(their):
    for B in (4, 1, 7):
        r, eta = 1.5 * their.given.normal(B, 3), 0.1
        term, square = minus_log_probability(r), eta * r.sum(1) ** 2
        best, any_second = -r.log_softmax(1)[:, 0], -r.log_softmax(1)[:, 1]
        pairs = sum(-F.logsigmoid(r[:, i] - r[:, j]) for i, j in combinations(range(3), 2))
        slips = {
            "the term with eta is missing": term.mean(),
            "that is the sum over rankings, not the mean": (term + square).sum(),
            "the term squares each reward: square their sum": (term + eta * (r**2).sum(1)).mean(),
            "the term squares the mean of the three rewards, not their sum": (term + square / 9).mean(),
            "the sign: a log-probability is negative, the loss is minus that": (square - term).mean(),
            "rows are best first, yours worst first": (minus_log_probability(r.flip(1)) + square).mean(),
            "the draw of the second best is missing": (best + square).mean(),
            "the second best is drawn from two, not from all three": (best + any_second + square).mean(),
            "that compares all pairs, as if they were independent": (pairs + square).mean(),
        }
        given = their.ranking_loss(r, eta)
        one = not isinstance(given, torch.Tensor) or given.dim() == 0
        expect(one, "ranking_loss must be one number, the mean over rankings; yours has one for each")
        expect_close(f"ranking_loss of {B} rankings", given, (term + square).mean(), slips)
    far = torch.tensor([[-100.0, 100.0, 0.0]])
    expect_close("ranking_loss of rewards 200 apart", their.ranking_loss(far, 0.0), 200.0)


def check_what_is_left_free(their):
    for B in (4, 7):
        expect_same_rankings(their, 1.5 * their.given.normal(B, 3))


def expect_same_rankings(their, rewards):
    moved = torch.tensor(expect_numbers("same_rankings", their.same_rankings(rewards), tuple(rewards.shape)))
    before, after = minus_log_probability(rewards.double()), minus_log_probability(moved)
    i = (after - before).abs().argmax()
    words = f"one ranking's loss was {before[i]:.2f} and is {after[i]:.2f}: on what does it depend?"
    rounding = 1e-6 * float(moved.abs().max())
    expect(torch.allclose(before, after, atol=1e-3 + rounding), words)
    moves = moved - rewards
    least = moves.abs().min()
    expect(least > 0.999, f"every reward must move by at least 1, one has moved by {least:.2f}")
    expect(moves.abs().max() < 1e3, "some reward has moved by 1,000 or more: less will do")
    words = "Normalising the rewards undoes that, but not a shift for each post, which divides an ensemble"
    expect(moves.max() - moves.min() > 1e-3 + rounding, f"all rankings have moved by the same. {words}")


def check_what_the_term_fixes(their):
    rewards = torch.tensor([[4.0] * 3, [-3.0] * 3])  # two posts, each with an offset
    optimizer = torch.optim.Adam([rewards], lr=0.1)
    for _ in range(200):
        loss, rewards.grad = their.ranking_loss(rewards, 0.1, gradient=True)
        words = "the loss has lost its gradient: no float(), .item(), .detach() or numpy on the way"
        expect(rewards.grad is not None, words)
        optimizer.step()
    means = [round(mean, 2) for mean in rewards.mean(1).tolist()]
    their.measured["mean reward of two posts"] = f"[4.0, -3.0] before training with your loss, {means} after"
    words = f"training with your loss must centre the rewards; they are at {means}"
    expect(max(map(abs, means)) < 0.1, words)
