"""The stages of a world, from pretraining to PPO: each is computed once, kept on disk, and shared among
processes.

A stage is kept under a hash of the settings it depends on and of the source files it runs. Settings come in
GROUPS, in the order of the pipeline, and a stage depends on its own group and on those before it. Of a file
only the syntax tree counts, so that a comment changes nothing.
"""

import ast
import hashlib
import json
import os
import sys
import time
import uuid
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import world
from tqdm import tqdm

from ensemble import Ensemble
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, kl_k1, ppo
from rm import RewardModel, accuracy, normalise, train_pointwise, train_rm

ROOT = Path(__file__).parent.parent
GROUPS = ("models", "preferences", "samples", "ppo")
VALIDATION_PAIRS = 1000
LM_FILES = ("policy.py", "experiments/world.py", "experiments/stages.py")
RM_FILES = (*LM_FILES, "rm.py")
SCORE_FILES = (*RM_FILES, "ensemble.py")
PPO_FILES = (*SCORE_FILES, "ppo.py")


# ----- the cache ----------------------------------------------------------------------------------


def syntax_tree(path):
    """What a source file does, as text: without comments, docstrings and layout."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


# Read at import: what runs is what was imported, even if a file is edited meanwhile.
SYNTAX_TREES = {path: syntax_tree(path) for path in PPO_FILES}


def write_whole(path, write):
    """Call write(file) on a temporary file beside `path`, then put it in place: readers see all of it or
    nothing."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_stage(path, device):
    """What a stage left in its file; ValueError, naming the file, if it is damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True)["value"]
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}). Delete it and run again.") from None


# ----- processes ----------------------------------------------------------------------------------
# The matrices of a tiny model are too small to be split between threads: two processes of one thread
# do far more work than one process of two. Nothing but files goes between them, so on a CPU the
# results are those of one process, byte for byte.


def rank_and_size():
    """This process's number, and how many share the run."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first_process():
    """Does this process report and write the results? One does."""
    return rank_and_size()[0] == 0


def in_processes(count, work, *args):
    """Run work(*args) in `count` processes of one thread; or, started by torchrun, in those that it has
    started.

    PyTorch's launcher watches them: if one fails, it ends the others and raises."""
    if dist.is_torchelastic_launched():
        join_group(None, None, None, work, args)
    elif count == 1:
        torch.set_num_threads(1)
        work(*args)
    else:
        store = Path(os.path.realpath(args[-1])) / f".processes-{uuid.uuid4().hex}"
        try:
            mp.spawn(join_group, (count, store.as_uri(), work, args), nprocs=count)
        finally:
            store.unlink(missing_ok=True)


def join_group(rank, size, store, work, args):
    """What each process does. gloo on a GPU as well: all that the processes do together is wait."""
    torch.set_num_threads(1)
    where = {} if store is None else {"rank": rank, "world_size": size, "init_method": store}
    dist.init_process_group("gloo", timeout=timedelta(days=1), **where)
    try:
        work(*args)
    except (ValueError, OSError) as error:  # a user's mistake: one line, no traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        dist.destroy_process_group()


# ----- the stages ---------------------------------------------------------------------------------


