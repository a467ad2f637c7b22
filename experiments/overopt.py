"""Reward hacking, end to end: watch it happen, shrink with an ensemble, and not go away.

    python experiments/overopt.py                       # one world, everything: minutes, on a laptop's CPU
    python experiments/overopt.py --quick               # the same, small: a first look
    python experiments/overopt.py --seeds 1 2 3 4 5     # five worlds: means, intervals and verdicts
    python experiments/overopt.py --task nli            # another rater of the same posts

Read this file from top to bottom: the settings, the stages in running order, and the story that joins
them. Every world and task leaves one record in --out, world-SEED-TASK.json; intervals, tables and figures
are made from these. An interrupted run continues.
"""

import hashlib
import io
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from math import ceil, inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import numpy as np
import torch

import claims
import report
import world
from claims import KINDS, Evidence
from ensemble import AGGREGATORS, Ensemble
from models import language_model, pack_models, reward_model
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from pool import Pool, cluster, key, processes, write_whole
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
    seen: tuple[str, ...] = setting(world.SEEN, f"habits that raters see, of {', '.join(world.HABIT_NAMES)}")
    # the SFT policy's samples
    prompts: int = setting(256, "posts that best-of-n and PPO's policies answer")
    n: int = setting(64, "samples of each post, for best-of-n")
    # PPO
    kl_weights: tuple[float, ...] = setting((0.02, 0.1), "weights beta of the KL penalty")
    ppo_runs: int = setting(2, "PPO runs of a kind at each KL weight")
    ppo_updates: int = setting(40, "updates of a PPO run")
    ppo_batch: int = setting(128, "responses per update")
    aggregator: str = setting("mean", "how ensembles aggregate")

    def __post_init__(self):
        numbers = [(name, value) for name, value in vars(self).items() if isinstance(value, int | float)]
        numbers += [("kl_weights", weight) for weight in self.kl_weights]
        for name, number in numbers:
            least = 2 if name in ("prompts", "n") else 1 if isinstance(number, int) else 0
            if not least <= number < inf:
                raise ValueError(f"{flag(name)} must be >= {least}, got {number}")
        key(AGGREGATORS[self.aggregator], {})  # ValueError if no job can be made of it
        # Made here once, so that their own checks fail now and not after minutes.
        for width in (self.width, self.rm_width):
            Config(world.VOCAB_SIZE, CONTEXT, width, self.layers, self.heads)
        world.writers(self.list_gap, self.seen)


# What --quick changes
QUICK = {"pretrain_seeds": 3, "pretrain_texts": 8000, "pretrain_steps": 500, "sft_steps": 60}
QUICK |= {"finetune_seeds": 3, "pairs": 1500, "prompts": 64, "ppo_runs": 1, "ppo_updates": 20}


# ----- the stages, in running order ---------------------------------------------------------------
# Each is a pure function of plain arguments: the pool runs it in some process and keeps its value (pool.py).
# Whatever is random has a seed of its own, made of the world's seed and a name, so that a new stage changes
# no other. A state is a model's weights.
def seed_for(seed, *names):
    """A world's seed and names -> a seed: seed_for(1, "texts", 0) and seed_for(1, "texts", 1) are unlike."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")


def broad_texts(count, list_gap, seed):
    """Posts and responses of writers with all habits: (count, P + R)."""
    return torch.cat(world.sample_texts(count, seed, world.writers(list_gap)), dim=1)


def pretrain(config, steps, n_texts, list_gap, seed, name, device):
    """A language model's state. Its name, a number or "policy", sets the initialisation and the texts."""
    model = LanguageModel(config, seed_for(seed, "initialisation", name)).to(device)
    texts = broad_texts(n_texts, list_gap, seed_for(seed, "texts", name)).to(device)
    train_lm(model, texts, TrainConfig(steps), seed_for(seed, "order", name), desc=None)
    return model.state_dict()


def train_sft(config, state, steps, n_texts, list_gap, seed, device):
    """The policy learns to answer posts (supervised finetuning, SFT): its state before -> and after."""
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
        return world.sample_labels(2 * count, seed, s.list_gap, s.seen)
    return world.sample_preferences(count, seed, s.list_gap, s.label_temperature, s.seen, task)


