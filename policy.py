"""A tiny transformer, a language model on it, and what a policy must do: train, sample, score.

    model = LanguageModel(Config(vocab_size=100), seed=0)
    train_lm(model, texts, TrainConfig(steps=1000), seed=0)
    responses = sample(model, prompts, 24, torch.Generator().manual_seed(0))
    log_probs(model, prompts, responses)                    # of those very samples

Conventions shared by every file: tokens are int64, rows are padded on the *right*, all prompts of a
batch have one length P, a response ends with EOS unless it ran out of room, and PAD fills the rest.
B rows, T positions, D width, V words.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """The shape of a transformer."""

    vocab_size: int  # words, EOS and PAD; the last two ids are EOS and PAD
    context: int = 40  # longest prompt + response, in tokens
    width: int = 64  # of the residual stream
    layers: int = 2
    heads: int = 2

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")

    @property
    def eos(self):
        return self.vocab_size - 2

    @property
    def pad(self):
        return self.vocab_size - 1


@dataclass(frozen=True)
class TrainConfig:
    """How to train a model. The defaults are those of a pretraining."""

    steps: int = 1200  # updates
    batch_size: int = 32  # rows of data per update
    lr: float = 3e-3  # peak learning rate, after the warm-up
    warmup: float = 0.05  # share of the steps in which it rises from 0; then a cosine back to 0
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


# ----- the transformer ----------------------------------------------------------------------------


class KVCache:
    """The keys and values of what a batch of rows has read so far, so that it need not be read again.

    keys, values: for each layer (B, heads, room, head_dim), of which the first `length` positions are filled.
    The room is allocated once, so that appending a token copies that token alone."""

    def __init__(self, keys, values, length=0):
        self.keys, self.values, self.length = keys, values, length

    def append(self, layer, k, v):
        """Store the keys and values of T more tokens (B, heads, T, head_dim); return those of all tokens so far.

        The transformer moves `length` on once every layer has appended."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows):
        """A new cache of the given rows, an index (N,) in any order and with repeats.

        It repeats a prompt for its n samples, drops rows that have ended, and gathers a chunk."""

        def gather(tensor):
            chosen = tensor.new_empty(len(rows), *tensor.shape[1:])
            chosen[:, :, : self.length] = tensor[:, :, : self.length].index_select(0, rows)
            return chosen

        return KVCache([gather(k) for k in self.keys], [gather(v) for v in self.values], self.length)


def norm(x):
    """Layer norm without gain and bias: the linear layer that always follows makes up for them."""
    return F.layer_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Causal multi-head self-attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        scores = q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5  # (B, heads, T, tokens so far)
        if T > 1:  # a single new token may look at everything before it
            S = k.shape[2]
            future = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T + 1)
            scores = scores.masked_fill(future, -torch.inf)
        mix = scores.softmax(-1) @ v
        return self.out(mix.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two linear layers with a ReLU between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x):
        return self.down(self.up(x).relu_())


class Block(nn.Module):
    """A pre-norm transformer block: (B, T, D) -> (B, T, D)."""

    def __init__(self, config, layer):
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):
        x = x + self.attention(norm(x), cache)
        x = x + self.mlp(norm(x))
        return x


class Transformer(nn.Module):
    """Decoder-only transformer: tokens (B, T) -> hidden states (B, T, D).

    With a cache the tokens follow what it holds, and are added to it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))

    def forward(self, tokens, cache=None):
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise ValueError(f"tokens: {end} positions do not fit a context of {self.config.context}")
        positions = torch.arange(start, end, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length = end
        return norm(x)

    def prefill(self, prompts):
        """Read prompts (B, P) -> (their hidden states (B, P, D), a KVCache with room for the rest of the context)."""
        c = self.config
        shape = (len(prompts), c.heads, c.context, c.width // c.heads)
        keys = [self.token_embedding.weight.new_empty(shape) for _ in range(c.layers)]
        values = [torch.empty_like(k) for k in keys]
        cache = KVCache(keys, values)
        return self(prompts, cache), cache


class LanguageModel(nn.Module):
    """Next-token logits: tokens (B, T) -> (B, T, V - 1). The head has no output for PAD, so PAD is never sampled."""

    def __init__(self, config, seed):
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = nn.Linear(config.width, config.vocab_size - 1)
        self.init_weights(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator):
        """Every number comes from the generator: a seed is an initialisation, whatever else has drawn numbers."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "embedding" in name:
                parameter.normal_(std=1.0 if "token" in name else 0.3, generator=generator)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
                # The layers that add to the residual stream start smaller, so that their sum keeps its size (GPT-2).
                if name.endswith(("out.weight", "down.weight")):
                    parameter.mul_((2 * self.config.layers) ** -0.5)

    def forward(self, tokens, cache=None):
        return self.head(self.trunk(tokens, cache))


