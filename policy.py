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

Three ideas make it fast, and change results by rounding alone (experiments/speed.py has what each gives): PAD is not
computed (`real`), the last layer computes only the states that are read (`wanted`), and a prompt is
read once for all responses to it (`KVCache`).
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


def unpack(x, at, places):
    """Tokens x (..., N, D) -> (..., places, D): token i at place at[i], zeros elsewhere. Without `at` there are no gaps."""
    return x if at is None else x.new_zeros(*x.shape[:-2], places, x.shape[-1]).index_copy_(-2, at, x)


def pack(x, at):
    """The way back: (..., places, D) -> (..., N, D)."""
    return x if at is None else x.index_select(-2, at)


class KVCache:
    """What a batch of rows has read before, in keys and values: its prompts, each read once for the n rows that follow it,
    and, after `make_room`, the rows' own `length` tokens so far.

    prompts: for each layer (keys, values), both (heads, M * prompts, P, D/heads). own: for each layer one
    (2, room, heads, rows, D/heads); time comes first, so that writing a token and dropping a row touch little memory."""

    def __init__(self, prompts):
        self.prompts, self.own, self.length = prompts, None, 0

    def make_room(self, rows, room):
        """Make ready for up to `room` tokens of each row, one after the other."""
        self.prompts = [(k.contiguous(), v.contiguous()) for k, v in self.prompts]       # to be read again for each new token
        self.own = [k.new_empty(2, room, len(k), rows, k.shape[-1]) for k, _ in self.prompts]

    def append(self, layer, k, v):
        """Keep one more token's keys and values (heads, rows, 1, D/heads) -> those of the rows' own tokens so far."""
        self.own[layer][:, self.length] = torch.stack([k, v])[..., 0, :]
        return self.own[layer][:, :self.length + 1].permute(0, 2, 3, 1, 4)

    def drop(self, prompts, rows):
        """Keep only the prompts and the rows of these indices."""
        if len(prompts) < self.prompts[0][0].shape[1]:
            self.prompts = [(k.index_select(1, prompts), v.index_select(1, prompts)) for k, v in self.prompts]
        for layer, old in enumerate(self.own):
            self.own[layer] = old.new_empty(*old.shape[:3], len(rows), old.shape[4])
            self.own[layer][:, :self.length] = old[:, :self.length].index_select(3, rows)


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

    def attention(self, q, k, v, prompts=None):
        """Every token's mix of the values before it: q (heads, rows, T, D/heads); k, v the same, with what came before those T
        tokens in front -> (rows, T, D). prompts: the keys and values that rows have in common, as in KVCache."""
        heads, rows, T, size = q.shape
        q = q * size ** -0.5
        scores = q @ k.transpose(-1, -2)
        if T > 1:
            future = torch.ones(T, k.shape[2], dtype=torch.bool, device=q.device).triu(1 + k.shape[2] - T)
            scores = scores.masked_fill(future, -torch.inf)
        if prompts is None:
            mix = scores.softmax(-1) @ v
        else:                               # the n rows of a prompt stand together: one product with its keys serves them all
            keys, values = prompts
            together = lambda x: x.reshape(heads, keys.shape[1], -1, x.shape[-1])
            of_prompt = (together(q) @ keys.transpose(-1, -2)).view(heads, rows, T, -1)
            weights, P = torch.cat([of_prompt, scores], -1).softmax(-1), keys.shape[2]
            mix = (together(weights[..., :P]) @ values).view(q.shape) + weights[..., P:] @ v
        return mix.permute(1, 2, 0, 3).reshape(rows, T, heads * size)

    def forward(self, x, layer, shape, at, read=None, past=None, keep=None):
        """x (..., N, D), a row for every real token -> the same, or only the rows to be read. The tokens stand at the places `at`
        of a (B, T) grid, `shape`. read: (indices of those rows, the first column with one, their places in the grid from there on).
        past: what was read before; keep: a list to which (keys, values) go."""
        grid = unpack(self.qkv(norm(x)), at, shape[0] * shape[1])
        # One row of the products per (head, member, sequence): members are simply more rows.
        q, k, v = grid.view(-1, shape[1], 3, self.heads, x.shape[-1] // self.heads).permute(2, 3, 0, 1, 4)
        if keep is not None:
            keep.append((k, v))
        if past and past.own:
            k, v = past.append(layer, k, v)
        if read is not None:
            rows, first, at = read
            x, q = pack(x, rows), q[:, :, first:]
        mix = self.attention(q, k, v, past and past.prompts[layer]).view(*x.shape[:-2], -1, x.shape[-1])
        x = x + self.out(pack(mix, at))
        return x + self.down(self.up(norm(x)).relu_())


class Transformer(nn.Module):
    """Decoder-only transformer: tokens (B, T) -> final hidden states of N of them, (N, D) or (M, N, D)."""

    def __init__(self, config, generator):
        super().__init__()
        self.config = config
        if config.width % config.heads:
            raise ValueError(f"width: {config.width} is not a multiple of heads ({config.heads})")
        self.token_embedding = nn.Parameter(torch.randn(config.vocab_size, config.width, generator=generator))
        self.position_embedding = nn.Parameter(torch.randn(config.context, config.width, generator=generator) * 0.3)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.layers))

    def forward(self, tokens, real=None, wanted=None, past=None, keep=None):
        """tokens (B, T) -> (..., N, D), row by row. real, wanted (B, T), true where a token is to be computed at all (what stands
        on its left must be, too), and where its state is read (which must be real); left out, everywhere. past: what the rows have read before."""
        start = past.prompts[0][0].shape[2] + past.length if past else 0
        if start + tokens.shape[1] > self.config.context:
            raise ValueError(f"tokens: {start + tokens.shape[1]} positions do not fit a context of {self.config.context}")
        if real is not None:
            longest = int(real.sum(1).max())
            tokens, real, wanted = tokens[:, :longest], real[:, :longest], None if wanted is None else wanted[:, :longest]
        B, T = tokens.shape
        at = None if real is None or real.all() else real.flatten().nonzero()[:, 0]
        gather = lambda x: x.flatten() if at is None else x.flatten()[at]
        positions = torch.arange(start, start + T, device=tokens.device).expand(B, T)
        x = self.token_embedding.index_select(-2, gather(tokens)) + self.position_embedding.index_select(-2, gather(positions))
        read = None
        if wanted is not None:
            columns = wanted.any(0).nonzero()
            first = int(columns[0]) if len(columns) else T - 1
            read = gather(wanted).nonzero()[:, 0], first, wanted[:, first:].flatten().nonzero()[:, 0]
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, tokens.shape, at, read if block is self.blocks[-1] else None, past, keep)
        return norm(x)

    def prefill(self, prompts, wanted):
        """Read prompts (B, P) -> (the states wanted, the KVCache for what follows)."""
        kept = []
        return self(prompts, wanted=wanted, keep=kept), KVCache(kept)


