"""PPO with a KL penalty (RLHF) on any reward function.

    for record in ppo(policy, reward, prompts, PPOConfig(beta=0.05), gold=gold):
        print(record["kl"], record["proxy"], record["gold"])

reward(prompts (B, P), responses (B, R)) -> (B,) is all that PPO knows of rewards: one RM, an ensemble,
the gold reward, or `lambda prompts, responses: (responses == 7).any(1).float()`. R is the longest response of
that batch: rows end with EOS, unless they ran out of room, then PAD.

It maximises E[reward] - beta * KL(policy || frozen starting policy); the paper calls beta lambda. One
token is one action: each pays its share of the KL, and the score arrives with the last one.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from policy import log_probs, sample, token_log_probs, trim


@dataclass(frozen=True)
class PPOConfig:
    """Settings of a PPO run. ValueError, naming the field, if one makes no sense."""

    beta: float = 0.05  # weight of the KL penalty, per nat
    updates: int = 60  # rollout + optimisation rounds
    batch_size: int = 128  # responses per update
    epochs: int = 2  # passes over a batch
    minibatch_size: int = 64
    lr: float = 3e-4
    value_lr: float = 3e-3  # of the value head: it starts at zero and has farther to go than the policy
    clip: float = 0.2  # of the probability ratio, and of the value's move
    value_weight: float = 0.5  # of the value loss
    gamma: float = 1.0  # discount
    lam: float = 0.95  # GAE's lambda
    temperature: float = 1.0  # in rollout, reference and update alike
    max_new_tokens: int = 24
    grad_clip: float = 1.0  # largest norm of a gradient
    seed: int = 0  # prompts, samples and shuffles

    def __post_init__(self):
        for name in ("updates", "batch_size", "epochs", "minibatch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.beta < 0:
            raise ValueError(f"beta: the KL weight {self.beta} is negative")
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not above 0")


# ----- pure functions: estimators, advantages, losses -------------------------------------------------


def kl_k1(log_ratio):
    """log_ratio = log p - log q of samples from p. Unbiased for KL(p || q), can be negative. Per token, summed
    over a response and averaged over samples of the policy, it is the KL that the penalty charges."""
    return log_ratio


def kl_k3(log_ratio):
    """The same KL, never negative and of lower variance: exp(-log_ratio) - 1 + log_ratio (Schulman, 2020)."""
    return torch.exp(-log_ratio) - 1 + log_ratio


def masked_mean(x, mask):
    """Mean of x where the mask is true: pads never count."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x, mask):
    """(x - mean) / std over the true places of the mask; 0 elsewhere."""
    mean = masked_mean(x, mask)
    std = masked_mean((x - mean) ** 2, mask).sqrt()
    return (x - mean) / (std + 1e-8) * mask


def penalised_rewards(scores, log_ratio, mask, beta):
    """Reward of every token (B, R): -beta * log_ratio each, plus the score (B,) on the last real token."""
    rewards = -beta * kl_k1(log_ratio) * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over a response:

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    zero after the end.

    All (B, R) -> (advantages, returns), returns = advantages + values, both 0 beyond the mask, as the rewards are."""
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
    return advantages, advantages + values


def policy_loss(log_ratio, advantages, mask, clip):
    """Clipped surrogate (Schulman et al. 2017, eq. 7), to minimise; log_ratio = new - old log-probability.
    Returns (loss, share of tokens whose ratio the clip holds back)."""
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return masked_mean(torch.maximum(unclipped, clipped), mask), masked_mean(
        (clipped > unclipped).float(), mask
    )


def value_loss(values, old_values, returns, mask, clip):
    """Squared error of the value head, with the move away from the rollout's values clipped likewise."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


# ----- rollout and training ---------------------------------------------------------------------------


