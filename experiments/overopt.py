"""Reward hacking, end to end: watch it happen, get better with an ensemble, and not go away.

    python experiments/overopt.py                     # everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick             # the same, small: a first look
    python experiments/overopt.py --explain           # what happens in each stage, and the one number that matters
    python experiments/overopt.py --task all          # for each of the three tasks, on the same pretrainings
    python experiments/overopt.py --kl-weights 0.01 0.1 1 --out runs/mine
    torchrun --nproc-per-node 2 experiments/overopt.py     # processes of PyTorch's launcher, here or on several machines

Pretrains language models, trains a grid of reward models (pretraining seeds x finetuning seeds), aligns a
policy to one of them or to an ensemble, by best-of-n and by PPO, and measures the true reward. Writes
results.json, timings.json, figures, scores-TASK.npz, bank-TASK.npz (to play with) and a cache into --out; an interrupted run
continues where it stopped.
"""
import argparse
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
import os
from pathlib import Path
import platform
import sys
import time

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import numpy as np
import torch

from analysis import analyse, arrays, bank_arrays
from cache import Cache, rounded, to_json, write_whole
from claims import claims_table
import ensemble
from ensemble import AGGREGATORS, aggregate
import explain
from figures import draw_figures
from pipeline import Pipeline
from processes import together
from report import KINDS, VERSION, report
import world

MOST_PROCESSES = 4          # unless more are asked for: each takes up to a gigabyte of memory
SIZES = {"small": 32, "medium": 64, "large": 128}        # widths of the reward models


def setting(default, help, quick=None):
    return field(default=default, metadata={"help": help, "quick": default if quick is None else quick})


