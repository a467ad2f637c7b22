"""Assignment 4: argmax of a row without EOS is 0, so a response that ran out of room counted as its first
token alone.

It paid KL for that token only, and long responses became free: hence the small KL, in the penalty and in
the log."""

import torch


def real_tokens(responses, eos):
    """(B, R) -> (B, R), True up to and including a response's EOS. What follows it is padding."""
    stopped, last = (responses == eos).int(), responses.shape[1] - 1
    end = torch.where(stopped.any(dim=1), stopped.argmax(dim=1), last)[:, None]
    return torch.arange(responses.shape[1]) <= end


def token_rewards(scores, log_ratio, mask, beta):
    """Each real token pays its share of the KL, and the score (B,) comes with the last one."""
    lengths = mask.sum(dim=1, keepdim=True)
    last = torch.arange(mask.shape[1]) == lengths - 1
    return torch.where(mask, -beta * log_ratio, 0.0) + last * scores[:, None]


def whiten(x, mask):
    """x with mean 0 and standard deviation 1 over the real tokens of the batch, 0 elsewhere."""
    real = x[mask]
    return torch.where(mask, (x - real.mean()) / (real.std(correction=0) + 1e-8), 0.0)


def experience(responses, scores, logp, ref_logp, values, beta, eos):
    """Of sampled responses (B, R), each up to its EOS or to the end of its row: a dict of mask, returns and
    advantages, (B, R) each, and kl, one number: nats to the reference, per response. gamma and lambda are 1:
    a return is the sum of the rewards from here on, an advantage is return minus value.

    scores: (B,); logp, ref_logp, values: (B, R), of any content after the end of a response."""
    mask = real_tokens(responses, eos)
    log_ratio = logp - ref_logp
    rewards = token_rewards(scores, log_ratio, mask, beta)
    returns = rewards.flip(1).cumsum(1).flip(1)
    advantages = whiten(returns - values, mask)
    kl = log_ratio[mask].sum() / len(responses)
    return {"mask": mask, "returns": returns, "advantages": advantages, "kl": kl}