class LanguageModel(nn.Module):
    """Next-token logits (..., B, T, V - 1): the head has no column for PAD, so PAD can never be drawn."""

    def __init__(self, config, seed):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.trunk = Transformer(config, generator)
        self.head = Linear(config.width, config.vocab_size - 1, generator)

    def forward(self, tokens):
        return self.head(self.trunk(tokens)).unflatten(-2, tokens.shape)


def states_before(trunk, prompts, responses):
    """The states that predict the response's tokens: prompts (B, P), responses (B, R) -> (N, D), a row for every token but PAD."""
    tokens = torch.cat([prompts, responses], 1)
    real = tokens[:, 1:] != trunk.config.pad              # true where a token follows: the last one predicts nothing
    return trunk(tokens[:, :-1], real, real & (torch.arange(real.shape[1], device=real.device) >= prompts.shape[1] - 1))


def token_log_probs(logits, tokens, temperature=1.0):
    """log p(token) under softmax(logits / temperature): logits (N, V - 1), tokens (N,) -> (N,)."""
    return -F.cross_entropy(logits / temperature, tokens, reduction="none")


def spread(x, mask):
    """x (N,) -> (B, R): its numbers in the true places of the mask, row by row, and 0 elsewhere."""
    return x.new_zeros(mask.shape).masked_scatter(mask, x)


