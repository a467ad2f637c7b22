"""M reward models as one: a batched forward, and the aggregators that make one reward of M.

ensemble = Ensemble(rms, "mean_minus_std")
ensemble.scores(prompts, responses)            # (M, B): every member's reward
ensemble(prompts, responses)                   # (B,): a reward function, like any other
"""

import copy

import torch
from torch.func import functional_call, stack_module_state, vmap

from policy import trim
from rm import check_responses

# An aggregator is any pure function (M, ...) -> (...) over the member axis. Add yours: one line. (torch's max, min,
# median and sort return pairs along an axis: take their .values.)
AGGREGATORS = {
    "mean": lambda r: r.mean(0),
    "median": lambda r: r.quantile(0.5, dim=0),
    "min": lambda r: r.amin(0),
    "mean_minus_std": lambda r: r.mean(0) - r.std(0, correction=0),  # correction=0: one member has std 0
}


def aggregate(aggregator, rewards):
    """(M, ...) -> (...), by an aggregator's name or by any function. One member has nothing to aggregate."""
    function = aggregator if callable(aggregator) else AGGREGATORS[aggregator]
    return rewards[0] if len(rewards) == 1 else function(rewards)


class Ensemble:
    """The reward function aggregator(scores) of M reward models of one shape; aggregator: a name, or any function
    (M, ...) -> (...). Make it of trained and normalised members: `batched` has a copy of their weights."""

    def __init__(self, rms, aggregator="mean"):
        if not rms:
            raise ValueError("rms: an ensemble needs at least one member")
        if not callable(aggregator) and aggregator not in AGGREGATORS:
            raise ValueError(
                f"aggregator must be a function or one of {', '.join(AGGREGATORS)}, got {aggregator!r}"
            )
        self.rms, self.aggregator = rms, aggregator
        self.stacked = stack_module_state(rms)  # (parameters, buffers), each with a leading axis of M
        self.skeleton = copy.deepcopy(rms[0]).to("meta")  # the forward pass, without weights of its own

    def __call__(self, prompts, responses):
        return aggregate(self.aggregator, self.scores(prompts, responses))

    def batched(self, prompts, responses):
        """All members in one forward pass: (B, P), (B, R) -> (M, B). On a GPU a layer is one launch whatever M is."""

        def forward(parameters, buffers):
            return functional_call(self.skeleton, (parameters, buffers), (prompts, responses))

        return vmap(forward)(*self.stacked)

    @torch.no_grad()
    def scores(self, prompts, responses):
        """Every member's reward of n responses to each prompt, those of a prompt side by side:
        (B, P), (B * n, R) -> (M, B * n).

        On a GPU time is launches: all members at once. On a CPU it is memory: one member after the other, in
        chunks whose activations stay in the processor's cache, is as fast from a handful of rows on (measured)."""
        check_responses(responses, self.skeleton.config.pad)
        if responses.device.type == "cpu":
            return torch.stack([score(rm, prompts, responses) for rm in self.rms])
        prompts = prompts.repeat_interleave(len(responses) // len(prompts), 0)
        rows_at_once = 2**14 // len(self.rms) + 1
        parts = zip(prompts.split(rows_at_once), responses.split(rows_at_once), strict=True)
        return torch.cat([self.batched(*part) for part in parts], dim=1)


def score(rm, prompts, responses, chunk_size=64):
    """One member's reward of n responses to each prompt: (B, P), (B * n, R) -> (B * n,).

    A prompt is read once for all its responses; these are sorted by length and cut into chunks, each trimmed to its
    longest row, since PAD costs as much as text."""
    pad, n = rm.config.pad, len(responses) // len(prompts)
    _, cache = rm.trunk.prefill(prompts)
    rewards = rm.head.weight.new_empty(len(responses))
    by_length = (responses != pad).sum(1).argsort(stable=True)
    for rows in by_length.split(chunk_size):
        chunk = trim(responses[rows], pad)
        rewards[rows] = rm.score(rm.trunk(chunk, cache.select(rows // n)), chunk)
    return rewards


# ----- which members ------------------------------------------------------------------------------


def finetune_ensembles(grid):
    """One ensemble per pretraining, grid[pretrain_seed][finetune_seed]: members differ in finetuning seed alone.

    finetune_ensembles(["ab", "cd"]) == [["a", "b"], ["c", "d"]]"""
    return [list(row) for row in grid]


def pretrain_ensembles(grid):
    """One ensemble per finetuning seed f: from each pretraining one member, and each from another finetuning seed as
    far as there are enough: the diagonal of the grid that starts at column f. (Our choice.)

    pretrain_ensembles(["ab", "cd"]) == [["a", "d"], ["b", "c"]]"""
    finetune_seeds = len(grid[0])
    return [[row[(f + p) % finetune_seeds] for p, row in enumerate(grid)] for f in range(finetune_seeds)]
