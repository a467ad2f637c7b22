"""The stages of a world, from pretraining to PPO: each computed once, kept on disk, shared among processes.

A stage is kept under a hash of the settings it depends on and of the source files it runs. Settings come in
GROUPS, in the order of the pipeline, and a stage depends on its own group and on those before it. Of a file
only the syntax tree counts, so that a comment changes nothing.
"""

import ast
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import RLock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import world
from tqdm import tqdm

from ensemble import Ensemble
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, ppo
from rm import RewardModel, accuracy, normalise, train_pointwise, train_rm

ROOT = Path(__file__).parent.parent
GROUPS = ("models", "preferences", "samples", "ppo")
VALIDATION_PAIRS = 1000
LM_FILES = ("policy.py", "experiments/world.py", "experiments/stages.py")
RM_FILES = (*LM_FILES, "rm.py")
SCORE_FILES = (*RM_FILES, "ensemble.py")
PPO_FILES = (*SCORE_FILES, "ppo.py")
tqdm.set_lock(RLock())  # tqdm's own lock leaks a semaphore, with a warning, when a process is ended
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # our own line says what failed


# ----- the cache ----------------------------------------------------------------------------------
def syntax_tree(path):
    """What a source file does, as text: without comments and layout."""
    return ast.dump(ast.parse((ROOT / path).read_text()))


# Read at import: what runs is what was imported, even if a file is edited meanwhile.
SYNTAX_TREES = {path: syntax_tree(path) for path in PPO_FILES}


def write_whole(path, write):
    """Call write(file) on a temporary file, then move it to `path`: readers see all of it or nothing."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ----- processes ----------------------------------------------------------------------------------
# A tiny model's matrices are too small to be split between threads: two processes of one thread do far more
# work than one process of two. They exchange nothing but files, so on a CPU their number changes no result.


def rank_and_size():
    """This process's number, and how many share the run."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first_process():
    """Does this process report and write the results? One does."""
    return rank_and_size()[0] == 0


