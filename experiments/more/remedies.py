"""What helps against a hack that all members of an ensemble share? Five rewards made of the same models.

    python experiments/more/remedies.py                                            # overopt.py's models
    python experiments/more/remedies.py --quick                                    # those of --quick
    python experiments/more/remedies.py --seeds 1 2 3 --seen list --out runs/a     # control arms,
    python experiments/more/remedies.py --seeds 1 2 3 --list-gap 0 --out runs/b    # a folder each

- none: the mean of the members' rewards.
- contrast: minus half of what the response would earn under other posts. Lists, length and tone earn it
  under any post, facts only under their own. It needs no label, no training and no name for the hack.
- distance: minus how unlike the raters' texts the response is; the paper hopes for such an awareness.
- min, mean_minus_std: cautious aggregators. One reward model leaves them nothing to do.

On each kind: best-of-n, and PPO at the smallest and the largest KL weight. A remedy that shrinks a reward
would make the same KL weight bite harder. So for PPO every reward, that of "none" too, is normalised on
samples of the SFT policy; "none" on ensembles is thus not quite overopt.py's run. `gain_at_equal_kl` is gold
minus that of "none", run by run where both are at the same KL.

Controls: where raters see no chatter, models may pay for chatter copied from the post. That depends on the
post, so contrast is expected to leave it alone. With --list-gap 0 no shared hack is planted.

Takes the flags of overopt.py, and its folder; --aggregator and --device change nothing. Leaves
remedies-TASK.json and .png.
"""

import copy
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # overopt.py, the core

import numpy as np
import torch
from torch import nn

import overopt
import variants
import world
from claims import KINDS, PPO, mean_gain_at_equal_kl
from ensemble import Ensemble, mean, mean_minus_std, minimum
from models import reward_model
from report import exit_status, parser_of
from rm import normalise

CHOSEN = {"contrast_weight": 0.5, "others": 4, "distance_weight": 0.5}  # on development seeds; each is a flag
RATERS_TEXTS = 1000  # from which distance is measured


# ----- the remedies: from a reward function to another --------------------------------------------
def none(reward):
    return reward


def contrast(reward, posts, weight):
    """r(x, y) - weight * mean over k of r(x_k, y), for other posts x_k, `posts` (K, P): what a response earns
    under any post is taken off, in part. `reward` reads n responses to each prompt, as an Ensemble does."""

    def contrasted(prompts, responses):
        elsewhere = reward(posts, responses.repeat(len(posts), 1)).unflatten(-1, (len(posts), -1))
        return reward(prompts, responses) - weight * elsewhere.mean(-2)

    return contrasted


def normalised(reward, calibration):
    """A reward function, shifted and scaled to mean 0 and std 1 on some texts: posts, responses."""
    std, center = torch.std_mean(reward(*calibration), correction=0)
    return lambda prompts, responses: (reward(prompts, responses) - center) / std


def distance(ensemble, texts, calibration, weight):
    """r(x, y) - weight * distance from the raters' texts, mean over the members. Texts: posts, responses."""
    far = Ensemble([distance_model(rm, texts, calibration) for rm in ensemble.rms])
    return lambda prompts, responses: ensemble(prompts, responses) - weight * far(prompts, responses)


def distance_model(rm, texts, calibration):
    """A reward model with another head: how far a response is from some texts. Normalised, as rewards are."""
    posts, responses = texts
    last = posts.shape[1] + (responses != rm.config.pad).sum(1) - 1  # where the head reads
    hidden_states = rm.trunk(torch.cat(texts, dim=1))
    model = copy.deepcopy(rm)
    model.head = DistanceHead(hidden_states[torch.arange(len(posts)), last])
    normalise(model, *calibration)
    return model


class DistanceHead(nn.Module):
    """Mahalanobis distance of hidden states (B, D) from reference (N, D), -> (B, 1): [[3, 4]], from
    [[1, 1], [1, -1], [-1, 1], [-1, -1]] -> [[5]]. The reference's covariance is almost singular: a tenth of
    it is replaced by a multiple of the identity, of the same mean variance."""

    def __init__(self, reference):
        super().__init__()
        covariance = torch.cov(reference.T, correction=0)
        sphere = covariance.diagonal().mean() * torch.eye(len(covariance))
        self.register_buffer("weight", torch.linalg.inv(0.9 * covariance + 0.1 * sphere))
        self.register_buffer("center", reference.mean(0))

    def forward(self, hidden):
        x = hidden - self.center
        return (x @ self.weight * x).sum(1, keepdim=True).sqrt()


REMEDIES = {  # the change, and how members are aggregated before it
    "none": (none, mean),
    "contrast": (contrast, mean),
    "distance": (distance, mean),
    "min": (none, minimum),
    "mean_minus_std": (none, mean_minus_std),
}


# ----- stages for the pool ------------------------------------------------------------------------
def remedied(name, options, rm_config, states):
    """The reward function: reward models with these weights, aggregated, and changed by a remedy."""
    change, aggregator = REMEDIES[name]
    models = [reward_model(rm_config, state, "cpu") for state in states]
    return change(Ensemble(models, aggregator), **options)


