"""Reward hacking, end to end: watch it happen, get better with an ensemble, and not go away.

    python experiments/overopt.py                     # the whole road: minutes, on a laptop's CPU
    python experiments/overopt.py --quick             # the same road, small: a first look
    python experiments/overopt.py --kl-weights 0.01 0.1 1 --out runs/mine

Pretrains language models, trains a grid of reward models (pretraining seeds x finetuning seeds), aligns a
policy to one of them or to an ensemble, by best-of-n and by PPO, and measures the true reward. Writes
results.json, timings.json, figures and a cache into --out; an interrupted run continues where it stopped.
"""
import argparse
from dataclasses import asdict, dataclass, field, fields, replace
import hashlib
import json
from pathlib import Path
import platform
import re
import sys
import time

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import numpy as np
import torch
from tqdm import tqdm

from analysis import analyse
from cache import Cache, code_of, write_whole
from ensemble import AGGREGATORS, Ensemble, finetune_ensembles, pretrain_ensembles
from figures import draw_figures
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, kl_k1, ppo
from report import report
from rm import RewardModel, accuracy, normalise, train_rm
import world


def setting(default, help, quick=None):
    return field(default=default, metadata={"help": help, "quick": default if quick is None else quick})


@dataclass(frozen=True)
class Settings:
    """Every flag of the script. A field's `quick` value is its default under --quick."""
    seed: int = setting(0, "everything random follows from it")
    # models
    width: int = setting(64, "width of every transformer")
    layers: int = setting(2, "layers of every transformer")
    heads: int = setting(2, "attention heads of every transformer")
    pretrain_seeds: int = setting(5, "pretrainings for reward models; the policy has one of its own", 3)
    pretrain_texts: int = setting(20000, "texts a pretraining reads", 8000)
    pretrain_steps: int = setting(800, "updates of a pretraining", 250)
    sft_steps: int = setting(200, "updates of supervised finetuning of the policy", 60)
    # preferences and reward models
    finetune_seeds: int = setting(5, "reward models a pretraining", 3)
    pairs: int = setting(3000, "preference pairs for training", 1500)
    rm_epochs: int = setting(2, "passes over the pairs")
    eta: float = setting(0.01, "weight of the centring term of the Bradley-Terry loss")
    label_temperature: float = setting(0.7, "raters' temperature: higher is noisier")
    flipped: float = setting(0.0, "share of preference labels turned round")
    list_gap: float = setting(0.15, "careful minus careless writers' list rate; 0 is the control arm")
    coverage: float = setting(0.0, "share of the compared responses that show every style of the pretraining text")
    # best-of-n
    prompts: int = setting(256, "posts in the best-of-n bank", 64)
    n: int = setting(64, "samples a post in the bank")
    # PPO
    kl_weights: tuple[float, ...] = setting((0.02, 0.05, 0.1, 0.2), "weights beta of the KL penalty, one run each")
    ppo_seeds: tuple[int, ...] = setting((0, 1, 2), "PPO seeds; each also picks another reward model or ensemble", (0,))
    ppo_aggregator: str = setting("mean", f"how PPO's ensembles aggregate: {', '.join(AGGREGATORS)}")
    ppo_updates: int = setting(60, "updates of a PPO run", 20)
    ppo_batch: int = setting(128, "responses an update")


def check(s):
    """ValueError naming the first setting that makes no sense."""
    least = dict.fromkeys(("width", "layers", "heads", "pretrain_seeds", "pretrain_texts", "pretrain_steps", "sft_steps", "finetune_seeds",
                           "pairs", "rm_epochs", "n", "ppo_updates", "ppo_batch"), 1) | {"prompts": 2}       # 2: a correlation needs two
    for name, minimum in least.items():
        if getattr(s, name) < minimum:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is below {minimum}")
    for name in ("kl_weights", "ppo_seeds"):
        if not getattr(s, name):
            raise ValueError(f"{flag(name)}: the list is empty, at least one is needed")
    for name in ("flipped", "coverage"):
        if not 0 <= getattr(s, name) <= 1:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is not between 0 and 1")
    if min(s.kl_weights) < 0:
        raise ValueError(f"{flag('kl_weights')}: {min(s.kl_weights)} is negative")
    if s.label_temperature <= 0:
        raise ValueError(f"{flag('label_temperature')}: {s.label_temperature} is not above 0")
    if s.ppo_aggregator not in AGGREGATORS:
        raise ValueError(f"{flag('ppo_aggregator')}: {s.ppo_aggregator!r} is none of {', '.join(AGGREGATORS)}")
    world.writers("raters", s.list_gap)


def flag(name):
    return "--" + name.replace("_", "-")


