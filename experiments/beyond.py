"""Beyond the paper: can anything reduce the hacks that all members of an ensemble share?

    python experiments/beyond.py                      # all of them
    python experiments/beyond.py distance uwo         # some

    distance    reward - weight * Mahalanobis distance of a text's last hidden state from the reward model's own training data
    uwo         mean - weight * variance over the members (Coste et al. 2023)
    averaged    one reward model whose weights are the mean of the members' (like WARM, Rame et al. 2024)
    members     more members, across pretrainings and within one
    pairs       more preferences (the sweep of sweep.py)
    flipped     fewer labels turned round (the sweep of sweep.py)

All in best-of-n on one grid of reward models, beside the plain mean of the same members. Takes the flags of overopt.py too (--quick, --seed,
--task ...), writes beyond.json and beyond-METHOD.png into --out, and shares the cache of a run there; stopped, it continues.

A *shared hack* is a trait that best-of-n by the plain pretrain ensemble moves, beyond chance, away from SFT and away from what the gold
reward itself would pick. Intervals are 95 %, paired (the same posts and members with and without), each for its trait alone.
"""
import argparse
from collections import namedtuple
import copy
from dataclasses import asdict, replace
import functools
import json
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from analysis import rounded
from cache import Cache, code_of, fingerprint, write_whole
from claims import bootstrap, held_out_best, interval, verdict
from ensemble import Ensemble, finetune_ensembles, pretrain_ensembles
from figures import COLOURS, write_figure
from overopt import check, exit_status, parse, pick_device, prepare, to_json
from pipeline import Pipeline, VALIDATION_PAIRS
from policy import trim
from report import KINDS, VERSION, sweep_table, table
from rm import normalise
from sweep import sweep

QUANTITIES = ["gold", "list", "numbers", "wrong_facts", "filler", "chatter", "repetition", "length"]
DISTANCE_WEIGHTS, UWO_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
RIDGE = 1e-3                 # of a covariance, as a share of its mean variance
SIZES, CHOICES = (1, 2, 3, 5, 10, 15, 25), 20        # of ensembles, and random ones of each size
LABELS = {**KINDS, "across": "across pretrainings first", "within": "within one pretraining"}
LINES = {**COLOURS, "across": COLOURS["pretrain"], "within": COLOURS["finetune"]}

# sizes {axis: size}, scores (P, F, posts, n), values (QUANTITIES, posts, n); rms and keys are lists of P * F, by pretraining
Grid = namedtuple("Grid", "pipeline rms keys bank bank_key sizes scores values")


# ----- best-of-n, and differences with intervals --------------------------------------------------------

def measure(pipeline):
    """The Grid of a pipeline: reward models, the bank, its scores by all of them, its gold and traits."""
    rms, _, keys = pipeline.grid()
    bank, bank_key = pipeline.draw_bank()
    judged = pipeline.judge(bank["posts"], bank["responses"])
    scores = pipeline.score_bank(f"scores-{pipeline.s.task}", rms, keys, bank, bank_key)
    sizes = {"pretrain": pipeline.s.pretrain_seeds, "finetune": pipeline.s.finetune_seeds, "posts": scores.shape[1]}
    values = np.stack([judged["gold"], *(judged["traits"][name] for name in QUANTITIES[1:])])
    return Grid(pipeline, rms, keys, bank, bank_key, sizes, scores.reshape(*sizes.values(), -1), values)


def ensembles(kind, p, f):
    """Ensembles of a kind from pretrainings p and finetunings f, as tuples of (pretraining, finetuning):
    ensembles("pretrain", [0, 1], [0, 1]) == [((0, 0), (1, 1)), ((0, 1), (1, 0))]."""
    grid = [(i, j) for i in p for j in f]
    places = {"single": [[m] for m in range(len(grid))], "finetune": finetune_ensembles(len(p), len(f)), "pretrain": pretrain_ensembles(len(p), len(f)),
              "all": [range(len(grid))]}
    return [tuple(sorted(grid[m] for m in group)) for group in places[kind]]


def of_kind(kind):
    """A function draw -> the ensembles of a kind, with the drawn pretrainings and finetunings as members."""
    return lambda draw: ensembles(kind, draw["pretrain"], draw["finetune"])


def take(x, group):
    """A group's members: (P, F, ...) -> (members, ...)."""
    return np.stack([x[p, f] for p, f in group])


