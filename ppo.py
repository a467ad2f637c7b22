"""PPO with a KL penalty (RLHF) on any reward function.

    for record in ppo(policy, reward, prompts, PPOConfig(beta=0.05), gold=gold):
        print(record["kl"], record["proxy"], record["gold"])

A reward function maps prompts (B, P), responses (B, R) to *scores* (B,): a reward model, or any function.
PPO maximises E[score] - beta * KL(policy || frozen starting policy); the paper calls beta lambda. A token is
an action. Its *reward* is -beta times its share of the KL; the last token's also has the response's score.
Tensors are (B, R), a number per token, unless a docstring says otherwise; mask: True on tokens, EOS included.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from policy import check_texts, log_probs, sample, trim


@dataclass(frozen=True)
class PPOConfig:  # settings of a PPO run
    beta: float = 0.05  # weight of the KL penalty, per nat
    updates: int = 60  # rollout + optimisation rounds
    batch_size: int = 128  # responses per update
    epochs: int = 2  # passes over a batch
    minibatch_size: int = 64  # responses per gradient step
    lr: float = 3e-4  # of the policy
    value_lr: float = 3e-3  # of the critic
    clip: float = 0.2  # of the probability ratio, and of the value's move
    gamma: float = 1.0  # discount
    lam: float = 0.95  # GAE's lambda
    temperature: float = 1.0  # in rollout, reference and update alike
    max_new_tokens: int = 24
    grad_clip: float = 1.0  # largest norm of the gradient, of the policy's and of the critic's
    seed: int = 0  # prompts, samples and shuffles

    def __post_init__(self):
        if not self.beta >= 0:  # nor NaN
            raise ValueError(f"beta must be >= 0, got {self.beta}")


def kl_k3(log_ratio):
    """Schulman's k3 (2020) of log p - log q, a KL estimate >= 0: kl_k3(log_ratio=[0, 1]) -> [0, 0.368]."""
    return torch.expm1(-log_ratio) + log_ratio  # exp(...) - 1 would round to less than 0 near 0


def masked_mean(x, mask):
    """Mean of x where the mask is true: masked_mean(x=[1, 3, 99], mask=[True, True, False]) -> 2."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x, mask):
    """(x - mean) / std where the mask is true, 0 elsewhere.
    masked_whiten(x=[1, 3, 99], mask=[True, True, False]) -> [-1, 1, 0]."""
    mean = masked_mean(x, mask)
    std = masked_mean((x - mean) ** 2, mask).sqrt()
    return (x - mean) / (std + 1e-8) * mask


def penalised_rewards(scores, log_ratio, mask, beta):
    """Reward of every token: -beta * log_ratio, plus the response's score (B,) on its last token.
    penalised_rewards(scores=[10], log_ratio=[[1, 2]], mask=[[True, True]], beta=0.1) -> [[-0.1, 9.8]]."""
    rewards = -beta * log_ratio * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over a response:
    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}.
    Returns (advantages, returns = advantages + values): 0 beyond the mask, if the rewards are."""
    values = values * mask  # so that the value after the last token is 0: no bootstrap
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])  # the episode is over: nothing follows
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
    return advantages, advantages + values


def policy_loss(log_ratio, advantages, mask, clip):
    """Clipped surrogate (Schulman et al. 2017, eq. 7), to minimise; log_ratio = new - old log-probability.
    Returns (loss, share of tokens whose gradient the clip sets to 0)."""
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask)


def value_loss(values, old_values, returns, mask, clip):
    """Half the squared error of values, or of values kept within `clip` of the rollout's: the larger one."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(values, returns, mask):
    """1 - var(returns - values) / var(returns) over the tokens: 1 if the critic knows all, 0 if nothing.
    explained_variance(values=[[1, 2, 0]], returns=[[1, 3, 0]], mask=[[True, True, False]]) -> 0.75."""
    return 1 - (returns - values)[mask].var() / returns[mask].var()


class ActorCritic(nn.Module):
    """The policy itself, not a copy, and its critic: a copy of the policy's trunk and a value head from zero.
    A value head on the policy's own trunk did not predict: explained variance about 0, against about 0.7
    after 30 updates with a trunk of its own."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        value_head = nn.Linear(policy.config.width, 1)
        nn.init.zeros_(value_head.weight)
        nn.init.zeros_(value_head.bias)
        self.critic = nn.Sequential(copy.deepcopy(policy.trunk), value_head).to(policy.head.weight)

    def forward(self, prompts, responses, temperature):
        """Log-probs of the response tokens, and values of the states before them: (B, R) each, 0 at PAD."""
        tokens = torch.cat([prompts, responses], dim=1)
        values = self.critic(tokens[:, :-1])[:, prompts.shape[1] - 1 :, 0]  # the positions of log_probs
        logp = log_probs(self.policy, prompts, responses, temperature)
        return logp, values * (responses != self.policy.config.pad)


