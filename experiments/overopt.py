"""Reward hacking, end to end: watch it happen, shrink with an ensemble, and not go away.

    python experiments/overopt.py                       # one world, everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick               # the same, small: a first look
    python experiments/overopt.py --seeds 1 2 3 4 5     # five worlds: means, intervals and verdicts
    python experiments/overopt.py --task nli            # another rater of the same posts

Read this file from top to bottom: the settings, the stages in running order, and the story that joins
them. Every world and task leaves one record in --out, world-SEED-TASK.json; claims, tables and figures
are made from these. An interrupted run continues.
"""

import hashlib
import io
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from math import ceil, inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import claims
import figures
import numpy as np
import report
import torch
import world
from claims import KINDS, Evidence
from pool import Pool, cluster, processes, saved, write_whole

from ensemble import AGGREGATORS, Ensemble, aggregate, finetune_ensembles, pretrain_ensembles
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, ppo
from rm import RewardModel, accuracy, normalise, train_pointwise, train_rm

CONTEXT = world.PROMPT_LENGTH + world.RESPONSE_LENGTH  # tokens
VALIDATION_PAIRS = 1000
PPO_PROMPTS = 4096  # posts that PPO draws its prompts from
PROBES = 200  # posts on which edits, and pairs of texts, are tried
FILM_POSTS = 50  # posts that a film may be about
CURVE = ("kl", "proxy", "gold", "explained_variance")  # what is kept of every update of PPO


