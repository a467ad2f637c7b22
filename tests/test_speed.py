"""speed.py: what is counted, and that the whole script runs."""
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import report
import speed
from policy import LanguageModel


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_flops_are_torchs_own_count(model, config):
    """A share of the GEMM peak from a wrong formula: products that torch itself counts, less the keys in the future, which it computes."""
    tokens = torch.randint(8, (3, 9), generator=torch.Generator().manual_seed(0))
    future = 2 * 3 * 4 * 16 * (9 * 8 / 2)                                # layers x rows x 4 D x pairs above the diagonal
    assert counted(lambda: model(tokens)) == speed.flops(config, 0, torch.full((3,), 9.0), torch.full((3,), 9.0), 9) + future
    last = torch.arange(9).expand(3, 9) == 8
    in_last_layer = counted(lambda: model.head(model.trunk(tokens, wanted=last)))
    assert in_last_layer == speed.flops(config, 0, torch.full((3,), 9.0), 1, 9) + future / 2
    past = model.trunk.prefill(tokens[:1, :4], torch.zeros(1, 4, dtype=torch.bool))[1]
    after = counted(lambda: model.trunk(tokens[:, 4:], past=past))
    assert after == speed.flops(config, 4, torch.full((3,), 5.0), 5, 0) + 2 * 3 * 4 * 16 * (5 * 4 / 2)


def test_rows_of_other_length_add_up(config):
    """Lengths averaged before a formula that is quadratic in them."""
    one_by_one = [speed.flops(config, 4, length, 1, 1) for length in (2, 5, 6)]
    assert speed.flops(config, 4, torch.tensor([2.0, 5, 6]), 1, 1) == pytest.approx(sum(one_by_one))


def test_from_the_command_line(monkeypatch, tmp_path, capsys):
    """A workload that no longer runs, a number that is missing, or a share of the peak that cannot be."""
    for name, value in {"MEMBERS": 6, "ROWS": 16, "BON": 4, "POLICY_STEPS": 20, "PEAK_SIZE": 256, "TRAINING_STEPS": 3}.items():
        monkeypatch.setattr(speed, name, value)
    assert speed.main(["--rounds", "1", "--device", "cpu", "--json", str(tmp_path / "new" / "speed.json")]) == 0
    found, out = json.loads((tmp_path / "new" / "speed.json").read_text()), capsys.readouterr().out
    for name in report.WORKLOADS:
        row = found[name]
        assert all(row[key] > 0 for key in ("seconds", "per_second", "flops_per_second", "gemm_peak")) and 0 < row["gemm_share"] < 1, name
        assert f"`{name}`" in out
    assert found["score"]["per_second"] * found["score"]["seconds"] == pytest.approx(6 * 16)
    assert found["sample_bon"]["per_second"] * found["sample_bon"]["seconds"] == pytest.approx(4 * 4 * 24)
    assert speed.main(["--rounds", "0"]) == 2
