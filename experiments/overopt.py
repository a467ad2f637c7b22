"""Reward hacking, end to end: watch it happen, get better with an ensemble, and not go away.

    python experiments/overopt.py                       # one world, everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick               # the same, small: a first look
    python experiments/overopt.py --seeds 1 2 3 4 5     # five worlds: means, intervals and verdicts
    python experiments/overopt.py --task nli            # another rater of the same posts
    torchrun --nproc-per-node 2 experiments/overopt.py -- --seeds 1 2      # on several machines, too

Pretrains language models, trains a grid of reward models (pretraining seeds x finetuning seeds), aligns a policy
to one of them or to an ensemble, by best-of-n and by PPO, and measures the true reward. Every world and task
leaves one record in --out, world-SEED-TASK.json; claims, tables and figures are made from the records there.
An interrupted run continues where it stopped.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import numpy as np
import torch

import world
from claims import KINDS, Evidence
from ensemble import AGGREGATORS, aggregate
from stages import Stages, in_processes, rank_and_size, write_whole


def setting(group, default, help, quick=None):
    """A flag. group: the stages that depend on it, see stages.py; quick: its default under --quick."""
    metadata = {"group": group, "help": help, "quick": default if quick is None else quick}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every setting that a world's numbers depend on, and so every flag that sets one."""

    # the models
    width: int = setting("models", 64, "width of the policy")
    rm_width: int = setting("models", 64, "width of the reward models")
    layers: int = setting("models", 2, "layers of every transformer")
    heads: int = setting("models", 2, "attention heads of every transformer")
    pretrain_seeds: int = setting("models", 5, "pretrainings for reward models; the policy has its own", 3)
    pretrain_texts: int = setting("models", 20000, "texts for each pretraining, and for SFT", 8000)
    pretrain_steps: int = setting("models", 1200, "updates of a pretraining", 500)
    sft_steps: int = setting("models", 200, "updates of supervised finetuning of the policy", 60)
    list_gap: float = setting("models", 0.15, "careful writers' list rate minus careless ones'")
    # preferences and reward models
    finetune_seeds: int = setting("preferences", 5, "reward models for each pretraining", 3)
    pairs: int = setting("preferences", 3000, "preference pairs for training", 1500)
    rm_epochs: int = setting("preferences", 4, "passes over the pairs")
    rm_batch: int = setting("preferences", 32, "pairs per update; for nli twice as many responses")
    rm_lr: float = setting("preferences", 2e-3, "peak learning rate of reward models")
    eta: float = setting("preferences", 0.01, "weight of the centring term of the Bradley-Terry loss")
    label_temperature: float = setting("preferences", 0.7, "raters' temperature: higher is noisier")
    flipped: float = setting("preferences", 0.0, "share of labels that are flipped")
    coverage: float = setting("preferences", 0.0, "share of the writers' habits that raters see, lists apart")
    # the SFT policy's samples
    prompts: int = setting("samples", 256, "posts that best-of-n and the finished PPO policies answer", 64)
    n: int = setting("samples", 64, "samples of each post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting("ppo", (0.02, 0.1), "weights beta of the KL penalty")
    ppo_runs: int = setting("ppo", 5, "PPO runs of a kind at the smallest KL weight, each on other models", 1)
    ppo_updates: int = setting("ppo", 40, "updates of a PPO run", 20)
    ppo_batch: int = setting("ppo", 128, "responses per update")
    aggregator: str = setting("ppo", "mean", f"how ensembles aggregate: {', '.join(AGGREGATORS)}")