def train_reward_model(
    config, pretrained, task, training, validation, calibration, train_config, eta, seed, f, device
):
    """A reward model on a pretrained trunk; finetuning seed f sets its head and the order of the data.
    Normalised on the SFT policy's responses, `calibration`. Returns its state and its accuracy."""
    training, validation = ([x.to(device) for x in data] for data in (training, validation))
    trunk, order = language_model(config, pretrained, device).trunk, seed_for(seed, "rm order", f)
    model = RewardModel(trunk, seed_for(seed, "head", f))
    if task == "nli":
        train_pointwise(model, *training, train_config, order, desc=None)
    else:
        train_rm(model, *training, train_config, order, eta, desc=None)
    normalise(model, *(x.to(device) for x in calibration))
    with torch.no_grad():
        return {"state": model.state_dict(), "accuracy": rater_accuracy(model, validation, task)}


def rater_accuracy(reward, data, task):
    """Share of the pairs that a reward function orders as the rater does; nli: of all pairs of a response
    labelled 1 and one labelled 0, the AUC."""
    if task == "nli":
        prompts, responses, labels = data
        rewards = reward(prompts, responses)
        return accuracy(rewards[labels == 1, None], rewards[labels == 0]).mean().item()
    prompts, chosen, rejected = data
    return accuracy(reward(prompts, chosen), reward(prompts, rejected)).item()


def score(config, state, posts, responses, device):
    """A reward model's rewards of n responses to each post: -> (posts * n,)."""
    return Ensemble([reward_model(config, state, device)]).scores(posts.to(device), responses.to(device))[0]


def align(rm_config, states, aggregator, device, **job):
    """PPO on the aggregated rewards of some reward models: see `align_to`."""
    models = [reward_model(rm_config, state, device) for state in states]
    return align_to(Ensemble(models, aggregator), device=device, **job)


def align_to(reward, config, sft, ppo_config, task, posts, seed, kind, run, device):
    """PPO from the SFT policy on a reward function, then one response to each of `posts`: {kind, run,
    kl_weight, "curve": {name: numbers} over the updates, "kl": to SFT in nats per response, "responses"
    (posts, R), "frames": its responses to the first FILM_POSTS posts, before the first update and after each
    of `film_updates`, (posts * frames, R)}. Runs of the same number, whatever their
    kind and KL weight, draw the same prompts in the same order."""
    policy, reference = (language_model(config, sft, device) for _ in range(2))
    prompts = world.sample_posts(PPO_PROMPTS, seed_for(seed, "ppo posts")).to(device)
    gold = partial(world.gold, task=task)
    posts = posts.to(device)

    def answer(posts):
        generator = torch.Generator(device).manual_seed(seed_for(seed, "evaluation", run))
        return sample(policy, posts, world.RESPONSE_LENGTH, generator)

    updates, frames = [], [answer(posts[:FILM_POSTS])]
    for update in ppo(policy, reward, prompts, ppo_config, gold, desc=None):  # each has changed the policy
        updates.append(update)
        if len(updates) in film_updates(ppo_config.updates):
            frames.append(answer(posts[:FILM_POSTS]))
    responses = answer(posts)
    with torch.no_grad():
        log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
    curve = {name: [update[name] for update in updates] for name in CURVE}
    result = {"kind": kind, "run": run, "kl_weight": ppo_config.beta, "curve": curve}
    result["frames"] = torch.stack(frames, dim=1).flatten(0, 1)
    return result | {"kl": log_ratio.sum(1).mean().item(), "responses": responses}


# ----- the story ----------------------------------------------------------------------------------
def make_world(s, seed, task, device, pool):
    """One world and task, from pretraining to its record, ready for JSON; and what else it leaves."""
    trained = train_models(s, seed, task, device, pool)
    evidence = evaluate_samples(trained, pool)
    evidence.runs = align_policies(trained, evidence, pool)
    film = make_film(trained, evidence, pool)
    pool.say(report.film_lines(film))
    return record_of(trained, evidence, film), bank_of(trained, evidence), pack_models(trained)


@dataclass
class Trained:
    """What a world has before anything is optimised against a reward model."""

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
    states: list  # of M = P * F reward models, ordered by pretraining: F of the first, F of the second, ...
    jury: list  # states of reward models of a further pretraining
    accuracies: list  # M, each one's share of validation pairs in the raters' order
    ceiling: float  # gold's own: labels are noisy, and its ties, 1 pair in 18, count as wrong; nli's labels
    # look at wrong facts alone


