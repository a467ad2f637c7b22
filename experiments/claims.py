"""The paper's claims: each is one number per world; over worlds a mean, Student's t interval and a verdict.

    python experiments/report.py runs/overopt        # the table, from the records in a folder

A world (a seed) is an independent replicate of everything: posts, pretrainings, SFT, preferences, reward models,
samples, PPO. Nothing is pooled, so the interval of a claim is that of a pocket calculator:

    mean +- t * std / sqrt(worlds)
"""

from dataclasses import dataclass

import numpy as np

from bon import best_of_n, expected_best_of_n
from ensemble import finetune_ensembles, pretrain_ensembles

KINDS = ("single", "finetune", "pretrain")
BEST_N = 8  # where one reward model's gold is highest on the development seeds
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145]
T_975 += [2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045]


@dataclass
class Evidence:
    """What the claims of one world and task are computed from. P pretraining seeds, F finetuning seeds."""

    accuracy: np.ndarray  # (P, F), validation accuracy of the reward models
    scores: np.ndarray  # (P, F, posts, n), their rewards of the SFT policy's samples
    control: np.ndarray | None  # (P, posts, n), of a pretrain ensemble trained without the spurious correlation
    gold: np.ndarray  # (posts, n), the true reward of the samples
    traits: dict  # name -> (posts, n)
    runs: list  # PPO runs: dicts of kind, kl_weight, gold (posts,), scores (P, F, posts), traits {name: (posts,)}
    aggregate: callable  # (M, ...) -> (...)

    @property
    def groups(self):
        """{kind: scores (groups, members, posts, n)}: every way to choose what a policy is aligned to."""
        grid = self.scores
        return {
            "single": grid.reshape(-1, 1, *self.gold.shape),
            "finetune": np.array(finetune_ensembles(grid)),
            "pretrain": np.array(pretrain_ensembles(grid)),
        }

    def proxies(self, kind):
        """What each group of a kind says of the samples: (groups, posts, n)."""
        return np.array([self.aggregate(members) for members in self.groups[kind]])

    def best_of_n(self, kind, values, ns):
        """Mean of `values` (posts, n) over the best of n by each group of a kind: (len(ns),)."""
        return np.mean([expected_best_of_n(proxy, values, ns).mean(0) for proxy in self.proxies(kind)], axis=0)

    def runs_of(self, kind, which=min):
        """The PPO runs of a kind at the smallest KL weight (or at the largest)."""
        kl_weight = which(run["kl_weight"] for run in self.runs)
        return [run for run in self.runs if (run["kind"], run["kl_weight"]) == (kind, kl_weight)]


# ----- tools --------------------------------------------------------------------------------------


def pair_means(matrix, P, F):
    """Means of an (M, M) matrix over pairs of reward models (ordered by pretraining) that are the same one, share
    the pretraining alone, and do not share it: (self, same, other)."""
    pretraining, itself = np.arange(P * F) // F, np.eye(P * F, dtype=bool)
    alike = pretraining[:, None] == pretraining
    return matrix[itself].mean(), matrix[alike & ~itself].mean(), matrix[~alike].mean()


def rank_correlation(scores):
    """Spearman's correlation between reward models (M, texts) -> (M, M)."""
    return np.corrcoef(scores.argsort(-1).argsort(-1))


def rewards_of_picks(scores):
    """Mean reward of the best-of-n picks: scores (M, posts, n) -> (picker, judge)."""
    picks = best_of_n(scores)  # (M, posts)
    judged = np.take_along_axis(scores[None], picks[:, None, :, None], axis=-1)
    return judged[..., 0].mean(-1)


def same_spread(consensus, target):
    """For each post the sample whose consensus deviates from the mean of all samples as much as `target` (posts,)
    deviates from its own mean: index (posts,), from consensus (posts, n)."""
    wanted = target - target.mean() + consensus.mean()
    return np.abs(consensus - wanted[:, None]).argmin(-1)
