"""ppo.py: estimators, advantages and losses by hand; then the loop."""
import copy
from dataclasses import replace

import pytest
import torch

from policy import LanguageModel, log_probs
from ppo import (ActorCritic, PPOConfig, explained_variance, gae, kl_k1, kl_k3, masked_mean, masked_whiten, minibatch_loss,
                 penalised_rewards, policy_loss, ppo, rollout, value_loss)

SMALL = PPOConfig(beta=0.05, updates=3, batch_size=32, minibatch_size=16, lr=1e-3, max_new_tokens=6, temperature=0.7)
share_of_3 = lambda prompts, responses: (responses == 3).float().sum(1) / (responses != 9).sum(1)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_kl_estimators_are_exact_in_expectation(estimator):
    """Minus the KL, or the KL the other way round: the mean over all three words of p, no sampling."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    log_ratio = (p / q).log()
    assert (p * estimator(log_ratio)).sum().item() == pytest.approx(0.373384, abs=1e-5)    # .7 ln 7/3 + .2 ln 2/3 + .1 ln 1/4
    assert (kl_k3(log_ratio) >= 0).all() and (kl_k1(log_ratio) < 0).any()


def test_pads_never_count():
    """Pads in a mean or a std: a huge number beyond the mask must change nothing."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    x = torch.tensor([[1.0, 2.0, 3.0], [6.0, 1e6, -1e6]])
    assert masked_mean(x, mask) == 3
    white = masked_whiten(x, mask)
    torch.testing.assert_close(white[mask], torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 3.5 ** 0.5)    # var (4 + 1 + 0 + 9) / 4
    assert (white[~mask] == 0).all()


def test_score_sits_on_the_last_real_token():
    """The score on a pad, or on the last column: rows of three, two and one tokens."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    scores, log_ratio = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, -5.0, 0.0], [6.0, 0.0, 0.0]])
    rewards = penalised_rewards(scores, log_ratio, mask, beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7], [-0.4, 20.5, 0.0], [29.4, 0.0, 0.0]]))
    torch.testing.assert_close(rewards.sum(1), scores - 0.1 * log_ratio.sum(1))


def test_gae_by_hand():
    """Off by one in V(t + 1), gamma or lambda forgotten, a value beyond the end; at lambda = 1 = gamma only V_t stays."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 0, 1], [0, 1, 0]]), torch.tensor([[0.5, 0.2, 0.4], [0.5, 0.2, 9]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # row 0: deltas -0.4, 0, 0.6; row 1: deltas -0.4, 0.8; each advantage adds a quarter of the next
    torch.testing.assert_close(advantages, torch.tensor([[-0.3625, 0.15, 0.6], [-0.2, 0.8, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.1375, 0.35, 1.0], [0.3, 1.0, 0]]))
    rewards, values = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    advantages, _ = gae(rewards, values, torch.ones(4, 7, dtype=torch.bool), gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantages, rewards.flip(1).cumsum(1).flip(1) - values)


@pytest.mark.parametrize("ratio, advantage, loss, clipped", [
    (1.5, 1, -1.2, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.8, 1), (1.1, 1, -1.1, 0)])
def test_policy_loss_by_hand(ratio, advantage, loss, clipped):
    """The clip on the wrong side: it holds a move only where the move would pay, and stops its gradient there."""
    log_ratio = torch.tensor([[ratio, 7.0]]).log().requires_grad_()            # the second token is a pad
    found, fraction = policy_loss(log_ratio, torch.tensor([[float(advantage), 5.0]]), torch.tensor([[True, False]]), clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss) and fraction == clipped
    assert (log_ratio.grad[0, 0] == 0) == bool(clipped) and log_ratio.grad[0, 1] == 0


def test_value_loss_and_explained_variance_by_hand():
    """Pads in a mean; the smaller of two errors: a move from 0 to 1, clipped at 0.2, still owes 0.5 * 0.8^2 to a return of 1."""
    found = value_loss(*torch.tensor([[[1.0, 5.0]], [[0.0, 0.0]], [[1.0, -5.0]]]), torch.tensor([[True, False]]), clip=0.2)
    assert found.item() == pytest.approx(0.32)
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns.where(mask, -5.0), returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask).item() == pytest.approx(0)


def test_actor_critic_is_the_policy(model, prompts, responses):
    """Log-probs or values of a neighbouring token; a value head that does not start at zero."""
    logp, values = ActorCritic(model)(prompts, responses, 0.7)
    torch.testing.assert_close(logp, log_probs(model, prompts, responses, 0.7))
    assert values.shape == responses.shape and (values == 0).all()