def mean_pick(values, proxy, groups):
    """A function draw -> (QUANTITIES, posts): values of the best of all n by proxy(group) (posts, n), mean over groups(draw). It remembers groups,
    since most draws bring back old ones. Of equal proxies argmax takes the first, as bon.best_of_n does."""
    @functools.cache
    def picks(group):
        return np.take_along_axis(values, proxy(group).argmax(-1)[None, :, None], -1)[..., 0]
    return lambda draw: np.mean([picks(group) for group in groups(draw)], 0)


def plain(grid, kind):
    """mean_pick by the mean of the members' scores: the reference."""
    return mean_pick(grid.values, lambda group: take(grid.scores, group).mean(0), of_kind(kind))


def whole(sizes):
    return {axis: np.arange(size) for axis, size in sizes.items()}


def mean_of(pick, sizes):
    """{quantity: mean} of a mean_pick."""
    return dict(zip(QUANTITIES, pick(whole(sizes)).mean(-1)))


def changes(after, before, sizes):
    """What `after` does that `before` does not, both functions draw -> (QUANTITIES, posts): {quantity: {before, after, estimate, ci_low, ci_high}}.
    The interval speaks of new ones of every axis in sizes (so far as ensembles drawn with replacement can tell), and is None if one has size 1."""
    estimates, variances = bootstrap(lambda draw: (after(draw) - before(draw))[:, draw["posts"]].mean(-1), sizes)
    found = {}
    for i, (name, old, new) in enumerate(zip(QUANTITIES, *(pick(whole(sizes)).mean(-1) for pick in (before, after)))):
        low, high = interval(estimates[i], {axis: x[i] for axis, x in variances.items()}, sizes)
        found[name] = {"before": old, "after": new, "estimate": estimates[i], "ci_low": low, "ci_high": high}
    return found


def reference(grid):
    """What the methods are held against: quantities of SFT's samples, of the gold reward's own pick and of the plain ensembles' picks; and the
    shared hacks, as {trait: 1 if the pretrain ensemble raises it, -1 if it lowers it}. In nli a hack may be to write less."""
    sft = lambda draw: grid.values.mean(-1)
    oracle = mean_of(mean_pick(grid.values, lambda group: grid.values[0], lambda draw: ["gold"]), grid.sizes)
    rise, shared = changes(plain(grid, "pretrain"), sft, grid.sizes), {}
    for name in QUANTITIES[1:]:
        r = rise[name]
        beyond_chance = r["ci_low"] is not None and not r["ci_low"] <= 0 <= r["ci_high"]
        if beyond_chance and abs(r["after"] - oracle[name]) > abs(r["before"] - oracle[name]):
            shared[name] = 1 if r["estimate"] > 0 else -1
    return {"sft": mean_of(sft, grid.sizes), "oracle": oracle, **{kind: mean_of(plain(grid, kind), grid.sizes) for kind in KINDS}, "rise": rise, "shared": shared}


# ----- in words -----------------------------------------------------------------------------------------

def told(name, change):
    low, high = change["ci_low"], change["ci_high"]
    between = "no interval" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    return f"{name.replace('_', ' ')} {change['before']:.2f} -> {change['after']:.2f} ({change['estimate']:+.2f} {between})"


def sentence(subject, found, shared):
    """What a method changes, for `changes` found and {trait: sign} shared: an interval that includes zero decides nothing."""
    word = lambda name, sign, words: words[verdict(found[name]["ci_low"], found[name]["ci_high"], sign)]
    gold = word("gold", 1, {"reproduced": "higher", "opposite": "lower", "inconclusive": "undecided"})
    hacks = {"reduced": [], "made worse": [], "undecided": []}
    for name, sign in shared.items():
        hacks[word(name, -sign, {"reproduced": "reduced", "opposite": "made worse", "inconclusive": "undecided"})].append(told(name, found[name]))
    listed = "; ".join(f"{kind}: {', '.join(items) or 'none'}" for kind, items in hacks.items())
    return f"{subject}: {told('gold', found['gold'])}, {gold}; " + (f"of {len(shared)} shared hacks {listed}" if shared else "no shared hack was found to reduce")


# ----- the methods: each returns (what beyond.json holds, one sentence) ---------------------------------

