"""A tiny transformer, a language model on it, and what a policy needs: training, sampling, log-probabilities.

    model = LanguageModel(Config(vocab_size=100), seed=0)
    train_lm(model, texts, TrainConfig(steps=1000), seed=0)
    responses = sample(model, prompts, 24, torch.Generator().manual_seed(0))
    log_probs(model, prompts, responses)  # (B, R), of those very samples

Tokens are int64, rows padded on the *right*. All prompts have length P. A response has up to R tokens, and
ends with EOS unless it ran out of room. B rows in a batch, N in the data, T positions, D width, V words.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Config:  # the shape of a transformer
    vocab_size: int  # V: the words, then EOS, then PAD
    context: int = 40  # longest prompt + response, in tokens
    width: int = 64  # D: of the residual stream
    layers: int = 2
    heads: int = 2

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")

    eos = property(lambda self: self.vocab_size - 2)
    pad = property(lambda self: self.vocab_size - 1)


@dataclass(frozen=True)
class TrainConfig:  # how to train a model; the defaults are those of a pretraining
    steps: int = 1200  # updates
    batch_size: int = 32  # rows of data per update
    lr: float = 3e-3  # peak learning rate
    warmup: float = 0.05  # share of the steps in which lr rises linearly, under a cosine that falls to 0
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self):
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"steps and batch_size must be >= 1, got {self.steps} and {self.batch_size}")


@dataclass
class KVCache:
    """Keys and values of the tokens read so far, so that none is read twice. subtle: append writes in place.
    To train through a cache, append once to a `select`ed copy, as train_rm does, or backward() fails."""

    keys: list  # a tensor per layer, (B, heads, room, head_dim), allocated once: appending copies one token
    values: list  # likewise
    length: int = 0  # tokens read so far

    def append(self, layer, k, v):
        """Store one layer's T new keys and values, (B, heads, T, head_dim), and return all of them so far."""
        start, end = self.length, self.length + k.shape[2]
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        if layer == len(self.keys) - 1:
            self.length = end  # now that every layer has them
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows):
        """A copy with the given rows (index tensor, repeats allowed): [1, 1, 0] of rows a, b -> b, b, a."""
        keys = [k.index_select(0, rows) for k in self.keys]
        values = [v.index_select(0, rows) for v in self.values]
        return KVCache(keys, values, self.length)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, cache=None):
        """Causal multi-head self-attention: (B, T, D) -> (B, T, D)."""
        B, T, D = x.shape
        head_dim = D // self.heads  # q, k and v are (B, heads, T, head_dim)
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        S = k.shape[2]  # tokens so far: those in the cache, then the T new ones
        attention = q @ k.transpose(-2, -1) * head_dim**-0.5  # (B, heads, T, S)
        if T > 1:  # query i is at position S - T + i, and must not see keys after it; a single query sees all
            future = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T + 1)
            attention = attention.masked_fill(future, -torch.inf)
        mix = attention.softmax(-1) @ v  # (B, heads, T, head_dim)
        return self.out(mix.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        # One norm serves both sublayers: it has no parameters. The linear layer after it would absorb a gain.
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.attention = Attention(config, layer)
        up = nn.Linear(config.width, 4 * config.width, bias=False)
        down = nn.Linear(4 * config.width, config.width, bias=False)
        self.mlp = nn.Sequential(OrderedDict(up=up, relu=nn.ReLU(inplace=True), down=down))

    def forward(self, x, cache=None, last=None):
        """A pre-norm transformer block: (B, T, D) -> (B, T, D); `last`: see Transformer.last_hidden_state."""
        x = x + self.attention(self.norm(x), cache)
        if last is not None:
            x = x[torch.arange(len(x), device=x.device), last]
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)

    def embed(self, tokens, cache=None):
        """Token + position embeddings, (B, T) -> (B, T, D), of T new tokens after those in the cache."""
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise ValueError(f"tokens: {end} positions do not fit a context of {self.config.context}")
        positions = torch.arange(start, end, device=tokens.device)
        return self.token_embedding(tokens) + self.position_embedding(positions)

    def forward(self, tokens, cache=None):
        """Tokens (B, T) -> hidden states (B, T, D). With a cache, T new tokens after those already in it."""
        x = self.embed(tokens, cache)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x)

    def last_hidden_state(self, tokens, last, cache=None):
        """forward's hidden state of one token a row, tokens[b, last[b]]: (B, T), (B,) or -1 -> (B, D).
        Only attention mixes tokens, so the last MLP skips the others: scoring takes 0.8 of the time."""
        *blocks, last_block = self.blocks
        x = self.embed(tokens, cache)
        for block in blocks:
            x = block(x, cache)
        return self.norm(last_block(x, cache, last))

    def prefill(self, prompts):
        """Read prompts (B, P) -> their last tokens' hidden states (B, D), and a KVCache with room left."""
        c = self.config
        shape = (len(prompts), c.heads, c.context, c.width // c.heads)
        keys = [self.token_embedding.weight.new_empty(shape) for _ in range(c.layers)]
        cache = KVCache(keys, [torch.empty_like(k) for k in keys])
        return self.last_hidden_state(prompts, -1, cache), cache


class LanguageModel(nn.Module):
    def __init__(self, config, seed):
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = nn.Linear(config.width, config.vocab_size - 1)  # no logit for PAD: it is never sampled
        # Its own generator, so that a seed always gives the same weights. The stds are our choice.
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "embedding" in name:
                nn.init.normal_(parameter, std=1.0 if "token" in name else 0.3, generator=generator)
            else:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
            # Layers that add to the residual stream start smaller, so that their sum keeps its size (GPT-2).
            if name.endswith(("out.weight", "down.weight")):
                parameter.data.mul_((2 * self.config.layers) ** -0.5)

    def forward(self, tokens, cache=None):
        """Next-token logits: tokens (B, T) -> (B, T, V - 1), of every token but PAD."""
        return self.head(self.trunk(tokens, cache))


def token_log_probs(logits, targets, pad, temperature=1.0):
    """log softmax(logits / temperature) at the targets, 0 at PAD: (B, R, V - 1), (B, R) -> (B, R).
    [[[0, 0], [5, 3]]], [[1, 2]], 2 -> [[-0.693, 0]]."""
    logits = (logits / temperature).transpose(1, 2)  # cross_entropy wants the words second
    return -nn.functional.cross_entropy(logits, targets, ignore_index=pad, reduction="none")


def log_probs(model, prompts, responses, temperature=1.0):
    """Log-probability of every response token under `sample`, 0 at PAD: (B, P), (B, R) -> (B, R)."""
    tokens = torch.cat([prompts, responses], dim=1)
    # Logits predict the next token: those at the prompt's last position, the response's first token.
    logits = model(tokens[:, :-1])[:, prompts.shape[1] - 1 :]
    return token_log_probs(logits, responses, model.config.pad, temperature)


def trim(responses, pad):
    """Drop the columns that hold PAD alone: [[7, 9, 9], [5, 7, 9]], 9 -> [[7, 9], [5, 7]]."""
    return responses[:, : int((responses != pad).sum(1).max())]


def sample_token(logits, generator):
    """Sample from softmax(logits), (B, V - 1) -> (B,): the first token whose cumulative probability exceeds a
    uniform number. One number a row: torch.multinomial draws V, which took a sixth of the sampling time."""
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, uniform, right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # rounding may put the number at the very end


@torch.no_grad()
def sample(model, prompts, max_new_tokens, generator, n=1, temperature=1.0):
    """Draw n responses to each prompt: (B, P) -> (B * n, max_new_tokens); row i answers prompt i // n.
    Each ends with its first EOS, then PAD. The generator must be on the device of the prompts."""
    if min(n, max_new_tokens) < 1:
        raise ValueError(f"n and max_new_tokens must be >= 1, got {n} and {max_new_tokens}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if prompts.shape[1] + max_new_tokens > model.config.context:
        raise ValueError(f"max_new_tokens: {max_new_tokens} after the prompt exceed the context")
    # Prefill: read every prompt once, then copy its cache and last logits to the n rows that continue it.
    rows = torch.arange(len(prompts) * n, device=prompts.device)  # batch row -> row of `responses` it writes
    hidden, cache = model.trunk.prefill(prompts)
    logits, cache = model.head(hidden)[rows // n], cache.select(rows // n)
    responses = prompts.new_full((len(rows), max_new_tokens), model.config.pad)
    unfinished = rows  # the batch rows that have not ended: all of them so far
    for t in range(max_new_tokens):
        tokens = torch.full_like(rows, model.config.eos)  # what an ended row goes on reading; not stored
        tokens[unfinished] = sample_token(logits[unfinished] / temperature, generator)
        responses[rows[unfinished], t] = tokens[unfinished]
        unfinished = (tokens != model.config.eos).nonzero()[:, 0]
        if len(unfinished) == 0 or t == max_new_tokens - 1:
            break
        # Drop ended rows only once they are over a fifth of the batch, because dropping copies the cache.
        if len(unfinished) < 0.8 * len(rows):
            rows, tokens, cache = rows[unfinished], tokens[unfinished], cache.select(unfinished)
            unfinished = torch.arange(len(rows), device=rows.device)
        logits = model(tokens[:, None], cache)[:, -1]
    return responses


def minibatches(n_rows, batch_size, steps, generator):
    """The rows that each step trains on, (steps, batch_size), cut from one shuffle after another."""
    if n_rows < 1:
        raise ValueError("there are no rows to train on")
    epochs = math.ceil(steps * batch_size / n_rows)
    order = torch.cat([torch.randperm(n_rows, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def train(model, loss_fn, data, config, seed, desc):
    """The training loop of every model: AdamW on loss_fn(*minibatch). `data`: tensors with N rows each, which
    `seed` shuffles. `desc`: of the progress bar, None for none. Returns the loss of every step, (steps,)."""
    adamw = {"betas": (0.9, 0.98), "weight_decay": config.weight_decay, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, **adamw)
    warmup_steps = max(1, round(config.warmup * config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup_steps, 0.5 + 0.5 * math.cos(math.pi * t / config.steps))
    )
    batches = minibatches(len(data[0]), config.batch_size, config.steps, torch.Generator().manual_seed(seed))
    losses = []
    for rows in tqdm(batches, desc, leave=False, disable=True if desc is None else None):
        loss = loss_fn(*(tensor[rows.to(tensor.device)] for tensor in data))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def lm_loss(model, prompts, responses):
    """Mean of -log p over the response tokens, in nats: prompts (B, P), responses (B, R) -> scalar."""
    return -log_probs(model, prompts, responses).sum() / (responses != model.config.pad).sum()


def train_lm(model, texts, config, seed, prompt_length=1, desc="language model"):
    """Train in place to predict all tokens after the first `prompt_length` of texts (N, T): 1 to pretrain, P
    for SFT. `seed` sets the data order. Returns the loss of every step, (steps,), in nats per token."""
    if not 1 <= prompt_length < texts.shape[1]:
        raise ValueError(f"prompt_length must be in 1 to {texts.shape[1] - 1}, got {prompt_length}")

    def loss_fn(texts):
        texts = trim(texts, model.config.pad)
        return lm_loss(model, texts[:, :prompt_length], texts[:, prompt_length:])

    return train(model, loss_fn, [texts], config, seed, desc)
