"""How fast the core is.

    python experiments/more/speed.py                         # a table; two minutes on a laptop
    python experiments/more/speed.py --device cuda

On a CPU one thread computes, since that is how experiments/overopt.py computes: in processes of one thread
each. The workloads run in turn, round after round, after a warm-up round; the table shows medians.
"""

import statistics
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # world.py, the core

import torch
from tqdm import tqdm

import world
from ensemble import Ensemble
from policy import Config, LanguageModel, TrainConfig, sample, train_lm
from ppo import PPOConfig, ppo
from report import exit_status, parser_of
from rm import RewardModel

P, R = world.PROMPT_LENGTH, world.RESPONSE_LENGTH
MEMBERS, ROWS, BON = 25, 512, 64  # reward models; full rows; posts of best-of-n, and samples of each
POLICY_STEPS, STEPS = 300, 10  # of training the policy, for samples of natural length; in a call of lm_step
ROUNDS = 5  # timed runs of each workload


def make_workloads(device):
    """{name: (what it does, function, units of a call)}; units are what per_second counts."""
    config = Config(world.VOCAB_SIZE, P + R)
    policy, *models = (LanguageModel(config, seed).to(device) for seed in range(MEMBERS + 1))
    ensemble = Ensemble([RewardModel(model.trunk, 0).requires_grad_(False) for model in models])
    texts = torch.cat(world.sample_texts(4000, 0, world.writers(0.25)), dim=1).to(device)
    train_lm(policy, texts, TrainConfig(steps=POLICY_STEPS), seed=0, desc="a policy to time")
    batch = texts[:64]
    posts, generator = world.sample_posts(ROWS, 0).to(device), torch.Generator(device).manual_seed(0)
    full = torch.randint(config.eos, (ROWS, R), generator=generator, device=device)
    drawn = sample(policy, posts[:BON], R, generator, n=BON)
    lm_step = partial(train_lm, policy, batch, TrainConfig(STEPS, batch_size=64, lr=0.0), seed=0, desc=None)
    c = PPOConfig(updates=10**9, lr=0.0, value_lr=0.0)  # a learning rate of 0: every call is like the first
    updates = ppo(policy, Ensemble(ensemble.rms[:5]), posts, c, desc=None)
    workloads = {
        "score": (f"{MEMBERS} reward models x {ROWS} full rows of {P + R} tokens",
            partial(ensemble.scores, posts, full), MEMBERS * ROWS),
        "score_bon": (f"{MEMBERS} reward models x {BON} posts x {BON} samples",
            partial(ensemble.scores, posts[:BON], drawn), MEMBERS * BON**2),
        "sample_bon": (f"{BON} posts x {BON} samples of up to {R} tokens",  # 8 posts at once, as overopt.py
            lambda: [sample(policy, chunk, R, generator, n=BON) for chunk in posts[:BON].split(8)], BON**2),
        "lm_step": (f"{STEPS} training steps, 64 texts each", lm_step, STEPS * 64),
        "ppo_update": (f"{c.batch_size} posts, rewarded by 5 reward models", partial(next, updates),
            c.batch_size),
    }  # fmt: skip
    # The members one after another, and all in one forward pass.
    forwards = {"loop": lambda *rows: [rm(*rows) for rm in ensemble.rms], "batched": ensemble.batched}
    for n, (name, forward) in product((1, 8, 64, 512), forwards.items()):
        what, call = f"{MEMBERS} reward models x {n} full rows", partial(forward, posts[:n], full[:n])
        workloads[f"{name}_{n}"] = (what, call, MEMBERS * n)
    return workloads


def in_turn(functions, rounds, device):
    """{name: function} -> {name: median seconds}: in turn, so that a busy moment of the machine hits all."""
    seconds = {name: [] for name in functions}
    for i in tqdm(range(rounds + 1), "rounds", leave=False, disable=None):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name] += [time.perf_counter() - start] if i else []  # the first round warms up
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(device):
    """Print the table; return the numbers of each workload."""
    workloads = make_workloads(device)
    seconds = in_turn({name: workload[1] for name, workload in workloads.items()}, ROUNDS, device)
    hardware, found = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread", {}
    print(f"{hardware:60}{'seconds':>9}{'per second':>13}")
    for name, (what, _, units) in workloads.items():
        found[name] = {"seconds": seconds[name], "per_second": units / seconds[name]}
        print(f"{name:13}{what:47}{seconds[name]:9.3f}{found[name]['per_second']:13,.0f}")
    return found


def main(argv=None):
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu (default) or cuda")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    torch.set_num_threads(1)
    measure(given.device)


if __name__ == "__main__":
    sys.exit(exit_status(main))
