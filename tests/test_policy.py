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
    q, k, v = torch.randn(3, 2, 6, 7, 8, generator=rng())                                        # (heads, rows, T, D / heads) each
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(1, 2, 0, 3).reshape(6, 7, 16)
    attention = model.trunk.blocks[0].attention
    torch.testing.assert_close(attention(q, k, v), expected)
    torch.testing.assert_close(attention(q[:, :, 4:], k, v), expected[:, 4:])                    # the last positions alone
    # the first four tokens as a prompt that rows have in common, three rows each
    keys, values = (x[:, ::3, :4] for x in (k, v))
    k, v = (torch.cat([x.repeat_interleave(3, 1), y[:, :, 4:]], 2) for x, y in ((keys, k), (values, v)))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(1, 2, 0, 3).reshape(6, 7, 16)
    torch.testing.assert_close(attention(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], (keys, values)), expected[:, 4:])


def test_causality(model):
    """A token that sees the future, or does not see the past."""
    tokens = torch.randint(8, (3, 9), generator=rng())
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 8
    moved = (model(tokens) - model(changed)).abs().amax(-1)                                      # (B, T)
    assert moved[:, :5].max() < 1e-5 < 1e-3 < moved[:, 5:].min()


def test_steps_equal_the_full_forward(model, prompts):
    """Keys and values written or read one place off; a row that gets another's, or another prompt's, when some leave."""
    model.double()
    rows, new = torch.arange(24), torch.randint(8, (24, 5), generator=rng())                     # two rows for each prompt
    full = model(torch.cat([prompts.repeat_interleave(2, 0), new], 1))
    past = model.trunk.prefill(prompts, torch.zeros_like(prompts, dtype=torch.bool))[1]
    past.make_room(24, 5)
    for past.length in range(5):
        if past.length == 2:                                 # prompts 0 and 5 leave, and of all others the second row
            kept_prompts, rows = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10, 11]), torch.tensor([2, 4, 6, 8, 12, 14, 16, 18, 20, 22])
            past.drop(kept_prompts, rows)
        step = model.head(model.trunk(new[rows, past.length, None], past=past))
        torch.testing.assert_close(step, full[rows, 4 + past.length], atol=1e-10, rtol=0)


def test_only_what_is_wanted_is_the_same(model, prompts, responses):
    """Without pads, without the states that nobody reads, or after a prompt that was read for several rows: all as in the plain
    forward pass, in float64 to 1e-10."""
    model.double()
    tokens = torch.cat([prompts, responses], 1)
    plain, real = model.trunk(tokens).view(12, 10, 16), tokens != 9
    assert not real.all()
    for wanted in (real, real & (torch.arange(10) >= 5), real & (tokens == 8), real & (torch.rand(12, 10, generator=rng()) < 0.3)):
        torch.testing.assert_close(model.trunk(tokens, real, wanted), plain[wanted], atol=1e-10, rtol=0)
    torch.testing.assert_close(model.trunk(tokens, real), plain[real], atol=1e-10, rtol=0)
    past = model.trunk.prefill(prompts[::4], torch.zeros_like(prompts[::4], dtype=torch.bool))[1]
    plain = model.trunk(torch.cat([prompts[::4].repeat_interleave(4, 0), responses], 1)).view(12, 10, 16)[:, 4:]
    torch.testing.assert_close(model.trunk(responses, responses != 9, past=past), plain[responses != 9], atol=1e-10, rtol=0)


def test_pads_change_no_gradient(model, prompts, responses):
    """A gradient that the packing loses, or that a pad brings."""
    model.double()
    (log_probs(model, prompts, responses) * torch.arange(6)).sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    before = model(torch.cat([prompts, responses], 1))[:, 3:-1].log_softmax(-1)
    plain = before.gather(2, responses.clamp(max=8)[..., None])[..., 0].where(responses != 9, 0.0)
    (plain * torch.arange(6)).sum().backward()
    for gradient, parameter in zip(packed, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-10, rtol=0)


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
