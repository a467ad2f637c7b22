"""more/dial.py and more/distance.py: the formulas' worked examples, and both scripts on the tiny world."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import dial
import distance

from rm import RewardModel


def test_mahalanobis():
    """The example of its docstring; one unit counts as much in every direction; a flat direction is noise."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert distance.mahalanobis(torch.tensor([[3.0, 4]]), corners).tolist() == pytest.approx([5])
    wide, narrow = distance.mahalanobis(torch.eye(2), corners * torch.tensor([5.0, 1.0]))
    assert wide < narrow
    assert distance.mahalanobis(torch.eye(2), corners * torch.tensor([1.0, 0.0])).isfinite().all()


def test_penalised():
    """The example of its docstring, and weight 0: the ensemble as it is."""
    scores, distances = np.array([[1, 2], [3, 4]]), np.array([[0, 1], [0, 3]])
    assert distance.penalised(scores, distances, 0.5).tolist() == [2, 2]
    assert distance.penalised(scores, distances, 0).tolist() == [2, 3]


def test_states_are_what_the_head_reads(model, prompts, responses):
    """A response gets another's hidden state: n of them share a prompt, in chunks."""
    rm, responses = RewardModel(model.trunk, 0), torch.cat([responses, responses.flip(0)])
    states = distance.last_hidden_states(rm, {"posts": prompts, "responses": responses}).float()
    expected = rm(prompts.repeat_interleave(2, 0), responses)
    assert torch.allclose(rm.head(states)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("script, flags", [(dial, ["--coverage", "1", "0"]), (distance, [])])
def test_a_tiny_world(tiny, tmp_path, capsys, script, flags):
    """A script fails, makes again what the main run has, or at coverage 0 and weight 0 finds another gold."""
    out, name = tmp_path / "out", script.__name__
    shutil.copytree(tiny, out)
    before = {path.name for path in (out / "cache").iterdir()}
    assert script.main([*COMMAND, *flags, "--out", str(out)]) == 0, capsys.readouterr().err
    made = {path.name for path in (out / "cache").iterdir()} - before
    assert not any(word in path for path in made for word in ("pretrain", "sft", "bank"))
    assert (out / f"{name}.png").stat().st_size > 10_000
    found, world = json.loads((out / f"{name}.json").read_text()), json.loads((out / "world-3-tldr.json").read_text())
    gold = found["gold"][0][0] if script is distance else found["rows"][0]["gold pretrain"]
    assert gold == pytest.approx(world["best_of_n"]["pretrain"]["gold"][-1], abs=1e-4)


@pytest.mark.parametrize("script", [dial, distance])
@pytest.mark.parametrize("flags", ["--seeds 1 1", "--processes 0", "--pairs 0", "--out /dev/null/x"])
def test_a_wrong_flag_is_named_at_once(capsys, script, flags):
    """A traceback, or an error after minutes."""
    assert script.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert flags.split()[0] in said and said.count("\n") == 1
