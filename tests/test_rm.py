"""rm.py: the score sits on the right token, and the loss is the paper's."""
import copy

import pytest
import torch

from policy import Config, LanguageModel, TrainConfig
from rm import RewardModel, accuracy, bradley_terry_loss, check_pairs, normalise, pointwise_loss, train_pointwise, train_rm


@pytest.fixture
def rm(model):
    return RewardModel(model.trunk, finetune_seed=0)


def preference_for_token_3(pairs, seed):
    """Random prompts and responses; the chosen one has one 3, the rejected one none."""
    g = torch.Generator().manual_seed(seed)
    prompts, rejected = torch.randint(8, (pairs, 4), generator=g), torch.randint(4, 8, (pairs, 5), generator=g)
    chosen = torch.randint(4, 8, (pairs, 5), generator=g)
    chosen[torch.arange(pairs), torch.randint(5, (pairs,), generator=g)] = 3
    return prompts, chosen, rejected


def test_last_real_token_is_scored(rm, prompts, responses):
    """The score read off a pad or the token before the last; or one that depends on how long the batch's longest row is."""
    texts = [torch.cat([prompt, response[response != 9]]) for prompt, response in zip(prompts, responses)]
    unpadded = torch.cat([rm.head(rm.trunk(text[None])[-1:])[0] for text in texts])
    for extra in (0, 5):
        wider = torch.cat([responses, torch.full((12, extra), 9)], 1)
        torch.testing.assert_close(rm(prompts, wider), unpadded, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n, row", [(1, [9] * 6), (2, [9] * 6), (1, [3, 9, 8, 9, 9, 9]), (2, [3, 9, 8, 9, 9, 9])])
def test_a_response_without_an_end_is_refused(rm, prompts, responses, n, row):
    """A row that has no last token, or two, and whose neighbours' scores would all move up or down by one."""
    responses = responses.repeat_interleave(n, 0)
    responses[5] = torch.tensor(row)
    with pytest.raises(ValueError, match="^responses: a row has no token"):
        rm(prompts, responses)


def test_losses_by_hand():
    """A sign, a sum for the mean, or the difference in the centring term: (1, 1) must pay 0.01 * 2^2 for it, (1, -1) nothing."""
    loss = lambda chosen, rejected, eta=0.01: bradley_terry_loss(torch.tensor(chosen), torch.tensor(rejected), eta).item()
    assert loss([1.0], [1.0]) == pytest.approx(0.693147 + 0.04, abs=1e-6)                # -log sigmoid(0)
    assert loss([1.0], [-1.0]) == pytest.approx(0.126928, abs=1e-6)                      # -log sigmoid(2)
    assert loss([6.0], [4.0], eta=0) == pytest.approx(0.126928, abs=1e-6)                # eta is there to fix the constant
    assert loss([3.0, 0.0], [1.0, 1.0], eta=0) == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-6)


def test_pointwise_loss_by_hand():
    """Labels turned round, or a sum for the mean: -log sigmoid(2), -log sigmoid(-2) and -log sigmoid(0)."""
    loss = lambda rewards, labels: pointwise_loss(torch.tensor(rewards), torch.tensor(labels)).item()
    assert loss([2.0, 2.0], [1.0, 0.0]) == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-6)
    assert loss([0.0], [0.0]) == pytest.approx(0.693147, abs=1e-6)


def test_pointwise_training_learns_labels(rm):
    """Labels out of step with their responses: a response with a 3 is right, one without is not."""
    prompts, good, bad = preference_for_token_3(256, seed=0)
    labels = torch.cat([torch.ones(256), torch.zeros(256)])
    losses = train_pointwise(rm, prompts.repeat(2, 1), torch.cat([good, bad]), labels, TrainConfig(steps=40, batch_size=256), seed=0)
    assert losses[-5:].mean() < 0.5 * losses[0]
    prompts, good, bad = preference_for_token_3(128, seed=1)
    assert ((rm(prompts, good) > 0).float().mean() + (rm(prompts, bad) < 0).float().mean()) / 2 > 0.85


def test_accuracy_by_hand():
    """Ties counted as right, or the mean taken over the members: two RMs, three pairs."""
    chosen, rejected = torch.tensor([[1.0, 2, 3], [0, 0, 5]]), torch.tensor([[0.0, 3, 2], [1, 0, 4]])
    assert accuracy(chosen, rejected).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_equal_pairs_are_refused(rm, prompts, responses):
    """A truncated pair of two equal texts that teaches nothing and counts half."""
    rejected = responses.flip(0)
    rejected[7] = responses[7]
    with pytest.raises(ValueError, match="^chosen: equal to rejected in 1 pairs, the first of them row 7"):
        check_pairs(responses, rejected)
    with pytest.raises(ValueError, match="^chosen: "):
        train_rm(rm, prompts, responses, rejected, TrainConfig(steps=1), seed=0)


def test_finetune_seed_draws_the_head(model):
    """Members of an ensemble with one and the same head, or another std than 1 / sqrt(width + 1)."""
    first, again, other = (RewardModel(model.trunk, seed).head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    many = torch.cat([RewardModel(model.trunk, seed).head.weight for seed in range(60)])             # 960 draws
    assert many.std().item() == pytest.approx(17 ** -0.5, rel=0.1)


def test_no_two_models_share_random_numbers():
    """A head that is another seed's embedding, or its own pretraining's: members that are not independent."""
    drawn = [LanguageModel(Config(vocab_size=10, width=16), seed=s) for s in range(3)]
    tensors = [m.trunk.token_embedding for m in drawn] + [m.head.weight for m in drawn] + [RewardModel(drawn[s].trunk, s).head.weight for s in range(3)]
    starts = torch.stack([torch.nn.functional.normalize(x.flatten()[:8], dim=0) for x in tensors])
    closest = (starts @ starts.T).fill_diagonal_(0).abs().max()
    assert closest < 0.99


def test_training_learns_a_preference_and_leaves_the_pretraining_alone(model, rm):
    """Chosen and rejected swapped or prompts out of step; and a trunk shared by all RMs of a pretraining."""
    before, again = copy.deepcopy(model.state_dict()), RewardModel(model.trunk, finetune_seed=0)
    prompts, chosen, rejected = preference_for_token_3(512, seed=0)
    at_start = bradley_terry_loss(rm(prompts, chosen), rm(prompts, rejected)).item()
    losses, same = (train_rm(r, prompts, chosen, rejected, TrainConfig(steps=40, batch_size=512), seed=0) for r in (rm, again))
    assert losses[0].item() == pytest.approx(at_start, abs=1e-5) and torch.equal(losses, same)
    prompts, chosen, rejected = preference_for_token_3(256, seed=1)
    assert accuracy(rm(prompts, chosen), rm(prompts, rejected)) > 0.9
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_normalise(rm, prompts, responses):
    """Rewards without a common scale; or a second call that normalises what is already normal and so undoes the first."""
    raw = rm(prompts, responses)
    for _ in range(2):
        normalise(rm, prompts, responses)
        rewards = rm(prompts, responses)
        assert rewards.mean().item() == pytest.approx(0, abs=1e-5) and rewards.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert torch.equal(rewards.argsort(), raw.argsort())
