"""The stages of overopt.py, from pretraining to PPO: each computed once and kept in the cache."""
import hashlib

import torch
from tqdm import tqdm

from cache import code_of, fingerprint
from ensemble import Ensemble, aggregate
from policy import Config, LanguageModel, TrainConfig, log_probs, sample, train_lm
from ppo import PPOConfig, kl_k1, ppo
from rm import RewardModel, accuracy, normalise, train_rm
import world

RM_BATCH = 64                # pairs per update of a reward model
VALIDATION_PAIRS = 1000
# What each stage's code does; read at import, since what runs is what was imported, even if a file is edited meanwhile.
LM_CODE, RM_CODE = code_of("policy.py", "experiments/world.py"), code_of("rm.py")
SCORE_CODE, PPO_CODE = code_of(Ensemble), code_of("ppo.py", Ensemble)


class Pipeline:
    """The stages. Each is cached under the settings it depends on, the keys of the stages before it, and the code."""

    def __init__(self, settings, device, cache):
        self.s, self.device, self.cache = settings, device, cache
        self.config = Config(world.VOCAB_SIZE, world.PROMPT_LENGTH + world.RESPONSE_LENGTH, settings.width, settings.layers, settings.heads)

    def seed_for(self, *names):
        """A seed of its own for every random thing; none moves when another is added."""
        return int.from_bytes(hashlib.sha256(repr((self.s.seed, *names)).encode()).digest()[:4], "big")

    def generator(self, *names):
        return torch.Generator(self.device).manual_seed(self.seed_for(*names))

    def stage(self, name, needs, compute, *more):
        """Run or read a stage that depends on the settings in the string `needs` and on `more` (keys, code)."""
        inputs = {key: getattr(self.s, key) for key in needs.split()}
        return self.cache(name, [inputs, self.device.type, torch.__version__, fingerprint(compute), *more], compute)

    def language_model(self, state=None, seed=0):
        model = LanguageModel(self.config, seed).to(self.device)
        if state:
            model.load_state_dict(state)
        return model

    def reward_model(self, state):
        model = RewardModel(self.language_model().trunk, 0)
        model.load_state_dict(state)
        return model

    # ----- training -------------------------------------------------------------------------------

    def broad_texts(self, *names):
        s = self.s
        return torch.cat(world.sample_texts(s.pretrain_texts, self.seed_for(*names), list_gap=s.list_gap), 1).to(self.device)

    def pretrain(self, p):
        """One pretraining: the seed sets initialisation and data sample. p is a number, or "policy"."""
        def compute():
            model = self.language_model(seed=self.seed_for("initialisation", p))
            config = TrainConfig(steps=self.s.pretrain_steps)
            train_lm(model, self.broad_texts("texts", p), config, self.seed_for("order", p), label=f"pretraining {p}")
            return model.state_dict()
        return self.stage(f"pretrain-{p}", "seed width layers heads pretrain_texts pretrain_steps list_gap", compute,
                          fingerprint(self.broad_texts), LM_CODE)

    def finetune_policy(self):
        """SFT: the policy's own pretraining, then the responses of the broad pool alone. With its samples for normalisation."""
        pretrained, key = self.pretrain("policy")
        def compute():
            model, config = self.language_model(pretrained), TrainConfig(steps=self.s.sft_steps, lr=1e-3)
            train_lm(model, self.broad_texts("references"), config, self.seed_for("sft order"), world.PROMPT_LENGTH, label="SFT")
            posts = world.sample_posts(512, self.seed_for("normalisation posts")).to(self.device)
            responses = sample(model, posts, world.RESPONSE_LENGTH, self.generator("normalisation samples"))
            return {"state": model.state_dict(), "posts": posts, "responses": responses}
        return self.stage("sft", "seed sft_steps pretrain_texts list_gap", compute, key, fingerprint(self.broad_texts))

    def preferences(self, count, name):
        """(prompts, chosen, rejected) of so many pairs, the same for every RM."""
        s = self.s
        pairs = world.sample_preferences(count, self.seed_for(name), s.list_gap, s.label_temperature, s.flipped, s.coverage)
        return [x.to(self.device) for x in pairs]

    def train_reward_model(self, p, f, training, validation, sft, sft_key):
        """RM (p, f): pretraining p, then the preference pairs; finetuning seed f sets head and data order."""
        pretrained, key = self.pretrain(p)
        def compute():
            s, rm = self.s, RewardModel(self.language_model(pretrained).trunk, self.seed_for("head", f))
            config = TrainConfig(steps=max(1, s.pairs * s.rm_epochs // RM_BATCH), batch_size=RM_BATCH, lr=1e-3, warmup=0.1)
            train_rm(rm, *training, config, self.seed_for("pair order", f), s.eta, label=f"reward model ({p}, {f})")
            normalise(rm, sft["posts"], sft["responses"])
            prompts, chosen, rejected = validation
            with torch.no_grad():
                right = accuracy(rm(prompts, chosen), rm(prompts, rejected)).item()
            return {"state": rm.state_dict(), "accuracy": right}
        return self.stage(f"rm-{p}-{f}", "pairs rm_epochs eta label_temperature flipped list_gap coverage", compute, key, sft_key,
                          RM_BATCH, VALIDATION_PAIRS, fingerprint(self.preferences), RM_CODE)

    # ----- best-of-n ------------------------------------------------------------------------------

    def draw_bank(self, sft, sft_key):
        """n samples for each of the posts, with the gold reward's parts and the traits of each, all (posts, n)."""
        def compute():
            s, model = self.s, self.language_model(sft["state"])
            posts = world.sample_posts(s.prompts, self.seed_for("bank posts")).to(self.device)
            generator = self.generator("bank samples")
            chunks = tqdm(posts.split(max(1, 512 // s.n)), "sampling the bank", leave=False, disable=None)
            responses = torch.cat([sample(model, chunk, world.RESPONSE_LENGTH, generator, n=s.n) for chunk in chunks])
            parts, traits = world.judge_rows(posts.repeat_interleave(s.n, 0), responses)
            square = lambda table: {name: x.view(-1, s.n) for name, x in table.items()}
            return {"posts": posts, "responses": responses, **square({"gold": sum(parts.values())}), "parts": square(parts), "traits": square(traits)}
        return self.stage("bank", "seed prompts n", compute, sft_key)

    def score_bank(self, p, rms, rm_keys, bank, bank_key):
        """Rewards of the bank's responses by the RMs of pretraining p: (finetune_seeds, posts, n)."""
        def compute():
            posts, ensemble = bank["posts"].repeat_interleave(self.s.n, 0), Ensemble(rms)
            chunks = tqdm(torch.arange(len(posts)).split(2048), f"scoring the bank, pretraining {p}", leave=False, disable=None)
            scores = [ensemble.scores(posts[rows], bank["responses"][rows]) for rows in chunks]
            return torch.cat(scores, 1).view(len(rms), -1, self.s.n)
        return self.stage(f"scores-{p}", "", compute, rm_keys, bank_key, SCORE_CODE)[0]

    # ----- PPO ------------------------------------------------------------------------------------

    def align(self, kind, seed, beta, members, member_keys, sft, sft_key, posts):
        """One PPO run from the SFT policy on the aggregated members, then one response to each of `posts`."""
        # An aggregator is known by what it does to some numbers: any callable may be one, with helpers anywhere.
        probe = aggregate(self.s.aggregator, 3 * torch.randn(len(members), 64, generator=torch.Generator().manual_seed(0)))

        def compute():
            s, policy, reference = self.s, self.language_model(sft["state"]), self.language_model(sft["state"])
            config = PPOConfig(beta=beta, updates=s.ppo_updates, batch_size=s.ppo_batch, max_new_tokens=world.RESPONSE_LENGTH,
                               minibatch_size=max(1, s.ppo_batch // 2), seed=self.seed_for("ppo", seed))
            prompts = world.sample_posts(4096, self.seed_for("ppo posts")).to(self.device)
            records = ppo(policy, Ensemble(members, self.s.aggregator), prompts, config, world.gold,
                          label=f"PPO {kind} {seed}, KL weight {beta}")
            curve = [{k: v for k, v in record.items() if k not in ("prompts", "responses")} for record in records]
            responses = sample(policy, posts, world.RESPONSE_LENGTH, self.generator("ppo evaluation", seed))
            with torch.no_grad():
                log_ratio = log_probs(policy, posts, responses) - log_probs(reference, posts, responses)
            parts, traits = world.judge_rows(posts, responses)
            return {"curve": curve, "responses": responses, "kl": kl_k1(log_ratio).sum(1), "gold": sum(parts.values()), "parts": parts,
                    "traits": traits}
        return self.stage(f"ppo-{kind}-{seed}-{beta}", "seed prompts ppo_updates ppo_batch", compute, sft_key, member_keys, seed, beta,
                          probe.tolist(), PPO_CODE)

    def score_run(self, name, responses, run_key, rms, rm_keys, posts):
        """Rewards of a PPO policy's responses by every RM, (M, posts): all runs on one footing."""
        return self.stage(f"{name}-scores", "", lambda: Ensemble(rms).scores(posts, responses), run_key, rm_keys, SCORE_CODE)[0]
