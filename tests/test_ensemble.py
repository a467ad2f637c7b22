"""ensemble.py: M models as one forward, and the aggregators."""

import pytest
import torch

from ensemble import AGGREGATORS, Ensemble, aggregate, finetune_ensembles, pretrain_ensembles
from policy import LanguageModel
from rm import RewardModel, normalise


@pytest.fixture
def rms(config, prompts, responses):
    """Two pretrainings x two finetunings in float64, each with a mean and a std of its own."""
    members = [RewardModel(LanguageModel(config, p).double().trunk, f) for p in (0, 1) for f in (2, 3)]
    for rm in members:
        normalise(rm, prompts, responses)
    return members


def test_batched_equals_the_loop(rms, prompts, responses):
    """Members mixed up, normalised by another's mean and std, or a gradient that leaks between them."""
    ensemble = Ensemble(rms)
    batched = ensemble.batched(prompts, responses)
    loop = torch.stack([rm(prompts, responses) for rm in rms])
    torch.testing.assert_close(batched, loop, atol=1e-10, rtol=0)
    assert (loop[1:] - loop[:-1]).abs().max() > 0.1  # the members do differ
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    (batched * weight).sum().backward()
    (loop * weight).sum().backward()
    parameters, _ = ensemble.stacked
    for m, rm in enumerate(rms):
        for name, parameter in rm.named_parameters():
            torch.testing.assert_close(parameters[name].grad[m], parameter.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prompt_count, n", [(1, 1), (150, 1), (3, 4), (40, 4)])
def test_scores_equal_the_plain_forward(rms, prompts, responses, prompt_count, n):
    """A response scored after another's prompt, or returned in the order of the sorted chunks (of 64)."""
    generator = torch.Generator().manual_seed(0)
    prompts = prompts[torch.randint(12, (prompt_count,), generator=generator)]
    responses = responses[torch.randint(12, (prompt_count * n,), generator=generator)]
    repeated = prompts.repeat_interleave(n, 0)
    plain = torch.stack([rm(repeated, responses) for rm in rms])
    torch.testing.assert_close(Ensemble(rms).scores(prompts, responses), plain.detach(), atol=1e-10, rtol=0)


def test_aggregators():
    """The lower of two middle values as the median, the unbiased std, or NaN as the std of one member."""
    scores = torch.tensor([[10.0, 4], [1, 4], [3, 4], [2, 4]])  # four members, two responses
    std = 12.5**0.5  # of 10, 1, 3, 2 around 4: (36 + 9 + 1 + 4) / 4
    expected = {"mean": [4, 4], "median": [2.5, 4], "min": [1, 4], "mean_minus_std": [4 - std, 4]}
    assert set(expected) == set(AGGREGATORS)
    for name, values in expected.items():
        assert aggregate(AGGREGATORS[name], scores).tolist() == pytest.approx(values)
        assert AGGREGATORS[name](scores[:1]).tolist() == [10, 4]


def test_an_aggregator_of_ones_own(rms, prompts, responses):
    """An aggregator that is not called, or called on one member, where an unbiased std is NaN."""
    scores, one = Ensemble(rms).scores(prompts, responses), Ensemble(rms[:1], lambda rewards: rewards.std(0))
    assert torch.equal(Ensemble(rms, lambda rewards: rewards.amax(0))(prompts, responses), scores.amax(0))
    assert torch.equal(one(prompts, responses), scores[0])


def test_finetune_and_pretrain_ensembles():
    """A pretrain ensemble with two members of one pretraining, or a member in two ensembles of a kind."""
    assert finetune_ensembles(["ab", "cd"]) == [["a", "b"], ["c", "d"]]
    assert pretrain_ensembles(["ab", "cd"]) == [["a", "d"], ["b", "c"]]
    assert pretrain_ensembles(["abc", "def", "ghi"]) == [["a", "e", "i"], ["b", "f", "g"], ["c", "d", "h"]]
    assert pretrain_ensembles(["ab", "cd", "ef"]) == [["a", "d", "e"], ["b", "c", "f"]]  # too few finetunings
    assert pretrain_ensembles(["abc"]) == [["a"], ["b"], ["c"]]


def test_texts_out_of_form_are_refused(rms, prompts, responses):
    """Responses scored after other prompts, a mean over no texts, no last token, or a prompt with PAD."""
    good, prompts[3, 0] = prompts.clone(), 9
    empty = responses.where(torch.arange(12)[:, None] != 5, 9)
    wrong = [(good, x) for x in (empty, responses[:11], responses[:0], responses[:, :0])]
    for texts in [*wrong, (prompts, responses), (good[:0], responses), (good[:, :0], responses)]:
        with pytest.raises(ValueError, match="^(prompts|responses)"):
            Ensemble(rms).scores(*texts)
