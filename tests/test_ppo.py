"""ppo.py: estimators, advantages and losses by hand; the loop; and all forward passes on other devices."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import policy
import ppo
import rm
from ensemble import AGGREGATORS, Ensemble
from policy import Config, LanguageModel, TrainConfig, log_probs

SMALL = ppo.PPOConfig(updates=3, batch_size=32, minibatch_size=16, lr=1e-3, max_new_tokens=6, temperature=0.7)


def share_of_3(prompts, responses):
    """A reward function of one line: the share of a response's tokens that are 3."""
    return (responses == 3).float().sum(1) / (responses != 9).sum(1)


# ----- pure functions, by hand --------------------------------------------------------------------


def test_kl_estimators_are_exact_in_expectation():
    """Minus the KL, or that of the other direction: the mean over the three words of p, without sampling."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact, log_ratio = 0.373384, (p / q).log()  # .7 ln 7/3 + .2 ln 2/3 + .1 ln 1/4
    assert (p * log_ratio).sum().item() == pytest.approx(exact, abs=1e-5)
    assert (p * ppo.kl_k3(log_ratio)).sum().item() == pytest.approx(exact, abs=1e-5)
    assert (ppo.kl_k3(torch.linspace(-1e-3, 1e-3, 1001)) >= 0).all()  # where exp(x) - 1 is mere rounding


def test_pads_never_count():
    """Pads in a mean, a std or a variance: the huge numbers beyond the mask must change nothing."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    x = torch.tensor([[1.0, 2, 3], [6, 1e6, -1e6]])
    assert ppo.masked_mean(x, mask) == 3
    expected = torch.tensor([[-2.0, -1, 0], [3, 0, 0]]) / 3.5**0.5  # variance (4 + 1 + 0 + 9) / 4
    torch.testing.assert_close(ppo.masked_whiten(x, mask), expected)
    assert ppo.explained_variance(x - 8, x, mask) == 1  # a constant offset costs nothing
    values = torch.tensor([[1.0, 2, 3], [2, 0, 0]])  # errors 0, 0, 0, 4: squares around their mean 3 + 9
    assert ppo.explained_variance(values, x, mask).item() == pytest.approx(1 - 12 / 14)