def train_models(s, seed, task, device, pool):
    """From nothing to reward models, and to the samples that they will be used on."""
    P, F, say = s.pretrain_seeds, s.finetune_seeds, pool.say
    here = {"seed": seed, "device": device}
    config = Config(world.VOCAB_SIZE, CONTEXT, s.width, s.layers, s.heads)
    rm_config = replace(config, width=s.rm_width)

    # 1. Language models: one becomes the policy, one the jury's trunk, the others trunks of F reward models.
    say(f"World {seed}, {task}: {P + 2} language models learn to write posts and summaries.")
    say("Meanwhile: a post, two writers' responses, and what the true reward (gold) pays for them:")
    (post,), examples = world.sample_texts(1, seed_for(seed, "example"), world.writers(s.list_gap), n=2)
    say(report.texts_lines(post, examples, task))
    texts = {"n_texts": s.pretrain_texts, "list_gap": s.list_gap}
    jobs = [{"name": "policy", "config": config}]
    jobs += [{"name": name, "config": rm_config} for name in (*range(P), "jury")]
    policy, *pretrained = pool.map(pretrain, jobs, steps=s.pretrain_steps, **texts, **here)

    # 2. The SFT policy, and its samples. Best-of-n picks from the bank, and PPO answers the same posts; on
    #    samples for other posts, reward models are normalised.
    say(f"The policy learns to summarise (SFT) and writes {s.n} samples for each of {s.prompts} posts.")
    (sft,) = pool.map(train_sft, [{"state": policy}], config=config, steps=s.sft_steps, **texts, **here)
    posts = world.sample_posts(s.prompts, seed_for(seed, "bank posts"))
    others = world.sample_posts(512, seed_for(seed, "normalisation posts"))
    jobs = [{"posts": posts, "n": s.n, "seed": seed_for(seed, "bank samples")}]
    jobs += [{"posts": others, "n": 1, "seed": seed_for(seed, "normalisation samples")}]
    bank, answers = pool.map(draw_samples, jobs, config=config, state=sft, device=device)
    say("Three of them:\n" + report.texts_lines(posts[0], bank[:3], task))

    # 3. Reward models: every pretraining with every finetuning seed.
    say(f"{P} x {F} reward models learn from the raters, and a jury of {s.jury} that nothing is aligned to.")
    training = judgements(s, task, s.pairs, seed_for(seed, "training"))
    validation = judgements(s, task, VALIDATION_PAIRS, seed_for(seed, "validation"))
    batch_size = s.rm_batch * (2 if task == "nli" else 1)
    train_config = TrainConfig(ceil(s.pairs * s.rm_epochs / s.rm_batch), batch_size, s.rm_lr)
    data = {"training": training, "validation": validation, "calibration": (others, answers)}
    shared = {"config": rm_config, "task": task, "train_config": train_config, "eta": s.eta, **here, **data}
    jobs = []
    for trunk, count in zip(pretrained, [F] * P + [s.jury], strict=True):
        jobs += [{"pretrained": trunk, "f": f} for f in range(count)]
    models = pool.map(train_reward_model, jobs, **shared)
    states = [model["state"] for model in models]
    accuracies = [model["accuracy"] for model in models[: P * F]]
    ceiling = rater_accuracy(partial(world.gold, task=task), validation, task)
    say(report.accuracy_line(accuracies, ceiling))
    return Trained(
        s, seed, task, device, config, rm_config, sft, posts, bank, calibration=(others, answers),
        states=states[: P * F], jury=states[P * F :], accuracies=accuracies, ceiling=ceiling,
    )  # fmt: skip


def evaluate(t, posts, responses, pool):
    """What reward models, jury and gold say of n responses to each post: {"scores" (M, posts, n), "jury"
    (J, posts, n), "gold" (posts, n), "traits" {trait: (posts, n)}}."""
    jobs = [{"state": state} for state in t.states + t.jury]
    rewards = pool.map(score, jobs, config=t.rm_config, posts=posts, responses=responses, device=t.device)
    scores = torch.stack(rewards).double().numpy().reshape(len(jobs), len(posts), -1)
    each_post = posts.repeat_interleave(scores.shape[-1], 0)
    parts, traits = world.judge_rows(each_post, responses, t.task)
    gold = sum(part.double() for part in parts.values()).numpy().round(5)
    return {
        "scores": scores[: len(t.states)],
        "jury": scores[len(t.states) :],
        "gold": gold.reshape(scores.shape[1:]),
        "traits": {trait: x.double().numpy().reshape(scores.shape[1:]) for trait, x in traits.items()},
    }


