"""M reward models as one: their forward passes, and the aggregators that make one reward of M.
Which M of the grid[pretrain_seed][finetune_seed]? The last two functions are the paper's two answers.

    ensemble = Ensemble(rms, "mean_minus_std")
    ensemble.scores(prompts, responses)  # (M, B): every member's reward
    ensemble(prompts, responses)  # (B,): a reward function, like any other
"""

import copy

import torch
from torch.func import functional_call, stack_module_state, vmap

from policy import trim
from rm import check_responses

# An aggregator is any pure function (M, ...) -> (...) over the member axis. Add yours: one line.
# (torch's max, min, median and sort return pairs along an axis: take their .values.)
AGGREGATORS = {
    "mean": lambda r: r.mean(0),
    "median": lambda r: r.quantile(0.5, dim=0),
    "min": lambda r: r.amin(0),
    "mean_minus_std": lambda r: r.mean(0) - r.std(0, correction=0),  # correction=0: one member has std 0
}


def aggregate(aggregator, rewards):
    """(M, ...) -> (...), by name or any function; one member: itself. "min", [[1, 5], [3, 2]] -> [1, 2]."""
    function = aggregator if callable(aggregator) else AGGREGATORS[aggregator]
    return rewards[0] if len(rewards) == 1 else function(rewards)


class Ensemble:
    """A reward function: the rewards of M reward models, trained, normalised and of one shape, aggregated."""

    def __init__(self, rms, aggregator="mean"):
        if not rms:
            raise ValueError("rms: an ensemble needs at least one member")
        if not callable(aggregator) and aggregator not in AGGREGATORS:
            raise ValueError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {aggregator!r}")
        self.rms, self.aggregator = rms, aggregator
        self.stacked = stack_module_state(rms)  # a copy of (parameters, buffers), with a leading axis of M
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
        On a GPU launches cost most: all members at once. On a CPU memory does: a member at a time, in chunks
        that stay in the processor's cache, is about as fast at 8 rows and faster beyond."""
        check_responses(responses, self.skeleton.config.pad)
        if responses.device.type == "cpu":
            return torch.stack([member_scores(rm, prompts, responses) for rm in self.rms])
        prompts = prompts.repeat_interleave(len(responses) // len(prompts), 0)
        chunk_size = 2**14 // len(self.rms) + 1  # bounds the memory
        chunks = zip(prompts.split(chunk_size), responses.split(chunk_size), strict=True)
        return torch.cat([self.batched(*chunk) for chunk in chunks], dim=1)


def member_scores(rm, prompts, responses, chunk_size=64):
    """One member's reward of n responses to each prompt: (B, P), (B * n, R) -> (B * n,).
    A prompt is read once for all of them. They are sorted by length and cut into chunks, each trimmed to its
    longest row, since PAD costs as much as text."""
    pad, n = rm.config.pad, len(responses) // len(prompts)
    _, cache = rm.trunk.prefill(prompts)
    rewards = rm.head.weight.new_empty(len(responses))
    by_length = (responses != pad).sum(1).argsort(stable=True)
    for rows in by_length.split(chunk_size):
        chunk = trim(responses[rows], pad)
        rewards[rows] = rm.score(rm.trunk(chunk, cache.select(rows // n)), chunk)
    return rewards


def finetune_ensembles(grid):
    """One ensemble per pretraining, a row of the grid: ["ab", "cd"] -> [["a", "b"], ["c", "d"]]."""
    return [list(row) for row in grid]


def pretrain_ensembles(grid):
    """One ensemble per diagonal of the grid: a member from each pretraining, each with another finetuning
    seed as far as there are enough (our choice). ["ab", "cd"] -> [["a", "d"], ["b", "c"]]."""
    finetune_seeds = len(grid[0])
    return [[row[(f + p) % finetune_seeds] for p, row in enumerate(grid)] for f in range(finetune_seeds)]