def test_the_score_sits_on_the_last_real_token():
    """The score on a pad or on the last column, or a bonus for KL: rows of three, two and one tokens."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    log_ratio = torch.tensor([[1.0, 2, 3], [4, -5, 0], [6, 0, 0]])
    rewards = ppo.penalised_rewards(torch.tensor([10.0, 20, 30]), log_ratio, mask, beta=0.1)
    expected = torch.tensor([[-0.1, -0.2, 10 - 0.3], [-0.4, 20 + 0.5, 0], [30 - 0.6, 0, 0]])
    torch.testing.assert_close(rewards, expected)


def test_gae():
    """Off by one in V(t + 1), a forgotten gamma or lambda, or a value beyond the end."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    rewards = torch.tensor([[0.0, 0, 1], [0, 1, 0]])
    values = torch.tensor([[0.5, 0.2, 0.4], [0.5, 0.2, 9]])  # the 9 is beyond the end
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.8, lam=0.5)
    # Row 0: deltas .8 x .2 - .5 = -.34, .8 x .4 - .2 = .12, 1 - .4 = .6. Row 1: -.34, 1 - .2 = .8.
    # To each delta comes .8 x .5 of the next advantage.
    expected = torch.tensor([[-0.34 + 0.4 * 0.36, 0.12 + 0.4 * 0.6, 0.6], [-0.34 + 0.4 * 0.8, 0.8, 0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + torch.tensor([[0.5, 0.2, 0.4], [0.5, 0.2, 0]]))


@pytest.mark.parametrize(
    "ratio, advantage, loss, clipped",
    [(1.5, 1, -1.2, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.8, 1), (1.1, 1, -1.1, 0)],
)
def test_policy_loss(ratio, advantage, loss, clipped):
    """A clip on the wrong side: it stops a move, and its gradient, only where the move would pay."""
    log_ratio = torch.tensor([[ratio, 7.0]]).log().requires_grad_()  # the second token is a pad
    advantages, mask = torch.tensor([[float(advantage), 5]]), torch.tensor([[True, False]])
    found, fraction = ppo.policy_loss(log_ratio, advantages, mask, clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss) and fraction == clipped
    assert (log_ratio.grad[0] == 0).tolist() == [bool(clipped), True]


def test_value_loss():
    """Pads in a mean, or the smaller of two errors: a move of 1, clipped at .2, still owes .5 x .8^2."""
    values, old_values, returns = torch.tensor([[[1.0, 5]], [[0, 0]], [[1, -5]]])
    loss = ppo.value_loss(values, old_values, returns, torch.tensor([[True, False]]), clip=0.2)
    assert loss.item() == pytest.approx(0.32)


# ----- the loop -----------------------------------------------------------------------------------


def test_rollout_and_update_see_one_policy(model, prompts):
    """Another temperature in sampling, reference or update: the first ratio is 1, the first KL is 0."""
    actor, generator = ppo.ActorCritic(model), torch.Generator().manual_seed(0)
    batch = ppo.rollout(actor, copy.deepcopy(model), share_of_3, prompts.repeat(100, 1), SMALL, generator)
    _, ratio, clip_fraction = ppo.minibatch_loss(actor, batch, SMALL)
    assert ratio.item() == pytest.approx(1, abs=1e-5) and clip_fraction == 0
    torch.testing.assert_close(batch["logp"], batch["ref_logp"])
    assert (batch["values"] == 0).all()
    # The mean of -log p over the policy's own samples is its entropy, if they are drawn at that temperature.
    logits = model(torch.cat([batch["prompts"], batch["responses"]], 1))[:, 3:-1]
    p = (logits / 0.7).softmax(-1)
    entropy = ppo.masked_mean(-(p * p.log()).sum(-1), batch["mask"]).item()
    assert ppo.masked_mean(-batch["logp"], batch["mask"]).item() == pytest.approx(entropy, abs=0.03)


def test_the_record(model, prompts):
    """A reference that is trained along, a KL with pads or another temperature, or gold of other texts."""

    def gold(prompts, responses):
        return (responses == prompts[:, :1]).float().sum(1)

    start = copy.deepcopy(model)
    run = ppo.ppo(model, share_of_3, prompts, SMALL, gold=gold)
    first = next(run)
    assert first["update"] == 0 and first["kl"] == pytest.approx(0, abs=1e-5)
    after_one_update = copy.deepcopy(model)
    record = next(run)
    texts = record.pop("prompts"), record.pop("responses")
    names = "update kl kl_k3 proxy gold entropy explained_variance ratio clip_fraction"
    assert set(record) == set(names.split()) and record["update"] == 1
    logp, ref_logp = log_probs(after_one_update, *texts, 0.7), log_probs(start, *texts, 0.7)
    assert record["kl"] == pytest.approx((logp - ref_logp).sum(1).mean().item(), abs=1e-5)
    assert record["entropy"] == pytest.approx(-logp[texts[1] != 9].mean().item(), abs=1e-5)
    assert record["proxy"] == pytest.approx(share_of_3(*texts).mean().item())
    assert record["gold"] == pytest.approx(gold(*texts).mean().item()) and record["gold"] > 0
    assert record["kl_k3"] > 1e-4 and record["ratio"] == pytest.approx(1, abs=0.1)


def test_it_learns_and_beta_holds_it_back(config, prompts):
    """A wrong sign in the loss or in the penalty."""
    last = {}
    for beta in (0, 1):
        settings = replace(SMALL, beta=beta, updates=15, batch_size=64, lr=3e-3)
        first, *_, last[beta] = ppo.ppo(LanguageModel(config, 0), share_of_3, prompts, settings)
    assert first["proxy"] < 0.3 and last[0]["proxy"] > 0.8
    assert last[1]["kl"] < 0.3 * last[0]["kl"] and last[1]["proxy"] < last[0]["proxy"]


def test_senseless_input_is_refused(model, prompts):
    """A NaN that makes all weights NaN, found an hour later; (B, 1) rewards, which broadcast to (B, B); a run
    that is paid for KL, or one without prompts."""
    nan, tall = torch.full((32,), torch.nan), torch.ones(32, 1)
    for reward, texts, message in (
        (lambda *texts: nan, prompts, "^reward.*nan"),
        (lambda *texts: tall, prompts, r"^reward.*shape \(32,\)"),
        (share_of_3, prompts[:0], "^prompts must hold tokens and no PAD"),
    ):
        with pytest.raises(ValueError, match=message):
            next(ppo.ppo(model, reward, texts, SMALL))
    with pytest.raises(ValueError, match="^beta must be >= 0, got -1"):
        replace(SMALL, beta=-1)


# ----- devices and dtypes -------------------------------------------------------------------------


def everything_on(device, dtype=torch.float):
    """Models of a dtype and inputs on a device, in one namespace."""
    model = LanguageModel(Config(vocab_size=10, context=16, width=16), seed=0).to(device, dtype)
    rms, actor = [rm.RewardModel(model.trunk, seed) for seed in range(3)], ppo.ActorCritic(model)
    ensemble = Ensemble(rms)
    prompts = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]).to(device)
    responses = torch.tensor([[1, 2, 8, 9, 9], [3, 3, 3, 3, 3]]).to(device)
    return SimpleNamespace(**locals())


