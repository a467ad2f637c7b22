"""A tiny transformer, a language model on it, and what a policy needs: training, sampling, log-probabilities.

    model = LanguageModel(Config(vocab_size=100), seed=0)
    train_lm(model, texts, TrainConfig(steps=1000), seed=0)
    responses = sample(model, prompts, 24, torch.Generator().manual_seed(0))
    log_probs(model, prompts, responses)  # (B, R), of those very samples

Tokens are int64, rows padded on the *right*. All prompts have length P. A response has up to R tokens, and
ends with EOS unless it ran out of room. B rows in a batch, N in the data, T positions, D width, V tokens.
"""

import math
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
    heads: int = 8  # with 2 or 4, reward models of this size learn far less about facts

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
        qkv = self.qkv(x).view(B, T, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)
        q, kv = qkv[0], qkv[1:]  # queries (B, heads, T, head_dim); keys and values (2, B, heads, T, head_dim)
        if cache is not None:
            kv = cache.append(self.layer, kv)
        k, v = kv
        S = k.shape[2]  # tokens so far: those in the cache, then the T new ones
        attention = q @ k.transpose(-2, -1) * head_dim**-0.5  # (B, heads, T, S)
        if T > 1:  # query i is at position S - T + i, and must not see keys after it; a single query sees all
            future = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T + 1)
            attention = attention.masked_fill(future, -torch.inf)
        mix = attention.softmax(-1) @ v  # (B, heads, T, head_dim)
        return self.out(mix.transpose(1, 2).reshape(B, T, D))


