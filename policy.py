"""A tiny transformer, a language model on it, and what a policy needs: training, sampling, log-probabilities.

    model = LanguageModel(Config(vocab_size=100), seed=0)
    train_lm(model, texts, TrainConfig(steps=1000), seed=0)
    responses = sample(model, prompts, 24, torch.Generator().manual_seed(0))
    log_probs(model, prompts, responses)  # (B, R), of those very samples

Tokens are int64, rows padded on the *right*. Prompts have one length P. A response has up to R tokens, and
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
    vocab_size: int  # V: words, EOS and PAD; the last two ids are EOS and PAD
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
    warmup: float = 0.05  # share of the steps in which it rises from 0; then a cosine back to 0
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass
class KVCache:
    """The keys and values of all tokens that a batch of rows has read, so that none is read twice."""

    keys: list  # a tensor per layer, (B, heads, room, head_dim), allocated once: appending copies one token
    values: list  # likewise
    length: int = 0  # positions filled so far

    def append(self, layer, k, v):
        """Store one layer's T new keys and values, (B, heads, T, head_dim), and return all of them so far."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows):
        """A new cache of these rows (N,), in any order, with repeats: [1, 1, 0] of rows a, b is b, b, a."""
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
        head_dim = D // self.heads
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        S = k.shape[2]  # tokens so far: those in the cache, then the T new ones
        attention = q @ k.transpose(-2, -1) * head_dim**-0.5  # (B, heads, T, S)
        if T > 1:  # a single new token may look at everything before it
            future = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T + 1)
            attention = attention.masked_fill(future, -torch.inf)
        mix = attention.softmax(-1) @ v  # (B, heads, T, head_dim)
        return self.out(mix.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        # No gain and bias: the linear layer that always follows makes up for them.
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.attention = Attention(config, layer)
        up = nn.Linear(config.width, 4 * config.width, bias=False)
        down = nn.Linear(4 * config.width, config.width, bias=False)
        self.mlp = nn.Sequential(OrderedDict(up=up, relu=nn.ReLU(inplace=True), down=down))

    def forward(self, x, cache=None):
        """A pre-norm transformer block: (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm(x), cache)
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)

    def forward(self, tokens, cache=None):
        """Tokens (B, T) -> hidden states (B, T, D). With a cache they follow its tokens, and join it."""
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise ValueError(f"tokens: {end} positions do not fit a context of {self.config.context}")
        positions = torch.arange(start, end, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length = end  # now that every layer has appended
        return self.norm(x)

    def prefill(self, prompts):
        """Read prompts (B, P) -> their hidden states (B, P, D), and a KVCache with room for the context."""
        c = self.config
        shape = (len(prompts), c.heads, c.context, c.width // c.heads)
        keys = [self.token_embedding.weight.new_empty(shape) for _ in range(c.layers)]
        cache = KVCache(keys, [torch.empty_like(k) for k in keys])
        return self(prompts, cache), cache


class LanguageModel(nn.Module):
    def __init__(self, config, seed):
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = nn.Linear(config.width, config.vocab_size - 1)
        # A generator of its own: a seed is an initialisation, whatever else draws random numbers.
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
        """Next-token logits: tokens (B, T) -> (B, T, V - 1). PAD has no logit, so it is never sampled."""
        return self.head(self.trunk(tokens, cache))


def token_log_probs(logits, labels, pad, temperature=1.0):
    """log softmax(logits / temperature) at the labels, 0 at PAD: (B, R, V - 1), (B, R) -> (B, R).
    [[[0, 0], [5, 3]]], [[1, 2]], 2 -> [[-0.693, 0]]."""
    logits = (logits / temperature).transpose(1, 2)  # cross_entropy wants the words second
    return -nn.functional.cross_entropy(logits, labels, ignore_index=pad, reduction="none")


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
    """Draw a token from each softmax, (B, V - 1) -> (B,): the first whose cumulative probability exceeds one
    uniform number. torch.multinomial draws V a row, which took a sixth of the time of sampling."""
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, uniform, right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # rounding may put the number at the very end


@torch.no_grad()
def sample(model, prompts, max_new_tokens, generator, n=1, temperature=1.0):
    """Draw n responses to each prompt: (B, P) -> (B * n, max_new_tokens), those of a prompt side by side.
    Each ends with its first EOS, then PAD. The generator must be on the device of the prompts."""
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    # Prefill: read every prompt once, then repeat what was read for its n samples.
    rows = torch.arange(len(prompts) * n, device=prompts.device)  # the responses in the batch
    hidden_states, cache = model.trunk.prefill(prompts)
    logits, cache = model.head(hidden_states[:, -1])[rows // n], cache.select(rows // n)
    responses = prompts.new_full((len(rows), max_new_tokens), model.config.pad)
    writing = rows  # places in the batch whose response has not ended
    for t in range(max_new_tokens):
        tokens = torch.full_like(rows, model.config.eos)  # rows that have ended draw no more
        tokens[writing] = sample_token(logits[writing] / temperature, generator)
        responses[rows[writing], t] = tokens[writing]
        writing = (tokens != model.config.eos).nonzero()[:, 0]
        if len(writing) == 0 or t == max_new_tokens - 1:
            break
        # Drop the rows that have ended once they are a fifth of the batch: dropping copies the cache.
        if len(writing) < 0.8 * len(rows):
            rows, tokens, cache = rows[writing], tokens[writing], cache.select(writing)
            writing = torch.arange(len(rows), device=rows.device)
        # Read the tokens.
        logits = model(tokens[:, None], cache)[:, -1]
    return responses


def minibatches(rows, batch_size, steps, generator):
    """Yield `steps` index tensors (batch_size,): epoch after epoch, each a fresh shuffle of all rows."""
    if rows < 1:
        raise ValueError("there are no rows to train on")
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def train(model, loss_of, data, config, seed, label):
    """The loop of all models: minimise loss_of(*minibatch) on data, tensors of N rows. `seed` orders them.
    `label` names the progress bar; None: no bar. Returns the loss of every step, (steps,)."""
    adamw = {"betas": (0.9, 0.98), "weight_decay": config.weight_decay, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, **adamw)
    warmup_steps = max(1, round(config.warmup * config.steps))
    # The learning rate rises linearly, then falls along a cosine.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup_steps, 0.5 + 0.5 * math.cos(math.pi * t / config.steps))
    )
    batches = minibatches(len(data[0]), config.batch_size, config.steps, torch.Generator().manual_seed(seed))
    losses = []
    for rows in tqdm(batches, label, config.steps, leave=False, disable=True if label is None else None):
        loss = loss_of(*(tensor[rows.to(tensor.device)] for tensor in data))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def lm_loss(model, prompts, responses):
    """Mean of -log p over the response tokens, in nats: prompts (B, P), responses (B, R) -> scalar."""
    return -log_probs(model, prompts, responses).sum() / (responses != model.config.pad).sum()


def train_lm(model, texts, config, seed, prompt_length=1, label="language model"):
    """Next-token training in place on texts (N, T): pretraining (all tokens) or SFT (those after the prompt).
    `seed` sets the order of the data. Returns the loss of every step, (steps,), in nats per token."""
    if not 1 <= prompt_length < texts.shape[1]:
        raise ValueError(f"prompt_length must be in 1 to {texts.shape[1] - 1}, got {prompt_length}")

    def loss_of(texts):
        texts = trim(texts, model.config.pad)
        return lm_loss(model, texts[:, :prompt_length], texts[:, prompt_length:])

    return train(model, loss_of, [texts], config, seed, label)
