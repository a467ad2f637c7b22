"""Reward models on real preferences: how much of their judgement is the data's, and how much the seed's?

    python experiments/more/real.py pairs.jsonl.gz           # 2,000 pairs: six minutes on one slow core
    python experiments/more/real.py pairs.jsonl --pairs 500 --pretrain-seeds 2 --json real.json

A file has one pair a line, see pairs.py. A grid of reward models, pretraining seeds x finetuning seeds,
learns from most of them and is compared on the others. There is no gold reward here: only the file says who
is right.

What it teaches, and in brackets what 2,000 pairs of hh-rlhf's harmless-base gave:

1. Accuracy: real preferences are hard for tiny models, and seeds matter little (0.56 of pairs, std 0.02).
2. Agreement: two of them order many pairs differently, fewer if they share a pretraining (0.24, else 0.30).
3. Best of n: so one's pick is worth less to another, the more so the larger n (n = 64: 2.8 std, and 1.4).
4. Length: they exaggerate an easy cue (the file prefers the shorter response in 0.53 of pairs, they in 0.69).
"""

import argparse
import json
import random
import sys
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the five files of the core

import torch

from bon import expected_best_of_n
from ensemble import Ensemble, finetune_ensembles, pretrain_ensembles
from pairs import read_pairs, split, tokenise
from policy import Config, LanguageModel, TrainConfig, train_lm
from rm import RewardModel, normalise, train_rm

MIN_PAIRS, RM_BATCH, LM_BATCH = 50, 32, 16  # of a file: fewer say nothing; pairs, and texts, per update


def setting(default, least, help):
    return field(default=default, metadata={"least": least, "help": f"{help} (default {default})"})


@dataclass(frozen=True)
class Settings:
    """Every flag that the numbers depend on: its default, the least that makes sense, what it is."""

    seed: int = setting(0, 0, "everything random follows from it")
    pairs: int = setting(2000, MIN_PAIRS, "at most so many pairs of the file, drawn at random")
    held_out: float = setting(0.2, 0.01, "share of the pairs to compare the reward models on")
    encoding: str = setting("own", "", "own (byte pairs of the file) or gpt2 (tiktoken's, may be downloaded)")
    vocabulary: int = setting(3000, 256, "the file's most frequent tokens; with gpt2 the others become one")
    context: int = setting(128, 8, "longest prompt + response, in tokens")
    width: int = setting(64, 2, "of the transformers, an even number")
    pretrain_seeds: int = setting(3, 1, "pretrainings")
    finetune_seeds: int = setting(3, 1, "reward models for each pretraining")
    pretrain_steps: int = setting(400, 1, f"updates of a pretraining, {LM_BATCH} texts each")
    rm_epochs: int = setting(4, 1, "passes over the training pairs")

    def __post_init__(self):
        for f in fields(self):
            flag, value, least = "--" + f.name.replace("_", "-"), getattr(self, f.name), f.metadata["least"]
            if not value >= least:
                raise ValueError(f"{flag} must be >= {least}, got {value}")
        if self.held_out >= 1 or self.width % 2 or self.encoding not in ("own", "gpt2"):
            raise ValueError("--held-out must be < 1, --width even, and --encoding own or gpt2")


def read(path, s):
    """The file -> rows (N, 2, T), lengths (N, 2), held_out (N,), vocab_size: see pairs.py."""
    pairs, skipped = read_pairs(path)
    pairs = sorted(random.Random(s.seed).sample(pairs, min(s.pairs, len(pairs))))
    rows, lengths, prompts, vocab_size = tokenise(pairs, s.encoding, s.vocabulary, s.context - 1, skipped)
    reasons = [f"{why}: {len(n)}, the first in line {n[0]}" for why, n in skipped.items()]
    said = f"{path}: {len(prompts)} usable pairs (skipped: {'; '.join(reasons) or 'none'})"
    if len(prompts) < MIN_PAIRS:
        raise ValueError(f"{said}, at least {MIN_PAIRS} are needed")
    held_out = split(prompts, s.held_out, s.seed)
    print(f"{said}, {held_out.sum()} of them held out", flush=True)
    return rows, lengths, held_out, vocab_size


