"""Causes: what decides whether an ensemble helps, and what do its members err on together?

    python experiments/more/dial.py --quick                        # one small world: minutes
    python experiments/more/dial.py --seeds 1 2 3 4 5              # arms: what raters see
    python experiments/more/dial.py --seeds 1 2 3 --members        # ensembles of 1 to 20 members

Arms: raters see lists and chatter, lists alone, or all of the writers' habits. Of what they have not seen,
each pretraining may judge in its own way, and an ensemble would average that away; what they have seen tied
to quality, as lists are, all members may learn. In the control arm, "no gap", lists are not tied to it. There
writers, and so language models, differ too: compare gains, not levels.

--members: one reward model of each of ever more pretrainings, and a jury of four. If members erred
independently, gold would go on rising towards the best of the n samples; `below_best` is what is missing.

Takes the flags of overopt.py, and its folder. Those of PPO change nothing; arms override --seen and
--list-gap, --members overrides --pretrain-seeds, --finetune-seeds and --jury. Leaves dial-TASK.json
(members-TASK.json) and .png.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # overopt.py, the core

import numpy as np

import overopt
import variants
from bon import expected_best_of_n
from claims import KINDS, pair_means, powers, rank_correlation
from report import exit_status, parser_of
from world import HABIT_NAMES, SEEN

ARMS = {  # name: the settings that it changes; the first is as usual
    "lists, chatter": {"seen": SEEN},
    "lists": {"seen": ("list",)},
    "all habits": {"seen": HABIT_NAMES},
    "no gap": {"seen": SEEN, "list_gap": 0.0},
}
MEMBERS = (1, 2, 5, 10, 20)  # the last are all; the others share them out
JURY = 4  # reward models: it judges large ensembles, and should itself be a good one


def measure_arms(given, s, seed, pool):
    """{group: {arm: {quantity: number}}}. Arms with the same gap share their language models."""
    groups = {f"best of n, {kind}": {} for kind in KINDS}
    for arm, changes in ARMS.items():
        t = overopt.train_models(replace(s, **changes), seed, given.task, given.device, pool)
        evidence = overopt.evaluate_samples(t, pool)
        correlations = rank_correlation(evidence.scores.reshape(len(evidence.scores), -1))
        single = variants.means_of_best(evidence, "single")["gold"]
        # Of two members: a finetune ensemble's share a pretraining, a pretrain ensemble's do not.
        for kind, correlation in zip(KINDS, pair_means(correlations, evidence.F), strict=True):
            found = variants.means_of_best(evidence, kind)
            found = {"gain_over_single": found["gold"] - single, **found}
            found |= {"rank_correlation": correlation, "accuracy": evidence.accuracy.mean()}
            groups[f"best of n, {kind}"][arm] = found
    return groups


def measure_members(given, s, seed, pool):
    """{group: {members: {quantity: number}}}, means over ensembles that share no member."""
    evidence = overopt.evaluate_samples(overopt.train_models(s, seed, given.task, given.device, pool), pool)
    gold, scores, groups = evidence.gold, evidence.scores, {"best of n, pretrain": {}}
    for members in MEMBERS:
        proxies = np.array([evidence.aggregate(x) for x in scores.reshape(-1, members, *gold.shape)])
        values = {"gold": gold, "below_best": gold.max(1, keepdims=True) - gold, **evidence.traits}
        values |= {"proxy": proxies, "jury": evidence.jury.mean(0)}
        found = {name: expected_best_of_n(proxies, x, powers(s.n)) for name, x in values.items()}
        groups["best of n, pretrain"][members] = {name: x.mean((0, 1)) for name, x in found.items()}
    return groups


def main(argv=None):
    """The command line."""
    parser = parser_of(__doc__)
    overopt.add_flags(parser)
    parser.add_argument("--members", action="store_true", help="compare numbers of members, not arms")
    given = parser.parse_args(argv)
    if given.members:
        s = replace(overopt.settings_from(given), pretrain_seeds=max(MEMBERS), finetune_seeds=1, jury=JURY)
        drawn = ("gold", "jury", "list", "wrong_facts")
        variants.compare("members", given, s, measure_members, drawn)
    else:
        s = overopt.settings_from(given)
        drawn = ("gold", "gain_over_single", "list", "chatter", "wrong_facts")
        variants.compare("dial", given, s, measure_arms, drawn)


if __name__ == "__main__":
    sys.exit(exit_status(main))
