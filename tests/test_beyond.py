"""experiments/beyond.py: the penalties, averaged weights and the sentences, by hand; and the script itself, tiny."""
import json

import numpy as np
import pytest
import torch

import beyond
from ensemble import Ensemble
from policy import LanguageModel
from rm import RewardModel, normalise
import sweep

TINY = ["--width", "16", "--rm-width", "16", "--pretrain-seeds", "2", "--finetune-seeds", "2", "--pretrain-texts", "200", "--pretrain-steps", "4", "--sft-steps", "2",
        "--pairs", "128", "--prompts", "4", "--n", "4", "--processes", "1"]


@pytest.fixture
def grid():
    """Two pretrainings x three finetunings, eight posts, six samples; gold and traits are noise, every reward model likes lists."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(beyond.QUANTITIES), 8, 6))
    scores = values[0] + 2 * values[1] + rng.normal(size=(2, 3, 8, 6))
    return beyond.Grid(None, None, None, None, None, {"pretrain": 2, "finetune": 3, "posts": 8}, scores, values)


def change(low, high, before=0.0):
    middle = 0.0 if low is None else (low + high) / 2
    return {"before": before, "after": before + middle, "estimate": middle, "ci_low": low, "ci_high": high}


def test_mahalanobis_by_hand():
    """Variance taken for its root, or one axis' spread for another's: std 1 along x and 2 along y, mean (5, 5)."""
    known = torch.tensor([[6.0, 7], [4, 3], [6, 3], [4, 7]])
    found = beyond.mahalanobis(torch.tensor([[5.0, 5], [6, 5], [5, 9], [8, 13]]), known, ridge=0.0)
    assert found.tolist() == pytest.approx([0, 1, 2, 5])
    singular = torch.tensor([[1.0, -1], [-1, 1], [2, -2]])           # like states out of a layer norm: they sum to zero
    assert beyond.mahalanobis(singular, singular).isfinite().all()


def test_last_states_are_what_the_head_reads(config, prompts, responses):
    """The state of a pad, or rows out of order."""
    rm = RewardModel(LanguageModel(config, 0).trunk, 0)
    states = beyond.last_states(rm, prompts, responses)
    torch.testing.assert_close(rm.head(states)[:, 0], rm(prompts, responses))
    assert not rm.head._forward_pre_hooks, "the hook is still there"


def test_averaging_a_reward_model_with_itself_changes_nothing(config, prompts, responses):
    """A parameter left out, or the old mean and std kept after averaging different ones."""
    one, other = (RewardModel(LanguageModel(config, seed).trunk, seed) for seed in (0, 1))
    for rm in (one, other):
        normalise(rm, prompts, responses)
    same, mixed = beyond.average([one, one]), beyond.average([one, other])
    torch.testing.assert_close(same(prompts, responses), one(prompts, responses))
    torch.testing.assert_close(mixed.trunk.blocks[0].up.weight, (one.trunk.blocks[0].up.weight + other.trunk.blocks[0].up.weight) / 2)
    normalise(mixed, prompts, responses)
    rewards = Ensemble([mixed]).scores(prompts, responses)[0]
    assert rewards.mean().item() == pytest.approx(0, abs=1e-5) and rewards.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_ensembles_example():
    """Members lost or doubled when pretrainings are drawn anew."""
    assert beyond.ensembles("pretrain", [0, 1], [0, 1]) == [((0, 0), (1, 1)), ((0, 1), (1, 0))]        # the docstring's example
    assert beyond.ensembles("finetune", [1, 1], [0, 2]) == [((1, 0), (1, 2))] * 2
    assert len(beyond.ensembles("single", range(2), range(3))) == 6 and len(beyond.ensembles("all", range(2), range(3))[0]) == 6


@pytest.mark.parametrize("method", [beyond.uwo, "distance"])
def test_weight_zero_is_the_plain_ensemble(grid, method):
    """A penalty that is there before it has a weight."""
    far = lambda group, weight: (beyond.take(grid.scores, group) - weight * beyond.take(grid.values[2] + 0 * grid.scores, group)).mean(0)
    found, _ = method(grid, {}, None) if callable(method) else beyond.swept(grid, {}, "distance", far, ["finetune", "pretrain"])
    for kind, curve in found["curves"].items():
        plain = beyond.means(beyond.plain(grid, beyond.of_kind(kind)), grid.sizes)
        assert curve["x"][0] == "0" and {name: curve[name][0] for name in beyond.QUANTITIES} == pytest.approx(plain)
        assert {name: change["before"] for name, change in found["changes"][kind].items()} == pytest.approx(plain)


def test_the_weight_is_chosen_on_the_other_half(grid):
    """A winner's curse: the weight that is best on even posts must be used on the odd ones, and on these alone."""
    even = np.arange(8) % 2 == 0
    bonus = np.where(even[:, None], grid.values[0], -grid.values[0])             # its weight helps even posts, and hurts odd ones
    found, _ = beyond.swept(grid, {}, "bonus", lambda group, weight: 0.01 * grid.values[3] + weight * bonus, ["pretrain"])
    on_even, on_odd = found["chosen"]["pretrain"]
    assert on_even == 0 and on_odd > 0
    picks = np.where(even[:, None], 0.01 * grid.values[3], bonus + 0.01 * grid.values[3] / on_odd).argmax(-1)
    assert found["changes"]["pretrain"]["gold"]["after"] == pytest.approx(grid.values[0][np.arange(8), picks].mean())


