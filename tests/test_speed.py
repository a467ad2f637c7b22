"""more/speed.py: what is counted, and that every workload runs."""

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT
from report import exit_status

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import speed


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_flops_are_what_torch_counts(model, config):
    """A share of the peak from a wrong formula. torch also counts what the causal mask throws away."""
    tokens = torch.randint(8, (3, 9), generator=torch.Generator().manual_seed(0))
    per_key = 4 * config.width * config.layers  # of a query: its score and its value
    future = 3 * per_key * (9 * 8 / 2)
    assert counted(lambda: model(tokens)) == 3 * speed.flops(config, 0, 9, 9 * 9) + future
    future = 3 * per_key * (4 * 3 / 2)
    _, cache = model.trunk.prefill(tokens[:, :4])
    assert counted(lambda: model.trunk.prefill(tokens[:, :4])) == 3 * speed.flops(config, 0, 4, 0) + future
    future = 3 * per_key * (5 * 4 / 2)
    assert counted(lambda: model(tokens[:, 4:], cache)) == 3 * speed.flops(config, 4, 9, 5 * 9) + future


def test_rows_of_different_lengths_add_up(config):
    """Lengths averaged before a formula that is quadratic in them."""
    one_by_one = sum(speed.flops(config, 4, 4 + length, 1) for length in (2, 5, 6))
    assert speed.flops(config, 4, 4 + torch.tensor([2.0, 5, 6]), 1).sum() == pytest.approx(one_by_one)


def test_every_workload_runs(monkeypatch, capsys):
    """A workload that no longer runs, a missing number, an impossible share."""
    for name, value in {
        "MEMBERS": 6,
        "ROWS": 16,
        "BON": 4,
        "POLICY_STEPS": 20,
        "STEPS": 2,
        "ROUNDS": 1,
    }.items():
        monkeypatch.setattr(speed, name, value)
    found, out = speed.measure("cpu"), capsys.readouterr().out
    for name in "score score_bon sample_bon lm_step ppo_update loop_8 batched_8".split():
        assert found[name]["seconds"] > 0 and 0 < found[name]["gemm_share"] < 2 and name in out, name
    units = {"score": 6 * 16, "score_bon": 6 * 4 * 4, "sample_bon": 4 * 4 * 24, "lm_step": 2 * 64}
    for name, count in units.items():
        assert found[name]["per_second"] * found[name]["seconds"] == pytest.approx(count), name


def test_no_gpu_is_said_at_once(capsys, monkeypatch):
    """A traceback, or an error after minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_status(speed.main, ["--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: torch sees no GPU\n"
