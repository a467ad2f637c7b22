"""policy.py: what the transformer sees, what is scored, what is drawn, what is trained."""

import math

import pytest
import torch
import torch.nn.functional as F

import policy
from policy import Config, LanguageModel, TrainConfig, log_probs, minibatches, sample, train_lm


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_attention_is_the_librarys(model):
    """Mixed-up heads, a wrong scale, or a look into the future: ours against torch's own."""
    attention, x = model.trunk.blocks[0].attention, torch.randn(3, 7, 16, generator=rng())
    q, k, v = [part.unflatten(-1, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1)]
    mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    close(attention(x), attention.out(mix.transpose(1, 2).flatten(2)), 1e-6)


def test_cached_forward_equals_full_forward(model):
    """Keys stored one place off, a row that reads another row's, or a prompt spoiled by its first reader."""
    model.double()
    prompts, new = torch.randint(8, (3, 4), generator=rng()), torch.randint(8, (3, 6), generator=rng(1))
    rows = torch.tensor([2, 0, 0])  # the prompt of each row: in any order, with repeats
    full = model(torch.cat([prompts[rows], new], 1))
    hidden_states, prompt_cache = model.trunk.prefill(prompts)
    close(model.head(hidden_states)[rows], full[:, :4])
    for _ in range(2):  # the second time shows whether the first changed the prompts' cache
        cache = prompt_cache.select(rows)
        close(model(new[:, :3], cache), full[:, 4:7])  # three tokens at once
        kept = torch.tensor([2, 0])  # then a row leaves, and the others go on token by token
        cache = cache.select(kept)
        for t in (3, 4, 5):
            close(model(new[kept, t : t + 1], cache)[:, 0], full[kept, 4 + t])


def test_the_seed_alone_sets_the_weights(config, model):
    """An initialisation that depends on what else has drawn random numbers, or one for all seeds."""
    torch.rand(1)  # something else draws
    again, other = LanguageModel(config, seed=0), LanguageModel(config, seed=1)
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.allclose(model.head.weight, other.head.weight)


def test_log_probs_are_those_of_each_row_alone(model, prompts, responses):
    """A neighbouring token's probability, a forgotten temperature, or a pad that counts or leaks."""
    model.double()
    found = log_probs(model, prompts, responses, temperature=0.7)
    for b in range(12):
        text = torch.cat([prompts[b], responses[b][responses[b] != 9]])  # without pads
        logits = model(text[None])[0]
        expected = torch.zeros(6, dtype=torch.double)
        for t in range(4, len(text)):
            expected[t - 4] = (logits[t - 1] / 0.7).log_softmax(-1)[text[t]]  # read one place earlier
        close(found[b], expected)


