"""rm.py: the score sits on the right token, and the loss is the paper's."""

import copy

import pytest
import torch

from policy import TrainConfig
from rm import RewardModel, accuracy, bradley_terry_loss, normalise, pointwise_loss, train_pointwise, train_rm


@pytest.fixture
def rm(model):
    return RewardModel(model.trunk, finetune_seed=0)


def test_the_last_real_token_is_scored(rm, prompts, responses):
    """A score read at position -1, or one that depends on the longest row of its batch."""
    rm.double()
    for pad_columns in (0, 5):
        rewards = rm(prompts, torch.nn.functional.pad(responses, (0, pad_columns), value=9))
        for b in range(12):  # the row alone, without pads: there the last position is the last token
            text = torch.cat([prompts[b], responses[b][responses[b] != 9]])
            alone = rm.head(rm.trunk(text[None])[0, -1])
            assert rewards[b].item() == pytest.approx(alone.item(), abs=1e-10)


def test_the_finetuning_seed_draws_the_head(model):
    """One head for all members of an ensemble, one of another size, or one that repeats the pretraining's."""
    first, again, other = (RewardModel(model.trunk, seed).head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    many = torch.cat([RewardModel(model.trunk, seed).head.weight for seed in range(60)])  # 960 draws
    assert many.std().item() == pytest.approx(17**-0.5, rel=0.1)
    # The numbers of finetuning seed 0 are not those of pretraining seed 0, at another scale.
    head, embedding = many[0], model.trunk.token_embedding.weight[0]
    assert torch.cosine_similarity(head, embedding, dim=0).abs() < 0.99


def test_bradley_terry_loss():
    """The difference in place of the sum in the centring term, a wrong sign, or a sum over pairs."""

    def loss(chosen, rejected, eta):
        return bradley_terry_loss(torch.tensor(chosen), torch.tensor(rejected), eta).item()

    assert loss([1.0], [1.0], 0.01) == pytest.approx(0.693147 + 0.01 * 2**2)  # -log sigmoid(0), sum 2
    assert loss([1.0], [-1.0], 0.01) == pytest.approx(0.126928, abs=1e-6)  # -log sigmoid(2), sum 0
    assert loss([6.0], [4.0], 0) == pytest.approx(0.126928, abs=1e-6)  # without eta a constant costs nothing
    assert loss([3.0, 0.0], [1.0, 1.0], 0) == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-6)


def test_pointwise_loss_and_accuracy():
    """Flipped labels, or a sum in place of the mean; a tie counted as right, or a mean over the members."""
    loss = pointwise_loss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-6)  # -log sigmoid(2) and (-2)
    chosen, rejected = torch.tensor([[1.0, 2, 3], [0, 0, 5]]), torch.tensor([[0.0, 3, 2], [1, 0, 4]])
    assert accuracy(chosen, rejected).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_training_step_minimises_the_plain_loss(rm, prompts, responses, monkeypatch):
    """Prompts, or chosen and rejected, mixed up where a prompt is read once for both: loss and gradients."""
    rm.double()
    rejected, labels, weights = responses.roll(1, 0), torch.arange(12.0).double() % 2, list(rm.parameters())
    # In place of the training loop: the loss of all rows.
    monkeypatch.setattr("rm.train", lambda rm, loss_fn, data, *rest: loss_fn(*data))
    pairs = train_rm(rm, prompts, responses, rejected, None, seed=0, eta=0.3)
    single = train_pointwise(rm, prompts, responses, labels, None, seed=0)
    for loss, plain in (
        (pairs, bradley_terry_loss(rm(prompts, responses), rm(prompts, rejected), eta=0.3)),
        (single, pointwise_loss(rm(prompts, responses), labels)),
    ):
        assert loss.item() == pytest.approx(plain.item(), abs=1e-10)
        gradients = zip(torch.autograd.grad(loss, weights), torch.autograd.grad(plain, weights), strict=True)
        for found, expected in gradients:
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_training_learns_a_preference_and_leaves_the_pretraining_alone(model, rm):
    """Pairs out of step, a training that its seed does not fix, or a trunk shared by all reward models."""
    before, again = copy.deepcopy(model.state_dict()), RewardModel(model.trunk, finetune_seed=0)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(8, (512, 4), generator=generator)
    chosen, rejected = torch.randint(4, 8, (2, 512, 5), generator=generator)
    chosen[torch.arange(512), torch.randint(5, (512,), generator=generator)] = 3  # the chosen one has a 3
    train, test = slice(0, 384), slice(384, 512)
    pairs, training = (prompts[train], chosen[train], rejected[train]), TrainConfig(steps=60)
    assert torch.equal(train_rm(rm, *pairs, training, seed=0), train_rm(again, *pairs, training, seed=0))
    assert accuracy(rm(prompts[test], chosen[test]), rm(prompts[test], rejected[test])) > 0.9
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_rows_that_cannot_be_scored_are_refused(rm, prompts, responses):
    """A row with no last token, or two; and a pair of equal texts, which teaches nothing and counts half."""
    rejected, settings = responses.roll(1, 0), TrainConfig(steps=1)
    rows = {"chosen equals rejected in 1 pairs": responses[5], "a row has no token": torch.full((6,), 9)}
    rows["a row goes on after EOS or PAD"] = torch.tensor([3, 9, 8, 9, 9, 9])
    for message, row in rows.items():
        rejected[5] = row
        with pytest.raises(ValueError, match=message):
            train_rm(rm, prompts, responses, rejected, settings, seed=0)
    rejected[5] = torch.tensor([3, 8, 3, 9, 9, 9])
    with pytest.raises(ValueError, match=message):
        train_pointwise(rm, prompts, rejected, torch.ones(12), settings, seed=0)


def test_normalise(rm, prompts, responses):
    """Rewards without a common scale, or a second call that undoes the first."""
    order = rm(prompts, responses).argsort()
    for _ in range(2):
        normalise(rm, prompts, responses)
        rewards = rm(prompts, responses)
        assert rewards.mean().item() == pytest.approx(0, abs=1e-5)
        assert rewards.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert torch.equal(rewards.argsort(), order)
    with pytest.raises(ValueError, match="do not vary"):
        normalise(rm, prompts[:1].repeat(7, 1), responses[:1].repeat(7, 1))  # equal up to rounding
