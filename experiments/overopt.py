"""Reward hacking, end to end: watch it happen, get better with an ensemble, and not go away.

    python experiments/overopt.py                     # everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick             # the same, small: a first look
    python experiments/overopt.py --kl-weights 0.01 0.1 1 --out runs/mine

Pretrains language models, trains a grid of reward models (pretraining seeds x finetuning seeds), aligns a
policy to one of them or to an ensemble, by best-of-n and by PPO, and measures the true reward. Writes
results.json, timings.json, figures and a cache into --out; an interrupted run continues where it stopped.
"""
import argparse
from dataclasses import asdict, dataclass, field, fields, replace
import json
from pathlib import Path
import platform
import re
import sys
import time

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import numpy as np
import torch

from analysis import analyse
from cache import Cache, write_whole
from ensemble import AGGREGATORS, aggregate, finetune_ensembles, pretrain_ensembles
from figures import draw_figures
from pipeline import VALIDATION_PAIRS, Pipeline
from report import KINDS, report
from rm import accuracy
import world


def setting(default, help, quick=None):
    return field(default=default, metadata={"help": help, "quick": default if quick is None else quick})


@dataclass(frozen=True)
class Settings:
    """Every flag of the script. A field's `quick` value is its default under --quick."""
    seed: int = setting(1, "everything random follows from it")
    # the models
    width: int = setting(64, "width of every transformer")
    layers: int = setting(2, "layers of every transformer")
    heads: int = setting(2, "attention heads of every transformer")
    pretrain_seeds: int = setting(5, "pretrainings for reward models; the policy has one of its own", 3)
    pretrain_texts: int = setting(20000, "texts for each pretraining, and for SFT", 8000)
    pretrain_steps: int = setting(1200, "updates of a pretraining", 600)
    sft_steps: int = setting(200, "updates of supervised finetuning of the policy", 60)
    # preferences and reward models
    finetune_seeds: int = setting(5, "reward models for each pretraining", 3)
    pairs: int = setting(3000, "preference pairs for training", 1500)
    rm_epochs: int = setting(2, "passes over the pairs")
    eta: float = setting(0.01, "weight of the centring term of the Bradley-Terry loss")
    label_temperature: float = setting(0.7, "raters' temperature: higher is noisier")
    flipped: float = setting(0.0, "share of preference labels turned round")
    list_gap: float = setting(0.15, "careful minus careless writers' list rate; 0 is the control arm")
    coverage: float = setting(0.0, "share of the pairs whose responses show every style of the pretraining text")
    # best-of-n
    prompts: int = setting(256, "posts that best-of-n and the finished PPO policies answer", 64)
    n: int = setting(64, "samples per post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting((0.02, 0.05, 0.1, 0.2), "weights beta of the KL penalty, one run each", (0.02, 0.1))
    ppo_seeds: tuple[int, ...] = setting((0, 1, 2), "PPO seeds; each also picks the next reward model and ensembles, in turn", (0,))
    aggregator: str = setting("mean", f"how ensembles aggregate, in PPO and wherever one aggregator is shown: {', '.join(AGGREGATORS)}")
    ppo_updates: int = setting(60, "updates of a PPO run", 25)
    ppo_batch: int = setting(128, "responses per update")


def check(s):
    """ValueError naming the first setting that makes no sense."""
    for name, value in asdict(s).items():
        if not isinstance(value, str) and not np.isfinite(value).all():
            raise ValueError(f"{flag(name)}: {value} is not finite")
    least = dict.fromkeys(("width", "layers", "heads", "pretrain_seeds", "pretrain_texts", "pretrain_steps", "sft_steps", "finetune_seeds",
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
    if s.width % s.heads:
        raise ValueError(f"{flag('width')}: {s.width} is not a multiple of {flag('heads')} {s.heads}")


def flag(name):
    return "--" + name.replace("_", "-")


def parse(argv):
    """Command line -> (Settings, device, out folder, traceback?). Flags come from the fields of Settings and nowhere else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything, small: other defaults, where two are given")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it arose")
    parser.add_argument("--out", type=Path, help="folder for results, figures and cache (default runs/overopt, or runs/quick)")
    for f in fields(Settings):
        quick = f.metadata["quick"]
        default = f"default {f.default}" + (f", quick {quick}" if quick != f.default else "")
        many = isinstance(f.default, tuple)
        parser.add_argument(flag(f.name), type=type(f.default[0] if many else f.default), nargs="*" if many else None,
                            default=argparse.SUPPRESS, help=f"{f.metadata['help']} ({default})")
    given = vars(parser.parse_args(argv))
    quick, device, out, traceback = (given.pop(name) for name in ("quick", "device", "out", "traceback"))
    base = Settings(**{f.name: f.metadata["quick"] for f in fields(Settings)}) if quick else Settings()
    settings = replace(base, **{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()})
    return settings, device, out or Path("runs") / ("quick" if quick else "overopt"), traceback


def pick_device(name):
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise ValueError(f"--device: {name!r} is none of auto, cpu, cuda, mps")
    if not available[name]:
        raise ValueError(f"--device: {name} was asked for, but torch sees none on this machine")
    return torch.device(name)


def members_of(seed, groups):
    """{kind: members} of a PPO seed. A pretrain ensemble has one RM of every pretraining, so it shares exactly one with a
    finetune ensemble: that is the single RM, and the three can be compared in pairs."""
    finetune, pretrain = (groups[kind][seed % len(groups[kind])] for kind in ("finetune", "pretrain"))
    return {"single": [m for m in pretrain if m in finetune], "finetune": finetune, "pretrain": pretrain}


def run(settings, device, out):
    """Everything, from pretraining to findings -> (results, the cache). Prints a line for each part."""
    s, start = settings, time.perf_counter()
    cache = Cache(out / "cache", device)
    pipeline = Pipeline(s, device, cache)

    def say(text):
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    say(f"on {hardware(device)}, into {out}")
    for p in range(s.pretrain_seeds):
        pipeline.pretrain(p)
        say(f"language model {p + 1} of {s.pretrain_seeds} + 1 is pretrained")
    sft, sft_key = pipeline.finetune_policy()
    say("the last one is pretrained, and finetuned as the policy (SFT)")

    training, validation = pipeline.preferences(s.pairs, "training pairs"), pipeline.preferences(VALIDATION_PAIRS, "validation pairs")
    prompts, chosen, rejected = validation
    ceiling = accuracy(world.gold(prompts, chosen), world.gold(prompts, rejected)).item()
    P, F = s.pretrain_seeds, s.finetune_seeds
    trained = []
    for p in range(P):
        trained += [pipeline.train_reward_model(p, f, training, validation, sft, sft_key) for f in range(F)]
        say(f"reward models on pretraining {p + 1} of {P} are trained")
    rms, rm_keys = [pipeline.reward_model(value["state"]) for value, _ in trained], [key for _, key in trained]
    accuracies = [value["accuracy"] for value, _ in trained]
    say(f"{len(rms)} reward models: validation accuracy {np.mean(accuracies):.3f} +- {np.std(accuracies):.3f}")

    bank, bank_key = pipeline.draw_bank(sft, sft_key)
    groups = {"single": [[m] for m in range(len(rms))], "finetune": finetune_ensembles(P, F), "pretrain": pretrain_ensembles(P, F)}
    scores = torch.cat([pipeline.score_bank(p, [rms[m] for m in members], [rm_keys[m] for m in members], bank, bank_key)
                        for p, members in enumerate(groups["finetune"])])
    say(f"drew {s.n} samples for each of {s.prompts} posts, scored by every reward model")

    runs = []
    for beta in s.kl_weights:
        for seed in s.ppo_seeds:
            for kind, members in members_of(seed, groups).items():
                value, key = pipeline.align(kind, seed, beta, [rms[m] for m in members], [rm_keys[m] for m in members], sft, sft_key, bank["posts"])
                scored = pipeline.score_run(f"ppo-{kind}-{seed}-{beta}", value["responses"], key, rms, rm_keys, bank["posts"])
                runs.append({"kind": kind, "seed": seed, "kl_weight": beta, "members": members, "scores": scored, **value})
        golds = {kind: np.mean([r["gold"].mean().item() for r in runs if (r["kind"], r["kl_weight"]) == (kind, beta)])
                 for kind in groups}
        say(f"PPO with KL weight {beta}: gold " + ", ".join(f"{KINDS[kind]} {value:.2f}" for kind, value in golds.items())
            + f" (SFT {bank['gold'].mean().item():.2f})")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    findings = analyse(s, accuracies, ceiling, scores, bank, runs, groups)
    return {"settings": asdict(s), "device": device.type, "versions": versions, **findings}, cache


def prepare(out):
    """Make the folder and see that it can be written; ValueError otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", lambda file: None)
        (out / ".writable").unlink()
    except OSError as error:
        why = "it is a file" if out.is_file() else error.strerror
        raise ValueError(f"--out: cannot write into {out} ({why})") from None
    return out


def to_json(x):
    """Bytes of indented JSON, lists of plain values on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), json.dumps(x, indent=1, allow_nan=False)).encode()


def hardware(device):
    """What the run computes on, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type.upper()}, {torch.get_num_threads()} threads"


def main(argv=None):
    """The command line -> exit status: 0, 2 for a user's mistake (one line, nothing lost), 130 for Ctrl-C."""
    settings, device, out, traceback = parse(argv)
    try:
        check(settings)
        device, start = pick_device(device), time.perf_counter()
        results, cache = run(settings, device, prepare(out))
        write_whole(out / "results.json", lambda file: file.write(to_json(results)))
        draw_figures(results, out)
        timings = {"stages": cache.seconds, "total": sum(cache.seconds.values()), "this_run": time.perf_counter() - start,
                   "hardware": hardware(device), "peak_memory_gb": cache.peak_memory_gb}
        write_whole(out / "timings.json", lambda file: file.write(to_json(timings)))
    except (ValueError, OSError) as error:
        if traceback:
            raise
        print(f"overopt.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\noveropt.py: interrupted. The finished stages are kept: the same command continues there.", file=sys.stderr)
        return 130
    print(report(results))
    print(f"figures, results.json and timings.json are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
