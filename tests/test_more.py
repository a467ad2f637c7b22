"""more/remedies.py, dial.py and speed.py: the formulas' worked examples, and the scripts on a tiny world."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dial
import overopt
import remedies
import speed
import variants
from conftest import TINY
from ensemble import Ensemble
from rm import RewardModel


def test_contrast():
    """It takes off what depends on the post: here a 7 pays 1, and so does a first word that is the post's."""
    posts, responses = torch.tensor([[1], [2]]), torch.tensor([[1, 3], [7, 7]])

    def reward(x, y):
        return (y == 7).sum(1) + (y[:, 0] == x[:, 0].repeat_interleave(len(y) // len(x))).float()

    assert remedies.contrast(reward, posts + 2, 0.5)(posts, responses).tolist() == [1, 1]
    assert remedies.contrast(reward, posts, 1.0)(posts, responses).tolist() == [0.5, 0]  # one is its own


def test_normalised():
    """Its unit is that of other texts than the calibration's, or depends on how many there are."""
    two = torch.tensor([[1.0], [5.0]])
    reward = remedies.normalised(lambda x, y: 10 * y[:, 0] + 7, (two, two))  # 17 and 57: mean 37, std 20
    assert reward(two, torch.tensor([[1.0], [5.0], [7.0]])).tolist() == [-1, 1, 2]


def test_remedies_are_linear(model, prompts, responses):
    """Best-of-n averages what a remedy makes of the members, at weight 1; PPO changes the members' mean."""
    rms, texts = [RewardModel(model.trunk, f).requires_grad_(False) for f in range(2)], (prompts, responses)
    for remedy, data in ((remedies.contrast, (prompts[:3],)), (remedies.distance, (texts, texts))):
        ones = torch.stack([remedy(Ensemble([rm]), *data, 1.0)(*texts) for rm in rms]).mean(0)
        plain, half = Ensemble(rms)(*texts), remedy(Ensemble(rms), *data, 0.5)(*texts)
        assert torch.allclose(half, 0.5 * (plain + ones), atol=1e-5) and not torch.allclose(half, plain)


def test_mahalanobis():
    """The example of its docstring; far is far in units of the spread, also where there is none."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert remedies.DistanceHead(corners)(torch.tensor([[3.0, 4]])).tolist() == [[pytest.approx(5)]]
    wide, flat = remedies.DistanceHead(corners * torch.tensor([5.0, 0]))(torch.eye(2))[:, 0]
    assert wide < flat < float("inf")


def test_table():
    """The difference from the first is not taken world by world, or the first is shown as 0."""
    worlds = {n: {"PPO": {"none": {"gold": [0, n]}, "min": {"gold": [0, n + 2]}}} for n in (1, 2, 3)}
    last = variants.table(worlds).splitlines()[-1]
    assert last.split() == "gold +2.00 [-0.48, +4.48] +2.00 [+2.00, +2.00]".split()


def test_rises(monkeypatch):
    """A response that answers its post, or pays under any; a difference from the wrong samples, or posts."""
    posts = torch.tensor([[1], [2], [3]])
    bank = torch.tensor([[1], [0], [0], [0], [0], [0]])  # two samples of each post

    def evaluate(t, posts, responses, pool):  # models pay 1 for a first word that is the post's, 2 for a 7
        paid = ((posts == responses) + 2.0 * (responses == 7)).numpy()
        return {"scores": np.stack([paid, 10 * paid])}

    monkeypatch.setattr(overopt, "evaluate", evaluate)
    t = SimpleNamespace(settings=SimpleNamespace(n=2), posts=posts, bank=bank)
    answers, sevens = ({"members": [m], "responses": x} for m, x in enumerate((posts, posts * 0 + 7)))
    assert remedies.rises(t, [answers], None) == {"rise": pytest.approx(2 / 3), "rise_elsewhere": 0}
    assert remedies.rises(t, [sevens], None) == {"rise": pytest.approx(20 - 10 / 3), "rise_elsewhere": 20}


SCRIPTS = [(remedies, "remedies", "--remedies distance min --ppo contrast --kl-weights 0.02", "none")]
SCRIPTS += [(dial, "dial", "", "lists, chatter"), (dial, "members", "--members", "1")]


@pytest.mark.parametrize("script, name, flags, variant", SCRIPTS)
def test_a_tiny_world(tiny, tmp_path, monkeypatch, script, name, flags, variant):
    """A script fails, makes again what the main run has, or finds other gold where it does the same."""
    monkeypatch.setattr(variants, "processes", ThreadPoolExecutor)
    monkeypatch.setattr(dial, "MEMBERS", (1, 2))
    monkeypatch.setattr(remedies, "RATERS_TEXTS", 99)
    monkeypatch.delitem(dial.ARMS, "all habits")  # less work
    out = shutil.copytree(tiny, tmp_path / "out")
    script.main([*TINY, *flags.split(), "--seeds", "3", "--processes", "1", "--out", str(out)])
    assert (out / f"{name}-tldr.png").stat().st_size > 10_000
    paths = (f"{name}-tldr.json", "world-3-tldr.json")
    found, world = (json.loads((out / path).read_text("utf-8")) for path in paths)
    gold = found["worlds"]["3"]["best of n, pretrain"][variant]["gold"]
    same = 1 if name == "members" else 4  # of other models only the samples, n = 1, are the same
    assert gold[:same] == pytest.approx(world["best_of_n"]["pretrain"]["gold"][:same], abs=1e-4)
    ppo = {variant for group, x in found["worlds"]["3"].items() if group.startswith("PPO") for variant in x}
    assert ppo == ({"none", "contrast"} if script is remedies else set())
    made = {path.name for path in out.glob("cache/*")} - {path.name for path in tiny.glob("cache/*")}
    assert script is dial or not any(path.startswith(("pretrain", "train", "draw")) for path in made)


def test_every_workload_runs(monkeypatch, capsys):
    """A workload that no longer runs, a missing number, a wrong unit."""
    small = {"MEMBERS": 6, "ROWS": 16, "BON": 4, "POLICY_STEPS": 20, "STEPS": 2, "ROUNDS": 1}
    for name, value in small.items():
        monkeypatch.setattr(speed, name, value)
    found, out = speed.measure("cpu"), capsys.readouterr().out
    assert all(name in out and found[name]["seconds"] > 0 for name in found)
    units = {"score": 6 * 16, "score_bon": 6 * 4 * 4, "sample_bon": 4 * 4, "lm_step": 2 * 64}
    for name, count in units.items():
        assert found[name]["per_second"] * found[name]["seconds"] == pytest.approx(count), name