def test_shared_hacks_lead_away_from_what_gold_would_pick(grid):
    """A trait that rises because it is good called a hack; or one that no ensemble moves."""
    values = grid.values.copy()
    values[4] = values[0]                                                        # as good as gold itself
    found = beyond.reference(grid._replace(values=values))
    assert found["shared"].get("list") == 1 and "filler" not in found["shared"]
    assert found["oracle"]["gold"] == pytest.approx(values[0].max(-1).mean())


@pytest.mark.parametrize("low, high, sign, said", [
    (-0.4, -0.2, 1, "reduced: list"), (0.2, 0.4, 1, "made worse: list"), (-0.1, 0.3, 1, "undecided: list"), (None, None, 1, "undecided: list"),
    (-0.4, -0.2, -1, "made worse: list"), (0.2, 0.4, -1, "reduced: list")])
def test_the_sentence_follows_the_interval(low, high, sign, said):
    """A verdict written by hand, or from the estimate alone."""
    text = beyond.sentence("a penalty", {"gold": change(low, high), "list": change(low, high, 0.6)}, {"list": sign})
    assert said in text and text.count("list") == 1
    assert ("higher" in text, "lower" in text) == (low is not None and low > 0, high is not None and high < 0)
    assert "shared hacks" not in beyond.sentence("a penalty", {"gold": change(low, high)}, {})


def test_from_the_command_line(tmp_path, capsys):
    """A method that loses the other methods' results, a figure or a sentence missing, NaN in the file; other settings mixed in."""
    run = lambda *flags: beyond.main([*TINY, *flags, "--out", str(tmp_path)])
    assert run("distance", "averaged") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*.pt")}
    assert run("uwo", "members") == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*.pt")}, "computed again, or under other keys"
    def refuse(name):
        raise AssertionError(f"{name} in beyond.json")
    results, said = json.loads((tmp_path / "beyond.json").read_text(), parse_constant=refuse), capsys.readouterr().out
    assert list(results["sentences"]) == ["plain", "distance", "averaged", "uwo", "members"]
    for name in ("distance", "averaged", "uwo", "members"):
        assert results["sentences"][name] in said and "curves" in results[name] and (tmp_path / f"beyond-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert run("members", "--n", "3") == 0
    assert list(json.loads((tmp_path / "beyond.json").read_text())["sentences"]) == ["plain", "members"], "results of other settings side by side"


def test_a_sweep_is_read_from_worse_data_to_better(tmp_path, monkeypatch):
    """The first value taken for the worse one: with flipped labels it is the better."""
    monkeypatch.setitem(sweep.SWEEPS, "pairs", (64, 128))
    monkeypatch.setitem(sweep.SWEEPS, "flipped", (0.0, 0.5))
    assert beyond.main(["pairs", "flipped", *TINY, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "beyond.json").read_text())
    assert results["pairs"]["values"] == [64, 128] and results["flipped"]["values"] == [0.5, 0.0]
    asked = results["reference"]["pretrain"]["gold"]                  # 128 pairs, no label turned round: the better end of both
    assert results["pairs"]["changes"]["pretrain"]["gold"]["after"] == results["flipped"]["changes"]["pretrain"]["gold"]["after"] == asked


def test_one_seed_has_no_interval(tmp_path):
    """A crash, or certainty, with one pretraining."""
    assert beyond.main(["distance", "uwo", "averaged", "members", *TINY, "--pretrain-seeds", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "beyond.json").read_text())
    assert results["uwo"]["changes"]["pretrain"]["gold"]["ci_low"] is None and "no interval" in results["sentences"]["uwo"]


def test_unknown_method_and_all_tasks_are_refused(tmp_path, capsys):
    """Minutes of training before the misspelt word is read."""
    assert beyond.main(["distanse", "--out", str(tmp_path / "out")]) == 2 and "'distanse'" in capsys.readouterr().err
    assert beyond.main(["--task", "all", "--out", str(tmp_path / "out")]) == 2 and "--task" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