# ----- log-probabilities --------------------------------------------------------------------------


def token_log_probs(logits, labels, pad, temperature=1.0):
    """log p(label) under softmax(logits / temperature): (B, R, V - 1), (B, R) -> (B, R), 0 where the label is PAD."""
    return -F.cross_entropy(
        (logits / temperature).transpose(1, 2), labels, ignore_index=pad, reduction="none"
    )


def log_probs(model, prompts, responses, temperature=1.0):
    """log-probability of every response token: prompts (B, P), responses (B, R) -> (B, R), 0 at PAD.

    The distribution is exactly the one that `sample` draws from at that temperature."""
    tokens = torch.cat([prompts, responses], dim=1)
    # The logits at a position predict the token after it: the first response token is predicted by the last of the prompt.
    logits = model(tokens[:, :-1])[:, prompts.shape[1] - 1 :]
    return token_log_probs(logits, responses, model.config.pad, temperature)


def trim(responses, pad):
    """Without the columns in which every row has PAD: (B, R) -> (B, longest response)."""
    return responses[:, : int((responses != pad).sum(1).max())]


# ----- sampling -----------------------------------------------------------------------------------


def sample_token(logits, generator):
    """One token from each softmax: (B, V) -> (B,).

    The first token whose cumulative probability exceeds a uniform number. torch.multinomial does the same
    with V random numbers a row in place of one, which took a sixth of the time of sampling."""
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(model, prompts, max_new_tokens, generator, n=1, temperature=1.0):
    """Draw n responses to each prompt: prompts (B, P) -> (B * n, max_new_tokens), the n samples of a prompt
    side by side; each ends with its first EOS, then PAD. `generator` lives on the device of the prompts."""
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    rows = torch.arange(len(prompts) * n, device=prompts.device)  # the responses that are still being written
    responses = prompts.new_full((len(rows), max_new_tokens), model.config.pad)

    # Prefill: read every prompt once, then repeat what was read for its n samples.
    hidden_states, cache = model.trunk.prefill(prompts)
    logits = model.head(hidden_states[:, -1])[rows // n]
    cache = cache.select(rows // n)

    # Decode: draw a token for every row, drop the rows that have ended, read the token.
    for t in range(max_new_tokens):
        tokens = sample_token(logits / temperature, generator)
        responses[rows, t] = tokens
        writing = (tokens != model.config.eos).nonzero()[:, 0]
        if len(writing) == 0 or t == max_new_tokens - 1:
            break
        if len(writing) < len(rows):
            rows, tokens, cache = rows[writing], tokens[writing], cache.select(writing)
        logits = model(tokens[:, None], cache)[:, -1]
    return responses


# ----- training -----------------------------------------------------------------------------------


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
    """The loop that language and reward models share: minimise loss_of(*minibatch) -> scalar.

    data: tensors of N rows each; `seed` sets the order of the rows. AdamW; the learning rate rises linearly, then
    falls along a cosine. Returns the loss of every step, (steps,)."""
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    warmup_steps = max(1, round(config.warmup * config.steps))

    def lr_scale(step):
        return min((step + 1) / warmup_steps, 0.5 + 0.5 * math.cos(math.pi * step / config.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_scale)
    batches = minibatches(len(data[0]), config.batch_size, config.steps, torch.Generator().manual_seed(seed))
    losses = []
    for rows in tqdm(batches, label, total=config.steps, leave=False, disable=None):
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
    """Next-token training in place: pretraining (all tokens) and SFT (the response tokens) alike.

    texts (N, T), right-padded; the loss is the mean over real tokens at positions >= prompt_length, in nats per
    token. `seed` sets the order of the data. Returns the loss of every step."""
    if not 1 <= prompt_length < texts.shape[1]:
        raise ValueError(f"prompt_length must be in 1 to {texts.shape[1] - 1}, got {prompt_length}")

    def loss_of(texts):
        texts = trim(texts, model.config.pad)
        return lm_loss(model, texts[:, :prompt_length], texts[:, prompt_length:])

    return train(model, loss_of, [texts], config, seed, label)
