"""The main script, on one tiny world: what it leaves, that it continues, and what it says to bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

import figures
import overopt as script
import report
import world
from bon import expected_best_of_n
from claims import CLAIMS
from conftest import ROOT, overopt
from models import load_models

RECORD = "world-3-tldr.json"


def status(*flags):
    """Exit status of the main script with these flags."""
    try:
        return report.exit_status(script.main, flags)
    except SystemExit as end:  # argparse's
        return end.code


def run(out, *flags):
    """Exit status of a tiny run in this process: no time to start another."""
    with patch.object(script, "processes", ThreadPoolExecutor):
        return status(*overopt(out, *flags)[2:], "--processes", "1")


def test_record(tiny):
    """A part of a world's record is missing, or is no plain number."""
    record = json.loads((tiny / RECORD).read_text("utf-8"))
    assert list(record["claims"]) == [claim.id for claim in CLAIMS if "tldr" in claim.signs]
    assert record["settings"]["eta"] == 0.010000001  # not rounded
    assert len(record["ppo"]) == 6  # three kinds at two KL weights
    assert record["best_of_n"]["n"] == [1, 2, 4, 8]
    for run in record["ppo"]:
        assert [len(run["curve"][name]) for name in ("kl", "proxy", "gold", "explained_variance")] == [2] * 4
    assert all(len(row["models"]) == len(row["elsewhere"]) == 4 for row in record["edits"].values())
    assert record["edits"]["list"]["elsewhere"] != record["edits"]["list"]["models"]  # of another post
    assert record["edits"]["list"]["gold"] == 0 > record["edits"]["wrong object"]["gold"]
    assert all(run["favourite"] in world.FACT_WORDS and 0 <= run["overuse"] <= 1 for run in record["ppo"])
    assert list(record["ranking"]) == ["raters' texts", "all habits", "SFT's samples", "PPO's texts"]


def test_film(tiny):
    """A frame's text is another's, its proxy is not its members' mean, or gold is not of that text."""
    film = json.loads((tiny / RECORD).read_text("utf-8"))["film"]
    for kind in ("single", "finetune", "pretrain"):
        frames, members = film[kind]["frames"], film[kind]["members"]
        assert [frame["update"] for frame in frames] == [0, 1, 2]
        for frame in frames:
            assert frame["proxy"] == pytest.approx(np.mean([frame["scores"][m] for m in members]), abs=1e-4)
            texts = [world.encode(frame["text"]) + end for end in ([], [world.EOS])]  # the end is not kept
            golds = [sum(world.judge(world.encode(film["post"]), x)[0].values()) for x in texts]
            assert frame["gold"] in [pytest.approx(gold, abs=1e-4) for gold in golds]
        assert abs(frames[0]["kl"]) < 1e-4
    first = [film[kind]["frames"][0]["text"] for kind in ("single", "finetune", "pretrain")]
    assert len(set(first)) == 1  # before the first update all policies are SFT


def test_bank(tiny):
    """The bank's arrays do not belong together, or are not what the record was made of."""
    bank = np.load(tiny / "bank-3-tldr.npz")
    assert bank["rewards"].shape == (4, 8, 8)
    assert bank["responses"].shape == bank["gold"].shape == (8, 8)
    parts = sum(bank[name] for name in bank.files if name.startswith("part_"))
    assert parts == pytest.approx(bank["gold"], abs=1e-4)
    assert [bank["pretrain_seed"].tolist(), bank["finetune_seed"].tolist()] == [[0, 0, 1, 1], [0, 1, 0, 1]]
    record = json.loads((tiny / RECORD).read_text("utf-8"))
    curve = expected_best_of_n(bank["rewards"], bank["gold"], record["best_of_n"]["n"]).mean((0, 1))
    assert curve == pytest.approx(record["best_of_n"]["single"]["gold"], abs=1e-4)
    post, response = (bank[name].flat[0] for name in ("posts", "responses"))
    end = [world.EOS] * int(bank["part_no_end"].flat[0] == 0)  # texts are stored without it
    parts, _ = world.judge(world.encode(post), world.encode(response) + end)
    assert sum(parts.values()) == pytest.approx(bank["gold"][0, 0], abs=1e-4)


def test_the_aggregator_counts(tiny, tmp_path):
    """--aggregator does not reach best-of-n, or PPO."""
    shutil.copytree(tiny, tmp_path / "copy")
    assert run(tmp_path / "copy", "--seeds", "3", "--aggregator", "min") == 0
    (mean,), (least,) = (report.load_records(out)["tldr"] for out in (tiny, tmp_path / "copy"))
    for kind, same in (("single", True), ("pretrain", False)):
        assert (mean["best_of_n"][kind] == least["best_of_n"][kind]) == same
        curves = [[run["curve"] for run in r["ppo"] if run["kind"] == kind] for r in (mean, least)]
        assert (curves[0] == curves[1]) == same


