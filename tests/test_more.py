"""more/dial.py and more/distance.py: the formulas' worked examples, and both scripts on the tiny world."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch

from conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import dial
import distance
from report import exit_status
from rm import RewardModel


def test_mahalanobis():
    """The example of its docstring; far is far in units of the spread, also where there is none."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert distance.mahalanobis(torch.tensor([[3.0, 4]]), corners).tolist() == pytest.approx([5])
    wide, flat = distance.mahalanobis(torch.eye(2), corners * torch.tensor([5.0, 0]))
    assert wide < flat < float("inf")


def test_penalised():
    """The example of its docstring, and weight 0: the ensemble as it is."""
    scores, distances = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1], [0, 3]])
    assert distance.penalised(scores, distances, 0.5).tolist() == [2, 2]
    assert distance.penalised(scores, distances, 0).tolist() == [2, 3]


def test_states_are_what_the_head_reads(model, prompts, responses):
    """A response gets another's hidden state: n of them share a prompt, in chunks."""
    rm, responses = RewardModel(model.trunk, 0), torch.cat([responses, responses.flip(0)])
    states = distance.last_hidden_states(rm, prompts, responses).float()
    assert torch.allclose(rm.head(states)[:, 0], rm(prompts.repeat_interleave(2, 0), responses), atol=1e-5)


@pytest.mark.parametrize("script, flags", [(dial, ["--seen", "list,chatter", "list"]), (distance, [])])
def test_a_tiny_world(tiny, tmp_path, script, flags):
    """A script fails, makes again what the main run has, or finds another gold with the main run's raters and
    at weight 0."""
    out, name = shutil.copytree(tiny, tmp_path / "out"), script.__name__
    with patch.object(script, "processes", ThreadPoolExecutor):
        script.main([*TINY, *flags, "--seeds", "3", "--processes", "1", "--out", str(out)])
    made = {path.name for path in out.glob("cache/*")} - {path.name for path in tiny.glob("cache/*")}
    assert not any(name.startswith(("pretrain", "train_sft", "draw_samples")) for name in made)
    assert (out / f"{name}.png").stat().st_size > 10_000
    found, world = (json.loads((out / f"{x}.json").read_text("utf-8")) for x in (name, "world-3-tldr"))
    gold = found["gold"][0][0] if script is distance else found["rows"][1]["gold pretrain"]
    assert gold == pytest.approx(world["best_of_n"]["pretrain"]["gold"][-1], abs=1e-4)


def test_lists_are_always_seen():
    """The example of its docstring; a set without lists would have no hack that all members share."""
    assert dial.habits("filler,chatter") == ("list", "filler", "chatter")
    assert dial.habits("list") == ("list",)


@pytest.mark.parametrize("script", [dial, distance])
@pytest.mark.parametrize("flags", ["--seeds 1 1", "--processes 0", "--out /dev/null/x"])
def test_a_wrong_flag_is_named_at_once(capsys, script, flags):
    """A traceback, or an error after minutes."""
    assert exit_status(script.main, flags.split()) == 2
    said = capsys.readouterr().err
    named = "/dev/null/x" if "--out" in flags else flags.split()[0]
    assert named in said and said.count("\n") == 1
