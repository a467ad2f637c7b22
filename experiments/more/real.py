"""Reward models on real preferences: how much of their judgement is the seed's, and how much is length?

    python experiments/real.py pairs.jsonl.gz                 # 2,000 pairs: some minutes on a laptop's CPU
    python experiments/real.py pairs.jsonl --pairs 500 --pretrain-seeds 2 --finetune-seeds 2 --out runs/mine

A line of the file, gzipped or not, is one pair in JSON, {"prompt", "chosen", "rejected"}, or {"chosen", "rejected"}, two whole
dialogues as in Anthropic's hh-rlhf, whose common beginning is the prompt; other fields are ignored. Pretrains language models on the
training pairs' texts, trains a grid of reward models (pretraining seeds x finetuning seeds), and compares them on pairs whose prompts none
of them has seen. Writes real.json, real.png and a cache into --out; an interrupted run continues where it stopped.

There is no policy and no gold reward here: who is right, only the file says.
"""
import argparse
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
import random
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import numpy as np
import torch

from analysis import agreement_findings, aggregate, mean_over
from cache import Cache, code_of, rounded, to_json, write_whole
from claims import powers_of_two, relations
from ensemble import Ensemble, groups
from figures import real_figure, write_figure
from overopt import MOST_PROCESSES, count_processes, exit_status, flag, pick_device, prepare, setting
from pairs import LEAST_PAIRS, enough, in_words, read_pairs, split, tokenise
from pipeline import Pipeline
from policy import Config, LanguageModel, TrainConfig, train_lm
from processes import together
from report import KINDS, table
from rm import RewardModel, normalise, train_rm

RM_BATCH, LM_BATCH = 32, 16  # pairs, and texts, per update
NORMALISATION_TEXTS = 512
BINS = 8                     # of the calibration curve
PAIRS_CODE, TRAINING_CODE = code_of("experiments/pairs.py"), code_of("policy.py", "rm.py", Ensemble)


@dataclass(frozen=True)
class Settings:
    """Every flag that a result depends on, the file apart."""
    seed: int = setting(0, "everything random follows from it")
    pairs: int = setting(2000, "at most so many pairs of the file, drawn at random; 0 for all")
    held_out: float = setting(0.2, "share of the pairs to compare the reward models on; a prompt is on one side only")
    encoding: str = setting("auto", "gpt2 (tiktoken's), own (byte pairs of the file), or auto: gpt2 if it is cached or reachable, else own")
    vocabulary: int = setting(3000, "the file's most frequent tokens; with gpt2 the others become one unknown token, with own there are no others")
    context: int = setting(192, "longest prompt + response, in tokens")
    width: int = setting(64, "width of the transformers")
    layers: int = setting(2, "layers of the transformers")
    heads: int = setting(2, "attention heads of the transformers")
    pretrain_seeds: int = setting(3, "pretrainings")
    finetune_seeds: int = setting(3, "reward models for each pretraining")
    pretrain_steps: int = setting(400, f"updates of a pretraining, {LM_BATCH} texts each")
    rm_epochs: int = setting(2, "passes over the training pairs")
    eta: float = setting(0.01, "weight of the centring term of the Bradley-Terry loss")


def check(s):
    """ValueError naming the first setting that makes no sense."""
    least = dict.fromkeys(("width", "layers", "heads", "pretrain_seeds", "finetune_seeds", "pretrain_steps", "rm_epochs"), 1)
    for name, minimum in (least | {"pairs": 0, "context": 8, "vocabulary": 256, "eta": 0}).items():
        if not minimum <= getattr(s, name) < np.inf:
            raise ValueError(f"{flag(name)}: {getattr(s, name)} is below {minimum} or not finite")
    if 0 < s.pairs < LEAST_PAIRS:
        raise ValueError(f"{flag('pairs')}: {s.pairs} is below {LEAST_PAIRS}")
    if not 0 < s.held_out < 1:
        raise ValueError(f"{flag('held_out')}: {s.held_out} is not between 0 and 1")
    if s.encoding not in ("auto", "gpt2", "own"):
        raise ValueError(f"{flag('encoding')}: {s.encoding!r} is none of auto, gpt2, own")
    if s.width % s.heads:
        raise ValueError(f"{flag('width')}: {s.width} is not a multiple of {flag('heads')} {s.heads}")