@torch.no_grad()
def rollout(model, reference, reward, prompts, config, generator):
    """One response to each prompt, and what the update needs of it: a dict of (B, R) tensors, except prompts
    (B, P) and scores (B,). The only place that calls the reward function."""
    policy, pad = model.policy, model.policy.config.pad
    # 1. Sample responses.
    responses = sample(policy, prompts, config.max_new_tokens, generator, temperature=config.temperature)
    responses = trim(responses, pad)
    mask = responses != pad
    batch = {"prompts": prompts, "responses": responses, "mask": mask}
    # 2. Their log-probabilities under the policy and under the reference, and the values.
    logp, values = model(prompts, responses, config.temperature)
    ref_logp = log_probs(reference, prompts, responses, config.temperature)
    batch |= {"logp": logp, "ref_logp": ref_logp, "values": values}
    # 3. Their scores.
    scores = torch.as_tensor(reward(prompts, responses), dtype=logp.dtype, device=logp.device)
    if scores.shape != (len(prompts),) or not scores.isfinite().all():
        raise ValueError(f"reward must return shape ({len(prompts)},), all finite, got {scores}")
    # 4. Token rewards, then advantages (whitened over the whole batch) and returns (not whitened).
    rewards = penalised_rewards(scores, logp - ref_logp, mask, config.beta)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return batch | {"scores": scores, "advantages": masked_whiten(advantages, mask), "returns": returns}


def minibatch_loss(model, mb, config):
    """A minibatch of a rollout -> (actor's plus critic's loss, mean ratio, share of clipped tokens)."""
    logp, values = model(mb["prompts"], mb["responses"], config.temperature)
    log_ratio = logp - mb["logp"]
    actor_loss, clip_fraction = policy_loss(log_ratio, mb["advantages"], mb["mask"], config.clip)
    critic_loss = value_loss(values, mb["values"], mb["returns"], mb["mask"], config.clip)
    return actor_loss + critic_loss, masked_mean(log_ratio.exp(), mb["mask"]).detach(), clip_fraction


def ppo(policy, reward, prompts, config, gold=None, desc="ppo"):
    """Train `policy` in place on prompts (N, P). A generator: nothing runs until you iterate, an update each.
    Yields a dict: update, mean ratio, clip_fraction, and `record_of` the rollout, which the policy wrote
    *before* this update. `gold`: a reward function, only recorded. `desc`: of the progress bar, or None."""
    check_texts(policy.config, prompts)
    device = prompts.device
    model = ActorCritic(policy)
    reference = copy.deepcopy(policy).requires_grad_(False)
    critic = {"params": model.critic.parameters(), "lr": config.value_lr}
    optimizer = torch.optim.Adam([{"params": policy.parameters()}, critic], config.lr, eps=1e-5, fused=True)
    sample_generator = torch.Generator(device).manual_seed(config.seed)  # for samples
    data_generator = torch.Generator().manual_seed(config.seed + 1)  # for prompts and minibatches
    for update in tqdm(range(config.updates), desc, leave=False, disable=True if desc is None else None):
        # Draw prompts (with replacement), sample responses, score them.
        rows = torch.randint(len(prompts), (config.batch_size,), generator=data_generator).to(device)
        batch = rollout(model, reference, reward, prompts[rows], config, sample_generator)
        # Update the policy on them: `epochs` passes, each in freshly shuffled minibatches.
        statistics = []
        for _ in range(config.epochs):
            order = torch.randperm(config.batch_size, generator=data_generator).to(device)
            for mb_rows in order.split(config.minibatch_size):
                mb = {name: tensor[mb_rows] for name, tensor in batch.items()}
                loss, ratio, clip_fraction = minibatch_loss(model, mb, config)
                optimizer.zero_grad()
                loss.backward()
                for part in (policy, model.critic):  # apart, or the critic's gradient shrinks the policy's
                    nn.utils.clip_grad_norm_(part.parameters(), config.grad_clip)
                optimizer.step()
                statistics.append((ratio, clip_fraction))
        ratio, clip_fraction = (torch.stack(s).mean().item() for s in zip(*statistics, strict=True))
        yield record_of(batch, gold) | {"update": update, "ratio": ratio, "clip_fraction": clip_fraction}


def record_of(batch, gold=None):
    """What a rollout says of the policy before the update: its texts, kl and kl_k3 to the reference (nats per
    response), proxy (mean score), entropy (nats per token), explained_variance, and gold if there is one."""
    mask, log_ratio = batch["mask"], batch["logp"] - batch["ref_logp"]
    record = {"prompts": batch["prompts"], "responses": batch["responses"]}
    record["kl"] = log_ratio.sum(1).mean().item()  # no mask: log_ratio is 0 at PAD, and so is k3 of it
    record["kl_k3"] = kl_k3(log_ratio).sum(1).mean().item()
    record["proxy"] = batch["scores"].mean().item()
    record["entropy"] = masked_mean(-batch["logp"], mask).item()
    record["explained_variance"] = explained_variance(batch["values"], batch["returns"], mask).item()
    if gold is not None:
        record["gold"] = torch.as_tensor(gold(batch["prompts"], batch["responses"])).float().mean().item()
    return record
