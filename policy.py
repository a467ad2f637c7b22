"""A tiny transformer, a language model on it, and what a policy must do: train, sample, score.

    model = LanguageModel(Config(vocab_size=100), seed=0)
    train_lm(model, texts, TrainConfig(steps=1000), seed=0)
    responses = sample(model, prompts, 24, torch.Generator().manual_seed(0))
    log_probs(model, prompts, responses)                    # of those very draws

Conventions shared by every file: tokens are int64, rows are padded on the *right*, all prompts of a
batch have one length P, a response ends with EOS unless it ran out of room, and PAD fills the rest.
B rows, T positions, D width, V words.

Every parameter may carry one extra leading axis of M members. The forward pass is written so that
both cases are the same lines, which is all that ensemble.py needs to run M models at once.
"""
from dataclasses import dataclass
import math

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """The shape of a transformer."""
    vocab_size: int      # words, EOS and PAD; the last two ids are EOS and PAD
    context: int = 40    # longest prompt + response, in tokens
    width: int = 64      # of the residual stream
    layers: int = 2
    heads: int = 2

    @property
    def eos(self):
        return self.vocab_size - 2

    @property
    def pad(self):
        return self.vocab_size - 1


@dataclass(frozen=True)
class TrainConfig:
    """How to train one. The defaults are a pretraining's."""
    steps: int = 1200          # updates
    batch_size: int = 32       # texts per update
    lr: float = 3e-3           # peak learning rate, after the warm-up
    warmup: float = 0.05       # share of the steps in which it rises from 0; then a cosine back to 0
    weight_decay: float = 0.01
    clip: float = 1.0          # largest norm of a gradient

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is below 1")


class Linear(nn.Module):
    """x @ weight + bias, for x (N, in) and weight (in, out), or (M, N, in) and (M, in, out)."""

    def __init__(self, fan_in, fan_out, generator, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_in, fan_out, generator=generator) * gain / fan_in**0.5)
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x):
        if self.weight.dim() == 2:
            return torch.addmm(self.bias, x, self.weight)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


