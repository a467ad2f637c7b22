"""Reward models on real preferences: how much of their judgement is the data's, and how much the seed's?

    python experiments/more/real.py pairs.jsonl.gz           # 2,000 of its pairs
    python experiments/more/real.py pairs.jsonl --pairs 500 --pretrain-seeds 2 --json real.json

A grid of reward models, pretraining x finetuning seeds, learns from most pairs of a file (see pairs.py) and
is compared on the others. Gold is not known, but one can ask:
1. Accuracy: how often is a reward model right, and does its seed matter?
2. Agreement: do two order a pair alike, more so if they share a pretraining, more so than by chance?
3. Best of n: what is one's pick worth to itself, to another of its pretraining, and to one of another?
4. Length: does the file prefer the longer response, and do they exaggerate that?
"""

import random
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

import numpy as np
import torch

from bon import expected_best_of_n
from claims import all_ensembles, pair_means
from ensemble import Ensemble
from pairs import read_pairs, split, tokenise
from policy import Config, LanguageModel, TrainConfig, train_lm
from report import exit_status, parser_of, write_json
from rm import RewardModel, normalise, train_rm

MIN_PAIRS, RM_BATCH, LM_BATCH = 50, 32, 16  # of a file: fewer say nothing; pairs, and texts, per update
JUDGES = ("itself", "another of its pretraining", "one of another")  # what pair_means tells apart
SETTINGS = {  # every flag that the numbers depend on: its default, the least that makes sense, what it is
    "--seed": (0, 0, "everything random follows from it"),
    "--pairs": (2000, MIN_PAIRS, "at most so many pairs of the file, drawn at random"),
    "--held-out": (0.2, 0.01, "share of the pairs to compare the reward models on"),
    "--vocabulary": (3000, 256, "tokens: all bytes, and the file's most frequent words and characters"),
    "--context": (128, 8, "longest prompt + response, in tokens"),
    "--width": (64, 8, "of the transformers, a multiple of 8"),
    "--pretrain-seeds": (3, 1, "pretrainings"),
    "--finetune-seeds": (3, 1, "reward models for each pretraining"),
    "--pretrain-steps": (400, 1, f"updates of a pretraining, {LM_BATCH} texts each"),
    "--rm-epochs": (4, 1, "passes over the training pairs"),
}