def one_update(on):
    """All that an update of PPO on an ensemble computes, and a step of reward models: a list of tensors."""
    generator = torch.Generator(on.device).manual_seed(0)
    batch = ppo.rollout(on.actor, on.model, on.ensemble, on.prompts, SMALL, generator)
    loss = ppo.minibatch_loss(on.actor, batch, SMALL)[0]
    rewards = on.ensemble.batched(on.prompts, on.responses)
    losses = [loss, rm.bradley_terry_loss(*rewards[:2]), rm.pointwise_loss(rewards, torch.ones_like(rewards))]
    sum(losses).backward()
    return [*(f(rewards.float()) for f in AGGREGATORS.values()), *losses, *batch.values()]


def test_no_tensor_is_made_on_another_device():
    """A tensor made without a device, which fails on the first GPU: here it is on `meta`, the rest is not."""
    expected = one_update(everything_on("cpu"))
    on = everything_on("cpu")
    with torch.device("meta"):
        found = one_update(on)
    assert all(x.device.type == "cpu" and torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_models_follow_the_trunks_dtype(dtype):
    """A float32 head on a trunk of another dtype, which fails at its first forward pass."""
    found = one_update(everything_on("cpu", dtype))[len(AGGREGATORS) :]
    assert {x.dtype for x in found} == {dtype, torch.int64, torch.bool}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_depends_on_data_runs_on_a_gpu():
    """What `meta` cannot show: scores in chunks, normalising, training, and the loop of PPO."""
    on, one_step = everything_on("cuda"), TrainConfig(steps=1, batch_size=2)
    assert {x.device.type for x in one_update(on)} == {"cuda"}
    policy.train_lm(on.model, torch.cat([on.prompts, on.responses], 1), one_step, seed=0)
    rm.train_rm(on.rms[0], on.prompts, on.responses, on.responses.flip(0), one_step, seed=0)
    rm.train_pointwise(on.rms[1], on.prompts, on.responses, torch.ones(2).cuda(), one_step, seed=0)
    for member in on.rms:
        rm.normalise(member, on.prompts, on.responses)
    samples = policy.sample(on.model, on.prompts, 6, torch.Generator("cuda").manual_seed(0), n=50)
    scores = Ensemble(on.rms).scores(on.prompts, samples)
    expected = torch.stack([member(on.prompts.repeat_interleave(50, 0), samples) for member in on.rms])
    torch.testing.assert_close(scores, expected.detach(), atol=1e-3, rtol=0)
    next(ppo.ppo(on.model, Ensemble(on.rms), on.prompts, SMALL))
