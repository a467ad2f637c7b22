"""ensemble.py: M models as one forward, and the aggregators."""
import copy
from itertools import product

import pytest
import torch

from ensemble import AGGREGATORS, Ensemble, finetune_ensembles, pretrain_ensembles, train_rms
from policy import LanguageModel, TrainConfig
from ppo import PPOConfig, ppo
from rm import RewardModel, normalise, train_rm


@pytest.fixture
def rms(config, prompts, responses):
    """Two pretrainings x two finetunings; each with a mean and a std of its own."""
    members = [RewardModel(LanguageModel(config, p).trunk, f) for p, f in product((0, 1), (2, 3))]
    for rm in members:
        normalise(rm, prompts, responses)
    return members


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_batched_scores_equal_the_loop(rms, prompts, responses, dtype, tolerance, device):
    """Members mixed up in the batched forward, or normalised by another member's mean and std."""
    rms, prompts, responses = [rm.to(dtype).to(device) for rm in rms], prompts.to(device), responses.to(device)
    loop = torch.stack([rm(prompts, responses) for rm in rms]).detach()
    torch.testing.assert_close(Ensemble(rms).batched(prompts, responses).detach(), loop, atol=tolerance, rtol=0)
    assert (loop[1:] - loop[:-1]).abs().max() > 0.1


@pytest.mark.parametrize("rows", [1, 12, 300])
def test_scores_equal_the_loop(rms, prompts, responses, rows):
    """Chunks put together in another order; few rows and many take different ways."""
    prompts, responses = prompts.repeat(25, 1)[:rows], responses.repeat(25, 1)[:rows]
    loop = torch.stack([rm(prompts, responses) for rm in rms]).detach()
    torch.testing.assert_close(Ensemble(rms).scores(prompts, responses), loop, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt_count", [3, 200])
def test_a_prompt_read_once_gives_the_same_scores(rms, prompts, responses, prompt_count):
    """A response scored after another prompt than its own, in the loop, in the batched form, or at a chunk's border."""
    prompts = prompts.repeat(20, 1)[:prompt_count]
    responses = responses.repeat(100, 1)[:prompt_count * 4]
    ensemble = Ensemble([rm.double() for rm in rms])
    plain = ensemble.one_by_one(prompts.repeat_interleave(4, 0), responses).detach()
    for shared in (ensemble.one_by_one(prompts, responses), ensemble.batched(prompts, responses), ensemble.scores(prompts, responses)):
        torch.testing.assert_close(shared.detach(), plain, atol=1e-10, rtol=0)
    assert plain[0].std() > 0.1


def test_batched_gradients_equal_the_loop(rms, prompts, responses):
    """A gradient that leaks from member to member."""
    ensemble = Ensemble([rm.double() for rm in rms])
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    (ensemble.batched(prompts, responses) * weight).sum().backward()
    for m, rm in enumerate(rms):
        (rm(prompts, responses) * weight[m]).sum().backward()
        for name, parameter in rm.named_parameters():
            torch.testing.assert_close(ensemble.parameters[name].grad[m], parameter.grad, atol=1e-10, rtol=0)


def test_trained_together_as_one_by_one(rms, prompts, responses):
    """A gradient clipped by all members' norm, a loss averaged over them, or weights that go back to another member."""
    config, rejected = TrainConfig(steps=12, batch_size=6, clip=0.5), responses.roll(1, 0)
    together, alone = ([copy.deepcopy(rm).double() for rm in rms] for _ in "ab")
    losses = train_rms(together, prompts, responses, rejected, config, seed=3)
    each = torch.stack([train_rm(rm, prompts, responses, rejected, config, seed=3) for rm in alone])
    torch.testing.assert_close(losses, each.mean(0), atol=1e-10, rtol=0)
    for rm, other, before in zip(together, alone, rms):
        for (name, x), y in zip(rm.named_parameters(), other.parameters()):
            torch.testing.assert_close(x, y, atol=1e-7, rtol=0, msg=name)
        assert (rm.head.weight - before.head.weight).abs().max() > 1e-3


def test_aggregators_by_hand():
    """The lower of two middle values as the median, another std than the population's, NaN as the std of one member."""
    scores = torch.tensor([[10.0, 4], [1, 4], [3, 4], [2, 4]])                 # four members, two responses
    expected = {"mean": [4, 4], "median": [2.5, 4], "min": [1, 4], "mean_minus_std": [4 - 12.5 ** 0.5, 4]}
    for name, value in expected.items():
        assert AGGREGATORS[name](scores).tolist() == pytest.approx(value)
        assert AGGREGATORS[name](scores[:1]).tolist() == [10, 4]


@pytest.mark.parametrize("P, F", [(5, 5), (3, 3), (2, 3), (3, 2), (1, 4)])
def test_grid_is_cut_without_overlap(P, F):
    """A pretrain ensemble with two RMs of one pretraining, or an RM in two ensembles of a kind."""
    pretraining = [rm // F for rm in range(P * F)]
    for members in finetune_ensembles(P, F):
        assert len(members) == F and len({pretraining[m] for m in members}) == 1
    for members in pretrain_ensembles(P, F):
        assert len(members) == P and len({pretraining[m] for m in members}) == P
    for groups in (finetune_ensembles(P, F), pretrain_ensembles(P, F)):
        assert sorted(sum(groups, [])) == list(range(P * F))
    assert finetune_ensembles(2, 3) == [[0, 1, 2], [3, 4, 5]]                  # the docstrings' examples
    assert pretrain_ensembles(3, 3) == [[0, 4, 8], [1, 5, 6], [2, 3, 7]]


def test_ones_own_aggregator_is_one_line(monkeypatch, rms, model, prompts):
    """An aggregator that has to be registered in a second place before PPO can use it."""
    monkeypatch.setitem(AGGREGATORS, "max", lambda r: r.amax(0))
    ensemble = Ensemble(rms, "max")
    record = next(ppo(model, ensemble, prompts, PPOConfig(batch_size=8, minibatch_size=8, epochs=1, max_new_tokens=6)))
    by_hand = torch.stack([rm(record["prompts"], record["responses"]) for rm in rms]).max(0).values.mean()
    assert record["proxy"] == pytest.approx(by_hand.item(), abs=1e-5)


def test_errors(rms):
    """A misspelt aggregator, or an ensemble of nobody, that fails only when first used."""
    with pytest.raises(ValueError, match="^aggregator: 'avg' is no function and none of mean, median, min, mean_minus_std"):
        Ensemble(rms, "avg")
    with pytest.raises(ValueError, match="^rms: "):
        Ensemble([])