def norm(x):
    """Layer norm without gain or bias: the linear map that always follows can express both."""
    return F.layer_norm(x, x.shape[-1:])


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, generator):
        super().__init__()
        width, residual_gain = config.width, (2 * config.layers) ** -0.5
        self.heads = config.heads
        self.qkv = Linear(width, 3 * width, generator)
        self.out = Linear(width, width, generator, residual_gain)
        self.up = Linear(width, 4 * width, generator)
        self.down = Linear(4 * width, width, generator, residual_gain)

    def attention(self, x, T, cache, start):
        """(..., B*T, D) -> the same shape. `cache` is None, or the (2, B, heads, context, D/heads) keys and values of which
        the first `start` positions are filled."""
        # One row of the product below per (member, sequence, head): members are simply more rows.
        q, k, v = self.qkv(x).view(-1, T, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0, :, :, start:start + T], cache[1, :, :, start:start + T] = k, v
            k, v = cache[:, :, :, :start + T]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)            # (rows, heads, T, start + T)
        if T > 1:                        # position start + i sees itself and what came before it
            future = torch.ones(T, start + T, dtype=torch.bool, device=x.device).triu(start + 1)
            scores = scores.masked_fill(future, -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    def forward(self, x, T, cache=None, start=0):
        x = x + self.attention(norm(x), T, cache, start)
        return x + self.down(self.up(norm(x)).relu())


class Transformer(nn.Module):
    """Decoder-only transformer: tokens (B, T) -> final hidden states (B, T, D), or (M, B, T, D)."""

    def __init__(self, config, generator):
        super().__init__()
        self.config = config
        if config.width % config.heads:
            raise ValueError(f"width: {config.width} is not a multiple of heads ({config.heads})")
        self.token_embedding = nn.Parameter(torch.randn(config.vocab_size, config.width, generator=generator))
        self.position_embedding = nn.Parameter(torch.randn(config.context, config.width, generator=generator) * 0.3)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.layers))

    def new_cache(self, B):
        """Room for the keys and values of B rows: one (2, B, heads, context, D/heads) tensor per layer."""
        c = self.config
        return [self.token_embedding.new_empty(2, B, c.heads, c.context, c.width // c.heads) for _ in self.blocks]

    def forward(self, tokens, cache=None, start=0):
        """tokens (B, T), which stand at positions start .. start + T - 1. With a cache they also see the
        start positions before them, and leave their own keys and values there."""
        B, T = tokens.shape
        if start + T > self.config.context:
            raise ValueError(f"tokens: {start + T} positions do not fit a context of {self.config.context}")
        x = self.token_embedding.index_select(-2, tokens.flatten()).unflatten(-2, (B, T))
        x = (x + self.position_embedding[..., None, start:start + T, :]).flatten(-3, -2)       # (..., B*T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, T, cache[i] if cache else None, start)
        return norm(x).unflatten(-2, (B, T))


class LanguageModel(nn.Module):
    """Next-token logits (..., B, T, V - 1): the head has no column for PAD, so PAD can never be drawn."""

    def __init__(self, config, seed):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.trunk = Transformer(config, generator)
        self.head = Linear(config.width, config.vocab_size - 1, generator)

    def logits(self, hidden):
        return self.head(hidden.flatten(-3, -2)).unflatten(-2, hidden.shape[-3:-1])

    def forward(self, tokens, cache=None, start=0):
        return self.logits(self.trunk(tokens, cache, start))


def token_log_probs(logits, tokens, pad, temperature=1.0):
    """log p(token) under softmax(logits / temperature): logits (B, T, V - 1), tokens (B, T) -> (B, T),
    with 0 where the token is PAD."""
    loss = F.cross_entropy(logits.flatten(0, 1) / temperature, tokens.flatten(), ignore_index=pad, reduction="none")
    return -loss.view_as(tokens)


def log_probs(model, prompts, responses, temperature=1.0):
    """log-probability of every response token: prompts (B, P), responses (B, R) -> (B, R), 0 at PAD.
    The distribution is exactly the one that `sample` draws from at that temperature."""
    P = prompts.shape[1]
    hidden = model.trunk(torch.cat([prompts, responses], 1))
    return token_log_probs(model.logits(hidden[:, P - 1:-1]), responses, model.config.pad, temperature)


@torch.no_grad()
def sample(model, prompts, max_new_tokens, generator, n=1, temperature=1.0):
    """Draw n responses to each prompt: prompts (B, P) -> (B * n, max_new_tokens), the n draws of a
    prompt side by side; each ends with its first EOS, then PAD. `generator` lives on the prompts' device.

    A prompt is read once for its n samples, and rows that have ended leave the batch."""
    B, P = prompts.shape
    c = model.config
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature} is not above 0")
    if P + max_new_tokens > c.context:
        raise ValueError(f"prompts: {P} tokens and {max_new_tokens} new ones do not fit a context of {c.context}")
    cache = model.trunk.new_cache(B)
    logits = model(prompts, cache)[:, -1].repeat_interleave(n, 0)
    cache = [layer.repeat_interleave(n, 1) for layer in cache]
    responses = prompts.new_full((B * n, max_new_tokens), c.pad)
    rows = torch.arange(B * n, device=prompts.device)            # the rows still in the batch ...
    alive = torch.ones_like(rows, dtype=torch.bool)              # ... and which of them still write
    for t in range(max_new_tokens):
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        responses[rows, t] = torch.where(alive, token, c.pad)
        alive = alive & (token != c.eos)
        writing = int(alive.sum())
        if writing == 0 or t == max_new_tokens - 1:
            break
        if writing < 0.8 * len(rows):        # copying the cache pays once a fifth of its rows is idle
            cache = [layer[:, alive] for layer in cache]
            rows, token, alive = rows[alive], token[alive], alive[alive]
        logits = model(token[:, None], cache, P + t)[:, -1]
    return responses


def trim(tokens, pad):
    """Drop the columns that are PAD in every row, at least one column staying: less to compute."""
    return tokens[:, :max(1, int((tokens != pad).sum(1).max()))]


def minibatches(rows, batch_size, steps, generator):
    """Yield `steps` index tensors: epoch after epoch, each a fresh shuffle of all rows."""
    for name, value in (("rows", rows), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def train(model, loss_of, rows, config, seed, label):
    """The loop that language and reward models share: minimise loss_of(index of a minibatch) -> scalar, over `rows` rows of
    data in an order that `seed` sets. AdamW; linear warm-up, then a cosine to zero. Returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    warm = max(1, round(config.warmup * config.steps))
    scale = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    batches, losses = minibatches(rows, config.batch_size, config.steps, torch.Generator().manual_seed(seed)), []
    for batch in tqdm(batches, label, total=config.steps, leave=False, disable=None):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def train_lm(model, texts, config, seed, prompt_length=1, label="language model"):
    """Next-token training in place: pretraining (all tokens) and SFT (the response's tokens) alike.

    texts (N, T), right-padded; the loss is the mean over real tokens at positions >= prompt_length, in nats per token.
    `seed` sets the order of the data. Returns the loss of every step."""
    if not 1 <= prompt_length < texts.shape[1]:
        raise ValueError(f"prompt_length: {prompt_length} is not between 1 and the {texts.shape[1] - 1} tokens before a text's last")

    def loss_of(batch):
        prompts, responses = trim(texts[batch.to(texts.device)], model.config.pad).tensor_split([prompt_length], 1)
        return -log_probs(model, prompts, responses).sum() / (responses != model.config.pad).sum()

    return train(model, loss_of, len(texts), config, seed, label)