class Real(Pipeline):
    """The stages of a run on a file: see pipeline.py. The prompt that a reward model gets is a single EOS, as if another text had ended there;
    the file's prompt and response together are its "response", so their lengths are free."""

    def __init__(self, file, read, *args):
        super().__init__(*args)
        self.file, (self.pairs, self.lines, self.skipped, self.content) = file, read

    @cached_property
    def tokens(self):
        """What pairs.tokenise makes of the file, with held_out (N,), booleans, and all that was skipped {reason: line numbers}; and its key."""
        s = self.s
        def compute():
            data = tokenise(self.pairs, s.encoding, s.vocabulary, s.context)
            skipped = self.skipped | ({"equal once cut, or without rare tokens": data["equal"]} if data["equal"] else {})
            enough(self.file, len(data["kept"]), skipped)
            held_out = split([self.pairs[n][1] or self.pairs[n][2] for n in data["kept"]], s.held_out, self.seed_for("held out"))    # no prompt: its own
            return data | {"skipped": skipped, "held_out": torch.from_numpy(held_out)}
        return self.stage("tokens", "seed pairs held_out encoding vocabulary context", compute, self.content, PAIRS_CODE)

    def language_model(self, width, state=None, seed=0):
        (data, _), s = self.tokens, self.s
        model = LanguageModel(Config(data["vocabulary"], s.context, width, s.layers, s.heads), seed).to(self.device)
        if state:
            model.load_state_dict(state)
        return model

    def begin(self, rows):
        """The prompts of rows (B, R): (B, 1)."""
        return torch.full((len(rows), 1), self.tokens[0]["vocabulary"] - 2, device=self.device)

    def pretrain(self, p):
        """Pretraining p: its seed sets initialisation and order. All read the training pairs' texts, chosen and rejected alike."""
        data, key = self.tokens
        def compute():
            model, config = self.language_model(self.s.width, seed=self.seed_for("initialisation", p)), TrainConfig(steps=self.s.pretrain_steps, batch_size=LM_BATCH)
            texts = data["rows"][~data["held_out"]].flatten(0, 1)
            losses = train_lm(model, torch.cat([self.begin(texts), texts], 1), config, self.seed_for("order", p), label=f"pretraining {p}")
            return {"state": model.state_dict(), "loss": losses[-20:].mean().item()}
        return self.stage(f"pretrain-{p}", "seed width layers heads pretrain_steps", compute, key, LM_BATCH, TRAINING_CODE)

    def train_reward_model(self, p, f):
        """Reward model (p, f) -> its rewards (held-out pairs, 2), normalised, and the std that they were divided by."""
        (data, _), (pretrained, key) = self.tokens, self.pretrain(p)
        def compute():
            s, pairs, held = self.s, data["rows"][~data["held_out"]], data["rows"][data["held_out"]].flatten(0, 1)
            rm = RewardModel(self.language_model(s.width, pretrained["state"]).trunk, self.seed_for("head", f))
            config = TrainConfig(steps=max(1, len(pairs) * s.rm_epochs // RM_BATCH), batch_size=RM_BATCH, lr=5e-4, warmup=0.1)
            train_rm(rm, self.begin(pairs), *pairs.unbind(1), config, self.seed_for("pair order", f), s.eta, f"reward model ({p}, {f})")
            texts = pairs.flatten(0, 1)[:NORMALISATION_TEXTS]
            normalise(rm, self.begin(texts), texts)
            return {"rewards": Ensemble([rm]).scores(self.begin(held), held).view(-1, 2), "std": rm.std.item()}
        return self.stage(f"rm-{p}-{f}", "rm_epochs eta", compute, key, RM_BATCH, NORMALISATION_TEXTS, TRAINING_CODE)


# ----- what the reward models say -------------------------------------------------------------------------

def over_seeds(values):
    """(P, F) -> mean and std over the grid; std within a pretraining (root of the mean variance), and of the pretrainings' means (of whose
    variance std_within^2 / F is finetuning's)."""
    within = values.var(1, ddof=1).mean() ** 0.5 if values.shape[1] > 1 else None
    return {"mean": values.mean(), "std": values.std(), "std_within": within, "std_between": values.mean(1).std(ddof=1) if len(values) > 1 else None}


def either_order(x, y):
    """Correlation of two differences between the responses of a pair, (..., pairs), each pair counted in both orders: so it does not
    matter which response was written first, and both means are zero."""
    return (x * y).mean(-1) / np.maximum(np.sqrt((x**2).mean(-1) * (y**2).mean(-1)), 1e-12)


def calibration(logits):
    """Differences r+ - r- (any shape) -> the curve and its error. The reward model gives its favourite the chance sigmoid(|r+ - r-|); bins hold
    equally many pairs. error: mean distance of chance and share right over the bins. log_loss: nats; a coin has log 2 = 0.693."""
    count, logits = max(1, min(BINS, logits.shape[-1] // 20)), logits.ravel()
    logits = logits[np.argsort(np.abs(logits))]
    bins = np.array_split(logits, count)
    chance, right = [(1 / (1 + np.exp(-np.abs(b)))).mean() for b in bins], [(b > 0).mean() for b in bins]
    error = np.average(np.abs(np.subtract(chance, right)), weights=[len(b) for b in bins])
    return {"chance": chance, "right": right, "error": error, "log_loss": np.logaddexp(0, -logits).mean()}


def findings(rewards, stds, lengths, P, F):
    """rewards (P * F, pairs, 2) of chosen and rejected, normalised, stds (P * F,), lengths (pairs, 2) in tokens -> what real.json tells."""
    difference, longer = rewards[..., 0] - rewards[..., 1], lengths[:, 0] - lengths[:, 1]
    right, pairs = difference > 0, relations(P, F)
    share = right.mean(1)
    alike = (right[:, None] == right).mean(-1)
    by_chance = share[:, None] * share + (1 - share[:, None]) * (1 - share)
    kinds = groups(P, F) | {"all": [list(range(P * F))]}
    of_kind = {kind: np.array([aggregate("mean", rewards[members]) for members in choices]) for kind, choices in kinds.items()}
    # Responses answer different prompts: what counts is how far one is above the mean of its pair, in units of this reward model.
    centred = rewards - rewards.mean(-1, keepdims=True)
    centred = centred / centred.std((1, 2), keepdims=True)
    pool = centred.reshape(P * F, 1, -1)
    ns = powers_of_two(max(2, pool.shape[-1] // 8))        # of nearly all there is only one best, whoever draws
    in_pairs, pooled, texts = (agreement_findings(*x) for x in ((centred, [], kinds, [1, 2]), (pool, [], kinds, ns), (rewards.reshape(pool.shape), [], kinds, [1])))
    unequal = longer != 0
    prefers_longer = over_seeds((right == (longer > 0))[:, unequal].mean(1).reshape(P, F)) if unequal.any() else None
    return {
        "accuracy": {**over_seeds(share.reshape(P, F)), "all": share.reshape(P, F), "sampling_std": (share.mean() * (1 - share.mean()) / len(longer)) ** 0.5,
                     "kinds": {kind: (r[..., 0] > r[..., 1]).mean() for kind, r in of_kind.items()}},
        "agreement": {**{name: {k: mean_over(matrix, pairs[k]) for k in ("same", "other")} for name, matrix in (("decisions", alike), ("by_chance", by_chance))},
                      "rank_correlation": texts["rank_correlation"]["sft"], "rank_correlation_in_pairs": pooled["rank_correlation"]["sft"]},
        "calibration": {"single": calibration(difference * stds[:, None]), "all": calibration((difference * stds[:, None]).mean(0))},
        "length": {"chosen_longer": (longer > 0)[unequal].mean() if unequal.any() else None, "equal": (~unequal).mean(), "tokens": lengths.mean(0),
                   "correlation": either_order(np.ones(len(longer)), longer), "rm_correlation": over_seeds(either_order(difference, longer).reshape(P, F)),
                   "rm_decision_correlation": over_seeds(either_order(np.where(right, 1.0, -1.0), longer).reshape(P, F)),
                   "rm_prefers_longer": prefers_longer,
                   "accuracy_longer_chosen": right[:, longer > 0].mean() if (longer > 0).any() else None,
                   "accuracy_shorter_chosen": right[:, longer < 0].mean() if (longer < 0).any() else None},
        "bon": {"pairs": {"n": [1, 2], **in_pairs["bon_reward"]}, "pool": {"n": ns, **pooled["bon_reward"]}}}


def number(x, digits=3):
    return "-" if x is None else f"{x + 0.0:.{digits}f}"        # + 0.0: no "-0.00"


def plus_minus(found):
    return f"{number(found['mean'])} +- {number(found['std'])}" if found else "-"


def report(r):
    """Everything that was found, as text."""
    a, g, c, l, b, f = (r[name] for name in ("accuracy", "agreement", "calibration", "length", "bon", "file"))
    accuracies = [[KINDS.get(kind, "all in one ensemble"), number(share)] for kind, share in a["kinds"].items()]
    curve = [[kind, *[f"{chance:.2f}: {right:.2f}" for chance, right in zip(c[key]["chance"], c[key]["right"])], number(c[key]["error"]), number(c[key]["log_loss"])]
             for kind, key in (("one reward model", "single"), ("mean of all", "all"))]
    agreements = [[words, *[number(g[name][key]) for name in ("decisions", "by_chance", "rank_correlation", "rank_correlation_in_pairs")]]
                  for words, key in (("of one pretraining", "same"), ("of different pretrainings", "other"))]
    picks = [[words, *[number(b["pairs"][key] and b["pairs"][key][1], 2)], *[number(x, 2) for x in b["pool"][key] or [None] * len(b["pool"]["n"])]]
             for words, key in (("itself", "self"), ("another of its pretraining", "same"), ("one of another pretraining", "other"))]
    lengths = [["longer response preferred", number(l["chosen_longer"]), plus_minus(l["rm_prefers_longer"])],
               ["correlation of preference and difference in length", number(l["correlation"]), plus_minus(l["rm_decision_correlation"])],
               ["correlation of difference in reward and in length", "-", plus_minus(l["rm_correlation"])]]
    return f"""
Accuracy on {f['held_out']} held-out pairs

One reward model: {plus_minus(a)} (std over the grid). Std within a pretraining {number(a['std_within'])}, of the means of pretrainings {number(a['std_between'])}.
With so few held-out pairs each accuracy has a standard error of {number(a['sampling_std'])}; since all are measured on the same ones, most of it is common to them. Ensembles take the mean reward:

{table(["accuracy", "mean over the grid"], accuracies)}

Agreement between two reward models

{table(["two reward models", "order a pair alike", "if errors were independent", "rank correlation, all responses", "less their pair's mean"], agreements)}

Calibration: chance that a reward model gives its favourite of a pair, and how often it is right (equally many pairs in each bin)

{table(["", *[f"bin {i + 1}" for i in range(len(c['single']['chance']))], "mean distance", "log loss (coin 0.693)"], curve)}

Length, in tokens: chosen {l['tokens'][0]:.0f}, rejected {l['tokens'][1]:.0f}, of equal length {l['equal']:.1%}

{table(["", "the file", "reward models"], lengths)}

Accuracy where the longer response was chosen {number(l['accuracy_longer_chosen'])}, where the shorter {number(l['accuracy_shorter_chosen'])}.

Best of n, as far as a file allows: the reward of a reward model's pick

With two responses to a prompt n goes no further than 2, the pair. The pool takes all held-out responses, to different prompts, each less the mean
of its pair: what it has over the other one, so that no prompt wins by itself. Unit: the std of a reward model's own such rewards.

{table(["scored by", "pair: n=2", *[f"pool: n={n}" for n in b['pool']['n']]], picks)}
"""


# ----- the command line -----------------------------------------------------------------------------------

def work(team, s, device, out, file, read):
    """What one process does."""
    say = partial(print, flush=True)
    run = Real(file, read, s, pick_device(device, team.rank), Cache(out / "cache", pick_device(device, team.rank)), say, team)
    (data, _), = run.share("file read", [lambda: run.tokens])
    held = data["held_out"]
    read_as = {"name": file.name, "sha256": run.content, "lines": run.lines, "used": len(held), "training": int((~held).sum()), "held_out": int(held.sum()),
               "skipped": {reason: {"count": len(n), "first_lines": n[:3]} for reason, n in data["skipped"].items()},
               "encoding": data["encoding"], "unknown": data["unknown"], "vocabulary": data["vocabulary"], "cut": data["cut"]}
    say(f"{file.name}: {run.lines} lines, {len(held)} pairs used ({read_as['held_out']} of them held out). Skipped: {in_words(data['skipped']) or 'none'}")
    say(f"encoding: {data['encoding']}, {data['vocabulary'] - 3} tokens and one for unknown ones ({data['unknown']:.1%} of the text); to fit {s.context} tokens "
        f"{data['cut']['prompts']} prompts were cut on the left, {data['cut']['responses']} responses at the end")
    seeds = [(p, f) for p in range(s.pretrain_seeds) for f in range(s.finetune_seeds)]
    losses = [value["loss"] for value, _ in run.share("language models pretrained", [partial(run.pretrain, p) for p in range(s.pretrain_seeds)])]
    grid = [value for value, _ in run.share("reward models trained", [partial(run.train_reward_model, *seed) for seed in seeds])]
    if team.rank:
        return
    found = findings(torch.stack([rm["rewards"] for rm in grid]).cpu().double().numpy(), np.array([rm["std"] for rm in grid]),
                     data["lengths"][held].cpu().double().numpy(), s.pretrain_seeds, s.finetune_seeds)
    results = rounded({"settings": asdict(s), "file": read_as, "pretraining_loss": losses, **found, "stage_seconds": run.cache.seconds})
    write_whole(out / "real.json", lambda file: file.write(to_json(results)))
    write_figure(real_figure(results), out / "real.png")
    print(report(results))
    print(f"real.json and real.png are in {out}")


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="preference pairs, one a line, in JSON; gzipped or not")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one, else cpu), cpu, cuda or mps")
    parser.add_argument("--processes", type=int, help="how many share the work, a thread each; the results are the same "
                        f"(default: one for each core, at most {MOST_PROCESSES}; one on a GPU)")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it arose")
    parser.add_argument("--out", type=Path, default=Path("runs") / "real", help="folder for results, figure and cache (default %(default)s)")
    for f in fields(Settings):
        parser.add_argument(flag(f.name), type=type(f.default), default=f.default, help=f"{f.metadata['help']} (default {f.default})")
    given = vars(parser.parse_args(argv))
    file, device, processes, traceback, out = (given.pop(name) for name in ("file", "device", "processes", "traceback", "out"))
    s = Settings(**given)

    def checked():
        check(s)
        count = count_processes(processes, pick_device(device))
        pairs, *read = read_pairs(file)
        if 0 < s.pairs < len(pairs):
            pairs = sorted(random.Random(s.seed).sample(pairs, s.pairs))
        together(count, partial(exit_status, traceback=traceback), work, s, device, prepare(out), file, (pairs, *read))

    return exit_status(checked, traceback)


if __name__ == "__main__":
    sys.exit(main())