@dataclass(frozen=True)
class Settings:
    """Every flag of the script. A field's `quick` value is its default under --quick."""
    seed: int = setting(2, "everything random follows from it")
    task: str = setting("tldr", f"who rates: {', '.join(world.TASKS)}, or all of them one after the other")
    # the models
    width: int = setting(64, "width of the policy's transformer")
    rm_width: int = setting(64, "width of the reward models' transformers; --size is short for it")
    layers: int = setting(2, "layers of every transformer")
    heads: int = setting(2, "attention heads of every transformer")
    pretrain_seeds: int = setting(5, "pretrainings for reward models; the policy has one of its own", 3)
    pretrain_texts: int = setting(20000, "texts for each pretraining, and for SFT", 8000)
    pretrain_steps: int = setting(1200, "updates of a pretraining", 500)
    sft_steps: int = setting(200, "updates of supervised finetuning of the policy", 60)
    # preferences and reward models
    finetune_seeds: int = setting(5, "reward models for each pretraining", 3)
    pairs: int = setting(3000, "preference pairs for training", 1500)
    rm_epochs: int = setting(2, "passes over the pairs")
    eta: float = setting(0.01, "weight of the centring term of the Bradley-Terry loss")
    label_temperature: float = setting(0.7, "raters' temperature: higher is noisier")
    flipped: float = setting(0.0, "share of preference labels turned round")
    list_gap: float = setting(0.15, "careful minus careless writers' list rate; 0 is the control arm")
    coverage: float = setting(0.0, "the dial: share of the pretraining text's styles that raters see too")
    # best-of-n
    prompts: int = setting(256, "posts that best-of-n and the finished PPO policies answer", 64)
    n: int = setting(64, "samples per post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting((0.02, 0.1), "weights beta of the KL penalty, one run each")
    ppo_seeds: tuple[int, ...] = setting(tuple(range(8)), "PPO seeds; each also picks another reward model, and the next ensembles", (0,))
    aggregator: str = setting("mean", f"how ensembles aggregate, in PPO and wherever one aggregator is shown: {', '.join(AGGREGATORS)}")
    ppo_updates: int = setting(40, "updates of a PPO run", 20)
    ppo_batch: int = setting(128, "responses per update")


def check(s):
    """ValueError naming the first setting that makes no sense."""
    for name, value in asdict(s).items():
        if not isinstance(value, str) and not np.isfinite(value).all():
            raise ValueError(f"{flag(name)}: {value} is not finite")
    least = dict.fromkeys(("width", "rm_width", "layers", "heads", "pretrain_seeds", "pretrain_texts", "pretrain_steps", "sft_steps", "finetune_seeds",
                           "pairs", "rm_epochs", "n", "ppo_updates", "ppo_batch"), 1) | {"prompts": 2}       # 2: a correlation needs two
    for name, minimum in least.items():
        if getattr(s, name) < minimum:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is below {minimum}")
    for name in ("kl_weights", "ppo_seeds"):
        if not getattr(s, name):
            raise ValueError(f"{flag(name)}: the list is empty, at least one is needed")
        if len(set(getattr(s, name))) < len(getattr(s, name)):
            raise ValueError(f"{flag(name)}: {' '.join(map(str, getattr(s, name)))} has one value twice")
    for name in ("flipped", "coverage"):
        if not 0 <= getattr(s, name) <= 1:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is not between 0 and 1")
    for name in ("kl_weights", "eta"):
        if np.min(getattr(s, name)) < 0:
            raise ValueError(f"{flag(name)}: {np.min(getattr(s, name))} is negative")
    if s.label_temperature <= 0:
        raise ValueError(f"{flag('label_temperature')}: {s.label_temperature} is not above 0")
    if s.aggregator not in AGGREGATORS:
        raise ValueError(f"{flag('aggregator')}: {s.aggregator!r} is none of {', '.join(AGGREGATORS)}")
    for name, members in ((name, members) for name in AGGREGATORS for members in {s.pretrain_seeds, s.finetune_seeds}):
        try:
            shape = tuple(aggregate(name, torch.randn(members, 3, 2)).shape)
        except Exception as error:                # a student's own line: better now than after minutes of training
            raise ValueError(f"AGGREGATORS: {name!r} fails on {members} members ({error!r})") from error
        if shape != (3, 2):
            raise ValueError(f"AGGREGATORS: {name!r} makes {shape} of ({members}, 3, 2), not (3, 2)")
    if not 0 <= s.list_gap <= 2 * world.LIST_RATE:
        raise ValueError(f"{flag('list_gap')}: {s.list_gap} is not between 0 and {2 * world.LIST_RATE}")
    for name in ("width", "rm_width"):
        if getattr(s, name) % s.heads:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is not a multiple of {flag('heads')} {s.heads}")
    if s.task not in (*world.TASKS, "all"):
        raise ValueError(f"{flag('task')}: {s.task!r} is none of {', '.join(world.TASKS)}, all")


def flag(name):
    return "--" + name.replace("_", "-")


def parse(argv, parser=None):
    """Command line -> (Settings, device, out folder, processes, traceback?, a dict of the rest). Flags come from the fields of Settings and
    nowhere else; a script gives a parser with its own arguments: the rest."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="everything, small: other defaults, where two are given")
    parser.add_argument("--size", choices=SIZES, help=f"of the reward models: --rm-width {', '.join(f'{w} ({name})' for name, w in SIZES.items())}")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps")
    parser.add_argument("--processes", type=int, help="how many share the work, a thread each; the results are the same "
                        f"(default: one for each core, at most {MOST_PROCESSES}; one on a GPU)")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it arose")
    parser.add_argument("--out", type=Path, help="folder for results, figures and cache (default runs/overopt, or runs/quick)")
    for f in fields(Settings):
        quick = f.metadata["quick"]
        default = f"default {f.default}" + (f", quick {quick}" if quick != f.default else "")
        many = isinstance(f.default, tuple)
        parser.add_argument(flag(f.name), type=type(f.default[0] if many else f.default), nargs="*" if many else None,
                            default=argparse.SUPPRESS, help=f"{f.metadata['help']} ({default})")
    given = vars(parser.parse_args(argv))
    quick, size, device, out, processes, traceback = (given.pop(name) for name in ("quick", "size", "device", "out", "processes", "traceback"))
    if size:
        given.setdefault("rm_width", SIZES[size])
    base = Settings(**{f.name: f.metadata["quick"] for f in fields(Settings)}) if quick else Settings()
    own = {name: given.pop(name) for name in given.keys() - asdict(base).keys()}
    settings = replace(base, **{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()})
    return settings, device, out or Path("runs") / ("quick" if quick else "overopt"), processes, traceback, own


def pick_device(name, rank=0):
    """--device -> the torch.device of the process of that rank."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise ValueError(f"--device: {name!r} is none of auto, cpu, cuda, mps")
    if not available[name]:
        raise ValueError(f"--device: {name} was asked for, but torch sees none on this machine")
    return torch.device("cuda", rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)


def members_of(seed, groups):
    """{kind: members} of a PPO seed. A pretrain ensemble has one RM of every pretraining, so it shares exactly one with a
    finetune ensemble: that is the single RM, and the three can be compared in pairs."""
    P, F = len(groups["finetune"]), len(groups["pretrain"])
    finetune, pretrain = groups["finetune"][seed % P], groups["pretrain"][(seed % P + seed // P) % F]        # after P seeds other pairs
    return {"single": [m for m in pretrain if m in finetune], "finetune": finetune, "pretrain": pretrain}


def run_task(pipeline, say, guide):
    """One task, from preferences to findings -> (findings, the arrays that its claims are computed from, the bank to play with)."""
    s, task = pipeline.s, pipeline.s.task
    groups = ensemble.groups(s.pretrain_seeds, s.finetune_seeds)
    guide.before("rewards")
    rms, accuracies, rm_keys = pipeline.grid()
    guide.after(explain.accuracies, pipeline, accuracies)
    say(f"{task}: validation accuracy of {len(rms)} reward models {np.mean(accuracies):.3f} +- {np.std(accuracies):.3f}")
    guide.before("best of n")
    bank, bank_key = pipeline.draw_bank()
    judged = pipeline.judge_bank(bank)
    scores = pipeline.score_grid(f"scores-{task}", rms, rm_keys, bank, bank_key)
    guide.after(explain.favourites, scores, judged["gold"], groups)
    control = None
    if task != "nli":        # whose raters see one writer: his lists tell nothing, so there is no correlation to take away
        guide.before("control")
        controls, _, control_keys = pipeline.grid(list_gap=0.0)
        control = pipeline.score_grid(f"control-{task}-scores", controls, control_keys, bank, bank_key)
        guide.after(explain.lists, scores, control, judged["traits"], groups)

    def ppo_run(kind, seed, beta, members):
        value, key = pipeline.align(kind, seed, beta, [rms[m] for m in members], [rm_keys[m] for m in members], bank["posts"])
        return value, pipeline.score_run(f"ppo-{task}-{kind}-{seed}-{beta}", value["responses"], key, rms, rm_keys, bank["posts"])

    guide.before("ppo")
    cases = [(kind, seed, beta, members) for beta in s.kl_weights for seed in s.ppo_seeds for kind, members in members_of(seed, groups).items()]
    runs = [{"kind": kind, "seed": seed, "kl_weight": beta, "members": members, "scores": scored, "curve": value["curve"],
             "responses": value["responses"], "kl": value["kl"].cpu().double().numpy(), **pipeline.judge(bank["posts"], value["responses"])}
            for (kind, seed, beta, members), (value, scored) in zip(cases, pipeline.share(f"{task}: PPO", [partial(ppo_run, *case) for case in cases]))]
    for beta in s.kl_weights:
        golds = {kind: np.mean([r["gold"].mean() for r in runs if (r["kind"], r["kl_weight"]) == (kind, beta)]) for kind in groups}
        say(f"{task}: PPO with KL weight {beta}: gold " + ", ".join(f"{KINDS[kind]} {value:.2f}" for kind, value in golds.items())
            + f" (SFT {judged['gold'].mean():.2f})")
    if pipeline.team.rank:               # the rest is the first process's work
        return None
    guide.after(explain.after_ppo, s, runs, judged["gold"].mean())
    guide.before("claims")
    data = arrays(s, accuracies, scores, judged, control, runs)
    findings = analyse(s, accuracies, pipeline.ceiling(), scores, judged, bank, runs, groups)
    return {**findings, "claims": claims_table(data, task)}, data, bank_arrays(s, scores, judged, bank)


def run(team, settings, device, out, guide):
    """Everything, from pretraining to findings -> (results, the cache). Prints a line for each part, leaves scores-TASK.npz and bank-TASK.npz."""
    s, start = settings, time.perf_counter()
    cache = Cache(out / "cache", device)

    def say(text):
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    say(f"on {hardware(device, team)}, into {out}")
    pipelines = [Pipeline(replace(s, task=task), device, cache, say, team) for task in (world.TASKS if s.task == "all" else [s.task])]
    guide.before("pretraining")
    pretrained, sft = pipelines[0].pretrain_all()
    guide.after(explain.pretraining_loss, pipelines[0], pretrained)
    guide.before("sft")
    guide.after(explain.sft_gold, pipelines[0], sft)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    results = {"version": VERSION, "settings": asdict(s), "device": device.type, "versions": versions, "tasks": {}, "claims": []}
    for pipeline in pipelines:
        found = run_task(pipeline, say, guide)
        if team.rank:
            continue
        findings, data, bank = found
        data["settings"] = bank["settings"] = np.array(to_json(results["settings"]))
        write_whole(out / f"scores-{pipeline.s.task}.npz", lambda file: np.savez(file, **data))
        write_whole(out / f"bank-{pipeline.s.task}.npz", lambda file: np.savez_compressed(file, **bank))
        results["claims"] += rounded(findings.pop("claims"))
        results["tasks"][pipeline.s.task] = findings
    return results, cache


def prepare(out):
    """Make the folder and see that it can be written; ValueError otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", lambda file: None)
        (out / ".writable").unlink(missing_ok=True)
    except OSError as error:
        why = "it is a file" if out.is_file() else error.strerror
        raise ValueError(f"--out: cannot write into {out} ({why})") from None
    return out


def hardware(device, team):
    """What the run computes on, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{name}, one process" if team.size == 1 else f"{name}, {team.size} processes"


def exit_status(work, traceback=False):
    """Exit status of work(): 0, 2 for a user's mistake (one line, nothing lost), 130 for Ctrl-C."""
    script = Path(sys.argv[0]).name
    try:
        work()
    except (ValueError, OSError) as error:
        if traceback:
            raise
        print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted. The finished stages are kept: the same command continues there.", file=sys.stderr)
        return 130
    return 0


def count_processes(asked, device):
    """--processes, or what it is if it is not given. ValueError if that makes no sense."""
    count = asked if asked is not None else min(MOST_PROCESSES, os.cpu_count() or 1) if device.type == "cpu" else 1
    if count < 1:
        raise ValueError(f"--processes: {count} is below 1")
    return count


def launch(work, settings, device, out, processes, traceback, *args, look=lambda: None):
    """Exit status of work(team, settings, device, out, *args), run in so many processes, after a look at what the user asked for:
    at the settings, and what `look()` has to say."""
    def checked():
        check(settings)
        look()
        together(count_processes(processes, pick_device(device)), partial(exit_status, traceback=traceback), work, settings, device, prepare(out), *args)

    return exit_status(checked, traceback)


def work(team, settings, device, out, explaining):
    """What one process does."""
    device, start = pick_device(device, team.rank), time.perf_counter()
    results, cache = run(team, settings, device, out, explain.Guide(explaining and team.rank == 0))
    if team.rank:
        return
    write_whole(out / "results.json", lambda file: file.write(to_json(results)))
    draw_figures(results, out)
    timings = {"seed": settings.seed, "task": settings.task, "stages": cache.seconds, "total": sum(cache.seconds.values()), "this_run": time.perf_counter() - start,
               "hardware": hardware(device, team), "processes": team.size, "peak_memory_gb": cache.peak_memory_gb}
    write_whole(out / "timings.json", lambda file: file.write(to_json(timings)))
    print(f"\n{explain.in_short(results)}\n\nAll tables: python experiments/report.py {out}" if explaining else report(results))
    print(f"figures, results.json, timings.json, scores-TASK.npz and bank-TASK.npz are in {out}")


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--explain", action="store_true", help="before each stage say what happens and what to look for, after it the one number that matters")
    *common, own = parse(argv, parser)
    return launch(work, *common, own["explain"])


if __name__ == "__main__":
    sys.exit(main())