def test_rollout_and_update_see_one_policy(model, prompts):
    """Another temperature or mask in sampling, rollout or update: the ratio must start at 1 with nothing clipped, and
    the mean of -log p over the policy's own samples is its entropy."""
    actor = ActorCritic(model)
    batch = rollout(actor, copy.deepcopy(model), share_of_3, prompts.repeat(100, 1), SMALL, torch.Generator().manual_seed(0))
    _, statistics = minibatch_loss(actor, batch, SMALL)
    assert statistics["ratio"].item() == pytest.approx(1, abs=1e-5) and statistics["clip_fraction"] == 0
    logits = model(torch.cat([batch["prompts"], batch["responses"]], 1))[:, batch["prompts"].shape[1] - 1:-1]
    p = (logits / SMALL.temperature).softmax(-1)
    entropy = masked_mean(-(p * p.log()).sum(-1), batch["mask"]).item()
    assert masked_mean(-batch["logp"], batch["mask"]).item() == pytest.approx(entropy, abs=0.03)
    assert batch["mask"].sum(1).unique().numel() > 1                           # rows of different length


def test_record_is_of_its_batch_and_kl_to_the_frozen_start(model, prompts):
    """A reference that is trained along, or pads or another temperature in the KL; gold of other texts than the record's."""
    echo = lambda prompts, responses: (responses == prompts[:, :1]).float().sum(1)
    start = copy.deepcopy(model)
    run = ppo(model, share_of_3, prompts, SMALL, gold=echo, traits=lambda x, y: {"threes": share_of_3(x, y)})
    assert next(run)["kl"] == pytest.approx(0, abs=1e-5)
    after_one = copy.deepcopy(model)
    second = next(run)
    seen = second["prompts"], second["responses"]
    kl = (log_probs(after_one, *seen, 0.7) - log_probs(start, *seen, 0.7)).sum(1).mean().item()
    assert second["kl"] == pytest.approx(kl, abs=1e-5) and second["kl_k3"] > 1e-4
    assert second["gold"] == pytest.approx(echo(*seen).mean().item()) and second["gold"] > 0
    assert second["proxy"] == second["threes"] == pytest.approx(share_of_3(*seen).mean().item())


def test_learns_and_beta_holds_it_back(config, prompts):
    """A sign in the loss or in the penalty: a plain lambda is learnt in a few updates, and a large beta keeps KL small."""
    last = {}
    for beta in (0.0, 1.0):
        run = ppo(LanguageModel(config, 0), share_of_3, prompts, replace(SMALL, beta=beta, updates=15, batch_size=64, lr=3e-3))
        first, *_, last[beta] = run
    assert first["proxy"] < 0.3 and last[0.0]["proxy"] > 0.8
    assert last[1.0]["kl"] < 0.3 * last[0.0]["kl"] and last[1.0]["proxy"] < last[0.0]["proxy"]


def test_same_seed_same_run(config, prompts):
    """Randomness that the seed does not reach: samples (of one prompt here), or the order of minibatches."""
    def run(seed):
        first, *_, last = ppo(LanguageModel(config, 0), share_of_3, prompts[:1], replace(SMALL, seed=seed))
        return first["responses"].tolist(), last["kl"], last["proxy"]
    assert run(0) == run(0) and run(0)[0] != run(1)[0]


def test_bad_rewards_name_the_update(model, prompts):
    """A NaN that turns all weights into NaN, noticed an hour later; (B, 1) rewards, which would broadcast to (B, B)."""
    good, nan, tall = torch.ones(32), torch.full((32,), torch.nan), torch.ones(32, 1)
    for bad, error in ((nan, "32 of 32 rewards are NaN"), (tall, r"returned shape \(32, 1\) for 32 responses")):
        rewards = iter([good, bad])
        run = ppo(model, lambda prompts, responses: next(rewards), prompts, SMALL)
        next(run)
        with pytest.raises(ValueError, match=f"^update 1: reward: {error}"):
            next(run)


@pytest.mark.parametrize("setting", [{"beta": -0.1}, {"batch_size": 0}, {"minibatch_size": 0}, {"updates": 0}, {"epochs": 0}])
def test_senseless_settings_are_refused(model, prompts, setting):
    """A run that is paid for KL, or that trains nothing and says so nowhere."""
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: "):
        next(ppo(model, share_of_3, prompts, replace(SMALL, **setting)))
