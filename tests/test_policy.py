"""policy.py: what the transformer sees, what is drawn, what is scored, what is trained."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from policy import Config, LanguageModel, TrainConfig, log_probs, minibatches, sample, train_lm


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_attention_is_the_librarys(model):
    """Heads mixed up, a wrong scale or a wrong mask: our attention by hand against torch's own."""
    block, x = model.trunk.blocks[0], torch.randn(3 * 7, 16, generator=rng())
    q, k, v = (part.view(3, 7, 2, 8).transpose(1, 2) for part in block.qkv(x).chunk(3, -1))      # (B, heads, T, D / heads)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3 * 7, 16)
    torch.testing.assert_close(block.attention(x, 7, None, 0), block.out(mixed))


def test_causality(model):
    """A token that sees the future, or does not see the past."""
    tokens = torch.randint(8, (3, 9), generator=rng())
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 8
    moved = (model(tokens) - model(changed)).abs().amax(-1)                                      # (B, T)
    assert moved[:, :5].max() < 1e-5 < 1e-3 < moved[:, 5:].min()


def test_cached_forward_equals_full_forward(model):
    """A cache written or read one place off, for one new token and for several at once."""
    tokens = torch.randint(8, (3, 9), generator=rng())
    cache, pieces, start = model.trunk.new_cache(3), [], 0
    for T in (4, 1, 3, 1):
        pieces.append(model(tokens[:, start:start + T], cache, start))
        start += T
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), atol=1e-5, rtol=1e-5)


def test_samples_follow_the_scored_distribution():
    """Sampling and scoring that disagree (temperature in one of them only, rows mixed up as others end): every possible
    response's frequency against its exact probability, by a chi-square test."""
    model = LanguageModel(Config(vocab_size=5, context=8, width=16, layers=1), seed=9)           # words 0 1 2, EOS 3, PAD 4
    rows = [[a, b, c] for a in range(4) for b in range(5) for c in range(5)
            if (b == 4) == (a == 3) and (c == 4) == (a == 3 or b == 3)]                          # PAD after EOS, and only there
    prompts, possible, draws = torch.tensor([[0, 1], [2, 2]]), torch.tensor(rows), 20_000
    assert len(rows) == 1 + 3 + 9 * 4
    drawn = sample(model, prompts, 3, rng(), n=draws, temperature=0.6)
    assert (drawn[:, 0] == 3).float().mean() > 0.25            # so many rows leave the batch early
    for prompt, mine in zip(prompts, drawn.split(draws)):
        p = log_probs(model, prompt.expand(len(rows), 2), possible, temperature=0.6).sum(1).exp()
        counts = (mine[:, None] == possible).all(-1).sum(0)
        assert p.sum().item() == pytest.approx(1, abs=1e-5) and counts.sum() == draws
        common = p * draws > 5                                                                   # else chi-square does not hold
        freedom, chi_square = common.sum() - 1, ((counts - p * draws) ** 2 / (p * draws))[common].sum()
        assert freedom > 15 and chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_pad_follows_eos_and_nothing_else(model, prompts):
    """Text after EOS, or a PAD drawn as if it were a word."""
    drawn = sample(model, prompts, 10, rng(), n=40)
    over = (drawn == 8).cumsum(1) - (drawn == 8).long() > 0                                      # strictly after an EOS
    assert torch.equal(drawn == 9, over)
    assert over.any() and not (drawn == 8).any(1).all()                                          # some end early, some never


def test_whose_samples_they_are(model, prompts):
    """A prompt given another's samples: nearly greedy draws stand n side by side. Draws from the global random state."""
    greedy = sample(model, prompts, 6, rng(), temperature=1e-4)
    assert torch.equal(sample(model, prompts, 6, rng(1), n=3, temperature=1e-4), greedy.repeat_interleave(3, 0))
    assert len(greedy.unique(dim=0)) > 3
    first, again, other = (sample(model, prompts, 6, rng(seed), n=2) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_log_probs(model, prompts, responses):
    """The probability of a neighbouring token, a forgotten temperature, or PAD with a probability of its own."""
    scored = log_probs(model, prompts, responses, temperature=0.7)
    before = model(torch.cat([prompts, responses], 1))[:, 3:-1]                                  # logits one place earlier
    by_hand = (before / 0.7).log_softmax(-1).gather(2, responses.clamp(max=8)[..., None])[..., 0]
    torch.testing.assert_close(scored, by_hand.where(responses != 9, 0.0))


def test_train_lm_learns(model):
    """Targets one place off, or a gradient that does not arrive: counting upwards is learnt."""
    texts = (torch.arange(64)[:, None] + torch.arange(10)) % 8
    losses = train_lm(model, texts, TrainConfig(steps=80, lr=1e-2), seed=0)
    assert losses[0] > 1 > 0.1 > losses[-1]
    greedy = sample(model, torch.tensor([[2, 3], [6, 7]]), 4, rng(), temperature=1e-4)
    assert greedy.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_prompt_tokens_carry_no_loss(model, prompts, responses):
    """SFT that trains the prompt too, or a mean that counts pads."""
    expected = -log_probs(model, prompts, responses).sum() / (responses != 9).sum()
    texts, one_step = torch.cat([prompts, responses], 1), TrainConfig(steps=1, batch_size=12)
    first_loss = train_lm(model, texts, one_step, seed=0, prompt_length=4)[0]
    torch.testing.assert_close(first_loss, expected.detach())


def test_every_epoch_sees_every_row():
    """Rows dropped at the end of an epoch, or one order for all epochs."""
    order = torch.cat(list(minibatches(10, 4, 5, rng())))
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert [len(batch) for batch in minibatches(3, 7, 2, rng())] == [7, 7]                       # larger than the data


@pytest.mark.parametrize("name, call", [
    ("n", lambda m, x: sample(m, x, 4, rng(), n=0)),
    ("max_new_tokens", lambda m, x: sample(m, x, 0, rng())),
    ("temperature", lambda m, x: sample(m, x, 4, rng(), temperature=0)),
    ("prompts", lambda m, x: sample(m, x, 13, rng())),                                           # 4 + 13 > 16
    ("tokens", lambda m, x: m(torch.zeros(1, 17, dtype=torch.long))),
    ("width", lambda m, x: LanguageModel(replace(m.config, heads=3), seed=0)),
    ("batch_size", lambda m, x: next(minibatches(10, 0, 1, rng()))),
    ("rows", lambda m, x: next(minibatches(0, 8, 1, rng()))),
    ("steps", lambda m, x: TrainConfig(steps=0)),
    ("prompt_length", lambda m, x: train_lm(m, x, TrainConfig(steps=1), seed=0, prompt_length=x.shape[1])),
])
def test_errors_name_the_argument(model, prompts, name, call):
    """A wrong setting that runs, hangs, or fails somewhere inside torch."""
    with pytest.raises(ValueError, match=f"^{name}: "):
        call(model, prompts)
