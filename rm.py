"""Reward models: a pretrained trunk with a scalar head, trained on preference pairs (Bradley-Terry), or on labels of
single responses (pointwise).

    rm = RewardModel(pretrained.trunk, finetune_seed=0)
    train_rm(rm, prompts, chosen, rejected, TrainConfig(steps=94, batch_size=64), seed=0)
    normalise(rm, prompts, sft_responses)          # mean 0, std 1 on what the frozen SFT policy writes
    rm(prompts, responses)                         # (B,): a reward function, like any other

Paper: section "Set-up"; 25 of them are 5 pretraining seeds x 5 finetuning seeds.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from policy import Linear, train


class RewardModel(nn.Module):
    """reward(prompts (B, P), responses (B * n, R)) -> (B * n,), or (M, B * n) if every parameter has M members. The n responses
    to a prompt stand side by side, and it is read once for all of them.

    Starts from a copy of a *pretrained* trunk; finetune_seed draws the head."""

    def __init__(self, trunk, finetune_seed):
        super().__init__()
        self.config = trunk.config
        self.trunk = copy.deepcopy(trunk)
        width = trunk.config.width
        # The offset: finetuning seed 3 shall not repeat the random numbers of pretraining seed 3.
        generator = torch.Generator().manual_seed(10**6 + finetune_seed)
        self.head = Linear(width, 1, generator, gain=(width / (width + 1)) ** 0.5)       # std 1 / sqrt(width + 1)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.to(trunk.token_embedding.device)

    def forward(self, prompts, responses):
        if len(responses) == len(prompts):
            tokens, past = torch.cat([prompts, responses], 1), None
        else:
            tokens, past = responses, self.trunk.prefill(prompts, torch.zeros_like(prompts, dtype=torch.bool))[1]
        real = responses != self.config.pad
        if not real[:, 0].all() or (real[:, 1:] > real[:, :-1]).any():
            raise ValueError("responses: a row has no token, or a PAD before its end")
        # subtle: the score sits on the last real token. A pad's hidden state has seen the whole text
        # too, so reading position -1 would run without an error and score something never trained.
        real = tokens != self.config.pad
        last = real & ~F.pad(real[:, 1:], (0, 1))
        hidden = self.trunk(tokens, real, last, past)
        return (self.head(hidden).squeeze(-1) - self.mean) / self.std


def bradley_terry_loss(chosen_rewards, rejected_rewards, eta=0.01):
    """mean of -log sigmoid(r+ - r-) + eta (r+ + r-)^2, for two (B,) tensors.

    The first term leaves a constant per prompt free; the second pulls it to zero. It is the *sum* of the
    two rewards: the difference there would work against the first term and centre nothing (paper, the
    objective J(r) and the paragraph after it)."""
    preference = -F.logsigmoid(chosen_rewards - rejected_rewards)
    return (preference + eta * (chosen_rewards + rejected_rewards) ** 2).mean()


def pointwise_loss(rewards, labels):
    """Mean of -log sigmoid(r) where the label is 1, and of -log sigmoid(-r) where it is 0, for two (B,) tensors: the reward
    is the log-odds of a good response (paper, the XSum/NLI task)."""
    return F.binary_cross_entropy_with_logits(rewards, labels)


def pair_rewards(reward, prompts, chosen, rejected):
    """Rewards of the chosen and of the rejected responses, (..., B) each, by a reward function that reads a prompt once for both."""
    both = torch.stack([chosen, rejected], 1).flatten(0, 1)
    return reward(prompts, both).unflatten(-1, (-1, 2)).unbind(-1)


def check_pairs(chosen, rejected):
    """ValueError if a pair has two equal responses: it would teach nothing, and half-count as right."""
    same = (chosen == rejected).all(1).nonzero()
    if len(same):
        raise ValueError(f"chosen: equal to rejected in {len(same)} pairs, the first of them row {int(same[0])}")


def train_rm(rm, prompts, chosen, rejected, config, seed, eta=0.01, label="reward model"):
    """Bradley-Terry training in place on N pairs (N, P), (N, R), (N, R); `seed` sets the data order.
    Returns the loss of every step, in nats per pair. ValueError on a pair of equal responses."""
    check_pairs(chosen, rejected)

    def loss_of(pairs):
        pairs = pairs.to(prompts.device)
        return bradley_terry_loss(*pair_rewards(rm, prompts[pairs], chosen[pairs], rejected[pairs]), eta)

    return train(rm.parameters(), loss_of, len(prompts), config, seed, label)


def train_pointwise(rm, prompts, responses, labels, config, seed, label="reward model"):
    """Pointwise training in place on N responses (N, P), (N, R) with labels (N,), 0 or 1; `seed` sets the data order.
    Returns the loss of every step, in nats per response."""
    def loss_of(rows):
        rows = rows.to(prompts.device)
        return pointwise_loss(rm(prompts[rows], responses[rows]), labels[rows])

    return train(rm.parameters(), loss_of, len(prompts), config, seed, label)


def accuracy(chosen_rewards, rejected_rewards):
    """Share of pairs whose chosen response has the higher reward, over the last axis: (..., B) -> (...)."""
    return (chosen_rewards > rejected_rewards).float().mean(-1)


@torch.no_grad()
def normalise(rm, prompts, responses):
    """Set mean and std so that the rewards of these samples have mean 0 and std 1. ValueError if they are all equal.

    Use samples of the *frozen SFT policy*: Bradley-Terry fixes no scale and no origin, and without a common
    one, min and mean_minus_std would compare members that speak in different units."""
    rewards = rm(prompts, responses) * rm.std + rm.mean          # as if never normalised
    std, mean = torch.std_mean(rewards, correction=0)
    if not std > 0:
        raise ValueError("responses: their rewards do not vary, so they cannot be brought to std 1")
    rm.mean.fill_(mean)
    rm.std.fill_(std)