@dataclass
class KVCache:
    """Keys and values of the tokens read so far, so that none is read twice."""

    layers: list  # of each layer a tensor (2, B, heads, context, head_dim), allocated once: keys, then values
    length: int = 0  # tokens read so far

    def append(self, layer, kv):
        """Write one layer's T new keys and values, (2, B, heads, T, head_dim); return all of them so far."""
        start, end = self.length, self.length + kv.shape[3]
        self.layers[layer][:, :, :, start:end] = kv
        if layer == len(self.layers) - 1:
            self.length = end  # now that every layer has them
        return self.layers[layer][:, :, :, :end]

    def select(self, rows):
        """A copy with the given rows, repeats allowed: of rows a and b, select(rows=[1, 1, 0]) -> b, b, a."""
        return KVCache([kv.index_select(1, rows) for kv in self.layers], self.length)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x):
        return self.down(self.up(x).relu_())  # in place: on a CPU fresh memory costs more than the arithmetic


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        # One norm serves both sublayers: it has no parameters. The linear layer after it would absorb a gain.
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

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
        """Tokens (B, T) -> hidden states (B, T, D). With a cache, T new tokens after those already in it."""
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise ValueError(f"tokens: {end} positions do not fit a context of {self.config.context}")
        positions = torch.arange(start, end, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x)

    def prefill(self, prompts):
        """Read prompts (B, P) -> their hidden states (B, P, D), and a KVCache with room for what follows."""
        c = self.config
        shape = (2, len(prompts), c.heads, c.context, c.width // c.heads)
        cache = KVCache([self.token_embedding.weight.new_empty(shape) for _ in range(c.layers)])
        return self(prompts, cache), cache


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
    token_log_probs(logits=[[[0, 0], [5, 3]]], targets=[[1, 2]], pad=2) -> [[-0.693, 0]]."""
    logits = (logits / temperature).transpose(1, 2)  # cross_entropy wants the words second
    return -nn.functional.cross_entropy(logits, targets, ignore_index=pad, reduction="none")


def log_probs(model, prompts, responses, temperature=1.0):
    """Log-probability of every response token under `sample`, 0 at PAD: (B, P), (B, R) -> (B, R)."""
    tokens = torch.cat([prompts, responses], dim=1)
    # Logits predict the next token: those at the prompt's last position, the response's first token.
    logits = model(tokens[:, :-1])[:, prompts.shape[1] - 1 :]
    return token_log_probs(logits, responses, model.config.pad, temperature)


def trim(responses, pad):
    """Drop columns of nothing but PAD: trim(responses=[[7, 9, 9], [5, 7, 9]], pad=9) -> [[7, 9], [5, 7]]."""
    return responses[:, : int((responses != pad).sum(1).max())]


def check_texts(config, prompts, responses=None):
    """ValueError unless prompts (B, P) hold tokens and no PAD, and responses (B * n, R) hold words, then
    perhaps EOS, then PAD. Called where a user's texts come in."""
    if prompts.numel() == 0 or (prompts == config.pad).any():
        raise ValueError(f"prompts must hold tokens and no PAD; their shape is {tuple(prompts.shape)}")
    if responses is None:
        return
    if responses.numel() == 0 or len(responses) % len(prompts):
        raise ValueError(f"responses: their shape is {tuple(responses.shape)}, for {len(prompts)} prompts")
    if (responses[:, 0] == config.pad).any():
        raise ValueError("responses: a row has no token")
    ended = (responses == config.eos) | (responses == config.pad)
    if (ended[:, :-1] & (responses[:, 1:] != config.pad)).any():
        raise ValueError("responses: a row goes on after EOS or PAD")


def sample_token(logits, generator):
    """Sample from softmax(logits), (B, V - 1) -> (B,): the first token whose cumulative probability exceeds a
    uniform number. One number a row: torch.multinomial draws V, which took a sixth of the sampling time."""
    cumulative = logits.float().softmax(-1).cumsum(-1)  # float32: a sum in bfloat16 would have two digits
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, uniform, right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # rounding may put the number at the very end


@torch.no_grad()
def sample(model, prompts, max_new_tokens, generator, n=1, temperature=1.0):
    """Draw n responses to each prompt: (B, P) -> (B * n, max_new_tokens); row i answers prompt i // n.
    Each ends with its first EOS, then PAD. The generator must be on the device of the prompts."""
    if min(n, max_new_tokens) < 1 or temperature <= 0:
        raise ValueError(f"must be > 0: n {n}, max_new_tokens {max_new_tokens}, temperature {temperature}")
    check_texts(model.config, prompts)
    # Read every prompt once, then copy its cache and last hidden state to the n rows that continue it.
    rows = torch.arange(len(prompts) * n, device=prompts.device)  # rows of `responses` still in the batch
    hidden_states, cache = model.trunk.prefill(prompts)
    hidden, cache = hidden_states[rows // n, -1], cache.select(rows // n)
    responses = prompts.new_full((len(rows), max_new_tokens), model.config.pad)
    alive = torch.ones_like(rows, dtype=torch.bool)  # which of them have no EOS so far
    for t in range(max_new_tokens):
        tokens = sample_token(model.head(hidden) / temperature, generator)
        responses[rows, t] = tokens.where(alive, model.config.pad)
        alive = alive & (tokens != model.config.eos)
        if t == max_new_tokens - 1 or not alive.any():
            break
        # An ended row is computed like the others, until most have ended: dropping rows copies the cache.
        if alive.float().mean() < 0.5:
            kept = alive.nonzero()[:, 0]
            rows, tokens, alive, cache = rows[kept], tokens[kept], alive[kept], cache.select(kept)
        hidden = model.trunk(tokens[:, None], cache)[:, 0]
    return responses


def minibatches(lengths, batch_size, steps, generator):
    """The rows that each step trains on, a list of index tensors: pass after pass over all N rows, each in a
    new order. A batch has rows of similar length, because PAD takes as much time as text; lengths: (N,).
    minibatches(lengths=[5, 1, 4, 2, 3], batch_size=2, steps=3, generator=g) -> [[4, 2], [0], [1, 3]]."""
    if len(lengths) == 0:
        raise ValueError("there are no rows to train on")
    batches = []
    while len(batches) < steps:
        order = torch.randperm(len(lengths), generator=generator)
        # Sort eight batches at a time, not all of them, so that each pass has other neighbours.
        order = torch.cat([rows[lengths[rows].argsort()] for rows in order.split(8 * batch_size)])
        this_pass = order.split(batch_size)  # the last one may be shorter
        batches += [this_pass[i] for i in torch.randperm(len(this_pass), generator=generator)]
    return batches[:steps]


def train(model, loss_fn, data, lengths, config, seed, desc):
    """The training loop of every model: AdamW on loss_fn(*minibatch). `data`: tensors with N rows each, of
    `lengths` (N,), shuffled by `seed`. `desc`: of the progress bar, or None. Returns the losses, (steps,)."""
    adamw = {"betas": (0.9, 0.98), "weight_decay": config.weight_decay, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, **adamw)
    warmup_steps = max(1, round(config.warmup * config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup_steps, 0.5 + 0.5 * math.cos(math.pi * t / config.steps))
    )
    batches = minibatches(lengths.cpu(), config.batch_size, config.steps, torch.Generator().manual_seed(seed))
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


def train_lm(model, texts, config, seed, prompt_length=1, desc="language model"):
    """Train in place to predict all tokens after the first `prompt_length` of texts (N, T): 1 to pretrain, P
    for SFT. `seed` sets the data order. Returns the loss of every step: its mean of -log p, in nats."""
    if not 1 <= prompt_length < texts.shape[1]:
        raise ValueError(f"prompt_length must be in 1 to {texts.shape[1] - 1}, got {prompt_length}")

    def loss_fn(texts):
        texts = trim(texts, model.config.pad)
        prompts, responses = texts[:, :prompt_length], texts[:, prompt_length:]
        return -log_probs(model, prompts, responses).sum() / (responses != model.config.pad).sum()

    return train(model, loss_fn, [texts], (texts != model.config.pad).sum(1), config, seed, desc)