def train_grid(rows, held_out, vocab_size, s):
    """Rewards (P, F, held-out pairs, 2) of chosen and rejected, by F reward models of each of P pretrainings.

    A reward model's prompt is a single EOS, as if another text had ended there; the file's prompt and
    response together are its response, so that both may have any length."""
    config, P, F = Config(vocab_size, s.context, s.width), s.pretrain_seeds, s.finetune_seeds
    training, held = rows[~held_out], rows[held_out].flatten(0, 1)
    texts, (chosen, rejected) = training.flatten(0, 1), training.unbind(1)
    eos, seed = torch.full((len(texts), 1), config.eos), 1000 * s.seed
    lm_config = TrainConfig(s.pretrain_steps, LM_BATCH)
    rm_config = TrainConfig(max(1, len(training) * s.rm_epochs // RM_BATCH), RM_BATCH, lr=2e-3)
    rewards = torch.zeros(P, F, len(held), dtype=torch.double)
    for p in range(P):
        model, label = LanguageModel(config, seed + p), f"pretraining {p + 1} of {P}"
        losses = train_lm(model, torch.cat([eos, texts], dim=1), lm_config, seed + p, desc=label)
        print(f"{label}: {losses[-20:].mean():.2f} nats per token", flush=True)
        for f in range(F):
            rm, label = RewardModel(model.trunk, seed + f), f"its reward model {f + 1} of {F}"
            train_rm(rm, eos[: len(training)], chosen, rejected, rm_config, seed + f, desc=label)
            normalise(rm, eos[:512], texts[:512])
            rewards[p, f] = Ensemble([rm]).scores(eos[:1], held)[0]
    return rewards.view(P, F, -1, 2)


def mean(values):
    """Over the first axis, as a list; [] if there is nothing to take it of."""
    return values.double().mean(0).flatten().tolist() if len(values) else []


def findings(rewards, lengths):
    """The rewards of `train_grid` and lengths (held-out pairs, 2) -> {question: {case: list of numbers}}."""
    P, F, N, _ = rewards.shape
    margins = (rewards[..., 0] - rewards[..., 1]).flatten(0, 1)  # (M, N): above 0 is right
    right, members = margins > 0, torch.arange(P * F)
    accuracy, grid = right.double().mean(1), members.view(P, F).tolist()
    # Two reward models, (M, M). Independent errors: both right, or both wrong, by chance.
    same, itself = members[:, None] // F == members // F, torch.eye(P * F, dtype=torch.bool)
    alike = (right[:, None] == right).double().mean(-1)
    independent = accuracy[:, None] * accuracy + (1 - accuracy[:, None]) * (1 - accuracy)
    # Best of n, (who picks, who judges, n). The pool is all held-out responses, each less the mean of its
    # pair, so that no prompt wins by itself; the unit is the standard deviation of the judge.
    unit = margins / margins.pow(2).mean(1, keepdim=True).sqrt()
    pool, ns = torch.cat([unit, -unit], 1).numpy(), [n for n in (1, 4, 16, 64) if n <= max(1, N // 4)]
    picks = torch.from_numpy(expected_best_of_n(pool[:, None], pool, ns))
    longer, unequal = lengths[:, 0] > lengths[:, 1], lengths[:, 0] != lengths[:, 1]
    found = {
        "accuracy": {"one reward model": mean(accuracy), "its std": [accuracy.std(correction=0).item()]},
        "orders a pair like": {"one with independent errors": mean(independent[~itself])},
        "reward of its best of n, judged by": {"n": ns, "itself": mean(picks[itself])},
        "length": {"the file prefers the longer": mean(longer[unequal]),
                   "a reward model does": mean((right == longer)[:, unequal].flatten()),
                   "accuracy where the longer won": mean(right[:, unequal & longer].flatten()),
                   "accuracy where the shorter won": mean(right[:, unequal & ~longer].flatten())},
    }  # fmt: skip
    ensembles = {"finetune": finetune_ensembles(grid), "pretrain": pretrain_ensembles(grid), "all": [members]}
    for name, groups in ensembles.items():
        found["accuracy"][f"ensembles: {name}"] = mean(torch.cat([margins[m].mean(0) > 0 for m in groups]))
    for name, which in (("another of its pretraining", same & ~itself), ("one of another", ~same)):
        found["orders a pair like"][name] = mean(alike[which])
        found["reward of its best of n, judged by"][name] = mean(picks[which])
    return found


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="preference pairs, one a line, in JSON; gzipped or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    for f in fields(Settings):
        flag = "--" + f.name.replace("_", "-")
        parser.add_argument(flag, type=f.type, default=f.default, help=f.metadata["help"])
    given = vars(parser.parse_args(argv))
    try:
        torch.set_num_threads(1)  # matrices this small are not worth splitting
        path, out, s = given.pop("file"), given.pop("json"), Settings(**given)
        if out:  # an error now, not after minutes
            out.parent.mkdir(parents=True, exist_ok=True)
        rows, lengths, held_out, vocab_size = read(path, s)
        found = findings(train_grid(rows, held_out, vocab_size, s), lengths[held_out])
        for question, cases in found.items():
            print(f"\n{question}")
            for case, numbers in cases.items():
                print(f"  {case:32}", *(f"{round(x, 3) + 0:7g}" for x in numbers))
        if out:  # the whole file or none
            part = out.with_name(out.name + ".part")
            part.write_text(json.dumps({"settings": asdict(s), **found}, indent=1) + "\n", "utf-8")
            part.replace(out)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two: damaged gzip
        print(f"real.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