class Stages:
    """The stages of one world (seed) and task. Each returns its value, computed now or read from the
    cache."""

    def __init__(self, settings, seed, task, device, folder):
        self.settings, self.seed, self.task, self.device = settings, seed, task, device
        self.start = time.perf_counter()
        self.folder = folder / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, name, group, files):
        """Where a stage's value is kept: a hash of all that it depends on is part of the name."""
        past = GROUPS[: GROUPS.index(group) + 1]
        settings = {
            f.name: getattr(self.settings, f.name)
            for f in fields(self.settings)
            if f.metadata["group"] in past
        }
        sources = [SYNTAX_TREES[path] for path in files]
        inputs = [self.seed, name, settings, sources, self.device.type, torch.__version__]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
        return self.folder / f"{self.seed}-{name}-{key}.pt"

    def stage(self, name, group, files, compute):
        """compute()'s value: tensors, numbers, strings, and plain containers of them."""
        path = self.path_of(name, group, files)
        if not path.exists():
            value = compute()
            write_whole(path, lambda file: torch.save({"value": value}, file))
        return load_stage(path, self.device)

    def say(self, text, every_process=False):
        """Print a line with the time since the start; only the first process does, unless every one is to."""
        if every_process or is_first_process():
            tqdm.write(f"[{time.perf_counter() - self.start:4.0f} s] {text}")
            sys.stdout.flush()

    def share(self, what, jobs, tell=lambda value: None):
        """The values of independent stages. Each process computes its part of them, calls tell(value) after
        each, and then reads the others' parts."""
        rank, size = rank_and_size()
        mine = jobs[rank::size]
        for job in tqdm(mine, what, leave=False, disable=None if rank == 0 else True):
            tell(job())
        if size > 1:
            dist.barrier()
        return [job() for job in jobs]

    def seed_for(self, *names):
        """A seed of its own for everything random; none moves when another is added."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *names)).encode()).digest()[:4], "big")

    def generator(self, *names):
        return torch.Generator(self.device).manual_seed(self.seed_for(*names))

    # ----- language models

    def language_model(self, width, state=None, seed=0):
        s = self.settings
        context = world.PROMPT_LENGTH + world.RESPONSE_LENGTH
        model = LanguageModel(Config(world.VOCAB_SIZE, context, width, s.layers, s.heads), seed).to(
            self.device
        )
        if state is not None:
            model.load_state_dict(state)
        return model

    def broad_texts(self, *names):
        """Texts of writers with all habits: (count, T)."""
        s = self.settings
        prompts, responses = world.sample_texts(
            s.pretrain_texts, self.seed_for(*names), world.writers(s.list_gap)
        )
        return torch.cat([prompts, responses], dim=1).to(self.device)

    def pretrain(self, p):
        """One pretraining's weights: its seed sets initialisation and data. p is a number, or "policy"."""
        width = self.settings.width if p == "policy" else self.settings.rm_width

        def compute():
            model = self.language_model(width, seed=self.seed_for("initialisation", p))
            config = TrainConfig(steps=self.settings.pretrain_steps)
            train_lm(model, self.broad_texts("texts", p), config, self.seed_for("order", p), label=None)
            return model.state_dict()

        return self.stage(f"pretrain-{p}", "models", LM_FILES, compute)

    def pretrain_all(self):
        """The policy's pretraining and SFT, and the reward models' pretrainings, by all processes."""
        names = ["policy", *range(self.settings.pretrain_seeds)]
        states = self.share("pretraining", [partial(self.pretrain, p) for p in names])
        # Shared here, not in `sft`, which jobs call: processes have unequal numbers of jobs, and a barrier
        # needs all processes.
        self.share("SFT", [self.sft])
        return states

    def sft(self):
        """The SFT policy's weights, and its responses to some posts, on which reward models are
        normalised."""

        def compute():
            model = self.language_model(self.settings.width, self.pretrain("policy"))
            texts, config = (
                self.broad_texts("references"),
                TrainConfig(steps=self.settings.sft_steps, lr=1e-3),
            )
            train_lm(model, texts, config, self.seed_for("sft order"), world.PROMPT_LENGTH, label=None)
            posts = world.sample_posts(512, self.seed_for("normalisation posts")).to(self.device)
            responses = sample(model, posts, world.RESPONSE_LENGTH, self.generator("normalisation samples"))
            return {"state": model.state_dict(), "posts": posts, "responses": responses}

        return self.stage("sft", "models", LM_FILES, compute)

    # ----- reward models

    def judgements(self, count, name, list_gap):
        """What the raters say: prompts, chosen, rejected of `count` pairs; for nli prompts, responses,
        labels of twice as many responses."""
        s, seed = self.settings, self.seed_for(name)
        if self.task == "nli":
            data = world.sample_labels(2 * count, seed, list_gap, s.flipped, s.coverage)
        else:
            data = world.sample_preferences(
                count, seed, list_gap, s.label_temperature, s.flipped, s.coverage, self.task
            )
        return [tensor.to(self.device) for tensor in data]

    def accuracy(self, reward, data):
        """Share of pairs that a reward function orders as the rater does. For nli a pair is any response
        that the rater found right and any that it did not."""
        if self.task == "nli":
            prompts, responses, labels = data
            rewards = reward(prompts, responses)
            return accuracy(rewards[labels == 1, None], rewards[labels == 0]).mean().item()
        prompts, chosen, rejected = data
        return accuracy(reward(prompts, chosen), reward(prompts, rejected)).item()

    def ceiling(self):
        """The accuracy that the gold reward itself reaches on the raters' noisy judgements."""
        data = self.judgements(VALIDATION_PAIRS, "validation", self.settings.list_gap)
        return self.accuracy(partial(world.gold, task=self.task), data)

    def train_reward_model(self, p, f, training, validation, sft):
        """Reward model (p, f): pretraining p; finetuning seed f draws the head and sets the order of the
        data."""
        s = self.settings
        trunk = self.language_model(s.rm_width, self.pretrain(p)).trunk
        model = RewardModel(trunk, self.seed_for("head", f))
        config = TrainConfig(
            steps=-(-s.pairs * s.rm_epochs // s.rm_batch),
            batch_size=s.rm_batch * (2 if self.task == "nli" else 1),
            lr=s.rm_lr,
        )
        if self.task == "nli":
            train_pointwise(model, *training, config, self.seed_for("rm order", f), label=None)
        else:
            train_rm(model, *training, config, self.seed_for("rm order", f), s.eta, label=None)
        normalise(model, sft["posts"], sft["responses"])
        with torch.no_grad():
            return {"state": model.state_dict(), "accuracy": self.accuracy(model, validation)}

    def reward_models(self, members, list_gap=None):
        """Reward models (p, f) and their accuracies. list_gap: another than the setting's, for the control
        arm."""
        arm = "rm" if list_gap is None else "control"
        gap = self.settings.list_gap if list_gap is None else list_gap
        training = self.judgements(self.settings.pairs, "training", gap)
        validation = self.judgements(VALIDATION_PAIRS, "validation", gap)
        sft = self.sft()

        def job(p, f):
            compute = partial(self.train_reward_model, p, f, training, validation, sft)
            return self.stage(f"{arm}-{self.task}-{p}-{f}", "preferences", RM_FILES, compute)

        found = self.share(f"{self.task}: reward models", [partial(job, p, f) for p, f in members])
        models = []
        for value in found:
            model = RewardModel(self.language_model(self.settings.rm_width).trunk, 0)
            model.load_state_dict(value["state"])
            models.append(model.requires_grad_(False))
        return models, [value["accuracy"] for value in found]

    # ----- best-of-n

    def bank(self):
        """n samples of the SFT policy for each of the posts: {"posts" (posts, P), "responses" (posts * n,
        R)}."""
        state = self.sft()["state"]

        def compute():
            s, model = self.settings, self.language_model(self.settings.width, state)
            posts = world.sample_posts(s.prompts, self.seed_for("bank posts")).to(self.device)
            generator = self.generator("bank samples")
            chunks = posts.split(max(1, 512 // s.n))  # 512 rows at once: their keys and values stay small
            drawn = [sample(model, chunk, world.RESPONSE_LENGTH, generator, n=s.n) for chunk in chunks]
            return {"posts": posts, "responses": torch.cat(drawn)}

        return self.share("sampling", [partial(self.stage, "bank", "samples", LM_FILES, compute)])[0]

    def score_bank(self, models, bank, arm="rm"):
        """The reward models' rewards of the bank's responses: (M, posts, n)."""

        def job(m):
            def compute():
                return Ensemble([models[m]]).scores(bank["posts"], bank["responses"])[0]

            return self.stage(f"scores-{arm}-{self.task}-{m}", "samples", SCORE_FILES, compute)

        jobs = [partial(job, m) for m in range(len(models))]
        scores = torch.stack(self.share(f"{self.task}: scoring the samples", jobs))
        return scores.view(len(models), len(bank["posts"]), -1)

    # ----- PPO

    def ppo_run(self, kind, run, kl_weight, members, models, posts):
        """One PPO run from the SFT policy on the aggregated rewards of models[members], then one response
        to each of `posts`, scored by all models. Runs of one number see the same prompts in the same order.

        {"curve": kl, proxy and gold of every update, "responses" (posts, R), "kl" (posts,), "scores" (M,
        posts)}"""
        state = self.sft()["state"]

        def compute():
            s = self.settings
            policy, reference = (self.language_model(s.width, state) for _ in range(2))
            config = PPOConfig(
                beta=kl_weight,
                updates=s.ppo_updates,
                batch_size=s.ppo_batch,
                minibatch_size=max(1, s.ppo_batch // 2),
                max_new_tokens=world.RESPONSE_LENGTH,
                seed=self.seed_for("ppo", run),
            )
            prompts = world.sample_posts(4096, self.seed_for("ppo posts")).to(self.device)
            reward = Ensemble([models[m] for m in members], s.aggregator)
            gold = partial(world.gold, task=self.task)
            records = ppo(policy, reward, prompts, config, gold, label=None)
            curve = [{name: record[name] for name in ("kl", "proxy", "gold")} for record in records]
            responses = sample(policy, posts, world.RESPONSE_LENGTH, self.generator("evaluation", run))
            with torch.no_grad():
                log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
            return {
                "kind": kind,
                "kl_weight": kl_weight,
                "curve": {name: [record[name] for record in curve] for name in curve[0]},
                "responses": responses,
                "kl": kl_k1(log_ratio).sum(1),
                "scores": Ensemble(models).scores(posts, responses),
            }

        return self.stage(f"ppo-{self.task}-{kind}-{kl_weight}-{run}", "ppo", PPO_FILES, compute)
