"""Reward hacking, end to end: watch it happen, shrink with an ensemble, and not go away.

    python experiments/overopt.py                       # one world, everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick               # the same, small: a first look
    python experiments/overopt.py --seeds 1 2 3 4 5     # five worlds: means, intervals and verdicts
    python experiments/overopt.py --task nli            # another rater of the same posts
    torchrun --nproc-per-node 2 experiments/overopt.py -- --seeds 1 2      # on several machines, too

Pretrains language models, trains a grid of reward models, aligns a policy to one of them or to an ensemble,
by best-of-n and by PPO, and measures the true reward. Every world and task leaves one record in --out,
world-SEED-TASK.json; claims, tables and figures are made from these. An interrupted run continues.
"""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import claims
import figures
import numpy as np
import report
import torch
import world
from claims import Evidence
from stages import Stages, in_processes, is_first_process, rank_and_size, write_whole

from ensemble import AGGREGATORS, aggregate, finetune_ensembles, pretrain_ensembles

CORES = min(4, os.cpu_count() or 1)
DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def setting(group, default, least, help, most=inf):
    """A flag. group: the stages that depend on it, see stages.py; least and most: what its value may be."""
    return field(default=default, metadata={"group": group, "limits": (least, most), "help": help})


@dataclass(frozen=True)
class Settings:
    """Every setting that a world's numbers depend on, each a flag. ValueError if one makes no sense."""

    # the models
    width: int = setting("models", 64, 1, "width of the policy")
    rm_width: int = setting("models", 64, 1, "width of the reward models")
    layers: int = setting("models", 2, 1, "layers of every transformer")
    heads: int = setting("models", 2, 1, "attention heads of every transformer")
    pretrain_seeds: int = setting("models", 5, 1, "pretrainings of reward models, not the policy's")
    pretrain_texts: int = setting("models", 20000, 1, "texts for each pretraining, and for SFT")
    pretrain_steps: int = setting("models", 1200, 1, "updates of a pretraining")
    sft_steps: int = setting("models", 200, 1, "updates of supervised finetuning of the policy")
    list_gap: float = setting("models", 0.15, 0, "list rate: careful minus careless", 2 * world.LIST_RATE)
    # preferences and reward models
    finetune_seeds: int = setting("preferences", 5, 1, "reward models for each pretraining")
    pairs: int = setting("preferences", 3000, 1, "preference pairs for training")
    rm_epochs: int = setting("preferences", 4, 1, "passes over the pairs")
    rm_batch: int = setting("preferences", 32, 1, "pairs per update; for nli twice as many responses")
    rm_lr: float = setting("preferences", 2e-3, 1e-9, "peak learning rate of reward models")
    eta: float = setting("preferences", 0.01, 0, "weight of the Bradley-Terry loss's centring term")
    label_temperature: float = setting("preferences", 0.7, 1e-9, "raters' noise, a softmax temperature")
    flipped: float = setting("preferences", 0.0, 0, "share of labels that are flipped", 1)
    coverage: float = setting("preferences", 0.0, 0, "share of habits that raters see, lists apart", 1)
    # the SFT policy's samples
    prompts: int = setting("samples", 256, 2, "posts that best-of-n and PPO's policies answer")
    n: int = setting("samples", 64, 2, "samples of each post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting("ppo", (0.02, 0.1), 0, "weights beta of the KL penalty")
    ppo_runs: int = setting("ppo", 4, 1, "PPO runs of a kind at the smallest KL weight")
    ppo_updates: int = setting("ppo", 40, 1, "updates of a PPO run")
    ppo_batch: int = setting("ppo", 128, 1, "responses per update")
    aggregator: str = setting("ppo", "mean", None, "how ensembles aggregate")

    def __post_init__(self):
        for f in fields(self):
            value, (least, most) = getattr(self, f.name), f.metadata["limits"]
            for x in value if isinstance(f.default, tuple) else [value]:
                if least is not None and (not least <= x <= most or x == inf):
                    limits = f">= {least}" if most == inf else f"between {least} and {most}"
                    raise ValueError(f"{flag(f.name)} must be {limits}, got {x}")
        for name in ("width", "rm_width"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{flag(name)} must be a multiple of --heads, got {getattr(self, name)}")
        check_unique("--kl-weights", self.kl_weights)
        try:  # a new aggregator fails now, not after minutes
            shape = tuple(aggregate(self.aggregator, torch.randn(5, 3, 2)).shape)
        except Exception as error:
            message = f"--aggregator {self.aggregator} fails on 5 x 3 x 2 rewards: {error!r}"
            raise ValueError(message) from error
        if shape != (3, 2):
            raise ValueError(f"--aggregator {self.aggregator} must map (5, 3, 2) to (3, 2), made {shape}")


# What --quick changes
QUICK = {"pretrain_seeds": 3, "pretrain_texts": 8000, "pretrain_steps": 500, "sft_steps": 60}
QUICK |= {"finetune_seeds": 3, "pairs": 1500, "prompts": 64, "ppo_runs": 1, "ppo_updates": 20}


# ----- the command line ---------------------------------------------------------------------------
def flag(name):
    """A setting's flag: "rm_width" -> "--rm-width"."""
    return "--" + name.replace("_", "-")


def add_flags(parser):
    """The flags of a script that makes worlds: --seeds, --processes, --out, --quick, and Settings."""
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[1], help="the worlds to make (default 1)")
    add("--processes", type=int, help=f"how many share the work (default {CORES}; 1 on a GPU)")
    add("--out", type=Path, help="the folder for results, in runs/ by default")
    add("--quick", action="store_true", help="smaller defaults, where two are given")
    for f in fields(Settings):
        options = {"type": float, "nargs": "+"} if f.name == "kl_weights" else {"type": f.type}
        options["choices"] = AGGREGATORS if f.name == "aggregator" else None
        quick = f", quick {QUICK[f.name]}" if f.name in QUICK else ""
        add(flag(f.name), help=f"{f.metadata['help']} (default {f.default}{quick})", **options)


def settings_from(arguments):
    """The parsed flags -> Settings. ValueError, naming the flag, if one makes no sense."""
    check_unique("--seeds", arguments.seeds)
    if arguments.processes is not None and arguments.processes < 1:
        raise ValueError(f"--processes must be >= 1, got {arguments.processes}")
    names = {f.name for f in fields(Settings)}
    given = {name: x for name, x in vars(arguments).items() if name in names and x is not None}
    return Settings(**(QUICK if arguments.quick else {}) | given)


def check_unique(name, values):
    """ValueError, naming the flag, if a value is given twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must not have a value twice, got {' '.join(map(str, values))}")


# ----- one world ----------------------------------------------------------------------------------
def make_world(s, seed, task, device, out):
    """One world and task, from pretraining to its record, a dict ready for JSON."""
    stages = Stages(s, seed, task, device, out)
    say, P, F = stages.say, s.pretrain_seeds, s.finetune_seeds

    # 1. Language models: one becomes the policy, each of the others the trunk of F reward models.
    say(f"World {seed}, {task}: {P + 1} language models learn to write posts and summaries.")
    stages.pretrain_all()

    # 2. The SFT policy, and its samples: best-of-n picks from them, and PPO answers the same posts.
    say(f"The policy learns to summarise (SFT) and writes {s.n} samples for each of {s.prompts} posts.")
    bank = stages.bank()

    # 3. Reward models, and best-of-n by them.
    say(f"{P * F} reward models learn from the raters: {P} pretrainings x {F} finetunings.")
    models, accuracies = stages.reward_models([(p, f) for p in range(P) for f in range(F)])
    accuracy = {"mean": np.mean(accuracies), "std": np.std(accuracies), "ceiling": stages.ceiling()}
    line = "Reward models order {mean:.1%} (std {std:.1%}) of unseen pairs as raters do, gold {ceiling:.1%}."
    say(line.format(**accuracy))
    evidence = evidence_of_samples(stages, bank, models, accuracies)
    curves = claims.best_of_n_curves(evidence)
    say(report.best_of_n_lines(curves))

    # 4. PPO on one reward model and on ensembles.
    say("PPO: a line for each run, from its first update to its last, on its training posts.")
    evidence.runs = ppo_runs(stages, bank, models, evidence.aggregate)

    # 5. What is left: arrays to play with, and the record.
    if is_first_process():
        write_arrays(stages, evidence, bank, out)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    record = rounded({
        "seed": seed, "task": task, "settings": asdict(s), "versions": versions, "device": device.type,
        "accuracy": accuracy,
        "claims": claims.measure(evidence, task),
        "best_of_n": curves,
        "traits": claims.trait_table(evidence),
        "ppo": [run["summary"] for run in evidence.runs],
        "texts": [texts_of(evidence, bank, post) for post in range(min(3, s.prompts))],
    }) | {"settings": asdict(s)}  # not rounded  # fmt: skip
    say(report.post_lines(record["texts"][0]))
    return record


def evidence_of_samples(stages, bank, models, accuracies):
    """Evidence of all but PPO: gold, traits and every reward model's rewards of the bank's samples."""
    s = stages.settings
    P, F = s.pretrain_seeds, s.finetune_seeds
    gold, traits = judge_bank(bank, stages.task)
    scores = to_numpy(stages.score_bank(models, bank)).reshape(P, F, s.prompts, s.n)
    control = None
    if stages.task != "nli":  # its raters see careless writers alone, so a list tells them nothing
        stages.say("Control arm: reward models of raters who see as many lists by either writer.")
        control_models, _ = stages.reward_models([(p, p % F) for p in range(P)], "control")
        control = to_numpy(stages.score_bank(control_models, bank, "control"))
    accuracy = np.reshape(accuracies, (P, F))
    return Evidence(accuracy, scores, control, gold, traits, partial(aggregate_arrays, s.aggregator), runs=[])


def ppo_runs(stages, bank, models, aggregate):
    """Every run of `Stages.ppo_run`, with its final policy's gold, traits, proxy, and a record's summary."""
    cases = ppo_cases(stages.settings)
    jobs = [partial(stages.ppo_run, *case, models, bank["posts"]) for case in cases]
    runs = stages.share(f"{stages.task}: PPO runs", jobs, tell=report.ppo_line)
    for run in runs:
        run["gold"], run["traits"] = judge(bank["posts"], run["responses"], stages.task)
        run["scores"] = to_numpy(run["scores"])
        run["proxy"] = aggregate(run["scores"][run["members"]])
        run["summary"] = {name: run[name] for name in ("kind", "run", "kl_weight", "kl", "curve")}
        run["summary"] |= {name: run[name].mean() for name in ("proxy", "gold")}
    return runs


def ppo_cases(s):
    """(kind, run, KL weight, members) of every PPO run. Run i is on pretrain ensemble i, on finetune ensemble
    i, and on the one reward model in both. Larger KL weights, where runs differ less, get half as many."""
    P, F = s.pretrain_seeds, s.finetune_seeds
    grid = np.arange(P * F).reshape(P, F).tolist()
    cases = []
    for kl_weight in sorted(s.kl_weights):
        runs = s.ppo_runs if kl_weight == min(s.kl_weights) else (s.ppo_runs + 1) // 2
        for run in range(runs):
            finetune = finetune_ensembles(grid)[run % P]
            pretrain = pretrain_ensembles(grid)[run % F]
            single = [member for member in pretrain if member in finetune]
            members = {"single": single, "finetune": finetune, "pretrain": pretrain}
            cases += [(kind, run, kl_weight, members[kind]) for kind in members]
    return cases


def judge(posts, responses, task):
    """Gold reward (B,) and traits {name: (B,)} of responses, as arrays."""
    parts, traits = world.judge_rows(posts, responses, task)
    gold = sum(part.double() for part in parts.values())
    return to_numpy(gold).round(5), {name: to_numpy(trait) for name, trait in traits.items()}


def judge_bank(bank, task):
    """Gold (posts, n) and traits {name: (posts, n)} of the bank's samples, as arrays."""
    posts, responses = bank["posts"], bank["responses"]
    n = len(responses) // len(posts)
    gold, traits = judge(posts.repeat_interleave(n, 0), responses, task)
    return gold.reshape(-1, n), {name: trait.reshape(-1, n) for name, trait in traits.items()}


def to_numpy(tensor):
    """A tensor, on whatever device, as an array of float64."""
    return tensor.double().cpu().numpy()


def aggregate_arrays(aggregator, scores):
    """ensemble.aggregate on an array (M, ...) -> (...)."""
    return aggregate(aggregator, torch.from_numpy(scores)).numpy()


# ----- what a world leaves ------------------------------------------------------------------------
def texts_of(evidence, bank, post):
    """A post and what each policy made of it: {"post", "responses": [{policy, text, proxy, gold}]}.

    proxy: the reward by what the policy was aligned to; for SFT's sample by the pretrain ensemble."""
    gold = evidence.gold[post]
    samples = bank["responses"].view(*evidence.gold.shape, -1)[post]
    best, ppo = [], []
    for kind in ("single", "pretrain"):
        run = evidence.runs_of(kind)[0]
        proxy = evidence.aggregate(evidence.flat[run["members"], post])  # (n,)
        pick = proxy.argmax()
        best.append((f"best of {len(gold)}, {kind}", samples[pick], proxy[pick], gold[pick]))
        ppo.append((f"PPO, {kind}", run["responses"][post], run["proxy"][post], run["gold"][post]))
    responses = []
    for policy, tokens, r, g in [("SFT", samples[0], proxy[0], gold[0]), *best, *ppo]:  # proxy: pretrain's
        responses.append({"policy": policy, "text": world.decode(tokens), "proxy": r, "gold": g})
    return {"post": world.decode(bank["posts"][post]), "responses": responses}


def write_arrays(stages, evidence, bank, out):
    """bank-SEED-TASK.npz, scored samples to play with: see experiments/README.md, field by field. And
    policy-SEED.pt, the SFT policy."""
    seed, task, posts, n = stages.seed, stages.task, *evidence.gold.shape
    P, F = evidence.accuracy.shape
    parts, _ = world.judge_rows(bank["posts"].repeat_interleave(n, 0), bank["responses"], task)
    arrays = {"rewards": evidence.flat, "gold": evidence.gold}
    arrays |= {f"part_{name}": to_numpy(part).reshape(posts, n) for name, part in parts.items()}
    arrays |= {f"trait_{name}": trait for name, trait in evidence.traits.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["pretrain_seed"] = np.arange(P * F) // F
    arrays["finetune_seed"] = np.arange(P * F) % F
    arrays["posts"] = np.array([world.decode(row) for row in bank["posts"].tolist()])
    arrays["responses"] = np.reshape([world.decode(row) for row in bank["responses"].tolist()], (posts, n))
    write_whole(out / f"bank-{seed}-{task}.npz", lambda file: np.savez_compressed(file, **arrays))
    config, state = stages.language_model(stages.settings.width).config, stages.sft()["state"]
    policy = {"config": asdict(config), "state": state}
    write_whole(out / f"policy-{seed}.pt", lambda file: torch.save(policy, file))


def rounded(x):
    """x as JSON has it: plain lists and numbers, floats of five decimals, so that a file is short."""
    text = json.dumps(x, default=lambda number: number.item())
    return json.loads(text, parse_float=lambda digits: round(float(digits), 5))


# ----- the script ---------------------------------------------------------------------------------
def work(s, seeds, task, device, out):
    """What each process does: world after world; the first one writes the records, and reports at the end."""
    if device == "cuda":  # each process on a GPU of its own, as far as there are enough
        device = f"cuda:{rank_and_size()[0] % torch.cuda.device_count()}"
    for seed in seeds:
        record = make_world(s, seed, task, torch.device(device), out)
        if is_first_process():
            report.write_json(record, out / f"world-{seed}-{task}.json")
    if is_first_process():
        records = report.load_records(out)[task]
        figures.draw(records, out)
        print("\n" + report.summary(records))
        print(f"\nRecords, figures, samples to play with (bank) and the SFT policy are in {out}")
        print(f"The claims of every task there: python experiments/report.py {out}")


def check_folder(out, s, seeds, task):
    """Make the folder. ValueError if it would keep worlds of other settings."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(asdict(s)))  # as a record has them: a tuple is a list
    for record in report.load_records(out).get(task, []):
        other = [flag(name) for name in wanted if record["settings"].get(name) != wanted[name]]
        if other and record["seed"] not in seeds:
            has = f"{out} has world {record['seed']} with another {', '.join(other)}"
            raise ValueError(f"{has}: give another --out")


def main(argv=None):
    """The command line, checked as far as can be before the work, then the work."""
    parser = report.parser_of(__doc__)
    parser.add_argument("--task", default="tldr", choices=world.TASKS, help="who rates (default tldr)")
    parser.add_argument("--device", default=DEVICES[0], choices=DEVICES, help="default: cuda if there is one")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    s, seeds, task, device = settings_from(arguments), arguments.seeds, arguments.task, arguments.device
    processes = arguments.processes or (CORES if device == "cpu" else 1)
    out = arguments.out or Path("runs", "quick" if arguments.quick else "overopt")
    check_folder(out, s, seeds, task)
    in_processes(processes, work, s, seeds, task, device, out)


if __name__ == "__main__":
    sys.exit(report.exit_status(main))