def evaluate_samples(t, pool):
    """Every reward model scores every sample, and texts that probe what it has learned: the Evidence.
    Best-of-n needs no run of its own: claims.py computes it from these scores."""
    s, seed = t.settings, t.seed
    writers = {"raters' texts": world.judged_writers(s.list_gap, s.seen, t.task)}
    writers["all habits"] = world.writers(s.list_gap)
    probes = {}
    for name, two in writers.items():
        probes[name] = evaluate(t, *world.sample_texts(PROBES, seed_for(seed, name), two, n=2), pool)
    samples = probes["SFT's samples"] = evaluate(t, t.posts, t.bank, pool)
    edit_posts, edits = world.sample_edits(PROBES, seed_for(seed, "edits"))
    edited = torch.stack(list(edits.values()), dim=1).flatten(0, 1)  # (posts * edits, R)
    own, elsewhere = (evaluate(t, posts, edited, pool) for posts in (edit_posts, edit_posts.roll(1, 0)))
    paid = {"models": own["scores"], "elsewhere": elsewhere["scores"], "gold": own["gold"]}
    paid = {who: (x - x[..., :1]).mean(-2) for who, x in paid.items()}  # (..., edits), against "none"
    evidence = Evidence(
        F=s.finetune_seeds,
        accuracy=np.array(t.accuracies),
        **samples,
        edits={edit: {who: x.T[i] for who, x in paid.items()} for i, edit in enumerate(edits)},
        ranking={name: claims.ranked_as_gold(x["scores"], x["gold"]) for name, x in probes.items()},
        aggregator=AGGREGATORS[s.aggregator],
    )
    pool.say(report.best_of_n_lines(claims.best_of_n_curves(evidence)))
    return evidence