def test_sample_token_by_hand(monkeypatch):
    """A draw off by one, or of a word of probability 0: uniform numbers against running sums .5, .7, 1."""
    logits = torch.tensor([0, 0.5, 0.2, 0.3, 0]).log().expand(6, 5)
    uniform = torch.tensor([[0.0], [0.49], [0.51], [0.69], [0.71], [0.9999999]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: uniform)
    assert policy.sample_token(logits, None).tolist() == [1, 1, 2, 2, 3, 3]


def test_samples_follow_the_scored_distribution():
    """Sampling and scoring that disagree, in temperature or as rows end: chi-square over all responses."""
    model = LanguageModel(Config(vocab_size=5, width=16), seed=0)  # three words, EOS 3, PAD 4
    torch.nn.init.constant_(model.head.bias[3], 0.5)  # many rows end early
    possible = [[3, 4, 4]] + [[a, 3, 4] for a in range(3)]
    possible += [[a, b, c] for a in range(3) for b in range(3) for c in range(4)]
    possible, draws = torch.tensor(possible), 20_000
    prompts = torch.tensor([[0, 1], [2, 2]])
    samples = sample(model, prompts, 3, rng(), n=draws, temperature=0.6)
    assert (samples[:, 0] == 3).float().mean() > 0.1
    for prompt, mine in zip(prompts, samples.split(draws), strict=True):
        p = log_probs(model, prompt.expand(len(possible), 2), possible, temperature=0.6).sum(1).exp()
        counts = (mine[:, None] == possible).all(-1).sum(0)
        assert p.sum().item() == pytest.approx(1, abs=1e-5) and counts.sum() == draws
        common = p * draws > 5  # the test does not hold for rarer ones
        chi_square = ((counts - p * draws) ** 2 / (p * draws))[common].sum()
        freedom = common.sum() - 1
        assert freedom > 15 and chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_pad_follows_eos_and_nothing_else(model, prompts):
    """Text after EOS, a PAD drawn as if it were a word, or draws from the global random state."""
    samples = sample(model, prompts, 10, rng(), n=40)
    after_eos = (samples == 8).cumsum(1) - (samples == 8).long() > 0
    assert torch.equal(samples == 9, after_eos)
    assert after_eos.any() and not (samples == 8).any(1).all()  # some rows end early, some never
    assert torch.equal(samples, sample(model, prompts, 10, rng(), n=40))
    assert not torch.equal(samples, sample(model, prompts, 10, rng(1), n=40))


def test_a_row_that_ends_does_not_disturb_the_others(model, prompts):
    """A row that goes on with another's tokens: nearly greedy samples must be the same alone and together."""
    with torch.no_grad():
        model.head.bias[8] = 1.0  # more EOS
    alone = torch.cat([sample(model, prompt[None], 6, rng(), temperature=1e-4) for prompt in prompts])
    assert (alone != 9).sum(1).unique().numel() >= 3  # rows end at different times
    together = sample(model, prompts, 6, rng(1), n=3, temperature=1e-4)
    assert torch.equal(together, alone.repeat_interleave(3, 0))


def test_train_lm_learns_to_count(config):
    """Labels one place off, a gradient that does not arrive, or a training that its seed does not fix."""
    texts = (torch.arange(64)[:, None] + torch.arange(10)) % 8
    models, losses = [], []
    for seed in (0, 0, 1):
        models.append(LanguageModel(config, seed=0))
        losses.append(train_lm(models[-1], texts, TrainConfig(steps=80, lr=1e-2), seed))
    assert losses[0][0] > 1 > 0.1 > losses[0][-1]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    greedy = sample(models[0], torch.tensor([[2, 3], [6, 7]]), 4, rng(), temperature=1e-4)
    assert greedy.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_loss_is_the_mean_over_real_response_tokens(model, prompts, responses):
    """SFT that trains the prompt too, or a mean that counts pads."""
    expected = -log_probs(model, prompts, responses)[responses != 9].mean()
    texts, one_step = torch.cat([prompts, responses], 1), TrainConfig(steps=1, batch_size=12)
    close(train_lm(model, texts, one_step, seed=0, prompt_length=4)[0], expected.detach(), 1e-6)


def test_learning_rate_rises_then_falls():
    """A schedule that is never advanced: Adam's step on a constant gradient is the learning rate itself."""
    point = torch.nn.Linear(1, 1, bias=False)
    training = TrainConfig(steps=20, lr=0.1, warmup=0.2, weight_decay=0)
    data = [torch.zeros(4)], torch.zeros(4)
    losses = policy.train(point, lambda rows: point.weight.sum(), *data, training, 0, desc=None)
    steps = -losses.diff()
    assert steps[:3].tolist() == pytest.approx([0.025, 0.05, 0.075], abs=1e-5)  # 4 of 20 steps to warm up
    assert steps[[10, 15]].tolist() == pytest.approx([0.05, 0.05 + 0.05 * math.cos(0.75 * math.pi)], abs=1e-5)


def test_every_pass_sees_every_row():
    """Rows dropped at the end of a pass, one order for all passes, or short rows beside long ones."""
    lengths = torch.arange(100) % 10
    batches = minibatches(lengths, 8, 26, rng())  # two passes of 13 batches, twelve of 8 rows and one of 4
    first, second = torch.cat(batches[:13]).tolist(), torch.cat(batches[13:]).tolist()
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert max(lengths[rows].max() - lengths[rows].min() for rows in batches) <= 3
    assert [len(rows) for rows in minibatches(lengths[:3], 7, 2, rng())] == [3, 3]


@pytest.mark.parametrize("message, call", [
    ("must be > 0: n 0, max_new_tokens 4", lambda m, x: sample(m, x, 4, rng(), n=0)),
    ("temperature 0", lambda m, x: sample(m, x, 4, rng(), temperature=0)),
    (r"prompts must .* \(0, 4\)", lambda m, x: sample(m, x[:0], 4, rng())),
    ("context of 16", lambda m, x: m(torch.zeros(1, 17, dtype=torch.long))),
    ("rows", lambda m, x: minibatches(x[:0, 0], 8, 1, rng())),
    ("prompt_length must be in 1 to 3", lambda m, x: train_lm(m, x, TrainConfig(), 0, prompt_length=4)),
])  # fmt: skip
def test_errors_name_the_argument(model, prompts, message, call):
    """A wrong setting that runs, hangs, or fails somewhere inside torch."""
    with pytest.raises(ValueError, match=message):
        call(model, prompts)
