"""Reward hacking, end to end: watch it happen, get better with an ensemble, and not go away.

    python experiments/overopt.py                       # one world, everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick               # the same, small: a first look
    python experiments/overopt.py --seeds 1 2 3 4 5     # five worlds: means, intervals and verdicts
    python experiments/overopt.py --task nli            # another rater of the same posts
    torchrun --nproc-per-node 2 experiments/overopt.py -- --seeds 1 2      # on several machines, too

Pretrains language models, trains a grid of reward models (pretraining seeds x finetuning seeds), aligns a
policy to one of them or to an ensemble, by best-of-n and by PPO, and measures the true reward. Every world
and task leaves one record in --out, world-SEED-TASK.json; claims, tables and figures are made from the
records there. An interrupted run continues where it stopped.
"""

import argparse
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import claims
import figures
import numpy as np
import report
import torch
import torch.multiprocessing as mp
import world
from claims import KINDS, Evidence
from stages import Stages, in_processes, is_first_process, rank_and_size, write_whole

from ensemble import AGGREGATORS, aggregate, finetune_ensembles, pretrain_ensembles


def setting(group, default, help, quick=None):
    """A flag. group: the stages that depend on it, see stages.py; quick: its default under --quick."""
    metadata = {"group": group, "help": help, "quick": default if quick is None else quick}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every setting that a world's numbers depend on, and so every flag that sets one."""

    # the models
    width: int = setting("models", 64, "width of the policy")
    rm_width: int = setting("models", 64, "width of the reward models")
    layers: int = setting("models", 2, "layers of every transformer")
    heads: int = setting("models", 2, "attention heads of every transformer")
    pretrain_seeds: int = setting("models", 5, "pretrainings for reward models; the policy has its own", 3)
    pretrain_texts: int = setting("models", 20000, "texts for each pretraining, and for SFT", 8000)
    pretrain_steps: int = setting("models", 1200, "updates of a pretraining", 500)
    sft_steps: int = setting("models", 200, "updates of supervised finetuning of the policy", 60)
    list_gap: float = setting("models", 0.15, "careful writers' list rate minus careless ones'")
    # preferences and reward models
    finetune_seeds: int = setting("preferences", 5, "reward models for each pretraining", 3)
    pairs: int = setting("preferences", 3000, "preference pairs for training", 1500)
    rm_epochs: int = setting("preferences", 4, "passes over the pairs")
    rm_batch: int = setting("preferences", 32, "pairs per update; for nli twice as many responses")
    rm_lr: float = setting("preferences", 2e-3, "peak learning rate of reward models")
    eta: float = setting("preferences", 0.01, "weight of the centring term of the Bradley-Terry loss")
    label_temperature: float = setting("preferences", 0.7, "raters' temperature: higher is noisier")
    flipped: float = setting("preferences", 0.0, "share of labels that are flipped")
    coverage: float = setting("preferences", 0.0, "share of the writers' habits that raters see, lists apart")
    # the SFT policy's samples
    prompts: int = setting("samples", 256, "posts that best-of-n and the finished PPO policies answer", 64)
    n: int = setting("samples", 64, "samples of each post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting("ppo", (0.02, 0.1), "weights beta of the KL penalty")
    ppo_runs: int = setting("ppo", 4, "PPO runs of a kind at the smallest KL weight, each on other models", 1)
    ppo_updates: int = setting("ppo", 40, "updates of a PPO run", 20)
    ppo_batch: int = setting("ppo", 128, "responses per update")
    aggregator: str = setting("ppo", "mean", f"how ensembles aggregate: {', '.join(AGGREGATORS)}")


# ----- the command line ---------------------------------------------------------------------------


def flag(name):
    return "--" + name.replace("_", "-")


def add_settings(parser):
    """One flag for each field of Settings, and --quick."""
    parser.add_argument("--quick", action="store_true", help="smaller defaults, where two are given")
    for f in fields(Settings):
        default, quick = f.default, f.metadata["quick"]
        several = isinstance(default, tuple)
        help = f"{f.metadata['help']} (default {default}" + (f", quick {quick})" if quick != default else ")")
        parser.add_argument(
            flag(f.name),
            type=type(default[0]) if several else type(default),
            nargs="+" if several else None,
            default=argparse.SUPPRESS,
            help=help,
        )


def settings_from(arguments):
    """The parsed command line -> Settings."""
    base = {f.name: f.metadata["quick"] if arguments.quick else f.default for f in fields(Settings)}
    given = {name: value for name, value in vars(arguments).items() if name in base}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return check(Settings(**base | given))


def check(s):
    """The settings; ValueError, naming the flag, if one makes no sense."""
    positive = ("width", "rm_width", "layers", "heads", "pretrain_seeds", "finetune_seeds", "pretrain_texts",
                "pretrain_steps", "sft_steps", "pairs", "rm_epochs", "rm_batch", "ppo_runs", "ppo_updates",
                "ppo_batch", "n")  # fmt: skip
    for name in positive:
        if getattr(s, name) < 1:
            raise ValueError(f"{flag(name)} must be >= 1, got {getattr(s, name)}")
    if s.prompts < 2:
        raise ValueError(f"--prompts must be >= 2, since a correlation needs two, got {s.prompts}")
    for name in ("flipped", "coverage"):
        if not 0 <= getattr(s, name) <= 1:
            raise ValueError(f"{flag(name)} must be between 0 and 1, got {getattr(s, name)}")
    for name in ("rm_lr", "label_temperature"):
        if not 0 < getattr(s, name) < float("inf"):
            raise ValueError(f"{flag(name)} must be > 0 and finite, got {getattr(s, name)}")
    for name, values in (("eta", [s.eta]), ("kl_weights", s.kl_weights)):
        if not all(0 <= value < float("inf") for value in values):
            raise ValueError(f"{flag(name)} must be >= 0 and finite, got {' '.join(map(str, values))}")
    if not 0 <= s.list_gap <= 2 * world.LIST_RATE:
        raise ValueError(f"--list-gap must be between 0 and {2 * world.LIST_RATE}, got {s.list_gap}")
    for name in ("width", "rm_width"):
        if getattr(s, name) % s.heads:
            raise ValueError(f"{flag(name)} must be a multiple of --heads {s.heads}, got {getattr(s, name)}")
    check_unique("--kl-weights", s.kl_weights)
    check_aggregator(s.aggregator)
    return s


def check_unique(flag, values):
    if len(set(values)) < len(values):
        raise ValueError(f"{flag} must not have a value twice, got {' '.join(map(str, values))}")


def check_aggregator(name):
    """ValueError if it is unknown or fails: better now than after minutes of training."""
    if name not in AGGREGATORS:
        raise ValueError(f"--aggregator must be one of {', '.join(AGGREGATORS)}, got {name}")
    try:
        shape = tuple(aggregate(name, torch.randn(5, 3, 2)).shape)
    except Exception as error:
        raise ValueError(f"AGGREGATORS: {name} fails on 5 members ({error!r})") from error
    if shape != (3, 2):
        raise ValueError(f"AGGREGATORS: {name} must make (3, 2) of (5, 3, 2), made {shape}")


def pick_device(name):
    """--device -> a torch.device; on several GPUs each process has its own."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise ValueError(f"--device must be auto, cpu, cuda or mps, got {name}")
    if not available[name]:
        raise ValueError(f"--device {name}: torch sees none on this machine")
    return name


# ----- one world ----------------------------------------------------------------------------------


def make_world(s, seed, task, device, out):
    """One world and task, from pretraining to its record, a dict ready for JSON."""
    stages = Stages(s, seed, task, device, out)
    say, P, F = stages.say, s.pretrain_seeds, s.finetune_seeds

    say(f"World {seed}, {task}: {P + 1} language models learn to write posts and summaries.")
    stages.pretrain_all()
    say(f"The policy learns to summarise (SFT) and writes {s.n} samples for each of {s.prompts} posts.")
    bank = stages.bank()
    gold, traits = judge(bank["posts"].repeat_interleave(s.n, 0), bank["responses"], task)

    say(f"{P * F} reward models learn from the raters: {P} pretrainings x {F} finetunings.")
    models, accuracies = stages.reward_models([(p, f) for p in range(P) for f in range(F)])
    say(report.accuracy_line(accuracies, stages.ceiling()))
    scores = to_numpy(stages.score_bank(models, bank))
    control = None
    if task != "nli":  # its raters see careless writers alone, so that a list tells them nothing
        say("Control arm: reward models of raters who see as many lists by either writer.")
        control_models, _ = stages.reward_models([(p, p % F) for p in range(P)], list_gap=0.0)
        control = to_numpy(stages.score_bank(control_models, bank, "control"))
    evidence = Evidence(
        accuracy=np.reshape(accuracies, (P, F)),
        scores=scores.reshape(P, F, s.prompts, s.n),
        control=control,
        gold=gold.reshape(s.prompts, s.n),
        traits={name: trait.reshape(s.prompts, s.n) for name, trait in traits.items()},
        aggregate=partial(aggregate_arrays, s.aggregator),
        runs=[],
    )
    curves = claims.best_of_n_curves(evidence)
    say(report.best_of_n_lines(curves))

    say("PPO: each line is a run, from its first update to its last.")
    cases = ppo_cases(s)
    jobs = [partial(stages.ppo_run, *case, models, bank["posts"]) for case in cases]
    found = stages.share(f"{task}: PPO", jobs, tell=lambda run: say(report.ppo_line(run), every_process=True))
    for (kind, run, kl_weight, members), value in zip(cases, found, strict=True):
        gold, traits = judge(bank["posts"], value["responses"], task)
        rewards = to_numpy(value["scores"])
        evidence.runs.append(
            {
                "kind": kind,
                "run": run,
                "kl_weight": kl_weight,
                "members": members,
                "kl": value["kl"].mean().item(),
                "gold": gold,
                "proxy": evidence.aggregate(rewards[members]),
                "scores": rewards,
                "traits": traits,
                "responses": value["responses"],
                "curve": value["curve"],
            }
        )
    sft = stages.sft()["state"]
    if is_first_process():
        arrays = bank_arrays(evidence, bank, task)
        write_whole(out / f"bank-{seed}-{task}.npz", lambda file: np.savez_compressed(file, **arrays))
        policy = {"config": asdict(stages.language_model(s.width).config), "state": sft}
        write_whole(out / f"policy-{seed}.pt", lambda file: torch.save(policy, file))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    record = rounded({
        "seed": seed, "task": task, "settings": asdict(s), "versions": versions, "device": device.type,
        "accuracy": {"mean": np.mean(accuracies), "std": np.std(accuracies), "ceiling": stages.ceiling()},
        "claims": claims.measure(evidence, task),
        "best_of_n": curves,
        "agreement": claims.agreement(evidence),
        "traits": claims.trait_table(evidence),
        "ppo": [ppo_summary(run) for run in evidence.runs],
        "texts": [texts_of(evidence, bank, post) for post in range(min(3, s.prompts))],
    })  # fmt: skip
    say(report.post_lines(record["texts"][0]))
    return record


def ppo_cases(s):
    """(kind, run, KL weight, members) of every PPO run. Run i is on pretrain ensemble i, on finetune
    ensemble i, and on the one reward model that the two have in common. The larger KL weights, where runs
    differ less, get half as many."""
    grid = np.arange(s.pretrain_seeds * s.finetune_seeds).reshape(s.pretrain_seeds, s.finetune_seeds).tolist()
    cases = []
    for kl_weight in sorted(s.kl_weights):
        runs = s.ppo_runs if kl_weight == min(s.kl_weights) else -(-s.ppo_runs // 2)
        for run in range(runs):
            finetune = finetune_ensembles(grid)[run % s.pretrain_seeds]
            pretrain = pretrain_ensembles(grid)[run % s.finetune_seeds]
            single = [member for member in pretrain if member in finetune]
            members = {"single": single, "finetune": finetune, "pretrain": pretrain}
            cases += [(kind, run, kl_weight, members[kind]) for kind in KINDS]
    return cases


def judge(posts, responses, task):
    """Gold reward (B,) and traits {name: (B,)} of responses, as arrays."""
    parts, traits = world.judge_rows(posts, responses, task)
    gold = sum(part.double() for part in parts.values())
    return to_numpy(gold).round(5), {name: to_numpy(trait) for name, trait in traits.items()}


def to_numpy(tensor):
    return tensor.double().cpu().numpy()


def aggregate_arrays(aggregator, scores):
    """ensemble.aggregate on an array (M, ...) -> (...)."""
    return aggregate(aggregator, torch.from_numpy(scores)).numpy()


# ----- what a world leaves ------------------------------------------------------------------------


def ppo_summary(run):
    """What a record keeps of a PPO run."""
    kept = {name: run[name] for name in ("kind", "run", "kl_weight", "kl", "curve")}
    return kept | {name: run[name].mean() for name in ("proxy", "gold")}


def texts_of(evidence, bank, post):
    """A post and what each policy made of it: {"post", "responses": [{policy, text, proxy, gold}]}.

    proxy: the reward by what the policy was aligned to; for SFT's sample by the pretrain ensemble."""
    n = evidence.gold.shape[1]
    runs = {kind: evidence.runs_of(kind)[0] for kind in ("single", "pretrain")}
    proxies = {kind: evidence.aggregate(evidence.flat[run["members"], post]) for kind, run in runs.items()}
    shown = []

    def show(policy, tokens, proxy, gold):
        shown.append({"policy": policy, "text": world.decode(tokens), "proxy": proxy, "gold": gold})

    show("SFT", bank["responses"][post * n], proxies["pretrain"][0], evidence.gold[post, 0])
    for kind in runs:
        pick = proxies[kind].argmax()
        tokens = bank["responses"][post * n + pick]
        show(f"best of {n}, {kind}", tokens, proxies[kind][pick], evidence.gold[post, pick])
    for kind, run in runs.items():
        show(f"PPO, {kind}", run["responses"][post], run["proxy"][post], run["gold"][post])
    return {"post": world.decode(bank["posts"][post]), "responses": shown}


def bank_arrays(evidence, bank, task):
    """What bank-SEED-TASK.npz holds, to play with: see experiments/README.md, field by field."""
    posts, n = evidence.gold.shape
    P, F = evidence.accuracy.shape
    parts, _ = world.judge_rows(bank["posts"].repeat_interleave(n, 0), bank["responses"], task)
    responses = [world.decode(row) for row in bank["responses"].tolist()]
    arrays = {
        "rewards": evidence.flat,
        "gold": evidence.gold,
        **{f"part_{name}": to_numpy(part).reshape(posts, n) for name, part in parts.items()},
        **{f"trait_{name}": trait for name, trait in evidence.traits.items()},
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "pretrain_seed": np.arange(P * F) // F,
        "finetune_seed": np.arange(P * F) % F,
        "posts": np.array([world.decode(row) for row in bank["posts"].tolist()]),
        "responses": np.reshape(responses, (posts, n)),
    }


def rounded(x, digits=5):
    """Plain lists and floats for JSON; numbers rounded, so that the file is short."""
    if isinstance(x, dict):
        return {key: rounded(value, digits) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value, digits) for value in x]
    return round(float(x), digits) if isinstance(x, float | np.floating) else x