def test_models_load(tiny):
    """A world's models file does not load, or it holds others than those that scored the bank."""
    models = load_models(tiny / "models-3-tldr.pt")
    assert str(models).startswith("world 3 of tldr (commit ")
    post, texts, rewards = (np.load(tiny / "bank-3-tldr.npz")[x] for x in ("posts", "responses", "rewards"))
    ended = [i for i, text in enumerate(texts[0]) if len(world.encode(text)) < world.RESPONSE_LENGTH]
    prompts = torch.tensor([world.encode(post[0])]).repeat(len(ended), 1)
    found = models.grid[1][0](prompts, world.response_rows(texts[0, ended]))
    assert np.allclose(found, rewards[2, 0, ended], atol=0.02)  # two of each pretraining: the third of them


def test_damaged_models(tmp_path):
    """A file that holds no models is a traceback."""
    (tmp_path / "models.pt").write_bytes(b"nothing")
    for name in ("models.pt", "missing.pt"):
        with pytest.raises(ValueError, match=name):
            load_models(tmp_path / name)


def test_figures(tiny):
    """A figure is not drawn, or is no picture."""
    names = {path.name for path in tiny.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert names == {f"{function.__name__}-tldr.png" for function in figures.FIGURES}


def test_any_executor_gives_the_same_record(tiny, tmp_path):
    """Results depend on how many processes work, on threads in place of them, or on an interruption."""
    assert run(tmp_path, "--seeds", "3") == 0
    assert (tmp_path / RECORD).read_bytes() == (tiny / RECORD).read_bytes()


def test_several_machines_give_the_same_record(tiny, tmp_path):
    """With --scheduler, dask's workers do not find the modules, or make another world."""
    pytest.importorskip("distributed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", "experiments"])}
    find = ["--scheduler-file", str(tmp_path / "scheduler.json")]
    address = [*find, "--port", "0", "--dashboard-address", ":0"]
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli"]
    scheduler = subprocess.Popen([*dask[:2], "distributed.cli.dask_scheduler", *address], **options)
    workers = [*dask[:2], "distributed.cli.dask_worker", *find, "--nworkers", "2", "--nthreads", "1"]
    workers = subprocess.Popen([*workers, "--no-dashboard"], **options)
    try:
        while not (tmp_path / "scheduler.json").exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        where = json.loads((tmp_path / "scheduler.json").read_text("utf-8"))["address"]
        assert run(tmp_path / "out", "--seeds", "3", "--scheduler", where) == 0
    finally:
        workers.terminate()
        scheduler.terminate()
        workers.wait()
    assert (tmp_path / "out" / RECORD).read_bytes() == (tiny / RECORD).read_bytes()


def cache(out):
    """When each kept value was written: {file name: time}."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}


def test_the_same_command_computes_nothing(tiny, tmp_path):
    """A finished run is made again, or a second one changes its record."""
    out = shutil.copytree(tiny, tmp_path / "copy")
    before = cache(out)
    assert run(out, "--seeds", "3") == 0
    assert cache(out) == before
    assert (out / RECORD).read_bytes() == (tiny / RECORD).read_bytes()


@pytest.mark.parametrize("flags, again", [
    ("--kl-weights 0.02 0.1 0.5", {"align", "score"}),
    ("--rm-lr 0.001", {"train_reward_model", "align", "score"}),
    ("--n 9", {"draw_samples", "score"}),
])  # fmt: skip
def test_a_setting_reruns_what_depends_on_it(tiny, tmp_path, flags, again):
    """A changed setting makes earlier stages again, or leaves a later one as it was."""
    out = shutil.copytree(tiny, tmp_path / "copy")
    before = cache(out)
    assert run(out, "--seeds", "3", *flags.split()) == 0
    assert {name.split("-")[0] for name in cache(out).keys() - before.keys()} == again


def test_nli_leaves_out_what_it_cannot_claim(tiny, tmp_path):
    """nli, whose raters see one writer, claims something of lists; or its accuracy is no share."""
    assert run(tmp_path, "--seeds", "3", "--task", "nli") == 0
    record = report.load_records(tmp_path)["nli"][0]
    assert "herd_list" not in record["claims"] and "herd_numbers" in record["claims"]
    assert 0 <= record["accuracy"]["mean"] <= 1


def test_output_that_is_no_utf8(tiny, tmp_path):
    """A Windows pipe, or a notebook's plotting backend, ends a run at its first sparkline, or a report."""
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "MPLBACKEND": "module://none.at_all"}
    environment["TMPDIR"] = out = str(shutil.copytree(tiny, tmp_path / "a b"))
    alone = [sys.executable, ROOT / "experiments/report.py", out]
    for command, shown in ((overopt(out, "--seeds", "3"), b"proxy ?"), (alone, b"rl_pretrain_vs_single")):
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0 and shown in done.stdout, done.stderr