# ----- settings -----------------------------------------------------------------------------------
def setting(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What a world's numbers depend on, besides its seed and task. Each setting is a flag."""

    # the models
    width: int = setting(64, "width of the policy")
    rm_width: int = setting(64, "width of the reward models")
    layers: int = setting(2, "layers of every transformer")
    heads: int = setting(8, "attention heads of every transformer")
    pretrain_seeds: int = setting(5, "pretrainings of reward models, not the policy's")
    pretrain_texts: int = setting(20000, "texts for each pretraining, and for SFT")
    pretrain_steps: int = setting(1200, "updates of a pretraining")
    sft_steps: int = setting(200, "updates of supervised finetuning of the policy")
    list_gap: float = setting(0.25, "list rate: careful writers minus careless ones")
    # preferences and reward models
    finetune_seeds: int = setting(5, "reward models for each pretraining")
    jury: int = setting(3, "reward models of a further pretraining, which nothing is aligned to")
    pairs: int = setting(3000, "preference pairs for training")
    rm_epochs: int = setting(4, "passes over the pairs")
    rm_batch: int = setting(32, "pairs per update; for nli twice as many responses")
    rm_lr: float = setting(2e-3, "peak learning rate of reward models")
    eta: float = setting(0.01, "weight of the Bradley-Terry loss's centring term")
    label_temperature: float = setting(0.7, "raters' noise, a softmax temperature")
    flipped: float = setting(0.0, "share of labels that are flipped")
    seen: tuple[str, ...] = setting(world.SEEN, f"habits that raters see, of {', '.join(world.HABIT_NAMES)}")
    # the SFT policy's samples
    prompts: int = setting(256, "posts that best-of-n and PPO's policies answer")
    n: int = setting(64, "samples of each post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting((0.005, 0.02, 0.1), "weights beta of the KL penalty")
    ppo_runs: int = setting(2, "PPO runs of a kind at each KL weight")
    ppo_updates: int = setting(40, "updates of a PPO run")
    ppo_batch: int = setting(128, "responses per update")
    aggregator: str = setting("mean", "how ensembles aggregate")

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 2 if name in ("prompts", "n") else 1 if isinstance(value, int) else 0
            for number in value if name == "kl_weights" else [value]:
                if name not in ("aggregator", "seen") and not least <= number < inf:
                    raise ValueError(f"{flag(name)} must be >= {least}, got {number}")
        for width in (self.width, self.rm_width):  # what they are for says what else is wrong: now, not later
            Config(world.VOCAB_SIZE, CONTEXT, width, self.layers, self.heads)
        world.writers(self.list_gap, self.seen)


# What --quick changes
QUICK = {"pretrain_seeds": 3, "pretrain_texts": 8000, "pretrain_steps": 500, "sft_steps": 60}
QUICK |= {"finetune_seeds": 3, "pairs": 1500, "prompts": 64, "ppo_runs": 1, "ppo_updates": 20}


# ----- the stages, in running order ---------------------------------------------------------------
# Each is a pure function of plain arguments. Whatever is random has a seed of its own, made of the world's
# seed and a name, so that a new stage changes no other.
def seed_for(seed, *names):
    """A world's seed and names -> a seed: seed_for(1, "texts", 0) and seed_for(1, "texts", 1) are unlike."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")


def language_model(config, state, device):
    """The language model with these weights."""
    model = LanguageModel(config, seed=0).to(device)
    model.load_state_dict(state)
    return model


def reward_model(config, state, device):
    """The reward model with these weights, frozen."""
    model = RewardModel(LanguageModel(config, seed=0).trunk, finetune_seed=0).to(device)
    model.load_state_dict(state)
    return model.requires_grad_(False)


def broad_texts(count, list_gap, seed):
    """Posts and responses of writers with all habits: (count, P + R)."""
    return torch.cat(world.sample_texts(count, seed, world.writers(list_gap)), dim=1)


def pretrain(config, steps, n_texts, list_gap, seed, name, device):
    """A language model's weights. Its name, a number or "policy", sets the initialisation and the texts."""
    model = LanguageModel(config, seed_for(seed, "initialisation", name)).to(device)
    texts = broad_texts(n_texts, list_gap, seed_for(seed, "texts", name)).to(device)
    train_lm(model, texts, TrainConfig(steps), seed_for(seed, "order", name), desc=None)
    return model.state_dict()


def finetune(config, state, steps, n_texts, list_gap, seed, device):
    """The policy learns to answer posts (supervised finetuning, SFT): its weights before -> and after."""
    model = language_model(config, state, device)
    texts = broad_texts(n_texts, list_gap, seed_for(seed, "references")).to(device)
    train_config = TrainConfig(steps, lr=1e-3)
    train_lm(model, texts, train_config, seed_for(seed, "sft order"), world.PROMPT_LENGTH, desc=None)
    return model.state_dict()


def draw_samples(config, state, posts, n, seed, device):
    """n responses of the policy to each post: (posts, P) -> (posts * n, R)."""
    model, generator = language_model(config, state, device), torch.Generator(device).manual_seed(seed)
    chunks = posts.to(device).split(max(1, 512 // n))  # 512 rows at once: their keys and values stay small
    return torch.cat([sample(model, chunk, world.RESPONSE_LENGTH, generator, n=n) for chunk in chunks])


def judgements(s, task, count, seed):
    """What raters say: prompts, chosen, rejected of `count` pairs; nli: prompts, responses, labels, of twice
    as many responses."""
    if task == "nli":
        return world.sample_labels(2 * count, seed, s.list_gap, s.flipped, s.seen)
    noise = (s.label_temperature, s.flipped)
    return world.sample_preferences(count, seed, s.list_gap, *noise, s.seen, task)


def train_reward_model(config, state, task, training, validation, sft, train_config, eta, seed, f, device):
    """A reward model on a pretrained trunk; finetuning seed f sets its head and the order of the data.
    Normalised on `sft`: posts, and the SFT policy's responses. Returns its weights and its accuracy."""
    training, validation, sft = ([x.to(device) for x in data] for data in (training, validation, sft))
    trunk, order = language_model(config, state, device).trunk, seed_for(seed, "rm order", f)
    model = RewardModel(trunk, seed_for(seed, "head", f))
    if task == "nli":
        train_pointwise(model, *training, train_config, order, desc=None)
    else:
        train_rm(model, *training, train_config, order, eta, desc=None)
    normalise(model, *sft)
    with torch.no_grad():
        return {"state": model.state_dict(), "accuracy": agreement(model, validation, task)}


def agreement(reward, data, task):
    """Share of the pairs that a reward function orders as the rater does; nli: of all pairs of a response
    labelled 1 and one labelled 0, the AUC."""
    if task == "nli":
        prompts, responses, labels = data
        rewards = reward(prompts, responses)
        return accuracy(rewards[labels == 1, None], rewards[labels == 0]).mean().item()
    prompts, chosen, rejected = data
    return accuracy(reward(prompts, chosen), reward(prompts, rejected)).item()


def score(config, states, posts, responses, device):
    """Reward by every one of these reward models of n responses to each post: -> (models, posts * n)."""
    models = [reward_model(config, state, device) for state in states]
    return Ensemble(models).scores(posts.to(device), responses.to(device))


def align(config, sft, rm_config, states, aggregator, ppo_config, task, posts, seed, kind, run, device):
    """PPO from the SFT policy on the aggregated rewards of some reward models, then one response to each of
    `posts`: {kind, run, kl_weight, "curve": {name: numbers} over the updates, "kl": to SFT in nats per
    response, "responses" (posts, R), "frames": its responses to the first FILM_POSTS posts at each of
    `film_updates`, (posts * frames, R)}. Runs of the same number see the same prompts in the same order."""
    policy, reference = (language_model(config, sft, device) for _ in range(2))
    reward = Ensemble([reward_model(rm_config, state, device) for state in states], aggregator)
    prompts = world.sample_posts(PPO_PROMPTS, seed_for(seed, "ppo posts")).to(device)
    gold = partial(world.gold, task=task)
    posts = posts.to(device)

    def answer(posts):
        generator = torch.Generator(device).manual_seed(seed_for(seed, "evaluation", run))
        return sample(policy, posts, world.RESPONSE_LENGTH, generator)

    updates, frames = [], [answer(posts[:FILM_POSTS])]
    for update in ppo(policy, reward, prompts, ppo_config, gold, desc=None):  # it trains as it yields
        updates.append(update)
        if len(updates) in film_updates(ppo_config.updates):
            frames.append(answer(posts[:FILM_POSTS]))
    responses = answer(posts)
    with torch.no_grad():
        log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
    curve = {name: [update[name] for update in updates] for name in CURVE}
    found = {"kind": kind, "run": run, "kl_weight": ppo_config.beta, "curve": curve}
    found["frames"] = torch.stack(frames, dim=1).flatten(0, 1)
    return found | {"kl": log_ratio.sum(1).mean().item(), "responses": responses}


# ----- the story ----------------------------------------------------------------------------------
def make_world(s, seed, task, device, pool):
    """One world and task, from pretraining to its record, ready for JSON; and what else it leaves."""
    trained = train_models(s, seed, task, device, pool)
    evidence = best_of_n(trained, pool)
    evidence.runs = align_policies(trained, evidence, pool)
    evidence.ranking["PPO's texts"] = claims.ranked_on_ppo(evidence)
    record = record_of(trained, evidence, make_film(trained, evidence, pool))
    pool.say(report.film_lines(record["film"]))
    policy = saved({"config": asdict(trained.config), "state": trained.sft})
    return record, bank_of(trained, evidence), policy


@dataclass
class Trained:
    """What a world has before anything is optimised against a reward model. States are a model's weights."""

    settings: Settings
    seed: int
    task: str
    device: str
    config: Config  # of the policy
    rm_config: Config  # of the reward models
    sft: dict  # the policy's state after supervised finetuning
    posts: torch.Tensor  # (posts, P)
    bank: torch.Tensor  # (posts * n, R), the SFT policy's samples
    calibration: tuple  # other posts, and a sample for each: reward models are normalised on these
    states: list  # M = P * F reward models, ordered by pretraining: F of the first, F of the second, ...
    jury: list  # reward models of a further pretraining
    accuracies: list  # M, of the reward models that are no jury
    ceiling: float  # gold's own accuracy: labels are noisy, and its ties, 1 pair in 18, count as wrong


def train_models(s, seed, task, device, pool):
    """From nothing to reward models, and to the samples that they will be used on."""
    P, F, say = s.pretrain_seeds, s.finetune_seeds, pool.say
    shapes = (Config(world.VOCAB_SIZE, CONTEXT, width, s.layers, s.heads) for width in (s.width, s.rm_width))
    config, rm_config = shapes
    texts = (s.pretrain_texts, s.list_gap)

    # 1. Language models: one becomes the policy, one the trunk of the jury, the others those of F reward
    #    models each.
    say(f"World {seed}, {task}: {P + 2} language models learn to write posts and summaries.")
    pretrainings = [*range(P), "jury"]
    names = [(config, "policy"), *((rm_config, p) for p in pretrainings)]
    jobs = [(shape, s.pretrain_steps, *texts, seed, name, device) for shape, name in names]
    policy, *pretrained = pool.map(pretrain, jobs)
    pretrained = dict(zip(pretrainings, pretrained, strict=True))

    # 2. The SFT policy, and its samples. Best-of-n picks from the bank, and PPO answers the same posts; on
    #    samples for other posts, reward models are normalised.
    say(f"The policy learns to summarise (SFT) and writes {s.n} samples for each of {s.prompts} posts.")
    (sft,) = pool.map(finetune, [(config, policy, s.sft_steps, *texts, seed, device)])
    posts = world.sample_posts(s.prompts, seed_for(seed, "bank posts"))
    others = world.sample_posts(512, seed_for(seed, "normalisation posts"))
    draws = [
        (posts, s.n, seed_for(seed, "bank samples")),
        (others, 1, seed_for(seed, "normalisation samples")),
    ]
    bank, answers = pool.map(draw_samples, [(config, sft, *draw, device) for draw in draws])

    # 3. Reward models: every pretraining with every finetuning seed.
    say(f"{P} x {F} reward models learn from the raters, and a jury of {s.jury} that nothing is aligned to.")
    training = judgements(s, task, s.pairs, seed_for(seed, "training"))
    validation = judgements(s, task, VALIDATION_PAIRS, seed_for(seed, "validation"))
    steps, batch = ceil(s.pairs * s.rm_epochs / s.rm_batch), s.rm_batch * (2 if task == "nli" else 1)
    data = (task, training, validation, (others, answers))
    learn = (*data, TrainConfig(steps, batch, s.rm_lr), s.eta)
    seeds = [(p, f) for p in range(P) for f in range(F)] + [("jury", f) for f in range(s.jury)]
    found = pool.map(
        train_reward_model, [(rm_config, pretrained[p], *learn, seed, f, device) for p, f in seeds]
    )
    states, jury = ([model["state"] for model in models] for models in (found[: P * F], found[P * F :]))
    accuracies = [model["accuracy"] for model in found[: P * F]]
    ceiling = agreement(partial(world.gold, task=task), validation, task)
    say(report.accuracy_line(accuracies, ceiling))
    samples = (posts, bank, (others, answers))
    return Trained(s, seed, task, device, config, rm_config, sft, *samples, states, jury, accuracies, ceiling)


def best_of_n(trained, pool):
    """Every reward model scores every sample, and texts that probe what it has learned: the Evidence."""
    s, seed, M = trained.settings, trained.seed, len(trained.states)
    raters = world.writers(s.list_gap, s.seen)[: 1 if trained.task == "nli" else 2]
    edit_posts, edits = world.sample_edits(PROBES, seed_for(seed, "edits"))
    texts = {  # posts, and n responses to each
        "SFT's samples": (trained.posts, trained.bank),
        "raters' texts": world.sample_texts(PROBES, seed_for(seed, "raters' texts"), raters, n=2),
        "all habits": world.sample_texts(
            PROBES, seed_for(seed, "all habits"), world.writers(s.list_gap), n=2
        ),
        "edits": (edit_posts, torch.stack(list(edits.values()), dim=1).flatten(0, 1)),
    }
    scores, gold, traits = {}, {}, {}
    for name, (posts, responses) in texts.items():
        models = trained.states + trained.jury
        jobs = [(trained.rm_config, [state], posts, responses, trained.device) for state in models]
        scores[name] = to_numpy(torch.cat(pool.map(score, jobs))).reshape(len(models), len(posts), -1)
        gold[name], traits[name] = judge(posts, responses, trained.task)
    paid, price = ((x - x[..., :1]).mean(-2) for x in (scores["edits"][:M], gold["edits"]))
    samples, kinds_of_text = "SFT's samples", ("raters' texts", "all habits", "SFT's samples")
    evidence = Evidence(
        accuracy=np.reshape(trained.accuracies, (s.pretrain_seeds, s.finetune_seeds)),
        scores=scores[samples][:M].reshape(s.pretrain_seeds, s.finetune_seeds, s.prompts, s.n),
        jury=scores[samples][M:],
        gold=gold[samples],
        traits=traits[samples],
        edits={edit: {"models": paid[:, i], "gold": price[i]} for i, edit in enumerate(edits)},
        ranking={name: claims.ranked_as_gold(scores[name][:M], gold[name]) for name in kinds_of_text},
        aggregate=partial(aggregate_arrays, AGGREGATORS[s.aggregator]),
    )
    pool.say(report.best_of_n_lines(claims.best_of_n_curves(evidence)))
    return evidence


def align_policies(trained, evidence, pool):
    """PPO on one reward model and on ensembles. Every run is scored by all reward models, and by gold."""
    s, t, posts, seed = trained.settings, trained, trained.posts, trained.seed
    pool.say("PPO: a line for each run, from its first update to its last, on its training posts.")
    sizes = {"updates": s.ppo_updates, "batch_size": s.ppo_batch, "minibatch_size": max(1, s.ppo_batch // 2)}
    sizes["max_new_tokens"] = world.RESPONSE_LENGTH
    jobs, cases = [], ppo_cases(s)
    for kind, run, kl_weight, members in cases:
        ppo_config = PPOConfig(kl_weight, seed=seed_for(seed, "ppo", run), **sizes)
        reward = (t.rm_config, [t.states[m] for m in members], AGGREGATORS[s.aggregator])
        jobs.append((t.config, t.sft, *reward, ppo_config, t.task, posts, seed, kind, run, t.device))
    runs = pool.map(align, jobs, tell=report.ppo_line)
    models = t.states + t.jury
    scored = pool.map(score, [(t.rm_config, models, posts, run["responses"], t.device) for run in runs])
    for (*_, members), run, scores in zip(cases, runs, scored, strict=True):
        gold, traits = judge(posts, run["responses"], t.task)
        run["gold"], run["traits"] = gold[:, 0], {name: trait[:, 0] for name, trait in traits.items()}
        run["scores"], run["jury"] = np.split(to_numpy(scores), [len(t.states)])
        run["members"], run["proxy"] = members, evidence.aggregate(run["scores"][members])
    return runs


def ppo_cases(s):
    """(kind, run, KL weight, members) of every PPO run. Run i is on pretrain ensemble i, on finetune ensemble
    i, and on the one reward model in both."""
    P, F = s.pretrain_seeds, s.finetune_seeds
    grid = np.arange(P * F).reshape(P, F).tolist()
    cases = []
    for kl_weight in sorted(s.kl_weights):
        for run in range(s.ppo_runs):
            finetune = finetune_ensembles(grid)[run % P]
            pretrain = pretrain_ensembles(grid)[run % F]
            single = [member for member in pretrain if member in finetune]
            members = {"single": single, "finetune": finetune, "pretrain": pretrain}
            cases += [(kind, run, kl_weight, members[kind]) for kind in members]
    return cases


def make_film(trained, evidence, pool):
    """One post, and what the first run of each kind at the smallest KL weight makes of it: {"post", kind:
    {"members", "frames": [{update, kl, text, proxy, gold, jury, "scores" of all reward models}]}}. Of the
    first FILM_POSTS, it is the one on which PPO on one reward model raises proxy minus gold most, in std."""
    t, posts, M = trained, trained.posts[:FILM_POSTS], len(trained.states)
    runs = {kind: evidence.runs_of(kind)[0] for kind in KINDS}
    jobs = [(t.rm_config, t.states + t.jury, posts, run["frames"], t.device) for run in runs.values()]
    scored = [to_numpy(scores).reshape(len(scores), len(posts), -1) for scores in pool.map(score, jobs)]
    golds = [judge(posts, run["frames"], t.task)[0] for run in runs.values()]
    proxies = [evidence.aggregate(x[run["members"]]) for x, run in zip(scored, runs.values(), strict=True)]
    gap = proxies[0] / evidence.proxies("single").std() - golds[0] / evidence.gold.std()
    post = (gap[:, -1] - gap[:, 0]).argmax()
    film = {"post": world.decode(posts[post])}
    for (kind, run), scores, gold, proxy in zip(runs.items(), scored, golds, proxies, strict=True):
        texts, frames = run["frames"].view(*gold.shape, -1)[post], []
        for i, update in enumerate([0, *film_updates(t.settings.ppo_updates)]):
            frames.append({
                "update": update, "kl": run["curve"]["kl"][max(0, update - 1)],
                "text": world.decode(texts[i]),
                "proxy": proxy[post, i], "gold": gold[post, i], "jury": scores[M:, post, i].mean(),
                "scores": scores[:M, post, i],
            })  # fmt: skip
        film[kind] = {"members": run["members"], "frames": frames}
    return film


def film_updates(updates):
    """After which updates a film shows the policy, besides before the first: 40 -> [5, 10, 20, 40]."""
    return sorted({ceil(updates / parts) for parts in (8, 4, 2, 1)})


def judge(posts, responses, task):
    """Gold (posts, n) and traits {name: (posts, n)} of n responses to each post, as arrays."""
    n = len(responses) // len(posts)
    parts, traits = world.judge_rows(posts.repeat_interleave(n, 0), responses, task)
    gold = to_numpy(sum(part.double() for part in parts.values())).round(5)
    return gold.reshape(-1, n), {name: to_numpy(trait).reshape(-1, n) for name, trait in traits.items()}


def to_numpy(tensor):
    """A tensor as an array of float64."""
    return tensor.double().numpy()


def aggregate_arrays(aggregator, scores):
    """ensemble.aggregate on an array (M, ...) -> (...)."""
    return aggregate(aggregator, torch.from_numpy(scores)).numpy()


# ----- what a world leaves ------------------------------------------------------------------------
def record_of(trained, evidence, film):
    """A world's record, as it is in JSON."""
    accuracies, settings = trained.accuracies, asdict(trained.settings)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    head = {"seed": trained.seed, "task": trained.task, "settings": settings, "versions": versions}
    return head | rounded({
        "device": trained.device,
        "accuracy": {"mean": np.mean(accuracies), "std": np.std(accuracies), "ceiling": trained.ceiling},
        "correlation": claims.correlation_with_gold(evidence),
        "claims": claims.measure(evidence, trained.task),
        "gold_std": evidence.gold.std(),
        "best_of_n": claims.best_of_n_curves(evidence),
        "traits": claims.trait_table(evidence),
        "ppo": [claims.summary_of(evidence, run) for run in evidence.runs],
        "edits": evidence.edits,
        "ranking": evidence.ranking,
        "film": film,
    })  # fmt: skip


def bank_of(trained, evidence):
    """Scored samples to play with, the bytes of an .npz: see experiments/README.md, field by field."""
    P, F, *table = evidence.scores.shape
    posts, bank = trained.posts, trained.bank
    parts, _ = world.judge_rows(posts.repeat_interleave(table[1], 0), bank, trained.task)
    arrays = {"rewards": evidence.flat, "gold": evidence.gold}
    arrays |= {f"part_{name}": part.numpy().reshape(table) for name, part in parts.items()}
    arrays |= {f"trait_{name}": trait for name, trait in evidence.traits.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["pretrain_seed"] = np.arange(P * F) // F
    arrays["finetune_seed"] = np.arange(P * F) % F
    arrays["posts"] = np.array([world.decode(row) for row in posts.tolist()])
    arrays["responses"] = np.reshape([world.decode(row) for row in bank.tolist()], table)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def rounded(x):
    """x as JSON has it: plain lists; floats with five decimals, so that a file is short, and None for NaN."""
    if isinstance(x, dict):
        return {name: rounded(value) for name, value in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [rounded(value) for value in x]
    if isinstance(x, float):
        return round(float(x), 5) if np.isfinite(x) else None
    return x


# ----- the command line ---------------------------------------------------------------------------
def flag(name):
    """A setting's flag: "rm_width" -> "--rm-width"."""
    return "--" + name.replace("_", "-")


def add_flags(parser):
    """The flags of a script that makes worlds."""
    add, cores = parser.add_argument, min(4, os.cpu_count() or 1)
    add("--task", default="tldr", choices=world.TASKS, help="who rates (default tldr)")
    add("--seeds", type=int, nargs="+", default=[1], help="the worlds to make (default 1)")
    add("--processes", type=int, default=cores, help=f"how many share the work (default {cores})")
    add("--scheduler", metavar="HOST:PORT", help="a dask scheduler, whose workers do the work")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu: these models are small")
    add("--out", type=Path, help="the folder for results, in runs/ by default")
    add("--quick", action="store_true", help="smaller defaults, where two are given")
    for f in fields(Settings):
        options = {"type": f.type}
        if f.name in ("kl_weights", "seen"):
            options = {"type": type(f.default[0]), "nargs": "*" if f.name == "seen" else "+"}
        options["choices"] = AGGREGATORS if f.name == "aggregator" else None
        quick = f", quick {QUICK[f.name]}" if f.name in QUICK else ""
        add(flag(f.name), help=f"{f.metadata['help']} (default {f.default}{quick})", **options)


def settings_from(arguments):
    """The parsed flags -> Settings. ValueError, naming the flag, if one makes no sense."""
    for name in ("seeds", "kl_weights"):
        values = getattr(arguments, name) or []
        if len(set(values)) < len(values):
            raise ValueError(f"{flag(name)} must not have a value twice, got {' '.join(map(str, values))}")
    if arguments.processes < 1:
        raise ValueError(f"--processes must be >= 1, got {arguments.processes}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    given = {f.name: getattr(arguments, f.name) for f in fields(Settings)}
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items() if x is not None}
    return Settings(**(QUICK if arguments.quick else {}) | given)


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
    """The command line, checked as far as can be before the work, then world after world."""
    parser = report.parser_of(__doc__)
    add_flags(parser)
    given = parser.parse_args(argv)
    s, seeds, task = settings_from(given), given.seeds, given.task
    out = given.out or Path("runs", "quick" if given.quick else "overopt")
    check_folder(out, s, seeds, task)
    with cluster(given.scheduler) if given.scheduler else processes(given.processes) as executor:
        for seed in seeds:
            record, arrays, policy = make_world(s, seed, task, given.device, Pool(executor, out / "cache"))
            write_whole(out / f"bank-{seed}-{task}.npz", arrays)
            write_whole(out / f"policy-{seed}.pt", policy)
            report.write_json(record, out / f"world-{seed}-{task}.json")
    records = report.load_records(out)[task]
    figures.draw(records, out)
    print("\n" + report.summary(records))
    print(f"\nRecords, figures, samples to play with (bank) and the SFT policy are in {out}")
    print(f"The claims of every task there: python experiments/report.py {out}")


if __name__ == "__main__":
    sys.exit(report.exit_status(main))
