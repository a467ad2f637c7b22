"""How fast it is, and how near to what the machine can do.

    python experiments/speed.py                          # tables; three or four minutes on a laptop
    python experiments/speed.py --json speed.json        # the numbers as well
    python experiments/speed.py --device cuda

Every workload is run in turn, round after round, after a warm-up; medians are shown. A share of the GEMM peak is the arithmetic
that the result needs, a second, over that of one large float32 product on the same threads. What the result does not need is not counted, even if it is
computed: PAD, states that nobody reads, a prompt a second time.

Width 64, 2 layers, 2 heads, prompts of 16 and responses of up to 24 tokens, untrained reward models, a briefly trained policy.
"""
import argparse
import copy
from pathlib import Path
import statistics
import sys
import time

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn
from tqdm import tqdm

from cache import to_json, write_whole
from ensemble import Ensemble, train_rms
from overopt import MOST_PROCESSES, exit_status, pick_device, prepare
from policy import Config, LanguageModel, TrainConfig, lm_loss, sample, sample_token, train_lm
from ppo import PPOConfig, ppo
from processes import Team, together
from report import speed_section
from rm import RewardModel, bradley_terry_loss, pair_rewards, train_rm
import world

P, R = world.PROMPT_LENGTH, world.RESPONSE_LENGTH
MEMBERS, ROWS, BON = 25, 512, 64          # reward models; sequences without PAD; prompts of best-of-n, and samples for each
POLICY_STEPS = 300                        # of the policy's training
TRAINING_STEPS = 60                       # of a training, in one process or in several
PEAK_SIZE = 2048                          # of the square matrices that set the yardstick; four times that on a GPU


def in_turn(functions, rounds, device, label):
    """{name: function} -> {name: median seconds}. One after the other, so that a busy moment of the machine hits all alike."""
    seconds = {name: [] for name in functions}
    for i in tqdm(range(-1, rounds), label, leave=False, disable=None):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type != "cpu":
                getattr(torch, device.type).synchronize()
            if i >= 0:                   # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def lengths(tokens, config):
    """Tokens of each row without PAD: (B, T) -> (B,), as floats."""
    return (tokens != config.pad).sum(1).double()


def flops(config, before, length, read, outputs):
    """Floating-point operations of a forward pass that rows need: `length` tokens each, after `before` that were read already; the states
    of the last `read` ones go into a head with so many outputs. Numbers or (B,) tensors -> their sum over rows.

    A token's linear maps are 24 D^2 a layer, a query meeting a key 4 D; in the last layer only what is read goes on after
    the keys and values."""
    D = config.width
    keys = length * before + length * (length + 1) / 2
    read_keys = read * (before + length) - read * (read - 1) / 2
    early = (config.layers - 1) * (24 * D**2 * length + 4 * D * keys)
    last = 6 * D**2 * length + 18 * D**2 * read + 4 * D * read_keys
    return float(torch.as_tensor(early + last + 2 * D * outputs * read, dtype=torch.double).sum())


