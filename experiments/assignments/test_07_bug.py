"""7. A silent bug.

Goal    `gae` below is ppo.py's, with one fault planted in its code. No error shows it. The curves do: `python` this file trains the example
        of the README twice, once with ppo.py's `gae` and once with this one (half a minute). From an untrained policy, reward = how often word 7
        comes, the last of 20 updates had, when we ran it:

                             reward   tokens   KL
            as it should       17.3     23.5   83
            with the fault      2.1      8.4   10

        The first updates look like learning. Then responses get short, though a longer one would earn more. Say to yourself what a policy must
        have been told to do that; then find the fault, and repair it.
Read    the docstring of `gae`; `rollout` and `ppo` in ppo.py (not its `gae`: the formula below is enough)
Time    60 minutes
Points  15
Run     python experiments/assignments/test_07_bug.py        (the curves)
        python -m pytest experiments/assignments/test_07_bug.py
Hint    Give it one row with a single reward at its end, values 0, and look at the advantage of each token.
"""
import torch


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over a response:

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    zero after the end.

    All (B, R) -> (advantages, returns), returns = advantages + values, both 0 beyond the mask, as the rewards are."""
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_advantage, next_value = delta, values[:, t]
    return advantages, advantages + values


# ----- the check: nothing to change below -----------------------------------------------------------

from pathlib import Path
import sys

sys.path[:0] = [str(Path(__file__).parents[i]) for i in (0, 1, 2)]

from checks import expect, expect_close

LENGTHS, R = (1, 3, 6), 6
MASK = torch.arange(R) < torch.tensor(LENGTHS)[:, None]
REWARDS, VALUES = torch.randn(2, 3, R, generator=torch.Generator().manual_seed(0)) * MASK


def by_definition(rewards, values, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_{t+l} (the same paper, eq. 16), one sum for every place."""
    delta = rewards + gamma * torch.cat([values[:, 1:], 0 * values[:, :1]], 1) - values
    return torch.stack([sum((gamma * lam) ** l * delta[:, t + l] for l in range(R - t)) for t in range(R)], 1)


def run(rewards, values, gamma, lam):
    """The student's advantages and returns, as a pair."""
    given = gae(rewards.clone(), values.clone(), MASK, gamma, lam)
    expect(isinstance(given, tuple) and len(given) == 2, "gae must return (advantages, returns)")
    return given


def test_advantages():
    right = by_definition(REWARDS, VALUES, 0.9, 0.8)
    name = "the advantages of three responses of 1, 3 and 6 tokens (gamma 0.9, lambda 0.8)"
    slips = {"lambda has got lost": by_definition(REWARDS, VALUES, 0.9, 1.0), "gamma has got lost": by_definition(REWARDS, VALUES, 1.0, 0.8),
             "the value of the next state has got lost": by_definition(REWARDS - VALUES, 0 * VALUES, 0.9, 0.8),
             "that is one step's delta alone: nothing comes back from later tokens": by_definition(REWARDS, VALUES, 0.9, 0.0)}
    expect_close(name, run(REWARDS, VALUES, 0.9, 0.8)[0], right, slips, "compare delta_t and A_t with the formula, token by token from the end")


def test_what_the_first_token_is_told():
    """The symptom itself: a reward at the end has to reach the beginning."""
    rewards = torch.zeros(3, R)
    rewards[2, -1] = 1.0
    first = run(rewards, 0 * VALUES, 1.0, 0.95)[0][2, 0].item()
    expect(abs(first - 0.95 ** 5) < 1e-4, f"a reward of 1 at the sixth token gives the first token an advantage of 0.95^5 = {0.95 ** 5:.3f} if all values "
           f"are 0 (gamma 1, lambda 0.95); yours gives {first:.3f}. Now explain why responses got short")


def test_returns():
    right = by_definition(REWARDS, VALUES, 1.0, 0.95) + VALUES
    name = "the returns (what the value head learns; gamma 1, lambda 0.95)"
    expect_close(name, run(REWARDS, VALUES, 1.0, 0.95)[1], right, {"those are the advantages: add the values": right - VALUES},
                 "they are advantages + values")
    beyond = run(REWARDS, VALUES + 9.0 * ~MASK, 1.0, 0.95)[0]
    expect_close("the advantages with values of 9 beyond the mask", beyond, right - VALUES, hint="a value behind a response's end must count for nothing")


def curves():
    """Train the README's example with either gae, and print both."""
    import ppo
    from policy import Config, LanguageModel

    for name, function in {"ppo.py's gae": ppo.gae, "this file's gae": gae}.items():
        ppo.gae = function
        policy, prompts = LanguageModel(Config(vocab_size=100), seed=0), torch.randint(98, (256, 16), generator=torch.Generator().manual_seed(0))
        records = ppo.ppo(policy, lambda prompts, responses: (responses == 7).float().sum(1), prompts, ppo.PPOConfig(updates=20),
                          traits=lambda prompts, responses: {"tokens": (responses != policy.config.pad).float().sum(1)})
        print(f"\n{name}\n{'update':>8}{'reward':>8}{'tokens':>8}{'KL':>8}{'explained variance':>20}")
        for r in records:
            print(f"{r['update']:8}{r['proxy']:8.2f}{r['tokens']:8.1f}{r['kl']:8.1f}{r['explained_variance']:20.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves()
