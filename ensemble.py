"""M reward models as one reward function: their forward passes, and aggregators that turn M rewards into one.
The last two functions make the paper's two kinds of ensemble out of a grid[pretrain_seed][finetune_seed].

    ensemble = Ensemble(rms, mean_minus_std)
    ensemble.scores(prompts, responses)  # (M, B): every member's reward
    ensemble(prompts, responses)  # (B,): a reward function, like any other
"""

import copy

import torch
from torch.func import functional_call, stack_module_state, vmap

from policy import check_texts, trim


# An aggregator is any pure function (M, ...) -> (...) over the member axis. Add yours, here and below.
def mean(rewards):
    return rewards.mean(0)


def median(rewards):
    return rewards.quantile(0.5, dim=0)  # Tensor.median takes the lower middle value of an even M


def minimum(rewards):
    return rewards.amin(0)


def mean_minus_std(rewards):
    return rewards.mean(0) - rewards.std(0, correction=0)  # the population's: one member has std 0


AGGREGATORS = {"mean": mean, "median": median, "min": minimum, "mean_minus_std": mean_minus_std}


def aggregate(aggregator, rewards):
    """M members' rewards as one, (M, ...) -> (...). aggregate(minimum, rewards=[[1, 5], [3, 2]]) -> [1, 2]"""
    return rewards[0] if len(rewards) == 1 else aggregator(rewards)  # an unbiased std of one would be NaN


class Ensemble:
    """A reward function: M reward models, aggregated. Train and normalise them first: a GPU scores copies."""

    def __init__(self, rms, aggregator=mean):
        self.rms, self.aggregator = rms, aggregator
        self.stacked = stack_module_state(rms)  # copies: (parameters, buffers), each {name: (M, ...)}
        self.skeleton = copy.deepcopy(rms[0]).to("meta")  # the forward pass, without weights of its own

    def __call__(self, prompts, responses):
        return aggregate(self.aggregator, self.scores(prompts, responses))

    def batched(self, prompts, responses):
        """All members in one forward pass: (B, P), (B, R) -> (M, B)."""
        in_dims = (None, 0, None)  # one skeleton, M members' weights, the same texts for all
        return vmap(functional_call, in_dims)(self.skeleton, self.stacked, (prompts, responses))

    @torch.no_grad()
    def scores(self, prompts, responses):
        """Every member's reward of n responses to each prompt: (B, P), (B * n, R) -> (M, B * n).
        Kernel launches limit a GPU: all members at once. Memory limits a CPU: one at a time, small chunks."""
        check_texts(self.skeleton.config, prompts, responses)
        if responses.device.type == "cpu":
            return torch.stack([member_scores(rm, prompts, responses) for rm in self.rms])
        prompts = prompts.repeat_interleave(len(responses) // len(prompts), 0)
        chunk_size = 2**14 // len(self.rms) + 1  # rows; fewer with more members, to bound the memory
        chunks = zip(prompts.split(chunk_size), responses.split(chunk_size), strict=True)
        return torch.cat([self.batched(*chunk) for chunk in chunks], dim=1)


def member_scores(rm, prompts, responses, chunk_size=64):
    """One member's reward of n responses to each prompt: (B, P), (B * n, R) -> (B * n,).
    Each prompt is read once. PAD costs as much as text, so a chunk has responses of about the same length."""
    pad, n = rm.config.pad, len(responses) // len(prompts)
    _, cache = rm.trunk.prefill(prompts)
    rewards = rm.head.weight.new_empty(len(responses))
    by_length = (responses != pad).sum(1).argsort(stable=True)
    for rows in by_length.split(chunk_size):
        chunk = trim(responses[rows], pad)
        rewards[rows] = rm.score(rm.trunk(chunk, cache.select(rows // n)), chunk)
    return rewards


def finetune_ensembles(grid):
    """An ensemble of each row of the grid: finetune_ensembles(["ab", "cd"]) -> [["a", "b"], ["c", "d"]]."""
    return [list(row) for row in grid]


def pretrain_ensembles(grid):
    """One ensemble per diagonal of the grid: one member per pretraining, their finetuning seeds all different
    if there are enough (our choice). pretrain_ensembles(grid=["ab", "cd"]) -> [["a", "d"], ["b", "c"]]."""
    return [[row[(f + p) % len(row)] for p, row in enumerate(grid)] for f in range(len(grid[0]))]