def swept(grid, shared, name, label, proxy, weights, kinds):
    """A penalty proxy(group, weight) -> (posts, n), with every weight. The weight whose picks have the best gold is chosen on half of the posts
    and reported on the other half: on its own half it would be the best by luck too."""
    found, even = {"label": label, "curves": {}, "chosen": {}, "changes": {}}, np.arange(grid.sizes["posts"]) % 2
    for kind in kinds:
        curve = np.array([mean_pick(grid.values, functools.partial(proxy, weight=weight), of_kind(kind))(whole(grid.sizes)) for weight in weights])
        chosen = np.array(weights)[held_out_best(np.array([curve[:, 0, even == half].mean(-1) for half in (0, 1)]))]       # for each half
        penalised = mean_pick(grid.values, functools.partial(proxy, weight=chosen[even][:, None]), of_kind(kind))
        found["curves"][kind] = {"x": weights, **dict(zip(QUANTITIES, curve.mean(-1).T))}
        found["chosen"][kind], found["changes"][kind] = chosen, changes(penalised, plain(grid, kind), grid.sizes)
        print(f"{name}: {KINDS[kind]}, {len(weights)} weights", flush=True)
    picked = "{:g} and {:g}".format(*found["chosen"]["pretrain"])
    subject = f"{name}, pretrain ensemble with against without (weight {picked}, each chosen for gold on the other half of the posts; over posts, pretrainings, finetunings)"
    return found, sentence(subject, found["changes"]["pretrain"], shared)


def mahalanobis(states, known, ridge=RIDGE):
    """Distance of states (B, D) from the mean of `known` (N, D), in standard deviations of `known` in that direction -> (B,).

    subtle: the states come out of a layer norm, so they sum to zero and their covariance is singular: without a ridge (a share of
    the mean variance, added to each) its inverse is noise."""
    states, known = states.cpu().double(), known.cpu().double()
    covariance = torch.cov(known.T, correction=0)
    covariance = covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance))
    x = states - known.mean(0)
    return (x * torch.linalg.solve(covariance, x.T).T).sum(1).sqrt()


@torch.no_grad()
def last_states(rm, prompts, responses):
    """(B, P), (B, R) -> (B, D): the hidden state of the last real token, caught where the head reads it."""
    states = []
    hook = rm.head.register_forward_pre_hook(lambda head, inputs: states.append(inputs[0]))
    for rows in torch.arange(len(prompts)).split(512):
        rm(prompts[rows], trim(responses[rows], rm.config.pad))
    hook.remove()
    return torch.cat(states)


def training_texts(pipeline):
    """What the reward models were trained on: prompts (N, P), responses (N, R)."""
    prompts, first, second = pipeline.judgements(pipeline.s.pairs, "training pairs")
    return (prompts, first) if pipeline.s.task == "nli" else (prompts.repeat(2, 1), torch.cat([first, second]))       # nli: second is labels


def distances(grid):
    """Of every reward model (P, F, posts, n), standardised over the bank: as large a unit as the scores'."""
    pipeline, found = grid.pipeline, []
    known, bank = training_texts(pipeline), (grid.bank["posts"].repeat_interleave(pipeline.s.n, 0), grid.bank["responses"])
    for m, (rm, key) in enumerate(zip(tqdm(grid.rms, "distances", leave=False, disable=None), grid.keys)):
        compute = lambda: mahalanobis(last_states(rm, *bank), last_states(rm, *known), RIDGE)
        code = [fingerprint(function) for function in (mahalanobis, last_states, training_texts)]
        x = pipeline.stage(f"distance-{pipeline.s.task}-{m}", "", compute, key, grid.bank_key, code, RIDGE)[0].cpu().numpy()
        found.append((x - x.mean()) / x.std())
    return np.reshape(found, grid.scores.shape)


def distance(grid, shared, out):
    far = distances(grid)
    proxy = lambda group, weight: (take(grid.scores, group) - weight * take(far, group)).mean(0)
    return swept(grid, shared, "distance penalty", "weight of the distance", proxy, DISTANCE_WEIGHTS, list(KINDS))


def uwo(grid, shared, out):
    def proxy(group, weight):
        scores = take(grid.scores, group)
        return scores.mean(0) - weight * scores.var(0)
    return swept(grid, shared, "variance penalty (UWO)", "weight of the variance", proxy, UWO_WEIGHTS, ["finetune", "pretrain"])


