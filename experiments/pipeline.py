"""The stages of overopt.py, from pretraining to PPO: each computed once and kept in the cache."""
from functools import partial
import hashlib
import time

import numpy as np
import torch
from tqdm import tqdm

from cache import code_of, fingerprint
from ensemble import Ensemble, aggregate
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, kl_k1, ppo
from processes import Team
from rm import RewardModel, accuracy, normalise, train_pointwise, train_rm
import world

RM_BATCH = 64                # pairs per update of a reward model; of single responses (nli) twice as many
VALIDATION_PAIRS = 1000
# What each stage's code does; read at import, since what runs is what was imported, even if a file is edited meanwhile.
LM_CODE, RM_CODE = code_of("policy.py", "experiments/world.py"), code_of("rm.py")
SCORE_CODE, PPO_CODE = code_of(Ensemble), code_of("ppo.py", Ensemble)


class Pipeline:
    """The stages. Each is cached under the settings it depends on, the keys of the stages before it, and the code."""

    def __init__(self, settings, device, cache, say=print, team=Team()):
        self.s, self.device, self.cache, self.say, self.team = settings, device, cache, say, team

    def seed_for(self, *names):
        """A seed of its own for every random thing; none moves when another is added."""
        return int.from_bytes(hashlib.sha256(repr((self.s.seed, *names)).encode()).digest()[:4], "big")

    def generator(self, *names):
        return torch.Generator(self.device).manual_seed(self.seed_for(*names))

    def stage(self, name, needs, compute, *more):
        """Run or read a stage that depends on the settings in the string `needs` and on `more` (keys, code)."""
        inputs = {key: getattr(self.s, key) for key in needs.split()}
        return self.cache(name, [inputs, self.device.type, torch.__version__, fingerprint(compute), *more], compute)

    def share(self, what, jobs):
        """The values of independent stages. If several processes share the run, this one computes its part of them, waits for the
        others, and reads theirs from the cache."""
        rank, size = self.team.rank, self.team.size
        start = said = time.perf_counter()
        for done, job in enumerate(jobs[rank::size], 1):
            job()
            now, last = time.perf_counter(), done * size >= len(jobs)
            if now - said > 10 or last and now - start > 1:              # no line for what was in the cache, and no long silence
                self.say(f"{what}: {min(done * size, len(jobs))} of {len(jobs)}")
                said = now
        self.team.wait()
        return [job() for job in jobs]

    def language_model(self, width, state=None, seed=0):
        config = Config(world.VOCAB_SIZE, world.PROMPT_LENGTH + world.RESPONSE_LENGTH, width, self.s.layers, self.s.heads)
        model = LanguageModel(config, seed).to(self.device)
        if state:
            model.load_state_dict(state)
        return model

    def reward_model(self, state):
        model = RewardModel(self.language_model(self.s.rm_width).trunk, 0)
        model.load_state_dict(state)
        return model

    # ----- training -------------------------------------------------------------------------------

    def broad_texts(self, *names):
        texts = world.sample_texts(self.s.pretrain_texts, self.seed_for(*names), world.writers(self.s.list_gap))
        return torch.cat(texts, 1).to(self.device)

    def pretrain(self, p):
        """One pretraining: the seed sets initialisation and data sample. p is a number, or "policy"."""
        width = self.s.width if p == "policy" else self.s.rm_width
        def compute():
            model = self.language_model(width, seed=self.seed_for("initialisation", p))
            config = TrainConfig(steps=self.s.pretrain_steps)
            train_lm(model, self.broad_texts("texts", p), config, self.seed_for("order", p), label=f"pretraining {p}")
            return model.state_dict()
        return self.stage(f"pretrain-{p}", "seed layers heads pretrain_texts pretrain_steps list_gap", compute, width,
                          fingerprint(self.broad_texts), LM_CODE)

    def pretrain_all(self):
        """The policy's and the reward models' pretrainings, and SFT, by all processes -> (the pretrained states, SFT's)."""
        pretrained = self.share("language models pretrained", [partial(self.pretrain, p) for p in ("policy", *range(self.s.pretrain_seeds))])
        (sft, _), = self.share("policy finetuned (SFT)", [self.finetune_policy])
        return [state for state, _ in pretrained], sft

    def finetune_policy(self):
        """SFT: the policy's own pretraining, then the responses alone. With its samples for normalisation."""
        pretrained, key = self.pretrain("policy")
        def compute():
            model, config = self.language_model(self.s.width, pretrained), TrainConfig(steps=self.s.sft_steps, lr=1e-3)
            train_lm(model, self.broad_texts("references"), config, self.seed_for("sft order"), world.PROMPT_LENGTH, label="SFT")
            posts = world.sample_posts(512, self.seed_for("normalisation posts")).to(self.device)
            responses = sample(model, posts, world.RESPONSE_LENGTH, self.generator("normalisation samples"))
            return {"state": model.state_dict(), "posts": posts, "responses": responses}
        return self.stage("sft", "seed sft_steps pretrain_texts list_gap", compute, key, fingerprint(self.broad_texts))

    def judgements(self, count, name, list_gap=None):
        """What the raters say, the same for every RM: (prompts, chosen, rejected) of `count` pairs, or for nli (prompts,
        responses, labels) of twice as many responses. list_gap: another than the setting, for the control arm."""
        s, seed = self.s, self.seed_for(name)
        gap = s.list_gap if list_gap is None else list_gap
        if s.task == "nli":
            data = world.sample_labels(2 * count, seed, gap, s.flipped, s.coverage)
        else:
            data = world.sample_preferences(count, seed, gap, s.label_temperature, s.flipped, s.coverage, s.task)
        return [x.to(self.device) for x in data]

    def right(self, reward, data):
        """Accuracy of a reward function: share of pairs that it orders as the rater does. For nli a pair is any response that the
        rater found right and any that it did not (four in five are wrong there: a share of labels would say little)."""
        if self.s.task == "nli":
            prompts, responses, labels = data
            rewards = reward(prompts, responses)
            return accuracy(rewards[labels == 1, None], rewards[labels == 0]).mean().item()
        prompts, chosen, rejected = data
        return accuracy(reward(prompts, chosen), reward(prompts, rejected)).item()

    def train_reward_model(self, p, f, training, validation, sft, sft_key, list_gap=None):
        """RM (p, f): pretraining p, then the judgements; finetuning seed f sets head and data order."""
        pretrained, key = self.pretrain(p)
        def compute():
            s, rm = self.s, RewardModel(self.language_model(self.s.rm_width, pretrained).trunk, self.seed_for("head", f))
            rows, seed, label = RM_BATCH * (2 if s.task == "nli" else 1), self.seed_for("pair order", f), f"reward model ({p}, {f})"
            config = TrainConfig(steps=max(1, s.pairs * s.rm_epochs // RM_BATCH), batch_size=rows, lr=5e-4, warmup=0.1)
            if s.task == "nli":
                train_pointwise(rm, *training, config, seed, label)
            else:
                train_rm(rm, *training, config, seed, s.eta, label)
            normalise(rm, sft["posts"], sft["responses"])
            with torch.no_grad():
                right = self.right(rm, validation)
            return {"state": rm.state_dict(), "accuracy": right}
        return self.stage(f"{'rm' if list_gap is None else 'control'}-{self.s.task}-{p}-{f}", "task pairs rm_epochs eta label_temperature flipped "
                          "list_gap coverage", compute, key, sft_key, list_gap, RM_BATCH, VALIDATION_PAIRS, fingerprint(self.judgements),
                          fingerprint(self.right), RM_CODE)

    def ceiling(self):
        """What the gold reward itself reaches on the raters' noisy validation judgements."""
        return self.right(partial(world.gold, task=self.s.task), self.judgements(VALIDATION_PAIRS, "validation pairs"))

    def grid(self, list_gap=None):
        """All reward models, ordered by pretraining -> (reward models, their accuracies, their keys)."""
        self.pretrain_all()
        sft, sft_key = self.finetune_policy()
        training = self.judgements(self.s.pairs, "training pairs", list_gap)
        validation = self.judgements(VALIDATION_PAIRS, "validation pairs", list_gap)
        jobs = [partial(self.train_reward_model, p, f, training, validation, sft, sft_key, list_gap)
                for p in range(self.s.pretrain_seeds) for f in range(self.s.finetune_seeds)]
        trained = self.share(f"{self.s.task}: reward models" + ("" if list_gap is None else f" with list gap {list_gap:g}"), jobs)
        values, keys = zip(*trained)
        return [self.reward_model(value["state"]) for value in values], [value["accuracy"] for value in values], list(keys)

    # ----- best-of-n ------------------------------------------------------------------------------

    def draw_bank(self):
        """n samples of the SFT policy for each of the posts -> ({"posts", "responses" (posts * n, R)}, key)."""
        sft, sft_key = self.finetune_policy()
        def compute():
            s, model = self.s, self.language_model(self.s.width, sft["state"])
            posts = world.sample_posts(s.prompts, self.seed_for("bank posts")).to(self.device)
            generator = self.generator("bank samples")
            chunks = tqdm(posts.split(max(1, 512 // s.n)), "sampling the bank", leave=False, disable=None)
            return {"posts": posts, "responses": torch.cat([sample(model, chunk, world.RESPONSE_LENGTH, generator, n=s.n) for chunk in chunks])}
        return self.share("bank of samples drawn", [partial(self.stage, "bank", "seed prompts n", compute, sft_key)])[0]

    def judge(self, posts, responses, n=1):
        """Gold reward, its parts and the traits of n responses to each post: {"gold": (posts * n,), "parts", "traits"}."""
        tables = world.judge_rows(posts.repeat_interleave(n, 0), responses, self.s.task)
        parts, traits = ({name: x.double().numpy() for name, x in table.items()} for table in tables)
        return {"gold": sum(parts.values()).round(5), "parts": parts, "traits": traits}       # rounded: equal sums of other parts are equal

    def judge_bank(self, bank):
        """The same for the bank: every array (posts, n)."""
        judged = self.judge(bank["posts"], bank["responses"], self.s.n)
        square = lambda x: x.reshape(-1, self.s.n)
        return {"gold": square(judged["gold"]), **{table: {name: square(x) for name, x in judged[table].items()} for table in ("parts", "traits")}}

    def score_bank(self, name, rms, rm_keys, bank, bank_key):
        """Rewards of the bank's responses by some RMs: (M, posts, n)."""
        def compute():
            ensemble, step = Ensemble(rms), max(1, 2048 // self.s.n)        # posts
            chunks = zip(bank["posts"].split(step), bank["responses"].split(step * self.s.n))
            chunks = tqdm(list(chunks), f"scoring the bank: {name}", leave=False, disable=None)
            return torch.cat([ensemble.scores(*chunk) for chunk in chunks], 1).view(len(rms), -1, self.s.n)
        return self.stage(name, "", compute, rm_keys, bank_key, SCORE_CODE)[0].cpu().double().numpy()

    def score_grid(self, name, rms, rm_keys, bank, bank_key):
        """Rewards of the bank's responses by a whole grid, (M, posts, n), by all processes."""
        F = self.s.finetune_seeds
        jobs = [partial(self.score_bank, f"{name}-{p}", rms[p * F:(p + 1) * F], rm_keys[p * F:(p + 1) * F], bank, bank_key)
                for p in range(self.s.pretrain_seeds)]
        return np.concatenate(self.share(f"{self.s.task}: bank scored by reward models of a pretraining", jobs))

    # ----- PPO ------------------------------------------------------------------------------------

    def align(self, kind, seed, beta, members, member_keys, posts):
        """One PPO run from the SFT policy on the aggregated members, then one response to each of `posts`."""
        # An aggregator is known by what it does to some numbers: any callable may be one, with helpers anywhere.
        probe = aggregate(self.s.aggregator, 3 * torch.randn(len(members), 64, generator=torch.Generator().manual_seed(0)))
        sft, sft_key = self.finetune_policy()

        def compute():
            s, policy, reference = self.s, *(self.language_model(self.s.width, sft["state"]) for _ in range(2))
            config = PPOConfig(beta=beta, updates=s.ppo_updates, batch_size=s.ppo_batch, max_new_tokens=world.RESPONSE_LENGTH,
                               minibatch_size=max(1, s.ppo_batch // 2), seed=self.seed_for("ppo", seed))
            prompts = world.sample_posts(4096, self.seed_for("ppo posts")).to(self.device)
            records = ppo(policy, Ensemble(members, s.aggregator), prompts, config, partial(world.gold, task=s.task),
                          label=f"PPO {kind} {seed}, KL weight {beta}")
            curve = [{k: v for k, v in record.items() if k not in ("prompts", "responses")} for record in records]
            responses = sample(policy, posts, world.RESPONSE_LENGTH, self.generator("ppo evaluation", seed))
            with torch.no_grad():
                log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
            return {"curve": curve, "responses": responses, "kl": kl_k1(log_ratio).sum(1)}
        return self.stage(f"ppo-{self.s.task}-{kind}-{seed}-{beta}", "seed task prompts ppo_updates ppo_batch", compute, sft_key, member_keys, seed, beta,
                          probe.tolist(), PPO_CODE)

    def score_run(self, name, responses, run_key, rms, rm_keys, posts):
        """Rewards of a PPO policy's responses by every RM, (M, posts): all runs on one footing."""
        scores = self.stage(f"{name}-scores", "", lambda: Ensemble(rms).scores(posts, responses), run_key, rm_keys, SCORE_CODE)[0]
        return scores.cpu().double().numpy()