# ----- the script ---------------------------------------------------------------------------------


def work(s, seeds, task, device, out):
    """What each process does: world after world; the first one writes the records, and reports at the end."""
    device = (
        torch.device("cuda", rank_and_size()[0] % torch.cuda.device_count())
        if device == "cuda"
        else torch.device(device)
    )
    for seed in seeds:
        record = make_world(s, seed, task, device, out)
        if is_first_process():
            write_whole(
                out / f"world-{seed}-{task}.json",
                lambda file, record=record: file.write(report.to_json(record)),
            )
    if is_first_process():
        records = report.load_records(out)[task]
        figures.draw(records, out)
        print("\n" + report.summary(records))
        print(f"\nRecords, figures, samples to play with (bank) and the SFT policy are in {out}")
        print(f"All claims: python experiments/report.py {out}")


def check_folder(out, s, seeds, task):
    """Make the folder. ValueError if it cannot be written, or has worlds of other settings that would stay
    there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", lambda file: None)
        (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out: cannot write into {out} ({error.strerror})") from None
    for record in report.load_records(out).get(task, []):
        there, here = record["settings"], rounded(asdict(s))
        other = [flag(name) for name in here if there.get(name) != here[name]]
        if other and record["seed"] not in seeds:
            raise ValueError(
                f"{out} has world {record['seed']} with another {', '.join(other)}: give another --out"
            )


def exit_status(function, *args):
    """0, or after a user's mistake 2 and one line, or after Ctrl-C 130. Nothing is lost: finished stages
    are kept."""
    try:
        function(*args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except mp.ProcessExitedException as error:  # which has said why
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept: the same command continues there.", file=sys.stderr)
        return 130
    return 0


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = min(4, os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="the worlds to make (default 1)")
    parser.add_argument("--task", default="tldr", help=f"who rates: {', '.join(world.TASKS)} (default tldr)")
    parser.add_argument(
        "--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps"
    )
    parser.add_argument(
        "--processes",
        type=int,
        help=f"how many share the work; changes no result (default {cores}; 1 on a GPU)",
    )
    parser.add_argument("--out", type=Path, help="folder for results (default runs/overopt, or runs/quick)")
    add_settings(parser)
    arguments = parser.parse_args(argv)

    def run():
        s, device = settings_from(arguments), pick_device(arguments.device)
        check_unique("--seeds", arguments.seeds)
        if arguments.task not in world.TASKS:
            raise ValueError(f"--task must be one of {', '.join(world.TASKS)}, got {arguments.task}")
        processes = (
            arguments.processes if arguments.processes is not None else cores if device == "cpu" else 1
        )
        if processes < 1:
            raise ValueError(f"--processes must be >= 1, got {processes}")
        out = arguments.out or Path("runs", "quick" if arguments.quick else "overopt")
        check_folder(out, s, arguments.seeds, arguments.task)
        in_processes(processes, work, s, arguments.seeds, arguments.task, device, out)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
