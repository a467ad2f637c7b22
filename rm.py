"""Reward models: a pretrained transformer with a scalar head, trained on preference pairs (Bradley-Terry) or
on labels of single responses (pointwise). The paper trains 25: 5 pretraining seeds x 5 finetuning seeds.

    rm = RewardModel(pretrained.trunk, finetune_seed=0)  # pretrained: a LanguageModel
    train_rm(rm, prompts, chosen, rejected, TrainConfig(steps=375, batch_size=32, lr=2e-3), seed=0)
    normalise(rm, prompts, sft_responses)  # mean 0, std 1 on what the frozen SFT policy writes
    rm(prompts, responses)  # (B,): a reward function, like any other
"""

import copy

import torch
from torch import nn

from policy import train, trim


class RewardModel(nn.Module):
    """A reward function: prompts (B, P), responses (B, R) of at least one token each -> (B,).
    It starts from a copy of a *pretrained* trunk; finetune_seed draws the head."""

    def __init__(self, trunk, finetune_seed):
        super().__init__()
        self.config = trunk.config
        self.trunk = copy.deepcopy(trunk)
        self.head = nn.Linear(self.config.width, 1)
        # Offset: finetuning seed 3 must not repeat pretraining seed 3. The std is Stiennon et al.'s (2020).
        generator = torch.Generator().manual_seed(10**6 + finetune_seed)
        nn.init.normal_(self.head.weight, std=(self.config.width + 1) ** -0.5, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.to(trunk.token_embedding.weight.device)

    def forward(self, prompts, responses):
        hidden_states = self.trunk(torch.cat([prompts, responses], dim=1))[:, prompts.shape[1] :]
        return self.score(at_last_token(hidden_states, responses, self.config.pad))

    def score(self, hidden):
        """The reward of a response from the hidden state of its last token: (B, D) -> (B,)."""
        return (self.head(hidden)[:, 0] - self.mean) / self.std


def last_token(responses, pad):
    """Index of the last token of each row, (B, R) -> (B,). [[7, 5, 9], [7, 9, 9]], 9 -> [1, 0]."""
    # subtle: the last *real* token. A pad's hidden state has seen the whole text too, so reading position -1
    # would run and score something never trained. (A row with no token gives -1: see check_responses.)
    return (responses != pad).sum(1) - 1


def at_last_token(hidden_states, responses, pad):
    """The hidden state of each response's last token: (B, R, D), (B, R) -> (B, D)."""
    return hidden_states[torch.arange(len(responses), device=responses.device), last_token(responses, pad)]


def bradley_terry_loss(chosen_rewards, rejected_rewards, eta=0.01):
    """Mean of -log sigmoid(r+ - r-) + eta (r+ + r-)^2, (B,), (B,) -> scalar. [1], [1] -> 0.693 + 0.04.
    The first term leaves a constant per prompt free; the second pulls it to zero. It takes the *sum* of the
    rewards: their difference would work against the first term and centre nothing (paper, after J(r))."""
    preference = -nn.functional.logsigmoid(chosen_rewards - rejected_rewards)
    return (preference + eta * (chosen_rewards + rejected_rewards) ** 2).mean()


def pointwise_loss(rewards, labels):
    """Mean of -log sigmoid(r) at label 1 and -log sigmoid(-r) at label 0, (B,), (B,) -> scalar: the reward is
    the log-odds of a good response (paper, the XSum/NLI task). [0], [1] -> 0.693."""
    return nn.functional.binary_cross_entropy_with_logits(rewards, labels)


def check_responses(responses, pad):
    """ValueError if a row has no token, or PAD before its end: it would have no last token to score."""
    mask = responses != pad
    if not mask[:, 0].all():
        raise ValueError("responses: a row has no token")
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("responses: a row has PAD before its end")


def train_rm(rm, prompts, chosen, rejected, config, seed, eta=0.01, desc="reward model"):
    """Bradley-Terry training in place on N pairs, (N, P), (N, R), (N, R); `seed` sets the order of the data.
    Returns the loss of every step, in nats per pair. ValueError on equal responses: they teach nothing."""
    equal = (chosen == rejected).all(1).nonzero()[:, 0].tolist()
    if equal:
        raise ValueError(f"chosen equals rejected in {len(equal)} pairs, the first of them row {equal[0]}")
    check_responses(torch.cat([chosen, rejected]), rm.config.pad)

    def loss_fn(prompts, chosen, rejected):
        # Read each prompt once for two responses: row b is its chosen, row B + b its rejected one.
        responses = trim(torch.cat([chosen, rejected]), rm.config.pad)
        _, cache = rm.trunk.prefill(prompts)
        rows = torch.arange(len(prompts), device=prompts.device).repeat(2)
        hidden_states = rm.trunk(responses, cache.select(rows))
        rewards = rm.score(at_last_token(hidden_states, responses, rm.config.pad))
        return bradley_terry_loss(*rewards.split(len(prompts)), eta)

    return train(rm, loss_fn, [prompts, chosen, rejected], config, seed, desc)


def train_pointwise(rm, prompts, responses, labels, config, seed, desc="reward model"):
    """As train_rm, on single responses, (N, P), (N, R), with float labels (N,), 0 or 1; loss per response."""
    check_responses(responses, rm.config.pad)

    def loss_fn(prompts, responses, labels):
        return pointwise_loss(rm(prompts, trim(responses, rm.config.pad)), labels)

    return train(rm, loss_fn, [prompts, responses, labels], config, seed, desc)


def accuracy(chosen_rewards, rejected_rewards):
    """Share of pairs ranked right, (..., B), (..., B) -> (...); a tie is not right. [1, 2], [0, 3] -> 0.5."""
    return (chosen_rewards > rejected_rewards).float().mean(-1)


@torch.no_grad()
def normalise(rm, prompts, responses):
    """Set mean and std so that the rewards of these samples, (B, P), (B, R), have mean 0 and std 1.
    Use samples of the *frozen SFT policy*: Bradley-Terry fixes no scale or origin, and without common ones
    every aggregator would mix different units. ValueError if all rewards are equal, up to rounding."""
    rewards = rm(prompts, responses) * rm.std + rm.mean  # as if never normalised
    std, mean = torch.std_mean(rewards, correction=0)
    if not std > 1e-6 * mean.abs():  # equal, or NaN
        raise ValueError("responses: their rewards do not vary, so they cannot be scaled to std 1")
    rm.mean.fill_(mean)
    rm.std.fill_(std)