def score_remedied(posts, responses, **reward):
    """Its rewards of n responses to each post: -> (posts * n,)."""
    return remedied(**reward)(posts, responses)


def align_remedied(name, options, rm_config, states, calibration, **job):
    """PPO on it, normalised on SFT's samples."""
    return overopt.align_to(normalised(remedied(name, options, rm_config, states), calibration), **job)


# ----- one world ----------------------------------------------------------------------------------
def measure(given, s, seed, pool):
    """{group: {remedy: {quantity: number}}} of best-of-n and of PPO."""
    t = overopt.train_models(s, seed, given.task, "cpu", pool)
    evidence, groups, unchanged = overopt.evaluate_samples(t, pool), defaultdict(dict), None
    for name in given.remedies:
        pool.say(f"Remedy: {name}")
        options = options_of(name, t, given)
        kinds = [kind for kind in KINDS if kind != "single" or REMEDIES[name][1] is mean]
        changed = with_remedy(evidence, t, name, options, pool)
        for kind in kinds:
            groups[f"best of n, {kind}"][name] = variants.means_of_best(changed, kind)
        if name not in given.ppo:
            continue
        remedy = {"name": name, "options": options, "calibration": t.calibration}
        changed.runs = overopt.align_policies(t, changed, pool, align_remedied, kinds, **remedy)
        if name == "none":
            unchanged = changed
        for which, kind in product((min, max), kinds):
            runs, others = changed.runs_of(kind, which), unchanged.runs_of(kind, which)
            numbers = {"gain_at_equal_kl": mean_gain_at_equal_kl(runs, others)}
            numbers |= rises(t, runs, pool)
            measured = ("gold", "jury", "overuse", *evidence.traits, "kl")
            numbers |= {x: changed.mean(x, PPO, kind, which) for x in measured}
            groups[f"PPO at {which(s.kl_weights):g}, {kind}"][name] = numbers
    return groups


def rises(t, runs, pool):
    """How much more PPO's texts earn by the members' mean than SFT's samples: under their own posts, and with
    every text, PPO's or SFT's, under another post."""
    rise, samples = {}, t.bank[:: t.settings.n]  # the first of each post
    for name, posts in {"rise": t.posts, "rise_elsewhere": t.posts.roll(1, 0)}.items():
        before = overopt.evaluate(t, posts, samples, pool)["scores"]
        after = [overopt.evaluate(t, posts, run["responses"], pool)["scores"] for run in runs]
        changes = [(x - before)[run["members"]].mean() for x, run in zip(after, runs, strict=True)]
        rise[name] = np.mean(changes)
    return rise


def options_of(name, t, given):
    """What a remedy needs besides a reward function."""
    s, seed = t.settings, overopt.seed_for(t.seed, name)
    if name == "contrast":
        return {"posts": world.sample_posts(given.others, seed), "weight": given.contrast_weight}
    if name == "distance":
        texts = world.sample_texts(RATERS_TEXTS, seed, world.judged_writers(s.list_gap, s.seen, t.task))
        return {"texts": texts, "calibration": t.calibration, "weight": given.distance_weight}
    return {}


def with_remedy(evidence, t, name, options, pool):
    """The Evidence of best-of-n by a remedy's rewards. Contrast and distance add a number to each member's
    reward: what they make of an ensemble's mean is the mean of what they make of its members."""
    scores, (change, aggregator) = evidence.scores, REMEDIES[name]
    if change is not none:  # the number is proportional to the weight: computed at 1, and kept for any other
        jobs = [{"states": [state]} for state in t.states]
        shared = {"name": name, "options": options | {"weight": 1.0}, "rm_config": t.rm_config}
        found = pool.map(score_remedied, jobs, **shared, posts=t.posts, responses=t.bank)
        added = torch.stack(found).double().numpy().reshape(scores.shape) - scores
        scores = scores + options["weight"] * added
    return replace(evidence, scores=scores, aggregator=aggregator)


def main(argv=None):
    """The command line."""
    parser = parser_of(__doc__)
    overopt.add_flags(parser)
    for name, x in CHOSEN.items():
        parser.add_argument(overopt.flag(name), type=type(x), default=x, help=f"default {x}")
    parser.add_argument("--remedies", nargs="+", choices=REMEDIES, default=REMEDIES, help="default: all")
    parser.add_argument("--ppo", nargs="*", choices=REMEDIES, help="those for PPO, too (default: all)")
    given = parser.parse_args(argv)
    ppo = given.remedies if given.ppo is None else given.ppo
    given.ppo = {"none", *ppo} if ppo else set()  # the others are compared with none
    given.remedies = [name for name in REMEDIES if name in {"none", *given.remedies, *ppo}]
    if given.others < 1:
        raise ValueError(f"--others must be >= 1, got {given.others}")
    s, chosen = overopt.settings_from(given), {name: getattr(given, name) for name in CHOSEN}
    drawn = ("gold", "list", "wrong_facts", "length", "chatter")
    variants.compare("remedies", given, s, measure, drawn, **chosen)


if __name__ == "__main__":
    sys.exit(exit_status(main))
