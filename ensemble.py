"""M reward models as one: a batched forward, and the aggregators that make one reward of M.

    ensemble = Ensemble(rms, "mean_minus_std")
    ensemble.scores(prompts, responses)            # (M, B): every member's reward
    ensemble(prompts, responses)                   # (B,): a reward function, like any other

The members' parameters are stacked along a leading axis and put into one module, whose forward pass
(policy.py) carries that axis through: on CUDA a layer is one launch whatever M is. On a CPU a loop can be
faster; `scores` picks.
"""
import copy

import torch
from torch.func import functional_call, stack_module_state

from policy import train
from rm import bradley_terry_loss, check_pairs, pair_rewards

CPU_CHUNK, BATCHED_UP_TO = 128, 16

# An aggregator is any pure function (M, ...) -> (...) over the member axis. Add yours: one line. (torch's max, min, median
# and sort return pairs along an axis: take their .values.)
AGGREGATORS = {
    "mean": lambda r: r.mean(0),
    "median": lambda r: r.quantile(0.5, dim=0),
    "min": lambda r: r.amin(0),
    "mean_minus_std": lambda r: r.mean(0) - r.std(0, correction=0),     # correction=0: one member has std 0
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
            raise ValueError(f"aggregator: {aggregator!r} is no function and none of {', '.join(AGGREGATORS)}")
        self.aggregator = aggregator
        self.rms = rms
        self.config = rms[0].config
        self.parameters, self.buffers = stack_module_state(rms)
        self.module = copy.deepcopy(rms[0]).to("meta")       # the forward pass, without weights of its own

    def batched(self, prompts, responses):
        """(B, P), (B, R) -> (M, B): all members in one forward pass, no loop over them."""
        return functional_call(self.module, (self.parameters, self.buffers), (prompts, responses))

    def one_by_one(self, prompts, responses):
        """The same by a loop over the members."""
        return torch.stack([rm(prompts, responses) for rm in self.rms])

    @torch.no_grad()
    def scores(self, prompts, responses):
        """prompts (B, P), responses (B * n, R) -> (M, B * n): every member's reward of every response, by whatever is fastest here.

        On a GPU time is launches: all members at once. On a CPU it is memory: one member's activations on 128 rows stay in the
        cache, 25 members' do not, and only a handful of rows is too little work for one member (measured on 2 cores)."""
        n = len(responses) // len(prompts)
        cpu = prompts.device.type == "cpu"
        forward = self.one_by_one if cpu and len(responses) > BATCHED_UP_TO else self.batched
        chunk = max(1, (CPU_CHUNK if cpu else 2**14 // len(self.rms)) // n)
        return torch.cat([forward(*rows) for rows in zip(prompts.split(chunk), responses.split(chunk * n))], 1)

    def __call__(self, prompts, responses):
        return aggregate(self.aggregator, self.scores(prompts, responses))


def train_rms(rms, prompts, chosen, rejected, config, seed, eta=0.01, label="reward models"):
    """`train_rm` for M reward models of one shape as one batch, on the same pairs in the same order: each ends as it would alone, up to
    rounding. A step is as many launches as for one model, which pays on a GPU; on a CPU it is no faster (measured).
    Returns the members' mean loss of every step."""
    check_pairs(chosen, rejected)
    ensemble = Ensemble(rms)

    def loss_of(pairs):
        pairs = pairs.to(prompts.device)
        return len(rms) * bradley_terry_loss(*pair_rewards(ensemble.batched, prompts[pairs], chosen[pairs], rejected[pairs]), eta)

    losses = train(ensemble.parameters.values(), loss_of, len(prompts), config, seed, label, members=True)
    for m, rm in enumerate(rms):
        rm.load_state_dict({name: x[m] for name, x in {**ensemble.parameters, **ensemble.buffers}.items()})
    return losses / len(rms)


def finetune_ensembles(pretrain_seeds, finetune_seeds):
    """One ensemble per pretraining: members differ in finetuning seed alone. Members are places in the list
    of all RMs, ordered by pretraining: finetune_ensembles(2, 3) == [[0, 1, 2], [3, 4, 5]]."""
    return [[p * finetune_seeds + f for f in range(finetune_seeds)] for p in range(pretrain_seeds)]


def pretrain_ensembles(pretrain_seeds, finetune_seeds):
    """One ensemble per diagonal of the grid: members differ in pretraining seed, and in finetuning seed too as
    far as there are enough: pretrain_ensembles(3, 3) == [[0, 4, 8], [1, 5, 6], [2, 3, 7]]. (Our choice.)"""
    return [[p * finetune_seeds + (f + p) % finetune_seeds for p in range(pretrain_seeds)] for f in range(finetune_seeds)]


def groups(pretrain_seeds, finetune_seeds):
    """What a policy can be aligned to, as lists of members: {"single": [[0], [1], ...], "finetune": ..., "pretrain": ...}."""
    return {"single": [[m] for m in range(pretrain_seeds * finetune_seeds)], "finetune": finetune_ensembles(pretrain_seeds, finetune_seeds),
            "pretrain": pretrain_ensembles(pretrain_seeds, finetune_seeds)}
