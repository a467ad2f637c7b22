"""more/speed.py: that every workload runs, and what is counted."""

import sys

import pytest
import torch

from conftest import ROOT
from report import exit_status

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import speed


def test_every_workload_runs(monkeypatch, capsys):
    """A workload that no longer runs, a missing number, a wrong unit."""
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
        assert found[name]["seconds"] > 0 and name in out, name
    units = {"score": 6 * 16, "score_bon": 6 * 4 * 4, "sample_bon": 4 * 4 * 24, "lm_step": 2 * 64}
    for name, count in units.items():
        assert found[name]["per_second"] * found[name]["seconds"] == pytest.approx(count), name


def test_no_gpu_is_said_at_once(capsys, monkeypatch):
    """A traceback, or an error after minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_status(speed.main, ["--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: torch sees no GPU\n"
