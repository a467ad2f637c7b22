"""The main script as a user runs it: end to end, interrupted, continued, and its errors."""
import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import cache
from cache import Cache
import claims
import ensemble
import overopt
from pipeline import Pipeline
import processes
import report
import sweep
import world

SCRIPT = Path(overopt.__file__)
# The whole road in seconds: everything is there, nothing is learnt.
TINY = ["--width", "16", "--rm-width", "16", "--pretrain-seeds", "2", "--finetune-seeds", "2", "--pretrain-texts", "200", "--pretrain-steps", "4", "--sft-steps", "2",
        "--pairs", "128", "--prompts", "4", "--n", "4", "--kl-weights", "0", "0.1", "--ppo-seeds", "0", "--ppo-updates", "2", "--ppo-batch", "8", "--processes", "1"]


def road(out, *flags):
    """Exit status of the main script with tiny settings."""
    return overopt.main([*TINY, "--out", str(out), *flags])


def stages(out):
    return {path: path.stat().st_mtime_ns for path in (out / "cache").glob("*.pt")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert road(out) == 0
    return out


def test_same_seed_same_results_byte_for_byte(finished, tmp_path):
    """A random number drawn outside the seeds, or a time in results.json."""
    assert road(tmp_path) == 0
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_other_seed_other_results(finished, tmp_path):
    """A seed that nothing reads."""
    assert road(tmp_path, "--seed", "5") == 0
    assert (tmp_path / "results.json").read_bytes() != (finished / "results.json").read_bytes()


def test_second_run_computes_nothing(finished):
    """A cache key that changes from run to run."""
    before = stages(finished)
    assert road(finished) == 0
    assert stages(finished) == before


def test_a_change_recomputes_only_what_depends_on_it(finished):
    """A key that holds all the settings, or none."""
    before = stages(finished)
    assert road(finished, "--kl-weights", "0.1", "0.3") == 0
    new = {path.name.rsplit("-", 1)[0] for path in set(stages(finished)) - set(before)}
    kinds = ("single", "finetune", "pretrain")
    assert new == {f"ppo-tldr-{kind}-0-0.3{end}" for kind in kinds for end in ("", "-scores")}
    between = stages(finished)
    assert road(finished, "--aggregator", "min") == 0
    new = {path.name.split("-")[2] for path in set(stages(finished)) - set(between)}
    assert new == {"finetune", "pretrain"}, "one reward model has no aggregator"
    between = stages(finished)
    assert road(finished, "--prompts", "5") == 0
    new = {path.name.split("-")[0] for path in set(stages(finished)) - set(between)}
    assert new == {"bank", "scores", "control", "ppo"}, "the policies' texts are on the bank's posts"


def test_an_edited_aggregator_is_computed_anew(finished, monkeypatch):
    """A student who changes a formula and is shown the old result."""
    assert road(finished, "--aggregator", "min") == 0
    before = stages(finished)
    monkeypatch.setitem(overopt.AGGREGATORS, "min", lambda r: r.amax(0))
    assert road(finished, "--aggregator", "min") == 0
    new = {path.name.split("-")[2] for path in set(stages(finished)) - set(before)}
    assert new == {"finetune", "pretrain"}


def test_an_aggregator_of_ones_own(finished, monkeypatch, capsys):
    """The README's own example: it needs two members, and is any callable."""
    monkeypatch.setitem(overopt.AGGREGATORS, "second_worst", lambda r: r.sort(0).values[1])
    assert road(finished, "--aggregator", "second_worst") == 0
    assert "second_worst" in capsys.readouterr().out


def test_results_hold_what_is_promised(finished):
    """A number shown that is not in the file; NaN, which JSON does not have."""
    assert road(finished) == 0
    def refuse(name):
        raise AssertionError(f"{name} in results.json")
    whole = json.loads((finished / "results.json").read_text(), parse_constant=refuse)
    results = report.view(whole, "tldr")
    assert len(results["accuracy"]["all"]) == 4
    assert results["bon"]["n"] == [1, 2, 4]
    assert set(results["bon"]["pretrain"]) == set(overopt.AGGREGATORS)
    assert {run["kind"] for run in results["ppo"]["runs"]} == {"single", "finetune", "pretrain"}
    assert results["bon"]["single"]["mean"]["gold"][0] == pytest.approx(results["sft"]["gold"], abs=1e-4), "the best of one is a sample"
    for figure in ("bon", "frontier", "training", "agreement", "traits", "traits-kl", "claims"):
        assert (finished / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    text = report.report(whole)
    assert f"{results['accuracy']['mean']:.3f}" in text and "Post: *" in text
    assert all(f"| {row['id']} " in text for row in whole["claims"])


def test_claims_again_from_the_stored_scores(finished):
    """A table that needs the models, or comes out differently the second time."""
    assert road(finished) == 0
    results = json.loads((finished / "results.json").read_text())
    assert cache.rounded(claims.claims_table(claims.load_scores(finished / "scores-tldr.npz", results["settings"]), "tldr")) == results["claims"]
    done = subprocess.run([sys.executable, SCRIPT.parent / "claims.py", finished], capture_output=True, text=True)
    assert done.returncode == 0 and "bon_pretrain_vs_single" in done.stdout, done.stderr
    for script in ("claims.py", "figures.py", "report.py"):
        done = subprocess.run([sys.executable, SCRIPT.parent / script, finished / "nowhere"], capture_output=True, text=True)
        assert done.returncode == 2 and "there is no" in done.stderr and "Traceback" not in done.stderr


def test_three_tasks_on_the_same_pretrainings(finished):
    """A task that trains its own language models, or three times the same task."""
    before = stages(finished)
    assert road(finished, "--task", "all") == 0
    new = {path.name.split("-")[0] for path in set(stages(finished)) - set(before)}
    assert new == {"rm", "control", "scores", "ppo"}
    results = json.loads((finished / "results.json").read_text())
    assert list(results["tasks"]) == world.TASKS and len({row["task"] for row in results["claims"]}) == 3
    golds = [results["tasks"][task]["sft"]["gold"] for task in world.TASKS]
    assert len(set(golds)) == 3 and (finished / "frontier-nli.png").exists() and (finished / "scores-helpful.npz").exists()
    assert all(f"\n{task}: Best-of-n\n" in report.report(results) for task in world.TASKS)


def test_size_is_the_reward_models_width():
    """A policy that grows with its judges: then two things change at once."""
    settings = overopt.parse(["--size", "large"])[0]
    assert (settings.width, settings.rm_width) == (64, 128) and overopt.parse(["--size", "large", "--rm-width", "96"])[0].rm_width == 96


def test_the_control_arm_differs_in_the_preferences_alone(finished):
    """A control arm that is trained on the same pairs, or on other pretrainings."""
    pipeline = Pipeline(overopt.parse([*TINY, "--pairs", "2000"])[0], torch.device("cpu"), Cache(finished / "cache", torch.device("cpu")))
    shares = []
    for gap in (None, 0.0):
        prompts, chosen, rejected = pipeline.judgements(2000, "training pairs", gap)
        shares.append([world.judge_rows(prompts, x)[1]["list"].mean().item() for x in (chosen, rejected)])
    assert shares[0][0] > 1.3 * shares[0][1] and abs(shares[1][0] - shares[1][1]) < 0.025
    before = stages(finished)
    assert road(finished) == 0 and stages(finished).keys() == before.keys()
    assert {path.name.rsplit("-", 1)[0] for path in before if path.name.startswith("control-tldr-")} >= {f"control-tldr-{p}-{f}" for p in (0, 1) for f in (0, 1)}


@pytest.mark.parametrize("name", ["coverage", "size"])
def test_sweeps(name, tmp_path, capsys, monkeypatch):
    """A sweep that measures one setting at every value, or a figure that is not written."""
    monkeypatch.setattr(sweep, "JUDGE_WIDTH", 24)
    monkeypatch.setitem(sweep.SWEEPS, "size", (8, 16))
    assert sweep.main([name, *TINY, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"sweep-{name}.json").read_text())
    assert len(found["rows"]) == len(sweep.SWEEPS[name]) and (tmp_path / f"sweep-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len({tuple(row["accuracy"].values()) for row in found["rows"]}) > 1
    for row in found["rows"]:
        gold = row["gold"]
        assert gold["oracle"] >= max(gold.values()) and {"bon_pretrain_vs_single", "herd_list_bon"} <= row["claims"].keys()
    assert ("judge" in found) == (name == "size") and "oracle" in capsys.readouterr().out
    assert sweep.main([name, *TINY, "--task", "all", "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--"]], ids=["alone", "torchrun"])
def test_processes_change_nothing(launcher, finished, tmp_path):
    """A stage that depends on who computes it, or results that the second process spoils: two give the bytes of one."""
    done = subprocess.run([sys.executable, *launcher, SCRIPT, *TINY, "--processes", "2", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "scores-tldr.npz"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name
    assert done.stdout.count("figures, results.json") == 1 and {path.name for path in stages(tmp_path)} <= {path.name for path in stages(finished)}


@pytest.mark.parametrize("flags", [["--processes", "3"], ["--processes", "2", "--traceback"]])
def test_another_process_stops(flags, finished, tmp_path):
    """The first one waits for ever, or hides what happened to the other. Reward model (0, 1) is the second process's part."""
    shutil.copytree(finished, tmp_path / "run")
    damaged, = (tmp_path / "run" / "cache").glob("rm-tldr-0-1-*.pt")
    damaged.write_bytes(b"half a file")
    done = subprocess.run([sys.executable, SCRIPT, *TINY, *flags, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=120)
    assert done.returncode and f"{damaged} is damaged" in done.stderr and "another process" in done.stderr
    assert ("Traceback" in done.stderr) == ("--traceback" in flags)


def test_further_processes_are_quiet(monkeypatch, capsys):
    """Lines and bars of all processes on one terminal."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(processes.tqdm, "__init__", processes.tqdm.__init__)
    processes.quiet()
    print("said twice")
    list(processes.tqdm([1, 2], "shown twice", disable=False))
    said = capsys.readouterr()
    assert said.out == "" and "shown twice" not in said.err


def test_killed_run_continues(tmp_path):
    """kill -9 in the middle: half a file taken for a whole one, or the work so far lost."""
    process = subprocess.Popen([sys.executable, SCRIPT, *TINY, "--pretrain-steps", "40", "--processes", "2", "--out", tmp_path], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("cache/rm-*.pt")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    before = stages(tmp_path)
    assert road(tmp_path, "--pretrain-steps", "40") == 0
    assert before.items() <= stages(tmp_path).items(), "finished stages were computed again"


def test_quick_from_the_command_line(quick):
    """The road that the README promises, as its reader runs it: --quick, stopped by Ctrl-C, continued."""
    out, stopped, error, done = quick
    assert stopped.returncode == 130 and "continues there" in error and "Traceback" not in error
    assert done.returncode == 0, done.stderr
    assert "pretrain ensemble" in done.stdout and "Traceback" not in done.stderr
    results = report.view(report.load_results(out))
    single = results["bon"]["single"]["mean"]
    assert single["proxy"] == sorted(single["proxy"]), "the expected best of more samples is never worse by the proxy"
    sft = results["traits"]["sft"]
    for hack in ("list", "filler", "chatter", "repetition", "wrong_facts", "numbers"):
        assert sft[hack] > 0, f"{hack}: a policy that never shows it can't be rewarded for it"


@pytest.mark.parametrize("flags, said", [
    (["--device", "tpu"], "--device"), (["--n", "0"], "--n"), (["--processes", "0"], "--processes"), (["--ppo-batch", "0"], "--ppo-batch"), (["--kl-weights", "-0.1"], "--kl-weights"),
    (["--kl-weights"], "--kl-weights"), (["--kl-weights", "1", "1"], "--kl-weights"), (["--ppo-seeds"], "--ppo-seeds"), (["--pretrain-seeds", "0"], "--pretrain-seeds"),
    (["--list-gap", "0.5"], "--list-gap"), (["--flipped", "2"], "--flipped"), (["--aggregator", "max"], "--aggregator"),
    (["--label-temperature", "0"], "--label-temperature"), (["--width", "15"], "width"), (["--task", "chess"], "--task"), (["--size", "huge"], "--size"), (["--coverage", "1.5"], "--coverage"), (["--label-temperature", "nan"], "--label-temperature"), (["--eta", "-1"], "--eta"),
    (["--kl-weights", "inf"], "--kl-weights"), (["--n", "many"], "--n"), (["--nonsense"], "--nonsense")])
def test_bad_flags(flags, said, tmp_path, capsys):
    """A traceback, a silent default, or work begun before the flags were read."""
    try:
        status = overopt.main([*flags, "--out", str(tmp_path / "out")])
    except SystemExit as stop:             # argparse's own way out
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and said in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/cache/*.pt"))


@pytest.mark.parametrize("wrong, said", [(lambda r: r.max(0), "fails on"), (lambda r: r.mean(), "not (3, 2)")])
def test_wrong_aggregator_is_refused_before_any_work(wrong, said, tmp_path, monkeypatch, capsys):
    """A student's slip in one line, shown after ten minutes of training."""
    monkeypatch.setitem(overopt.AGGREGATORS, "mine", wrong)
    assert road(tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "'mine'" in error and said in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("P, F", [(5, 5), (2, 3), (5, 2), (5, 1), (1, 4)])
def test_the_single_reward_model_is_in_both_ensembles(P, F):
    """PPO seeds that compare an ensemble with a reward model from elsewhere."""
    groups = {"finetune": ensemble.finetune_ensembles(P, F), "pretrain": ensemble.pretrain_ensembles(P, F)}
    for seed in range(7):
        members = overopt.members_of(seed, groups)
        assert len(members["single"]) == 1 and set(members["single"]) == set(members["finetune"]) & set(members["pretrain"])
    singles = [overopt.members_of(seed, groups)["single"][0] for seed in range(P * F)]
    assert len(set(singles[:2 * P])) == min(2 * P, P * F), "seeds that train on the same reward model again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent(tmp_path, capsys):
    """A long traceback from the depths of torch."""
    assert road(tmp_path, "--device", "cuda") == 2
    assert "--device: cuda" in capsys.readouterr().err


def test_out_is_a_file_or_cannot_be_written(tmp_path, capsys):
    """Minutes of training, and then nowhere to put it."""
    (tmp_path / "file").write_text("precious")
    assert road(tmp_path / "file") == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"
    if os.name == "posix" and os.geteuid() != 0:       # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert road(tmp_path / "locked" / "out") == 2
        assert "--out" in capsys.readouterr().err


def test_damaged_cache_is_named_and_nothing_is_lost(finished, capsys):
    """A file cut in half: a traceback, or results made of it."""
    assert road(finished) == 0
    victim = next((finished / "cache").glob("rm-tldr-0-1-*.pt"))
    whole, results = victim.read_bytes(), (finished / "results.json").read_bytes()
    victim.write_bytes(whole[:len(whole) // 2])
    assert road(finished) == 2
    assert str(victim) in capsys.readouterr().err
    assert (finished / "results.json").read_bytes() == results
    victim.unlink()
    assert road(finished) == 0
    assert (finished / "results.json").read_bytes() == results


def test_nan_reward_names_the_update(tmp_path, monkeypatch, capsys):
    """NaN that trains on, and shows up as a strange curve."""
    monkeypatch.setitem(overopt.AGGREGATORS, "mean", lambda r: r.mean(0) * float("nan"))
    assert road(tmp_path) == 2
    assert "update 0" in capsys.readouterr().err


def test_one_of_everything(tmp_path):
    """Groups with no other member: an empty mean, a crash, NaN."""
    assert road(tmp_path, "--pretrain-seeds", "1", "--finetune-seeds", "1", "--n", "1", "--prompts", "2", "--ppo-batch", "1") == 0
    assert "NaN" not in (tmp_path / "results.json").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_everything_on_cuda(tmp_path):
    """A tensor left on the CPU."""
    assert road(tmp_path, "--device", "cuda") == 0


README = (SCRIPT.parent.parent / "README.md").read_text()


def test_readme_numbers_come_from_the_results(monkeypatch):
    """A README that says what no run showed."""
    tour = re.search(r"<!-- tour -->\n(.*?)\n<!-- end -->", README, re.S)[1]
    monkeypatch.setitem(report.SECTIONS, "tour", lambda results: tour)         # the tour has a test of its own
    assert report.fill(README, report.load_kept()) == README
    assert README.count("<!-- end -->") >= 10


def test_readme_is_made_of_what_belongs_together(tmp_path):
    """A sweep of another seed or size, a missing file, a run of one task: numbers side by side that are not of one run."""
    def refused(change, said):
        folder = tmp_path / said.replace(" ", "-")
        shutil.copytree(report.KEPT, folder, ignore=shutil.ignore_patterns("*.png"))
        change(folder)
        with pytest.raises(ValueError, match=said):
            report.load_kept(folder)

    def edit(name, **settings):
        def change(folder):
            found = json.loads((folder / name).read_text())
            found["settings"] |= settings
            (folder / name).write_text(json.dumps(found))
        return change

    def one_task(folder):
        found = json.loads((folder / "results.json").read_text())
        del found["tasks"]["nli"]
        (folder / "results.json").write_text(json.dumps(found))

    refused(edit("sweep-coverage.json", seed=99), "sweep-coverage.json is of other settings")
    refused(edit("beyond.json", n=16), "beyond.json is of other settings")
    refused(lambda folder: (folder / "sweep-size.json").unlink(), "sweep-size.json is missing")
    refused(one_task, "is not of all tasks")
    refused(lambda folder: (folder / "results.json").unlink(), "there is no")


def test_readme_tour_names_every_file():
    """A tour of files that are gone, or have grown to twice their size. (You may edit: a fifth more or less is fine.)"""
    tour = {file: int(lines) for file, lines in re.findall(r"\| \[\S+\]\((\S+\.py)\) *\| (\d+)", README)}
    root = SCRIPT.parent.parent
    files = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in [*root.glob("*.py"), *root.glob("experiments/*.py")]}
    assert tour.keys() == files.keys()
    assert tour == {file: pytest.approx(lines, rel=0.2, abs=10) for file, lines in files.items()}


def test_readme_code_runs(tmp_path, monkeypatch):
    """An example that nobody tried."""
    (tmp_path / "experiments").symlink_to(SCRIPT.parent)
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(textwrap.dedent(block), {})
