"""Does an ensemble that distrusts what is unlike its training data give up the hack that all members share?

    python experiments/more/distance.py --quick              # one small world: minutes
    python experiments/more/distance.py --seeds 1 2 3 4 5    # five worlds: intervals and verdicts

Where all members extrapolate in the same wrong way, their disagreement gives no warning. The paper proposes
uncertainty that knows the distance to the training data, and leaves it open. Here is a simple one: from each
member's reward subtract weight x Mahalanobis distance, between the response's last hidden state (which the
head reads) and those of the member's training responses, then average over members. Like rewards, distances
have mean 0 and std 1 on samples of the SFT policy. Shown: the best of n by pretrain ensembles, tldr.

Takes the flags of overopt.py (no PPO: its flags change nothing). An interrupted run continues, and --out
runs/overopt uses what that run has made. Into --out go distance.json, a row for each seed and weight, and
distance.png.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # overopt.py and what it imports
sys.path.insert(0, str(Path(__file__).parents[2]))  # the five files of the core

import matplotlib.pyplot as plt
import numpy as np
import overopt
import torch
from claims import interval
from figures import COLOURS, band
from report import to_json
from stages import SCORE_FILES, SYNTAX_TREES, Stages, in_processes, is_first_process, syntax_tree, write_whole

from bon import expected_best_of_n
from ensemble import pretrain_ensembles
from policy import trim

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
QUANTITIES = ("gold", "list", "length", "wrong_facts")
THIS = "experiments/more/distance.py"
SYNTAX_TREES[THIS] = syntax_tree(THIS)  # cached distances depend on this file too


def mahalanobis(features, reference, shrinkage=0.1):
    """Distance of features (B, D) from the mean of reference (N, D), in units of the reference's std in that
    direction: [[3, 4]], [[1, 1], [1, -1], [-1, 1], [-1, -1]] -> [5]. The covariance is shrunk towards a round
    one, since in directions in which the reference hardly varies it is mostly noise."""
    covariance = torch.cov(reference.T, correction=0)
    round_one = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    x = features - reference.mean(0)
    return (x * torch.linalg.solve(torch.lerp(covariance, round_one, shrinkage), x.T).T).sum(1).sqrt()


def penalised(scores, distances, weight):
    """Mean over members of score - weight * distance, (M, ...), (M, ...) -> (...):
    [[1, 2], [3, 4]], [[0, 1], [0, 3]], 0.5 -> [2, 2]."""
    return (scores - weight * distances).mean(0)


@torch.no_grad()
def last_hidden_states(model, prompts, responses):
    """What the head reads of n responses to each prompt: (B, P), (B * n, R) -> (B * n, D)."""
    n, found = len(responses) // len(prompts), []
    with model.head.register_forward_pre_hook(lambda head, inputs: found.append(inputs[0].double())):
        size = max(1, 256 // n)
        for posts, texts in zip(prompts.split(size), responses.split(size * n), strict=True):
            texts, (_, cache) = trim(texts, model.config.pad), model.trunk.prefill(posts)
            model.score(model.trunk(texts, cache.select(torch.arange(len(texts)) // n)), texts)
    return torch.cat(found)


def bank_distances(model, training, sft, bank):
    """One reward model's distances of the bank's responses, normalised on SFT's samples: (posts * n,)."""
    prompts, chosen, rejected = training
    reference = last_hidden_states(model, prompts, torch.stack([chosen, rejected], 1).flatten(0, 1))
    of_sft, of_bank = (
        mahalanobis(last_hidden_states(model, texts["posts"], texts["responses"]), reference)
        for texts in (sft, bank)
    )
    return (of_bank - of_sft.mean()) / of_sft.std()


def measure(s, seed, out):
    """One world: a row for each weight, means over its pretrain ensembles."""
    stages = Stages(s, seed, "tldr", torch.device("cpu"), out)
    stages.say(f"World {seed}: language models, samples, reward models, and their distances.")
    stages.pretrain_all()
    bank, sft, training = stages.bank(), stages.sft(), stages.judgements(s.pairs, "training", s.list_gap)
    models, _ = stages.reward_models(np.ndindex(s.pretrain_seeds, s.finetune_seeds))

    def job(m):
        compute = partial(bank_distances, models[m], training, sft, bank)
        return stages.stage(f"distance-{m}", "samples", (*SCORE_FILES, THIS), compute)

    distances = stages.share("distances", [partial(job, m) for m in range(len(models))])
    both = overopt.to_numpy(torch.stack([stages.score_bank(models, bank).flatten(1), torch.stack(distances)]))
    grids = both.reshape(2, s.pretrain_seeds, s.finetune_seeds, s.prompts, s.n)
    scores, distances = (np.array(pretrain_ensembles(grid)).swapaxes(0, 1) for grid in grids)  # members first
    gold, traits = overopt.judge(bank["posts"].repeat_interleave(s.n, 0), bank["responses"], "tldr")
    values = {"gold": gold, **traits}
    rows = []
    for weight in WEIGHTS:
        proxy, row = penalised(scores, distances, weight), {"seed": seed, "weight": weight}
        for name in QUANTITIES:
            row[name] = expected_best_of_n(proxy, values[name].reshape(-1, s.n), [s.n]).mean()
        rows.append(row)
        stages.say(f"    weight {weight:g}: " + ", ".join(f"{name} {row[name]:.2f}" for name in QUANTITIES))
    return rows


def verdict(changes):
    """Of one change per world: "fewer" if its interval is below zero ([-3, -2, -1] is not: +0.48 is in it)."""