def log_probs(model, prompts, responses, temperature=1.0):
    """log-probability of every response token: prompts (B, P), responses (B, R) -> (B, R), 0 at PAD.
    The distribution is exactly the one that `sample` draws from at that temperature."""
    mask = responses != model.config.pad
    logits = model.head(states_before(model.trunk, prompts, responses))
    return spread(token_log_probs(logits, responses[mask], temperature), mask)


def lm_loss(model, prompts, responses):
    """Mean of -log p over the responses' tokens, in nats: prompts (B, P), responses (B, R) -> scalar."""
    return -log_probs(model, prompts, responses).sum() / (responses != model.config.pad).sum()


def sample_token(logits, generator):
    """One token from each softmax: logits (B, V) -> (B,). The first whose cumulated probability exceeds a uniform number: that
    takes one random number for a row, where torch.multinomial takes V, and these were a sixth of the time of sampling."""
    cumulated = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, uniform, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


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
    last = torch.zeros_like(prompts, dtype=torch.bool)
    last[:, -1] = True
    state, past = model.trunk.prefill(prompts, last)
    past.make_room(B * n, max_new_tokens)
    logits = model.head(state).repeat_interleave(n, 0)
    responses = prompts.new_full((B * n, max_new_tokens), c.pad)
    rows = torch.arange(B * n, device=prompts.device).view(B, n)         # the rows still in the batch, by prompt ...
    alive = torch.ones_like(rows, dtype=torch.bool)                      # ... and which of them still write
    for t in range(max_new_tokens):
        past.length = t
        token = sample_token(logits / temperature, generator).view(alive.shape)
        responses[rows, t] = torch.where(alive, token, c.pad)
        alive = alive & (token != c.eos)
        writing = alive.sum(1)
        most, prompts_left = int(writing.max()), writing.nonzero()[:, 0]
        if most == 0 or t == max_new_tokens - 1:
            break
        token = token.flatten()
        # Prompts keep equally many rows, so that these stay a block. Copying pays once a fifth is idle.
        if len(prompts_left) * most < 0.8 * alive.numel():
            first = alive[prompts_left].int().argsort(dim=1, descending=True, stable=True)[:, :most]     # those who write
            kept = (prompts_left[:, None] * alive.shape[1] + first).flatten()
            past.drop(prompts_left, kept)
            rows, alive, token = rows.flatten()[kept].view(first.shape), alive.flatten()[kept].view(first.shape), token[kept]
        logits = model.head(model.trunk(token[:, None], past=past))
    return responses


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


def clip_gradients(parameters, largest, members):
    """Scale the gradients so that their norm is at most `largest`; with members, whose axis comes first, each one's norm."""
    if not members:
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    norms = torch.stack([p.grad.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
    factors = (largest / (norms + 1e-6)).clamp(max=1)
    for p in parameters:
        p.grad.mul_(factors.view(-1, *[1] * (p.dim() - 1)))


def train(parameters, loss_of, rows, config, seed, label, members=False):
    """The loop that language and reward models share: minimise loss_of(index of a minibatch) -> scalar, over `rows` rows of
    data in an order that `seed` sets. AdamW; linear warm-up, then a cosine to zero. Returns the loss of every step.

    members: every parameter has a first axis of M models, and the loss is the sum of theirs; each is trained as if alone."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    warm = max(1, round(config.warmup * config.steps))
    scale = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    batches, losses = minibatches(rows, config.batch_size, config.steps, torch.Generator().manual_seed(seed)), []
    for batch in tqdm(batches, label, total=config.steps, leave=False, disable=None):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(parameters, config.clip, members)
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
        return lm_loss(model, *texts[batch.to(texts.device)].tensor_split([prompt_length], 1))

    return train(model.parameters(), loss_of, len(texts), config, seed, label)
