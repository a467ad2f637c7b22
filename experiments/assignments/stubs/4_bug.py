"""4. A silent bug.

A colleague has written the code below, which makes the experience that PPO learns from: what each token of a
response earned. It runs without an error, and she is delighted. From a policy that knows nothing, with the
reward "how often word 7 occurs" (at most 24 times) and a KL weight of 0.05, the last of 40 updates shows:

                              reward   tokens   KL to the start
    as it should be             22.6     23.9              84.9
    with this code              22.5     24.0               4.9

The same reward for a fraction of the KL! Too good to be true: what must it cost to say 7 all the time, if
the start chooses among 99 words? One thing in the code is wrong. Find it, and repair it. (It is written
differently from ppo.py in many places. All but one are equivalent.)

Read: "PPO" in experiments/README.md.
Hint: do not only read the code. Make a few responses by hand, and print what each function makes
of them. After a response's end its tensors may hold anything, NaN too.
"""

import torch


def real_tokens(responses, eos):
    """(B, R) -> (B, R), True up to and including a response's EOS. What follows it is padding."""
    end = (responses == eos).int().argmax(dim=1, keepdim=True)
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