def align_policies(t, evidence, pool, stage=align, kinds=KINDS, **arguments):
    """PPO on one reward model and on ensembles; each run's texts are scored by all reward models and gold.
    Another stage, with arguments of its own, may aggregate rewards in its own way."""
    s, arguments = t.settings, arguments or {"aggregator": AGGREGATORS[t.settings.aggregator]}
    ranges = {"proxy": (-1, 2)}  # of the bars: SFT's mean, and its standard deviation
    ranges["gold"] = tuple(evidence.gold.mean() + evidence.gold.std() * end for end in ranges["proxy"])
    pool.say("PPO: a line for each run, from its first update to its last, on its training posts.")
    pool.say("Its bars go from one standard deviation below SFT's mean to two above it.")
    sizes = {"updates": s.ppo_updates, "batch_size": s.ppo_batch, "minibatch_size": max(1, s.ppo_batch // 2)}
    shared = {"config": t.config, "sft": t.sft, "rm_config": t.rm_config, "task": t.task, "posts": t.posts}
    shared |= {"seed": t.seed, "device": t.device, **arguments}
    jobs, cases = [], [case for case in ppo_cases(s) if case[0] in kinds]
    for kind, run, kl_weight, members in cases:
        ppo_seed = seed_for(t.seed, "ppo", run)
        ppo_config = PPOConfig(kl_weight, **sizes, max_new_tokens=world.RESPONSE_LENGTH, seed=ppo_seed)
        states = [t.states[m] for m in members]
        jobs.append({"states": states, "ppo_config": ppo_config, "kind": kind, "run": run})
    aligned = pool.map(stage, jobs, tell=partial(report.ppo_line, ranges), **shared)
    runs = []
    for (*_, members), run in zip(cases, aligned, strict=True):
        x = evaluate(t, t.posts, run["responses"], pool)
        by_post = {name: x[name][..., 0] for name in ("scores", "jury", "gold")}
        by_post["traits"] = {name: trait[:, 0] for name, trait in x["traits"].items()}
        by_post["proxy"] = evidence.aggregate(by_post["scores"][members])
        favourite, _, overuse = world.favourite(t.posts, run["responses"])
        runs.append(run | by_post | {"members": members, "favourite": favourite, "overuse": overuse})
    return runs


def ppo_cases(s):
    """(kind, run, KL weight, members) of each PPO run. Run i takes row i of the grid of reward models, one
    pretraining's, as its finetune ensemble, diagonal i as its pretrain ensemble, and the model where they
    cross as its one reward model."""
    ensembles, cases = claims.all_ensembles(s.pretrain_seeds, s.finetune_seeds), []
    for kl_weight in sorted(set(s.kl_weights)):
        for run in range(s.ppo_runs):
            finetune = ensembles["finetune"][run % s.pretrain_seeds]
            pretrain = ensembles["pretrain"][run % s.finetune_seeds]
            single = [member for member in pretrain if member in finetune]
            members = {"single": single, "finetune": finetune, "pretrain": pretrain}
            cases += [(kind, run, kl_weight, members[kind]) for kind in members]
    return cases


def make_film(t, evidence, pool):
    """One post, and what the first run of each kind at the smallest KL weight makes of it: {"post", kind:
    {"members", "frames": [{update, kl, text, proxy, gold, jury, "scores" of all reward models}]}}. Of the
    first FILM_POSTS, it is the one on which PPO on one reward model raises proxy minus gold most, in std."""
    posts, updates = t.posts[:FILM_POSTS], [0, *film_updates(t.settings.ppo_updates)]
    runs = {kind: evidence.runs_of(kind)[0] for kind in KINDS}
    evaluated = {kind: evaluate(t, posts, run["frames"], pool) for kind, run in runs.items()}
    for kind, run in runs.items():  # (posts, frames)
        evaluated[kind]["proxy"] = evidence.aggregate(evaluated[kind]["scores"][run["members"]])
    proxy, gold = evaluated["single"]["proxy"], evaluated["single"]["gold"]
    gap = proxy / evidence.proxies("single").std() - gold / evidence.gold.std()
    post = (gap[:, -1] - gap[:, 0]).argmax()
    film = {"post": world.decode(posts[post])}
    for kind, run in runs.items():
        texts, x, frames = run["frames"].view(*gold.shape, -1)[post], evaluated[kind], []
        kl = [*run["curve"]["kl"], run["kl"]]  # before each update, and after the last
        for i, update in enumerate(updates):
            frame = {"update": update, "kl": kl[update], "text": world.decode(texts[i])}
            frame |= {name: x[name][post, i] for name in ("proxy", "gold")}
            frames.append(frame | {"jury": x["jury"][:, post, i].mean(), "scores": x["scores"][:, post, i]})
        film[kind] = {"members": run["members"], "frames": frames}
    return film


def film_updates(updates):
    """After which updates a film shows the policy, besides before the first: 40 -> [5, 10, 20, 40]."""
    return sorted({ceil(updates / parts) for parts in (8, 4, 2, 1)})


# ----- what a world leaves ------------------------------------------------------------------------
def record_of(t, evidence, film):
    """A world's record, as it is in JSON."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    head = {"seed": t.seed, "task": t.task, "settings": asdict(t.settings), "versions": versions}
    accuracy = {"mean": np.mean(t.accuracies), "ceiling": t.ceiling}
    return head | rounded({
        "device": t.device,
        "accuracy": accuracy,
        "correlation": claims.correlation_with_gold(evidence),
        "claims": claims.measure(evidence, t.task),
        "gold_std": evidence.gold.std(),
        "best_of_n": claims.best_of_n_curves(evidence),
        "traits": claims.trait_table(evidence),
        "ppo": [claims.summary_of(evidence, run) for run in evidence.runs],
        "edits": evidence.edits,
        "ranking": evidence.ranking | {"PPO's texts": claims.ranked_on_ppo(evidence)},
        "film": film,
    })  # fmt: skip


def bank_of(t, evidence):
    """Scored samples to play with, the bytes of an .npz: see experiments/README.md, field by field."""
    (M, *table), F = evidence.scores.shape, evidence.F
    parts, _ = world.judge_rows(t.posts.repeat_interleave(table[1], 0), t.bank, t.task)
    arrays = {"rewards": evidence.scores, "gold": evidence.gold}
    arrays |= {f"part_{name}": part.numpy().reshape(table) for name, part in parts.items()}
    arrays |= {f"trait_{name}": trait for name, trait in evidence.traits.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["pretrain_seed"] = np.arange(M) // F
    arrays["finetune_seed"] = np.arange(M) % F
    arrays["posts"] = np.array([world.decode(row) for row in t.posts.tolist()])
    arrays["responses"] = np.reshape([world.decode(row) for row in t.bank.tolist()], table)
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
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where models compute (default cpu)")
    add("--out", type=Path, help="the folder for results (default runs/overopt, with --quick runs/quick)")
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
    if arguments.processes < 1:
        raise ValueError(f"--processes must be >= 1, got {arguments.processes}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    given = {f.name: getattr(arguments, f.name) for f in fields(Settings)}
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items() if x is not None}
    return Settings(**(QUICK if arguments.quick else {}) | given)


def folder_of(arguments):
    """Where results go."""
    return arguments.out or Path("runs", "quick" if arguments.quick else "overopt")


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
    out = folder_of(given)
    check_folder(out, s, seeds, task)
    with cluster(given.scheduler) if given.scheduler else processes(given.processes) as executor:
        for seed in seeds:
            record, bank, models = make_world(s, seed, task, given.device, Pool(executor, out / "cache"))
            write_whole(out / f"bank-{seed}-{task}.npz", bank)
            write_whole(out / f"models-{seed}-{task}.pt", models)
            report.write_json(record, out / f"world-{seed}-{task}.json")
    print()
    report.show(out)
    print(f"Records, figures, samples to play with (bank) and some of the models are in {out}")


if __name__ == "__main__":
    sys.exit(report.exit_status(main))