BAD = {
    "--seed 3": "unrecognized arguments: --seed 3",
    "--pairs -3": "--pairs must be >= 1, got -3",
    "--heads 3": "width must be a multiple of heads (3), got 64",
    "--kl-weights nan": "--kl-weights must be >= 0, got nan",
    "--rm-lr inf": "--rm-lr must be >= 0, got inf",
    "--seen filler jokes": "no habit is called 'jokes'",
    "--prompts 1": "--prompts must be >= 2",
    "--list-gap 0.26": "list_gap must be between 0 and 0.25, got 0.26",
    "--processes 0": "--processes must be >= 1, got 0",
    "--out /dev/null/x": "/dev/null/x",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line(flags, tmp_path, capsys):
    """A user's mistake ends in a traceback, or is noticed after minutes."""
    assert status("--out", str(tmp_path / "new"), *flags.split()) == 2
    said = capsys.readouterr().err
    assert BAD[flags] in said
    assert said.count("\n") == 1


def test_other_settings_in_one_folder(tiny, capsys):
    """Worlds of different settings are averaged."""
    assert status("--out", str(tiny), "--seeds", "4") == 2
    assert "give another --out" in capsys.readouterr().err


def test_a_damaged_file_is_named(tiny, tmp_path, capsys):
    """A file cut by a full disk ends in a traceback, or is used."""
    shutil.copytree(tiny, tmp_path / "copy")
    path = next((tmp_path / "copy").glob("cache/align-*"))
    path.write_bytes(path.read_bytes()[:100])
    assert run(tmp_path / "copy", "--seeds", "3") == 2
    said = capsys.readouterr().err
    assert path.name in said and said.count("\n") == 1


ENDS = {signal.SIGKILL: (-9, "")} | dict.fromkeys((signal.SIGTERM, signal.SIGINT), (130, "\nInterrupted"))


@pytest.mark.parametrize("end", [*ENDS, "a worker dies"])
def test_nothing_outlives_the_run(tmp_path, end):
    """Workers go on after their parent was ended, by kill -9 or while SIGINT is ignored, as after "&". A
    traceback or a hang, where memory ran out in a worker."""
    code, words = ENDS.get(end, (2, "error: a process has died"))
    command = overopt(tmp_path / "out", "--seeds", "4", "--processes", "2")
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(workers := children(run.pid)) < 2:
        assert run.poll() is None
    os.kill(run.pid if end in ENDS else workers[0], end if end in ENDS else signal.SIGKILL)
    _, said = run.communicate(timeout=20)
    assert run.returncode == code
    if words:  # after kill -9 nobody is left to say it
        assert said.startswith(words) and said.strip().count("\n") == 0, said
    left, latest = ["ps", "-p", ",".join(map(str, workers))], time.time() + 10
    while subprocess.run(left, capture_output=True).returncode == 0:
        assert time.time() < latest
        time.sleep(0.1)


def children(pid):
    """The workers of a run: process ids."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(pid) and "spawn_main" in row[2]]


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"task": "tldr"}', '{"task": "tldr", "seed": 3}'])
def test_incomplete_records_are_named(text, tmp_path):
    """A record that is JSON, but not a world's, ends in a KeyError."""
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=RECORD):
        report.load_records(tmp_path)


def test_ppo_cases():
    """Kinds are not comparable: run i's one model must be in both of its ensembles."""
    s = SimpleNamespace(pretrain_seeds=5, finetune_seeds=5, kl_weights=(0.02, 0.1), ppo_runs=4)
    by_run = {(kind, run, weight): members for kind, run, weight, members in script.ppo_cases(s)}
    assert len(by_run) == 3 * 4 * 2
    for run in range(4):
        (single,) = by_run["single", run, 0.02]
        finetune, pretrain = by_run["finetune", run, 0.02], by_run["pretrain", run, 0.02]
        assert single in finetune and single in pretrain
        assert len({member // 5 for member in finetune}) == 1
        assert len({member // 5 for member in pretrain}) == 5
