"""2. A loss for rankings, and what it leaves free.

A rater may rank three responses to a post instead of two. The Plackett-Luce model says how: the best is
drawn with probability softmax(rewards); then the second best, likewise, from the two that are left.

Write the loss of a reward model on such rankings: the mean over rankings of minus the log-probability of the
ranking, plus eta times the square of the *sum* of its three rewards. Then show what the loss without that
last term leaves free.

Read: the losses in rm.py, and "Reward models" in experiments/README.md.
Hint: in float32 exp(200) is infinity; the loss of rewards 200 apart is not.
"""


def ranking_loss(rewards, eta):
    """rewards: a tensor (B, 3), each row best first -> the loss, a tensor of one number, in nats."""
    raise NotImplementedError("ranking_loss is yours to write")


def same_rankings(rewards):
    """A tensor (B, 3) -> another (B, 3) such that, at eta = 0, *each ranking* has the same loss as before.
    Every reward has moved by at least 1, and not all rankings by the same: another member of an ensemble
    could score them so."""
    raise NotImplementedError("same_rankings is yours to write")
