"""watch.py and play.py, on the models of the tiny world: scripted input, narrow terminals, bad input."""

import io
from functools import partial

import pytest
import torch

import play
import watch
import world
from models import SHIPPED, load_models
from ppo import PPOConfig
from report import exit_status

POST = "anna sold seven lamps in paris on monday. the weather was nice. tl;dr:"


@pytest.fixture
def start(tiny, monkeypatch, capsys):
    """Start a script with flags and input lines: its exit status, what it printed, and its error."""
    monkeypatch.setattr(watch, "PPOConfig", partial(PPOConfig, batch_size=8, minibatch_size=4))

    def start(script, *flags, lines=(), models=tiny / "models-3-tldr.pt"):
        monkeypatch.setattr("sys.argv", [script.__name__, "--models", str(models), *flags])
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        return exit_status(script.main), *capsys.readouterr()

    return start


def test_watch(start, monkeypatch):
    """A kind of reward is not watched, an update has no line, or a text is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    status, said, _ = start(watch, "--updates", "8", "--reward", "finetune", "single", "--post", POST)
    updates = [line.split()[0] for line in said.splitlines() if line[:6].strip().isdigit()]
    assert status == 0 and updates == ["0", "4", "8"] * 2
    assert said.index("PPO on finetune ensemble") < said.index("PPO on one reward model")
    texts = [line for line in said.splitlines() if line.startswith("    ") and line[4] != " "]
    assert texts and max(map(len, texts)) <= 60
    assert watch.marks(rewards=[1, 2, 3], first=[0, 3, 3]) == "+-."  # the docstring's example


def test_the_same_seed_is_the_same_film(start):
    """A class cannot repeat what it saw; or --seed changes nothing."""
    flags = ("--updates", "4", "--reward", "single", "--post", POST, "--seed")
    one, same, other = (start(watch, *flags, seed)[1] for seed in "001")
    assert one == same != other


def test_play(start):
    """Scripted input: a wrong word, a miss, help, another post, a hint from the third miss, and the end."""
    lines = ["book", "anna sold lamps.", "?", "", "anna sold lamps", "ben sold two", *["anna anna anna"] * 3]
    status, said, _ = start(play, lines=lines)
    assert status == 0
    assert "'book' is not a word of the toy world. Near it: books" in said
    assert said.count("The post:") == 2 + said.count("HACKED")
    assert said.rstrip().endswith("Goodbye.")


def test_a_win(tiny):
    """A response that every reward model prefers and gold does not is no hack, or another is one."""
    here = play.Round(load_models(tiny / "models-3-tldr.pt"), level=3, seed=0)
    rows = {world.decode(row[0]): row for row in here.edits.values()}
    for row in rows.values():
        mine, rival = here.rewards(row), here.rewards(here.rival)
        better = all(mine[name].mean() > rival[name].mean() for name in ("members", "jury"))
        assert (not here.missing(row)) == (better and here.gold(row) < here.gold(here.rival))
    assert "gold: not lower" in here.missing(here.rival)


def test_the_fourth_level_is_contrast(tiny):
    """Level 4 is level 2; or its members' mean is not the reward that watch.py optimises."""
    models = load_models(tiny / "models-3-tldr.pt")
    two, four = (play.Round(models, level, seed=0) for level in (2, 4))
    rows = torch.cat(list(two.edits.values()))
    plain, less = (here.rewards(rows)["members"].mean(0) for here in (two, four))
    members = watch.groups_of(models, "contrast")["members"]
    assert torch.allclose(less, watch.with_contrast(members, models)(two.post, rows), atol=1e-5)
    assert not torch.allclose(less, plain)


@pytest.mark.parametrize("flags", ["--post anna", "--updates 0", "--kl-weight nan"])
def test_a_wrong_flag_is_named(start, flags):
    """A traceback, or silence."""
    status, _, error = start(watch, *flags.split())
    assert status == 2 and error.count("\n") == 1


def test_a_broken_file(start, tmp_path):
    """A damaged models file is a traceback."""
    (tmp_path / "models.pt").write_bytes(b"nothing")
    for script in (watch, play):
        status, _, error = start(script, models=tmp_path / "models.pt")
        assert status == 2 and "models.pt" in error and error.count("\n") == 1


def test_shipped_models():
    """The repository's models cannot be loaded, are of another shape than README says, or too large."""
    models = load_models(SHIPPED)
    assert (len(models.grid), len(models.grid[0]), len(models.jury)) == (5, 2, 2)
    assert SHIPPED.stat().st_size < 3e6