class Bench:
    """Models and data of all workloads, on one device."""

    def __init__(self, device, members, width=64):
        self.device, self.config = device, Config(world.VOCAB_SIZE, P + R, width)
        self.policy = LanguageModel(self.config, 0).to(device)
        self.rms = [RewardModel(LanguageModel(self.config, seed).to(device).trunk, seed) for seed in range(members)]
        self.posts = world.sample_posts(4096, 0).to(device)
        self.full = torch.randint(self.config.eos, (4096, R), generator=torch.Generator().manual_seed(0)).to(device)
        self.generator = torch.Generator(device).manual_seed(0)

    def train_policy(self):
        """Long enough for texts of natural length."""
        texts = torch.cat(world.sample_texts(4000, 0, world.writers(0.15)), 1).to(self.device)
        train_lm(self.policy, texts, TrainConfig(steps=POLICY_STEPS), seed=0, label="a policy")
        self.texts = texts[:64]

    def optimised(self, model, loss):
        """A training step: loss, gradient, AdamW. The learning rate is so small that nothing changes."""
        optimizer = torch.optim.AdamW(model.parameters(), 1e-9, fused=True)

        @torch.enable_grad()
        def step():
            optimizer.zero_grad()
            loss().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return step

    def workloads(self):
        """{name: (function, units of a run, FLOPs of a run)}; units: member-sequences, tokens with room for them, texts, pairs, responses."""
        c, posts, V = self.config, self.posts, self.config.vocab_size - 1
        ensemble, endless = Ensemble(self.rms), copy.deepcopy(self.policy)
        endless.head.bias.data[c.eos] = -1e9
        drawn = sample(self.policy, posts[:BON], R, self.generator, n=BON)
        L, texts = lengths(drawn, c), lengths(self.texts, c)
        score = MEMBERS * ROWS * flops(c, 0, P + R, 1, 1)
        asked = flops(c, 0, P, 1, V)                                # a prompt, of which the last state is read
        prompts, chosen, rejected = (x.to(self.device) for x in world.sample_preferences(64, 0))
        text_loss = lambda: lm_loss(self.policy, self.texts[:, :1], self.texts[:, 1:])
        pair_loss = lambda: bradley_terry_loss(*pair_rewards(self.rms[0], prompts, chosen, rejected))
        updates = ppo(copy.deepcopy(self.policy), Ensemble(self.rms[:5]), posts, PPOConfig(updates=1000, lr=1e-9, value_lr=1e-9))
        # one PPO update: samples; policy, reference and 5 rewards; forward and backward in 2 epochs
        A = L.repeat(128)[torch.arange(128) * len(L) // 128]
        learn = flops(c, 0, P + A - 1, A, V)
        ppo_flops = 128 * asked + flops(c, P, A - 1, A - 1, V) + 2 * learn + 5 * flops(c, 0, P + A, 1, 1) + 2 * 3 * learn
        return {
            "score": (lambda: ensemble.scores(posts[:ROWS], self.full[:ROWS]), MEMBERS * ROWS, score),
            "score_loop": (lambda: ensemble.one_by_one(posts[:ROWS], self.full[:ROWS]), MEMBERS * ROWS, score),
            "score_batched": (lambda: ensemble.batched(posts[:ROWS], self.full[:ROWS]), MEMBERS * ROWS, score),
            "score_bon": (lambda: ensemble.scores(posts[:BON], drawn), MEMBERS * BON**2, MEMBERS * (BON * flops(c, 0, P, 0, 0) + flops(c, P, L, 1, 1))),
            "sample_full": (lambda: sample(endless, posts[:ROWS], R, self.generator), ROWS * R, ROWS * (asked + flops(c, P, R - 1, R - 1, V))),
            "sample_bon": (lambda: sample(self.policy, posts[:BON], R, self.generator, n=BON), BON**2 * R, BON * asked + flops(c, P, L - 1, L - 1, V)),
            "lm_step": (self.optimised(self.policy, text_loss), 64, 3 * flops(c, 0, texts - 1, texts - 1, V)),
            "rm_step": (self.optimised(self.rms[0], pair_loss), 64, 3 * (64 * flops(c, 0, P, 0, 0) + flops(c, P, lengths(torch.cat([chosen, rejected]), c), 1, 1))),
            "ppo_update": (torch.enable_grad()(lambda: next(updates)), 128, ppo_flops),
        }

    def ideas(self):
        """{idea: (function without it, function with it)}; the ones about a forward pass are of one reward model on 512 responses."""
        rm, posts, trunk = self.rms[0], self.posts[:8], self.rms[0].trunk
        drawn = sample(self.policy, posts, R, self.generator, n=BON)
        repeated = posts.repeat_interleave(BON, 0)
        tokens = torch.cat([repeated, drawn], 1)
        real = tokens != self.config.pad
        last = real & (real.cumsum(1) == real.sum(1, keepdim=True))
        logits = torch.randn(BON**2, self.config.vocab_size - 1, generator=self.generator, device=self.device)
        ensemble, some = Ensemble(self.rms), self.rms[:5]
        pairs, config = [x.to(self.device) for x in world.sample_preferences(64, 0)], TrainConfig(steps=3, batch_size=64, lr=1e-9)
        grad = torch.enable_grad()
        return {
            "PAD is not computed": (lambda: rm.head(trunk(tokens)[last.flatten()]), lambda: rm.head(trunk(tokens, real)[last[real]])),
            "in the last layer only what is read": (lambda: rm.head(trunk(tokens, real)[last[real]]), lambda: rm(repeated, drawn)),
            "scoring: a prompt read once for 64 responses": (lambda: rm(repeated, drawn), lambda: rm(posts, drawn)),
            "sampling: a prompt read once for 64 samples": (lambda: sample(self.policy, repeated, R, self.generator),
                                                            lambda: sample(self.policy, posts, R, self.generator, n=BON)),
            "one random number for a token, not one a word": (lambda: torch.multinomial(logits.softmax(-1), 1, generator=self.generator),
                                                              lambda: sample_token(logits, self.generator)),
            "8 sequences: 25 members in one forward pass": (lambda: ensemble.one_by_one(self.posts[:8], self.full[:8]),
                                                            lambda: ensemble.batched(self.posts[:8], self.full[:8])),
            "training: 5 reward models as one batch": (grad(lambda: [train_rm(rm, *pairs, config, 0) for rm in some]),
                                                       grad(lambda: train_rms(some, *pairs, config, 0))),
        }

    def growth(self):
        """{(members, sequences): (loop, batched)} of full sequences, in chunks for the sake of memory."""
        def chunked(forward, rows):
            return lambda: [forward(*x) for x in zip(self.posts[:rows].split(ROWS), self.full[:rows].split(ROWS))]
        ensembles = {members: Ensemble(self.rms[:members]) for members in (1, 5, MEMBERS)}
        return {(members, rows): (chunked(e.one_by_one, rows), chunked(e.batched, rows)) for members, e in ensembles.items() for rows in (8, BON, ROWS, 8 * ROWS)}


def product(size, device):
    """The yardstick: (function, FLOPs) of one large float32 product."""
    a, b = torch.randn(2, size, size, device=device)
    return lambda: a @ b, 2 * size**3


def trainings(team, each):
    """Seconds for team.size trainings at once, one in every process, or for `each` of them one after the other."""
    texts = torch.cat(world.sample_texts(500, 0, world.writers(0.15)), 1)
    model = LanguageModel(Config(world.VOCAB_SIZE, P + R), 0)
    for steps in (5, TRAINING_STEPS):                    # the first few warm up
        team.wait()
        start = time.perf_counter()
        for _ in range(each):
            with torch.enable_grad():
                train_lm(model, texts, TrainConfig(steps=steps), 0)
        team.wait()
    return time.perf_counter() - start


@torch.no_grad()
def measure(device, rounds):
    """Everything -> {"hardware", "gemm_peak", an object for each workload, "ideas", "growth", "widths", "samples"}."""
    bench = Bench(device, MEMBERS)
    with torch.enable_grad():
        bench.train_policy()
    gemm, gemm_flops = product(PEAK_SIZE * (4 if device.type == "cuda" else 1), device)
    work = bench.workloads()
    seconds = in_turn({"gemm": gemm, **{name: function for name, (function, _, _) in work.items()}}, rounds, device, "workloads")
    peak = gemm_flops / seconds.pop("gemm")
    workloads = {name: {"seconds": s, "per_second": work[name][1] / s, "flops_per_second": work[name][2] / s, "gemm_share": work[name][2] / s / peak,
                        "gemm_peak": peak} for name, s in seconds.items()}
    pairs = bench.ideas()
    flat = in_turn({(name, i): pair[i] for name, pair in pairs.items() for i in (0, 1)}, rounds, device, "ideas")
    ideas = {name: [flat[name, 0], flat[name, 1]] for name in pairs}
    if device.type == "cpu":
        threads = min(MOST_PROCESSES, torch.get_num_threads())
        before = trainings(Team(), threads)
        ideas[f"{threads} trainings in {threads} processes of one thread, not in one of {threads}"] = [before, together(threads, exit_status, trainings, 1)]
    pairs = bench.growth()
    flat = in_turn({(key, i): pair[i] for key, pair in pairs.items() for i in (0, 1)}, 3, device, "members and sequences")
    growth = [{"members": key[0], "sequences": key[1], "loop": flat[key, 0], "batched": flat[key, 1]} for key in pairs]
    benches = {width: Bench(device, members=1, width=width) for width in (32, 64, 128, 256)}
    widths = in_turn({width: lambda b=b: b.rms[0](b.posts[:ROWS], b.full[:ROWS]) for width, b in benches.items()}, rounds, device, "widths")
    samples = in_turn({n: lambda n=n: sample(bench.policy, bench.posts[:BON], R, bench.generator, n=n) for n in (1, 4, 16, 64)}, rounds, device, "samples")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type.upper()}, {torch.get_num_threads()} threads"
    return {"hardware": name, "gemm_peak": peak, **workloads, "ideas": ideas, "growth": growth, "widths": widths, "samples": samples}


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there: an object for each workload, and the other tables")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each workload (default 5)")
    given = parser.parse_args(argv)

    def work():
        device = pick_device(given.device)
        if given.rounds < 1:
            raise ValueError(f"--rounds: {given.rounds} is below 1")
        if given.json:
            prepare(given.json.parent)                        # better now than after minutes
        found = measure(device, given.rounds)
        print(speed_section({"speed": found}))
        if given.json:
            write_whole(given.json, lambda file: file.write(to_json(found)))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
