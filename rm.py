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

from policy import check_texts, train, trim


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
        self.to(trunk.token_embedding.weight)  # the same device and dtype

    def forward(self, prompts, responses):
        hidden_states = self.trunk(torch.cat([prompts, responses], dim=1))[:, prompts.shape[1] :]
        return self.score(hidden_states, responses)

    def score(self, hidden_states, responses):
        """The rewards of responses (B, R) from the hidden states of their tokens, (B, R, D) -> (B,)."""
        # subtle: the last *real* token. A pad's hidden state has seen the whole text too, so reading position
        # -1 would run, and score something never trained. (A row with no token would read -1: check_texts.)
        last = (responses != self.config.pad).sum(1) - 1
        hidden = hidden_states[torch.arange(len(responses), device=responses.device), last]
        return (self.head(hidden)[:, 0] - self.mean) / self.std


def bradley_terry_loss(chosen_rewards, rejected_rewards, eta=0.01):
    """Mean of -log sigmoid(r+ - r-) + eta (r+ + r-)^2, (B,), (B,) -> scalar.
    bradley_terry_loss(chosen_rewards=[1], rejected_rewards=[1], eta=0.01) -> 0.693 + 0.04.
    The first term leaves a constant per prompt free; the second pulls it to zero. It takes the *sum* of the
    rewards: their difference would work against the first term and centre nothing (paper, after J(r))."""
    preference = -nn.functional.logsigmoid(chosen_rewards - rejected_rewards)
    return (preference + eta * (chosen_rewards + rejected_rewards) ** 2).mean()


def pointwise_loss(rewards, labels):
    """Mean of -log sigmoid(r) at label 1 and -log sigmoid(-r) at label 0, (B,), (B,) -> scalar: the reward is
    the log-odds of a good response (paper, the XSum/NLI task).
    pointwise_loss(rewards=[0], labels=[1]) -> 0.693."""
    return nn.functional.binary_cross_entropy_with_logits(rewards, labels)


def train_rm(rm, prompts, chosen, rejected, config, seed, eta=0.01, desc="reward model"):
    """Bradley-Terry training in place on N pairs, (N, P), (N, R), (N, R); `seed` sets the order of the data.
    Returns the loss of every step, in nats per pair. ValueError on equal responses: they teach nothing."""
    equal = (chosen == rejected).all(1)
    if equal.any():
        raise ValueError(f"chosen equals rejected in {equal.sum()} pairs")
    check_texts(rm.config, prompts, torch.cat([chosen, rejected]))

    def loss_fn(prompts, chosen, rejected):
        # The loss of rm(prompts, chosen) and rm(prompts, rejected), but each prompt is read once for both:
        # calling rm makes a step 1.3 times as long (32 pairs, prompts of 16 tokens, responses of 24).
        responses = trim(torch.cat([chosen, rejected]), rm.config.pad)
        rows = torch.arange(len(prompts), device=prompts.device).repeat(2)  # the prompt of each response
        _, cache = rm.trunk.prefill(prompts)
        # subtle: a cache is written in place. Continue a `select`ed copy, and only once, or backward() fails.
        hidden_states = rm.trunk(responses, cache.select(rows))
        chosen_rewards, rejected_rewards = rm.score(hidden_states, responses).chunk(2)
        return bradley_terry_loss(chosen_rewards, rejected_rewards, eta)

    lengths = (torch.stack([chosen, rejected]) != rm.config.pad).sum(2).amax(0)  # of the longer response
    return train(rm, loss_fn, [prompts, chosen, rejected], lengths, config, seed, desc)


def train_pointwise(rm, prompts, responses, labels, config, seed, desc="reward model"):
    """As train_rm, on single responses, (N, P), (N, R), with float labels (N,), 0 or 1; loss per response."""
    check_texts(rm.config, prompts, responses)

    def loss_fn(prompts, responses, labels):
        return pointwise_loss(rm(prompts, trim(responses, rm.config.pad)), labels)

    lengths = (responses != rm.config.pad).sum(1)
    return train(rm, loss_fn, [prompts, responses, labels], lengths, config, seed, desc)


def accuracy(chosen_rewards, rejected_rewards):
    """Share of pairs ranked right, (..., B), (..., B) -> (...); a tie is not right.
    accuracy(chosen_rewards=[1, 2], rejected_rewards=[0, 3]) -> 0.5."""
    return (chosen_rewards > rejected_rewards).float().mean(-1)


@torch.no_grad()
def normalise(rm, prompts, responses):
    """Set mean and std so that the rewards of these samples, (B, P), (B, R), have mean 0 and std 1.
    Use samples of the *frozen SFT policy*: Bradley-Terry fixes no scale or origin, and without common ones
    every aggregator would mix different units. ValueError if all rewards are equal, up to rounding."""
    check_texts(rm.config, prompts, responses)
    rewards = rm(prompts, responses) * rm.std + rm.mean  # as if never normalised
    std, mean = torch.std_mean(rewards, correction=0)
    if not std > 1e-6 * mean.abs():  # equal, or NaN
        raise ValueError("responses: their rewards do not vary, so they cannot be scaled to std 1")
    rm.mean.fill_(mean)
    rm.std.fill_(std)