def train_grid(rows, held_out, vocab_size, s):
    """Rewards (P, F, held-out pairs, 2) of chosen and rejected, by F reward models of each of P pretrainings.
    A reward model's prompt is one EOS; the file's prompt and response are its response, so of any length."""
    config, P, F = Config(vocab_size, s.context, s.width), s.pretrain_seeds, s.finetune_seeds
    training, held = rows[~held_out], rows[held_out].flatten(0, 1)
    texts, (chosen, rejected) = training.flatten(0, 1), training.unbind(1)
    eos, seed = torch.full((len(texts), 1), config.eos), 1000 * s.seed
    lm_config = TrainConfig(s.pretrain_steps, LM_BATCH)
    rm_config = TrainConfig(max(1, len(training) * s.rm_epochs // RM_BATCH), RM_BATCH, lr=2e-3)
    rms = []
    for p in range(P):
        model, label = LanguageModel(config, seed + p), f"pretraining {p + 1} of {P}"
        train_lm(model, torch.cat([eos, texts], dim=1), lm_config, seed + p, desc=label)
        for f in range(F):
            rm, label = RewardModel(model.trunk, seed + f), f"its reward model {f + 1} of {F}"
            train_rm(rm, eos[: len(training)], chosen, rejected, rm_config, seed + f, desc=label)
            normalise(rm, eos[:512], texts[:512])
            rms.append(rm)
    return Ensemble(rms).scores(eos[:1], held).view(P, F, -1, 2).double().numpy()


def findings(rewards, lengths):
    """The rewards of `train_grid`, (P, F, N, 2), and lengths (N, 2) -> {what: number}."""
    P, F, N, _ = rewards.shape
    margins = (rewards[..., 0] - rewards[..., 1]).reshape(P * F, N)  # (M, N): above 0 is right
    right = margins > 0
    accuracy, alike = right.mean(1), (right[:, None] == right).mean(-1)  # (M,), (M, M)
    by_chance = accuracy * accuracy[:, None] + (1 - accuracy) * (1 - accuracy[:, None])  # right, or wrong
    # Best of n, (who picks, who judges, n). The pool is all held-out responses, each less the mean of its
    # pair, so that no prompt wins by itself; the unit is the standard deviation of the judge.
    unit = margins / np.sqrt((margins**2).mean(1, keepdims=True))
    pool, ns = np.concatenate([unit, -unit], 1), [n for n in (1, 4, 16, 64) if n <= max(1, N // 4)]
    picks = expected_best_of_n(pool[:, None], pool, ns)
    found, tables = {}, {"orders a pair like": alike}
    for kind, groups in {**all_ensembles(P, F), "all": [range(P * F)]}.items():
        found[f"accuracy: {kind}"] = [margins[[*members]].mean(0) > 0 for members in groups]
    found["accuracy: single, its standard deviation"] = accuracy.std()
    found["orders a pair like one with independent errors"] = by_chance[~np.eye(P * F, dtype=bool)]
    tables |= {f"reward of its best of {n}, judged by": picks[..., i] for i, n in enumerate(ns)}
    for name, table in tables.items():
        for judge, value in zip(JUDGES, pair_means(table, F), strict=True):
            found[f"{name} {judge}"] = value
    longer, unequal = lengths[:, 0] > lengths[:, 1], lengths[:, 0] != lengths[:, 1]
    found["prefers the longer: the file"] = longer[unequal]
    found["prefers the longer: single"] = (right == longer)[:, unequal]
    found["accuracy where the longer won"] = right[:, unequal & longer]
    found["accuracy where the shorter won"] = right[:, unequal & ~longer]
    means = {name: float(np.mean(x)) for name, x in found.items() if np.size(x)}
    return {name: round(x, 4) for name, x in means.items() if x == x}  # NaN: there is no such pair


def main(argv=None):
    """The command line, checked before the work."""
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path, help="preference pairs in JSON, gzipped or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    for flag, (value, _, text) in SETTINGS.items():
        parser.add_argument(flag, type=type(value), default=value, help=f"{text} (default {value})")
    s = parser.parse_args(argv)
    for flag, (_, least, _) in SETTINGS.items():
        if not (value := getattr(s, flag[2:].replace("-", "_"))) >= least:
            raise ValueError(f"{flag} must be >= {least}, got {value}")
    if s.held_out >= 1:
        raise ValueError(f"--held-out must be < 1, got {s.held_out}")
    if s.json:  # an error now, not after minutes
        s.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # matrices this small are not worth splitting
    pairs, skipped = read_pairs(s.file)
    pairs = sorted(random.Random(s.seed).sample(pairs, min(s.pairs, len(pairs))))
    rows, lengths, questions, vocab_size = tokenise(pairs, s.vocabulary, s.context - 1, skipped)
    reasons = [f"{why}: {len(lines)}, the first in line {lines[0]}" for why, lines in skipped.items()]
    said = f"{s.file}: {len(questions)} usable pairs (skipped: {'; '.join(reasons[:5]) or 'none'})"
    if len(questions) < MIN_PAIRS:
        raise ValueError(f"{said}, at least {MIN_PAIRS} are needed")
    held_out = split(questions, s.held_out, s.seed)
    print(f"{said}, {held_out.sum()} of them held out", flush=True)
    found = findings(train_grid(rows, held_out, vocab_size, s), lengths[held_out].numpy())
    print("\n".join(f"{value:8.3f}  {name}" for name, value in found.items()))
    if s.json:
        settings = {name: x for name, x in vars(s).items() if name not in ("file", "json")}
        write_json({"file": str(s.file), "settings": settings, **found}, s.json)


if __name__ == "__main__":
    sys.exit(exit_status(main))