def average(rms):
    """One reward model whose every weight is the mean of the members'. Its mean and std mean nothing yet: normalise it."""
    rm, states = copy.deepcopy(rms[0]), [rm.state_dict() for rm in rms]
    rm.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return rm


def averaged(grid, shared, out):
    """Beside the ensemble of the same members' scores. Members of one pretraining started from one trunk (each with a head of its own), those of
    several from trunks that have nothing to do with each other. Intervals: over posts and the given ensembles, which are pretrainings for
    finetune ensembles, and for pretrain ensembles finetunings, of the same pretrainings."""
    pipeline, F = grid.pipeline, grid.sizes["finetune"]
    found, clauses = {"label": "mean over members of their ...", "curves": {}, "changes": {}}, []
    sft, sft_key = pipeline.finetune_policy()
    validation = pipeline.judgements(VALIDATION_PAIRS, "validation pairs")
    for kind in ("finetune", "pretrain"):
        groups = of_kind(kind)(whole(grid.sizes))
        teams = [[p * F + f for p, f in group] for group in groups]
        rms = [average([grid.rms[m] for m in team]) for team in teams]
        for rm in rms:
            normalise(rm, sft["posts"], sft["responses"])
        keys = [[[grid.keys[m] for m in team] for team in teams], sft_key, fingerprint(average), code_of(Ensemble)]
        scores = dict(zip(groups, pipeline.score_bank(f"averaged-{kind}-{pipeline.s.task}", rms, keys, grid.bank, grid.bank_key)))
        right = lambda: [[pipeline.right(Ensemble(x), validation) for x in both] for both in zip([[grid.rms[m] for m in team] for team in teams], [[rm] for rm in rms])]
        accuracy = np.mean(pipeline.stage(f"averaged-{kind}-{pipeline.s.task}-accuracy", "", right, keys, VALIDATION_PAIRS)[0], 0)
        sizes = {"ensembles": len(groups), "posts": grid.sizes["posts"]}
        drawn = lambda draw: [groups[i] for i in draw["ensembles"]]
        before, after = (mean_pick(grid.values, proxy, drawn) for proxy in (lambda group: take(grid.scores, group).mean(0), scores.__getitem__))
        old, new = mean_of(before, sizes), mean_of(after, sizes)
        found["curves"][kind] = {"x": ["scores", "weights"], **{name: [old[name], new[name]] for name in QUANTITIES}, "accuracy": accuracy}
        found["changes"][kind] = changes(after, before, sizes)
        axis = {"finetune": "pretrainings", "pretrain": "finetunings, for these pretrainings"}[kind]
        clauses.append(sentence(f"averaged weights against averaged scores, {KINDS[kind]} (accuracy {accuracy[0]:.3f} -> {accuracy[1]:.3f}; over posts and {axis})",
                                found["changes"][kind], shared))
        print(f"averaged: {KINDS[kind]}", flush=True)
    return found, "; and ".join(clauses)


def growing(P, F, rng):
    """Members in a random order, twice: across pretrainings (one of each first, then a second of each, ...), and within one."""
    ps, fs = rng.permutation(P), [rng.permutation(F) for _ in range(P)]
    return {"across": [(p, fs[p][i]) for i in range(F) for p in ps], "within": [(ps[0], f) for f in fs[ps[0]]]}


def members(grid, shared, out):
    """Mean over CHOICES random orders of the members. The sentence compares all P * F with the pretrain ensembles, which have one of each pretraining."""
    P, F, rng, found = grid.sizes["pretrain"], grid.sizes["finetune"], np.random.default_rng(0), {"label": "members", "curves": {}}
    orders = [growing(P, F, rng) for _ in range(CHOICES)]
    mean = lambda group: take(grid.scores, group).mean(0)
    for way, largest in (("across", P * F), ("within", F)):
        sizes = sorted({size for size in SIZES if size < largest} | {largest})
        rows = [mean_of(mean_pick(grid.values, mean, lambda draw: [tuple(order[way][:size]) for order in orders]), grid.sizes) for size in sizes]
        found["curves"][way] = {"x": sizes, **{name: [row[name] for row in rows] for name in QUANTITIES}}
    found["changes"] = {"pretrain": changes(plain(grid, "all"), plain(grid, "pretrain"), grid.sizes)}
    return found, sentence(f"{P} -> {P * F} members, {F} of each pretraining (over posts, pretrainings, finetunings)", found["changes"]["pretrain"], shared)