def in_processes(count, work, *args):
    """Run work(*args) in `count` processes of one thread, or in those that torchrun has started."""
    if dist.is_torchelastic_launched():
        in_group(-1, "env://", -1, work, args)  # the environment says which one this is
    elif count == 1:
        torch.set_num_threads(1)
        work(*args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            meeting_point = Path(folder, "processes").as_uri()
            try:  # PyTorch's launcher: if one process fails, it ends the others
                mp.spawn(in_group, (meeting_point, count, work, args), nprocs=count, daemon=True)
            except mp.ProcessExitedException as error:
                if error.exit_code == 2:
                    sys.exit(2)  # it has said why
                raise ValueError(f"{error}: did memory run out?") from None


def in_group(rank, meeting_point, count, work, args):
    """What each process does. After a user's mistake one line, and an end at once: the others would fail too,
    waiting for it. On a GPU the backend is gloo as well: processes only wait for each other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting_point, timedelta(days=1), count, rank)
    try:
        work(*args)
    except (ValueError, OSError) as error:
        tqdm.write(f"error: {error}", file=sys.stderr)
        os._exit(2)
    dist.destroy_process_group()


# ----- the stages ---------------------------------------------------------------------------------
class Stages:
    """The stages of one world (seed) and task. Each returns its value, computed or read from the cache."""

    def __init__(self, settings, seed, task, device, folder):
        self.settings, self.seed, self.task, self.device = settings, seed, task, device
        self.start = time.perf_counter()
        self.folder = folder / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, name, group, files):
        """Where a stage's value is kept: a hash of all that it depends on is part of the name."""
        groups = GROUPS[: GROUPS.index(group) + 1]
        names = [f.name for f in fields(self.settings) if f.metadata["group"] in groups]
        settings = {name: getattr(self.settings, name) for name in names}
        sources = [SYNTAX_TREES[path] for path in files]
        inputs = [self.seed, name, settings, sources, self.device.type, torch.__version__]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
        return self.folder / f"{self.seed}-{name}-{key}.pt"

    def stage(self, name, group, files, compute):
        """compute()'s value: tensors, numbers, strings, and plain containers of them. ValueError, naming the
        file, if it is damaged."""
        path = self.path_of(name, group, files)
        if not path.exists():
            value = compute()
            write_whole(path, lambda file: torch.save({"value": value}, file))
        try:
            return torch.load(path, map_location=self.device, weights_only=True)["value"]
        except Exception:
            raise ValueError(f"{path} is damaged. Delete it and run again.") from None

    def say(self, text, every_process=False):
        """Print a line, with the time since the start: the first process alone, or every process."""
        if every_process or is_first_process():
            tqdm.write(f"[{time.perf_counter() - self.start:4.0f} s] {text}")
            sys.stdout.flush()

    def share(self, what, jobs, tell=None):
        """The values of independent stages. Each process computes its part of them, says tell(value) after
        each, then reads the others' parts. A job must not call `share`: the others would not wait there."""
        rank, size = rank_and_size()
        label = what if size == 1 else f"{what}, one process of {size}"
        hidden = rank > 0 or tell is not None or None  # no bar beside what is told; None: only on a terminal
        for job in tqdm(jobs[rank::size], label, file=sys.stderr, leave=False, disable=hidden):
            value = job()
            if tell:
                self.say(tell(value), every_process=True)
        if size > 1:
            dist.barrier()
        return [job() for job in jobs]

    def seed_for(self, *names):
        """A seed for each random thing, from the world's seed and its names: adding one changes no other."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *names)).encode()).digest()[:4], "big")

    def generator(self, *names):
        """A generator on the device, with `seed_for`."""
        return torch.Generator(self.device).manual_seed(self.seed_for(*names))

    def language_model(self, width, state=None, seed=0):
        """A language model for this world's texts: with the weights `state`, or else with new ones."""
        s, context = self.settings, world.PROMPT_LENGTH + world.RESPONSE_LENGTH
        config = Config(world.VOCAB_SIZE, context, width, s.layers, s.heads)
        model = LanguageModel(config, seed).to(self.device)
        if state is not None:
            model.load_state_dict(state)
        return model

    def broad_texts(self, *names):
        """Posts and responses of writers with all habits: (pretrain_texts, P + R)."""
        s, seed = self.settings, self.seed_for(*names)
        prompts, responses = world.sample_texts(s.pretrain_texts, seed, world.writers(s.list_gap))
        return torch.cat([prompts, responses], dim=1).to(self.device)

    def pretrain(self, p):
        """The weights of pretraining p, a number or "policy": p sets the initialisation and the data."""

        def compute():
            s, config = self.settings, TrainConfig(steps=self.settings.pretrain_steps)
            width = s.width if p == "policy" else s.rm_width
            model = self.language_model(width, seed=self.seed_for("initialisation", p))
            train_lm(model, self.broad_texts("texts", p), config, self.seed_for("order", p), desc=None)
            return model.state_dict()

        return self.stage(f"pretrain-{p}", "models", LM_FILES, compute)

    def pretrain_all(self):
        """The pretrainings of the policy and of the reward models, shared among the processes."""
        names = ["policy", *range(self.settings.pretrain_seeds)]
        return self.share("language models", [partial(self.pretrain, p) for p in names])

    def sft(self):
        """The SFT policy's weights, and its responses to some posts, on which reward models are normalised:
        {"state", "posts" (512, P), "responses" (512, R)}."""

        def compute():
            model = self.language_model(self.settings.width, self.pretrain("policy"))
            config = TrainConfig(steps=self.settings.sft_steps, lr=1e-3)
            texts, seed = self.broad_texts("references"), self.seed_for("sft order")
            train_lm(model, texts, config, seed, world.PROMPT_LENGTH, desc=None)
            posts = world.sample_posts(512, self.seed_for("normalisation posts")).to(self.device)
            responses = sample(model, posts, world.RESPONSE_LENGTH, self.generator("normalisation samples"))
            return {"state": model.state_dict(), "posts": posts, "responses": responses}

        return self.stage("sft", "models", LM_FILES, compute)

    def bank(self):
        """n samples of the SFT policy for each post: {"posts" (posts, P), "responses" (posts * n, R)}."""

        def compute():
            s, model = self.settings, self.language_model(self.settings.width, self.sft()["state"])
            posts = world.sample_posts(s.prompts, self.seed_for("bank posts")).to(self.device)
            generator = self.generator("bank samples")
            chunks = posts.split(max(1, 512 // s.n))  # 512 rows at once: their keys and values stay small
            drawn = [sample(model, chunk, world.RESPONSE_LENGTH, generator, n=s.n) for chunk in chunks]
            return {"posts": posts, "responses": torch.cat(drawn)}

        return self.share("SFT", [partial(self.stage, "bank", "samples", LM_FILES, compute)])[0]

    def judgements(self, count, name, list_gap):
        """Prompts, chosen, rejected of `count` pairs; nli: prompts, responses, labels, twice as many rows."""
        s, seed = self.settings, self.seed_for(name)
        if self.task == "nli":
            data = world.sample_labels(2 * count, seed, list_gap, s.flipped, s.coverage)
        else:
            noise = (s.label_temperature, s.flipped)
            data = world.sample_preferences(count, seed, list_gap, *noise, s.coverage, self.task)
        return [tensor.to(self.device) for tensor in data]

    def accuracy(self, reward, data):
        """Share of pairs that `reward` orders as the rater does; nli: all pairs of a 1 and a 0, the AUC."""
        if self.task == "nli":
            prompts, responses, labels = data
            rewards = reward(prompts, responses)
            return accuracy(rewards[labels == 1, None], rewards[labels == 0]).mean().item()
        prompts, chosen, rejected = data
        return accuracy(reward(prompts, chosen), reward(prompts, rejected)).item()

    def ceiling(self):
        """Accuracy of gold itself on the raters' noisy judgements; its ties, 1 pair in 18, count as wrong."""
        data = self.judgements(VALIDATION_PAIRS, "validation", self.settings.list_gap)
        return self.accuracy(partial(world.gold, task=self.task), data)

    def train_reward_model(self, p, f, training, validation):
        """Reward model (p, f): pretraining p; finetuning seed f sets the head and the order of the data."""
        s, seed, sft = self.settings, self.seed_for("rm order", f), self.sft()
        trunk = self.language_model(s.rm_width, self.pretrain(p)).trunk
        model = RewardModel(trunk, self.seed_for("head", f))
        batch_size = 2 * s.rm_batch if self.task == "nli" else s.rm_batch
        steps = -(-s.pairs * s.rm_epochs // s.rm_batch)
        config = TrainConfig(steps=steps, batch_size=batch_size, lr=s.rm_lr)
        if self.task == "nli":
            train_pointwise(model, *training, config, seed, desc=None)
        else:
            train_rm(model, *training, config, seed, s.eta, desc=None)
        normalise(model, sft["posts"], sft["responses"])
        with torch.no_grad():
            return {"state": model.state_dict(), "accuracy": self.accuracy(model, validation)}

    def reward_models(self, members, arm="rm"):
        """The reward models (p, f) in `members`, and their accuracies. arm="control": lists tell nothing."""
        gap = self.settings.list_gap if arm == "rm" else 0.0
        training = self.judgements(self.settings.pairs, "training", gap)
        validation = self.judgements(VALIDATION_PAIRS, "validation", gap)

        def job(p, f):
            compute = partial(self.train_reward_model, p, f, training, validation)
            return self.stage(f"{arm}-{self.task}-{p}-{f}", "preferences", RM_FILES, compute)

        found = self.share(f"{self.task}: reward models", [partial(job, p, f) for p, f in members])
        models = []
        for value in found:
            model = RewardModel(self.language_model(self.settings.rm_width).trunk, 0)
            model.load_state_dict(value["state"])
            models.append(model.requires_grad_(False))
        return models, [value["accuracy"] for value in found]

    def score_bank(self, models, bank, arm="rm"):
        """Rewards of the bank's responses by all models of an arm, kept by position: (M, posts, n)."""

        def job(m):
            compute = partial(Ensemble([models[m]]).scores, bank["posts"], bank["responses"])
            return self.stage(f"scores-{arm}-{self.task}-{m}", "samples", SCORE_FILES, compute)

        scores = torch.cat(self.share("scores of samples", [partial(job, m) for m in range(len(models))]))
        return scores.view(len(models), len(bank["posts"]), -1)

    def ppo_run(self, kind, run, kl_weight, members, models, posts):
        """PPO from the SFT policy on the aggregated rewards of models[members], then one response to each of
        `posts`, scored by all models: {kind, run, kl_weight, members as given, "curve": kl, proxy and gold of
        every update, "kl": nats per response, "responses" (posts, R), "scores" (M, posts)}.

        Runs with the same number `run` see the same prompts in the same order."""

        def compute():
            s, state = self.settings, self.sft()["state"]
            policy, reference = (self.language_model(s.width, state) for _ in range(2))
            sizes = {"batch_size": s.ppo_batch, "minibatch_size": max(1, s.ppo_batch // 2)}
            sizes |= {"updates": s.ppo_updates, "max_new_tokens": world.RESPONSE_LENGTH}
            config = PPOConfig(beta=kl_weight, seed=self.seed_for("ppo", run), **sizes)
            prompts = world.sample_posts(4096, self.seed_for("ppo posts")).to(self.device)
            reward = Ensemble([models[m] for m in members], s.aggregator)
            gold = partial(world.gold, task=self.task)
            updates = list(ppo(policy, reward, prompts, config, gold, desc=None))  # it trains as it yields
            responses = sample(policy, posts, world.RESPONSE_LENGTH, self.generator("evaluation", run))
            with torch.no_grad():
                log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
            curve = {name: [update[name] for update in updates] for name in ("kl", "proxy", "gold")}
            value = {"kind": kind, "run": run, "kl_weight": kl_weight, "members": members, "curve": curve}
            value |= {"kl": log_ratio.sum(1).mean().item(), "responses": responses}
            return value | {"scores": Ensemble(models).scores(posts, responses)}

        name = "-".join(map(str, ["ppo", self.task, kind, kl_weight, run, *members]))
        return self.stage(name, "ppo", PPO_FILES, compute)