def parse(argv):
    """Command line -> (Settings, device, out folder). Flags come from the fields of Settings and nowhere else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the whole road, small: other defaults, where two are given")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps")
    parser.add_argument("--out", type=Path, help="folder for results, figures and cache (default runs/overopt, or runs/quick)")
    for f in fields(Settings):
        quick = f.metadata["quick"]
        default = f"default {f.default}" + (f", quick {quick}" if quick != f.default else "")
        many = isinstance(f.default, tuple)
        parser.add_argument(flag(f.name), type=type(f.default[0] if many else f.default), nargs="*" if many else None,
                            default=argparse.SUPPRESS, help=f"{f.metadata['help']} ({default})")
    given = vars(parser.parse_args(argv))
    quick, device, out = given.pop("quick"), given.pop("device"), given.pop("out")
    base = Settings(**{f.name: f.metadata["quick"] for f in fields(Settings)}) if quick else Settings()
    settings = replace(base, **{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()})
    check(settings)
    return settings, pick_device(device), out or Path("runs") / ("quick" if quick else "overopt")


def pick_device(name):
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise ValueError(f"--device: {name!r} is none of auto, cpu, cuda, mps")
    if not available[name]:
        raise ValueError(f"--device: {name} was asked for, but torch sees none on this machine")
    return torch.device(name)


class Road:
    """The stages, each cached under the settings it depends on, the keys of the stages before it, and the code."""

    def __init__(self, settings, device, cache):
        self.s, self.device, self.cache = settings, device, cache
        self.config = Config(world.VOCAB_SIZE, world.PROMPT_LENGTH + world.RESPONSE_LENGTH, settings.width, settings.layers, settings.heads)
        self.train_code = code_of("policy.py", "experiments/world.py")
        self.rm_code = code_of("rm.py")

    def seed_for(self, *names):
        """A seed of its own for every random thing: no two share one, and none moves when another is added."""
        return int.from_bytes(hashlib.sha256(repr((self.s.seed, *names)).encode()).digest()[:6], "big")

    def generator(self, *names):
        return torch.Generator(self.device).manual_seed(self.seed_for(*names))

    def stage(self, name, needs, compute, *more):
        """Run or read a stage that depends on the settings in the string `needs` and on `more` (keys, code)."""
        inputs = {key: getattr(self.s, key) for key in needs.split()}
        return self.cache(name, [inputs, str(self.device.type), torch.__version__, *more], compute)

    def to(self, *tensors):
        return tuple(x.to(self.device) for x in tensors)

    def language_model(self, state):
        model = LanguageModel(self.config, 0).to(self.device)
        model.load_state_dict(state)
        return model

    def reward_model(self, state):
        model = RewardModel(LanguageModel(self.config, 0).trunk, 0).to(self.device)
        model.load_state_dict(state)
        return model

    # ----- training -------------------------------------------------------------------------------

    def pretrain(self, p):
        """One pretraining: the seed sets initialisation and data sample. p is a number, or "policy"."""
        def compute():
            s = self.s
            texts = torch.cat(world.sample_texts(s.pretrain_texts, self.seed_for("texts", p), list_gap=s.list_gap), 1)
            model = LanguageModel(self.config, self.seed_for("initialisation", p)).to(self.device)
            losses = train_lm(model, texts.to(self.device), TrainConfig(steps=s.pretrain_steps), self.seed_for("order", p),
                              label=f"pretraining {p}")
            return {"state": model.state_dict(), "loss": losses[-50:].mean().item()}
        return self.stage(f"pretrain-{p}", "seed width layers heads pretrain_texts pretrain_steps list_gap", compute, self.train_code)

    def finetune_policy(self):
        """SFT: the policy's own pretraining, then the responses of the broad pool alone."""
        pretrained, key = self.pretrain("policy")
        def compute():
            s = self.s
            texts = torch.cat(world.sample_texts(s.pretrain_texts, self.seed_for("references"), list_gap=s.list_gap), 1)
            model = self.language_model(pretrained["state"])
            train_lm(model, texts.to(self.device), TrainConfig(steps=s.sft_steps, lr=1e-3), self.seed_for("sft order"),
                     prompt_length=world.PROMPT_LENGTH, label="SFT")
            posts = world.sample_posts(512, self.seed_for("normalisation posts")).to(self.device)
            responses = sample(model, posts, world.RESPONSE_LENGTH, self.generator("normalisation samples"))
            return {"state": model.state_dict(), "posts": posts, "responses": responses}
        return self.stage("sft", "seed sft_steps pretrain_texts list_gap", compute, key)

    def preferences(self, count, *names):
        s = self.s
        return self.to(*world.sample_preferences(count, self.seed_for(*names), s.list_gap, s.label_temperature, s.flipped, s.coverage))

    def train_reward_model(self, p, f, sft, sft_key):
        """RM (p, f): pretraining p, then the preference pairs; finetuning seed f sets head and data order."""
        pretrained, key = self.pretrain(p)
        def compute():
            s = self.s
            rm = RewardModel(self.language_model(pretrained["state"]).cpu().trunk, self.seed_for("head", f)).to(self.device)
            config = TrainConfig(steps=max(1, s.pairs * s.rm_epochs // 64), lr=1e-3, warmup=0.1)
            train_rm(rm, *self.preferences(s.pairs, "training pairs"), config, self.seed_for("pair order", f), s.eta,
                     label=f"reward model ({p}, {f})")
            normalise(rm, sft["posts"], sft["responses"])
            prompts, chosen, rejected = self.preferences(1000, "validation pairs")
            with torch.no_grad():
                right = accuracy(rm(prompts, chosen), rm(prompts, rejected)).item()
            return {"state": rm.state_dict(), "accuracy": right}
        return self.stage(f"rm-{p}-{f}", "pairs rm_epochs eta label_temperature flipped list_gap coverage", compute, key, sft_key, self.rm_code)

    # ----- best-of-n ------------------------------------------------------------------------------

    def draw_bank(self, sft, sft_key):
        """n samples for each of the posts, with the gold reward's parts and the traits of each, all (posts, n)."""
        def compute():
            s, model = self.s, self.language_model(sft["state"])
            posts = world.sample_posts(s.prompts, self.seed_for("bank posts")).to(self.device)
            generator = self.generator("bank samples")
            chunks = [sample(model, chunk, world.RESPONSE_LENGTH, generator, n=s.n)
                      for chunk in tqdm(posts.split(max(1, 512 // s.n)), "sampling the bank", leave=False, disable=None)]
            responses = torch.cat(chunks)
            parts, traits = world.judge_rows(posts.repeat_interleave(s.n, 0), responses)
            square = lambda table: {name: x.view(-1, s.n) for name, x in table.items()}
            return {"posts": posts, "responses": responses, "parts": square(parts), "traits": square(traits)}
        return self.stage("bank", "seed prompts n", compute, sft_key)

    def score_bank(self, p, rms, keys, bank, bank_key):
        """Rewards of the bank's responses by the RMs of pretraining p: (finetune_seeds, posts, n)."""
        def compute():
            posts = bank["posts"].repeat_interleave(self.s.n, 0)
            return score(Ensemble(rms), posts, bank["responses"], f"scoring the bank, pretraining {p}").view(len(rms), -1, self.s.n)
        return self.stage(f"scores-{p}", "", compute, keys, bank_key)

    # ----- PPO ------------------------------------------------------------------------------------

    def align(self, kind, seed, beta, members, member_keys, sft, sft_key, posts):
        """One PPO run from the SFT policy on the aggregated members, then one response to each of `posts`."""
        def compute():
            s, policy, reference = self.s, self.language_model(sft["state"]), self.language_model(sft["state"])
            config = PPOConfig(beta=beta, updates=s.ppo_updates, batch_size=s.ppo_batch, max_new_tokens=world.RESPONSE_LENGTH,
                               minibatch_size=max(1, s.ppo_batch // 2), seed=self.seed_for("ppo", seed))
            prompts = world.sample_posts(4096, self.seed_for("ppo posts")).to(self.device)
            records = ppo(policy, Ensemble(members, aggregator), prompts, config, world.gold, label=f"PPO {kind} {seed}, KL weight {beta}")
            curve = [{k: v for k, v in record.items() if k not in ("prompts", "responses")} for record in records]
            responses = sample(policy, posts, world.RESPONSE_LENGTH, self.generator("ppo evaluation", seed))
            with torch.no_grad():
                log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
            parts, traits = world.judge_rows(posts, responses)
            return {"curve": curve, "responses": responses, "kl": kl_k1(log_ratio).sum(1), "parts": parts, "traits": traits,
                    "state": policy.state_dict()}
        aggregator = "mean" if kind == "single" else self.s.ppo_aggregator
        return self.stage(f"ppo-{kind}-{seed}-{beta}", "seed ppo_updates ppo_batch", compute, sft_key, member_keys, seed, beta,
                          aggregator_code(aggregator), code_of("ppo.py"))

    def score_run(self, name, responses, run_key, rms, rm_keys, posts):
        """Rewards of a PPO policy's responses by every RM, (M, posts): all runs on one footing."""
        return self.stage(f"{name}-scores", "", lambda: Ensemble(rms).scores(posts, responses), run_key, rm_keys)[0]


def aggregator_code(name):
    """What identifies an aggregator's formula: its compiled code and constants."""
    code = AGGREGATORS[name].__code__
    return [code.co_code.hex(), repr(code.co_consts), code.co_names]


def score(ensemble, posts, responses, label, chunk=2048):
    """ensemble.scores in chunks, with a bar: (M, B)."""
    starts = tqdm(range(0, len(posts), chunk), label, leave=False, disable=None)
    return torch.cat([ensemble.scores(posts[i:i + chunk], responses[i:i + chunk]) for i in starts], 1)


def run(settings, device, out):
    """The whole road -> (results, seconds a stage). Prints a line a part."""
    s, start = settings, time.perf_counter()
    cache = Cache(out / "cache", device)
    road = Road(s, device, cache)

    def say(text):
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    say(f"on {device.type}, {torch.get_num_threads()} threads, into {out}")
    for p in range(s.pretrain_seeds):
        road.pretrain(p)
    sft, sft_key = road.finetune_policy()
    say(f"pretrained {s.pretrain_seeds} + 1 language models, finetuned the last as the policy (SFT)")

    grid = [(p, f) for p in range(s.pretrain_seeds) for f in range(s.finetune_seeds)]
    trained = [road.train_reward_model(p, f, sft, sft_key) for p, f in grid]
    rms, rm_keys = [road.reward_model(value["state"]) for value, _ in trained], [key for _, key in trained]
    accuracies = [value["accuracy"] for value, _ in trained]
    say(f"trained {len(rms)} reward models: validation accuracy {np.mean(accuracies):.3f} +- {np.std(accuracies):.3f}")

    bank, bank_key = road.draw_bank(sft, sft_key)
    F = s.finetune_seeds
    scores = torch.cat([road.score_bank(p, rms[p * F:p * F + F], rm_keys[p * F:p * F + F], bank, bank_key)[0] for p in range(s.pretrain_seeds)])
    say(f"drew {s.n} samples for each of {s.prompts} posts, scored by every reward model")

    groups = {"single": [[m] for m in range(len(rms))], "finetune": finetune_ensembles(s.pretrain_seeds, F),
              "pretrain": pretrain_ensembles(s.pretrain_seeds, F)}
    # PPO's single RMs: a member of that seed's pretrain ensemble, so that a seed differs in pretraining too.
    choices = {**groups, "single": [[group[i % len(group)]] for i, group in enumerate(groups["pretrain"])]}
    runs = []
    for beta in s.kl_weights:
        for seed in s.ppo_seeds:
            for kind in groups:
                members = choices[kind][seed % len(choices[kind])]
                value, key = road.align(kind, seed, beta, [rms[m] for m in members], [rm_keys[m] for m in members], sft, sft_key, bank["posts"])
                scored = road.score_run(f"ppo-{kind}-{seed}-{beta}", value["responses"], key, rms, rm_keys, bank["posts"])
                runs.append({"kind": kind, "seed": seed, "kl_weight": beta, "members": members, "scores": scored, **value})
        golds = {kind: np.mean([sum(r["parts"].values()).mean().item() for r in runs if (r["kind"], r["kl_weight"]) == (kind, beta)])
                 for kind in groups}
        say(f"PPO with KL weight {beta}: gold " + ", ".join(f"{kind} {value:.2f}" for kind, value in golds.items()))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    analysis = analyse(s, accuracies, scores, bank, runs, groups)
    return {"settings": asdict(s), "device": device.type, "versions": versions, **analysis}, cache.seconds


def prepare(out):
    """Make the folder and see that it can be written; ValueError otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", lambda file: None)
        (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out: cannot write into {out} ({error.strerror})") from None
    return out


def to_json(x):
    """Bytes of indented JSON, lists of plain values on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), json.dumps(x, indent=1)).encode()


def peak_memory_gb():
    """Most memory that this process held, in GB (0 where the system does not tell, as on Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024          # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(argv=None):
    try:
        settings, device, out = parse(argv)
        start = time.perf_counter()
        results, seconds = run(settings, device, prepare(out))
        write_whole(out / "results.json", lambda file: file.write(to_json(results)))
        draw_figures(results, out)
        seconds = {"stages": seconds, "total": sum(seconds.values()), "this_run": time.perf_counter() - start,
                   "threads": torch.get_num_threads(), "peak_memory_gb": peak_memory_gb()}
        write_whole(out / "timings.json", lambda file: file.write(to_json(seconds)))
    except ValueError as error:
        print(f"overopt.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\noveropt.py: interrupted. The same command continues where this run stopped.", file=sys.stderr)
        return 130
    print(report(results))
    print(f"figures, results.json and timings.json are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