class ActorCritic(nn.Module):
    """The policy, and a value head that reads the same hidden states and starts at zero."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.value_head = nn.Linear(policy.config.width, 1).to(policy.head.weight.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, prompts, responses, temperature):
        """(B, P), (B, R) -> log-probs of the response tokens, and values of the states before them: (B, R) each, 0 at PAD."""
        pad = self.policy.config.pad
        tokens = torch.cat([prompts, responses], dim=1)
        hidden_states = self.policy.trunk(tokens[:, :-1])[:, prompts.shape[1] - 1 :]
        logp = token_log_probs(self.policy.head(hidden_states), responses, pad, temperature)
        values = self.value_head(hidden_states)[..., 0] * (responses != pad)
        return logp, values


@torch.no_grad()
def rollout(model, reference, reward, prompts, config, generator):
    """One response to each prompt (B, P), and all that the update needs of it: a dict of (B, R) tensors, but
    prompts (B, P) and scores (B,); mask is true on real tokens. The reward function is called here, once."""
    pad = model.policy.config.pad
    # 1. Sample responses.
    responses = sample(
        model.policy, prompts, config.max_new_tokens, generator, temperature=config.temperature
    )
    responses = trim(responses, pad)
    mask = responses != pad
    # 2. Their log-probabilities under the policy and under the reference, and the values.
    logp, values = model(prompts, responses, config.temperature)
    ref_logp = log_probs(reference, prompts, responses, config.temperature)
    if not torch.isfinite(logp).all():
        raise ValueError("policy: its log-probabilities are NaN or infinite: it has diverged")
    # 3. Scores.
    scores = torch.as_tensor(reward(prompts, responses), dtype=logp.dtype, device=logp.device)
    if scores.shape != (len(prompts),):
        raise ValueError(f"reward must return shape ({len(prompts)},), got {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError(f"reward: {int((~scores.isfinite()).sum())} of {len(scores)} are NaN or infinite")
    # 4. Rewards of the tokens, and what each token did better than expected.
    rewards = penalised_rewards(scores, logp - ref_logp, mask, config.beta)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return {
        "prompts": prompts,
        "responses": responses,
        "mask": mask,
        "scores": scores,
        "logp": logp,
        "ref_logp": ref_logp,
        "values": values,
        "advantages": masked_whiten(advantages, mask),
        "returns": returns,
    }


def minibatch_loss(model, mb, config):
    """PPO's loss of one minibatch of a rollout -> (loss, mean probability ratio, share of clipped tokens)."""
    logp, values = model(mb["prompts"], mb["responses"], config.temperature)
    log_ratio = logp - mb["logp"]
    actor_loss, clip_fraction = policy_loss(log_ratio, mb["advantages"], mb["mask"], config.clip)
    critic_loss = value_loss(values, mb["values"], mb["returns"], mb["mask"], config.clip)
    loss = actor_loss + config.value_weight * critic_loss
    return loss, masked_mean(log_ratio.exp(), mb["mask"]).detach(), clip_fraction


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is a perfect value head, 0 a constant one."""
    returns, values = returns[mask], values[mask]
    return 1 - (returns - values).var(correction=0) / (returns.var(correction=0) + 1e-8)


def ppo(policy, reward, prompts, config, gold=None, label="ppo"):
    """Train `policy` in place on prompts (N, P), and yield a record (dict) after every update:

    update, kl (nats per response, to the starting policy), kl_k3, proxy, entropy (nats per token), ratio,
    clip_fraction, explained_variance, and gold, if a reward function `gold` is given; prompts and responses are
    the batch. All but ratio and clip_fraction describe the rollout, before the update's steps.
    ValueError if the reward is NaN, naming the update."""
    device = prompts.device
    model = ActorCritic(policy)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(
        [
            {"params": policy.parameters()},
            {"params": model.value_head.parameters(), "lr": config.value_lr},
        ],
        config.lr,
        eps=1e-5,
        fused=True,
    )
    generator = torch.Generator(device).manual_seed(config.seed)  # samples
    shuffle = torch.Generator().manual_seed(config.seed + 1)  # prompts and minibatches: other numbers
    for update in tqdm(range(config.updates), label, leave=False, disable=None):
        rows = torch.randint(len(prompts), (config.batch_size,), generator=shuffle).to(device)
        try:
            batch = rollout(model, reference, reward, prompts[rows], config, generator)
        except ValueError as error:
            raise ValueError(f"update {update}: {error}") from error
        ratios, clip_fractions = [], []
        for _ in range(config.epochs):
            order = torch.randperm(config.batch_size, generator=shuffle).to(device)
            for mb_rows in order.split(config.minibatch_size):
                minibatch = {name: tensor[mb_rows] for name, tensor in batch.items()}
                loss, ratio, clip_fraction = minibatch_loss(model, minibatch, config)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                ratios.append(ratio)
                clip_fractions.append(clip_fraction)
        record = record_of(batch, gold)
        record["update"] = update
        record["ratio"] = torch.stack(ratios).mean().item()
        record["clip_fraction"] = torch.stack(clip_fractions).mean().item()
        yield record


def record_of(batch, gold=None):
    """What a rollout says of the policy that made it: see `ppo`."""
    mask, log_ratio = batch["mask"], batch["logp"] - batch["ref_logp"]
    record = {
        "kl": kl_k1(log_ratio).sum(1).mean().item(),
        "kl_k3": kl_k3(log_ratio).sum(1).mean().item(),
        "proxy": batch["scores"].mean().item(),
        "entropy": masked_mean(-batch["logp"], mask).item(),
        "explained_variance": explained_variance(batch["values"], batch["returns"], mask).item(),
        "prompts": batch["prompts"],
        "responses": batch["responses"],
    }
    if gold is not None:
        record["gold"] = gold(batch["prompts"], batch["responses"]).float().mean().item()
    return record