def more_data(name, grid, shared, out):
    """A sweep of sweep.py; the sentence compares its two ends, from the worse data to the better, on the same posts, pretrainings and finetuning seeds."""
    pipeline = grid.pipeline
    found = sweep(name, pipeline.s, pipeline.device, out, pipeline.cache)
    print(f"\n{sweep_table(found)}")
    least, most = sorted((found["values"][0], found["values"][-1]), reverse=name == "flipped")
    before, after = (measure(Pipeline(replace(pipeline.s, **{name: value}), pipeline.device, pipeline.cache, lambda text: None)) for value in (least, most))
    found = changes(plain(after, "pretrain"), plain(before, "pretrain"), grid.sizes)
    return {"values": [least, most], "changes": {"pretrain": found}}, sentence(
        f"{name} {least:g} -> {most:g}, pretrain ensemble (over posts, pretrainings, finetunings)", found, shared)


METHODS = {"distance": distance, "uwo": uwo, "averaged": averaged, "members": members, "pairs": functools.partial(more_data, "pairs"),
           "flipped": functools.partial(more_data, "flipped")}


# ----- tables, figures, the command line ----------------------------------------------------------------

TITLES = {"gold": "Gold reward of the pick", "list": "Lists (share)", "numbers": "States a number (share)", "wrong_facts": "Wrong facts",
          "filler": "Filler words", "chatter": "Chatter words", "repetition": "Repeated words", "length": "Length (tokens)"}


def curves_table(found):
    """Every point of a method's figure, and the traits that it does not show."""
    columns = [name for name in next(iter(found["curves"].values())) if name != "x"]
    rows = [[LABELS[line], f"{x}", *(curve[name][i] for name in columns)] for line, curve in found["curves"].items() for i, x in enumerate(curve["x"])]
    return table(["best of n by", found["label"], *columns], rows)


def draw(found, compared):
    """A panel for gold and one for every shared hack; dotted: SFT."""
    shown = ["gold", *(compared["shared"] or ("list", "wrong_facts"))]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 4.2))
    for axis, name in zip(axes, shown):
        for line, curve in found["curves"].items():
            axis.plot(curve["x"], curve[name], "o-", color=LINES[line], label=LABELS[line])
        axis.axhline(compared["sft"][name], color="grey", linestyle=":", label="SFT")
        axis.set(title=TITLES[name], xlabel=found["label"])
        if found["label"] == "members":
            axis.set_xscale("log")
            axis.set_xticks(found["curves"]["across"]["x"], found["curves"]["across"]["x"])
            axis.minorticks_off()
    axes[0].legend(fontsize=10)
    return figure


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="method", help=f"{', '.join(METHODS)} (default: all)")
    settings, device, out, traceback, own = parse(argv, parser)

    def work():
        for name in own["methods"]:
            if name not in METHODS:
                raise ValueError(f"method: {name!r} is none of {', '.join(METHODS)}")
        check(settings)
        if settings.task == "all":
            raise ValueError("--task: beyond.py takes one task at a time")
        path = prepare(out) / "beyond.json"
        grid = measure(Pipeline(settings, pick_device(device), Cache(out / "cache", pick_device(device))))
        results = {"version": VERSION, "settings": json.loads(to_json(asdict(settings))), "reference": rounded(reference(grid)), "sentences": {}}
        kept = json.loads(path.read_text()) if path.exists() else {}
        if all(kept.get(name) == results[name] for name in ("version", "settings", "reference")):
            results = kept                       # methods that are not asked for now stay
        for name in own["methods"] or METHODS:
            found, results["sentences"][name] = METHODS[name](grid, results["reference"]["shared"], out)
            results[name] = rounded(found)
            write_whole(path, lambda file: file.write(to_json(results)))
            if "curves" in found:
                write_figure(draw(results[name], results["reference"]), out / f"beyond-{name}.png")
                print(f"\n{curves_table(results[name])}\n", flush=True)
        compared = [[name, *results["reference"][key].values()] for key, name in {"sft": "SFT", **KINDS, "oracle": "the gold reward itself"}.items()]
        print(f"\n{table([f'best of {settings.n} by', *QUANTITIES], compared)}\n")
        print("\n".join(f"- {name}: {text}." for name, text in results["sentences"].items()))
        print(f"\nbeyond.json and the figures are in {out}")

    return exit_status(work, traceback)


if __name__ == "__main__":
    sys.exit(main())
