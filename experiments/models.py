"""The trained models of one world, small enough to hand over: the SFT policy, reward models, and a jury.

    models = load_models("experiments/results/models-tldr.pt")
    print(models)  # world 3004 of tldr (commit 0123abc): an SFT policy, 5 x 2 reward models, a jury of 2
    models.policy, models.grid[pretrain_seed][finetune_seed], models.jury

Weights are kept in half precision, and computed with in single precision.
"""

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from policy import Config, LanguageModel
from pool import saved
from rm import RewardModel

SHIPPED = Path(__file__).parent / "results" / "models-tldr.pt"  # of the first world of the results
KEPT = 2  # reward models of each pretraining, and of the jury


def language_model(config, state, device):
    """The language model with these weights."""
    model = LanguageModel(config, seed=0).to(device)
    model.load_state_dict(state)
    return model


def reward_model(config, state, device):
    """The reward model with these weights, frozen."""
    model = RewardModel(LanguageModel(config, seed=0).trunk, finetune_seed=0).to(device)
    model.load_state_dict(state)
    return model.requires_grad_(False)


@dataclass
class Models:
    """What `load_models` gives."""

    seed: int
    task: str
    commit: str  # of the code that trained them
    policy: LanguageModel  # after SFT; no reward has touched it
    grid: list  # grid[pretrain_seed][finetune_seed] of reward models
    jury: list  # reward models of a further pretraining

    def __str__(self):
        size = f"{len(self.grid)} x {len(self.grid[0])}"
        has = f"an SFT policy, {size} reward models, a jury of {len(self.jury)}"
        return f"world {self.seed} of {self.task} (commit {self.commit}): {has}"


def pack_models(t):
    """The bytes of models-SEED-TASK.pt, of what `overopt.train_models` gives: the first KEPT of each."""
    F = t.settings.finetune_seeds
    rows = [t.states[first : first + F] for first in range(0, len(t.states), F)]
    packed = {"seed": t.seed, "task": t.task, "commit": commit()}
    packed |= {"config": asdict(t.config), "rm_config": asdict(t.rm_config), "policy": half(t.sft)}
    packed |= {"grid": [[half(state) for state in row[:KEPT]] for row in rows]}
    return saved(packed | {"jury": [half(state) for state in t.jury[:KEPT]]})


def half(state):
    """The same weights in half precision."""
    return {name: tensor.half() for name, tensor in state.items()}


def commit():
    """The commit of this code, "-dirty" if it was changed since, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def load_models(path):
    """The Models of a file. ValueError, naming it, if it is none."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        config, rm_config = (Config(**found[name]) for name in ("config", "rm_config"))
        policy = language_model(config, found["policy"], "cpu")
        grid = [[reward_model(rm_config, state, "cpu") for state in row] for row in found["grid"]]
        jury = [reward_model(rm_config, state, "cpu") for state in found["jury"]]
        about = [found[name] for name in ("seed", "task", "commit")]
        return Models(*about, policy, grid, jury)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: python experiments/overopt.py makes one") from None
    except Exception as error:
        raise ValueError(f"{path} does not hold a world's models ({type(error).__name__})") from None
