"""Beyond the paper: does anything reduce the hacks that all members of an ensemble share?

    python experiments/beyond.py                      # all of them
    python experiments/beyond.py distance uwo         # some

    distance    reward - weight * Mahalanobis distance of a text's last hidden state from those of the reward model's own training data
    uwo         mean - weight * variance over members (Coste et al. 2023)
    averaged    one reward model whose weights are the mean of the members' (as WARM does, Rame et al. 2024)
    members     more members, across pretrainings and within one
    pairs       more preferences (the sweep of sweep.py)
    flipped     fewer labels turned round (the sweep of sweep.py)

All in best-of-n on one grid of reward models, beside the plain mean of the same members' scores. Takes the flags of overopt.py too (--quick,
--seed, --task ...). Writes beyond.json and beyond-METHOD.png into --out, and shares the cache of a run there; interrupted, it continues.
Intervals are 95 %, paired (the same posts and members with and without), over posts, pretrainings and finetunings unless a sentence says otherwise.
"""
import argparse
from collections import namedtuple
import copy
from dataclasses import asdict, replace
from functools import cache, partial
import hashlib
import json
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from cache import Cache, code_of, fingerprint, rounded, to_json, write_whole
from claims import bootstrap, held_out_best, interval, verdict
from ensemble import Ensemble, groups
from figures import COLOURS, write_figure
from overopt import launch, parse, pick_device
from pipeline import Pipeline, VALIDATION_PAIRS
from report import KINDS, VERSION, beyond_section, sweep_table, table
from rm import normalise
from sweep import sweep

TITLES = {"gold": "Gold reward of the pick", "list": "Lists (share)", "numbers": "States a number (share)", "wrong_facts": "Wrong facts",
          "filler": "Filler words", "chatter": "Chatter words", "repetition": "Repeated words", "length": "Length (tokens)"}
QUANTITIES = list(TITLES)
LABELS = {**KINDS, "across": "across pretrainings first", "within": "within one pretraining"}
LINES = {**COLOURS, "across": COLOURS["pretrain"], "within": COLOURS["finetune"]}
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)       # of a penalty; rewards and distances have std 1
RIDGE = 1e-3                 # of a covariance, as a share of its mean variance
SIZES, CHOICES = (1, 2, 3, 5, 10, 15, 25), 20        # of ensembles, and random ones of each size

# sizes {axis: size}, scores (P, F, posts, n), values (QUANTITIES, posts, n); rms and keys are lists of P * F, by pretraining
Grid = namedtuple("Grid", "pipeline rms keys bank bank_key sizes scores values")


# ----- best-of-n, and differences with intervals --------------------------------------------------------

def measure(pipeline):
    """The Grid of a pipeline: reward models, and the bank with its scores, gold and traits."""
    s, (rms, _, keys), (bank, bank_key) = pipeline.s, pipeline.grid(), pipeline.draw_bank()
    judged = pipeline.judge_bank(bank)
    scores = pipeline.score_grid(f"scores-{s.task}", rms, keys, bank, bank_key)
    sizes = {"pretrain": s.pretrain_seeds, "finetune": s.finetune_seeds, "posts": s.prompts}
    values = np.stack([judged["gold"], *(judged["traits"][name] for name in QUANTITIES[1:])])
    return Grid(pipeline, rms, keys, bank, bank_key, sizes, scores.reshape(*sizes.values(), s.n), values)


def ensembles(kind, p, f):
    """Ensembles of a kind from pretrainings p and finetunings f, as tuples of (pretraining, finetuning):
    ensembles("pretrain", [0, 1], [0, 1]) == [((0, 0), (1, 1)), ((0, 1), (1, 0))]."""
    grid = [(i, j) for i in p for j in f]
    places = groups(len(p), len(f)) | {"all": [range(len(grid))]}
    return [tuple(sorted(grid[m] for m in group)) for group in places[kind]]


def of_kind(kind):
    """A function draw -> the ensembles of a kind, the drawn pretrainings and finetunings their members."""
    return lambda draw: ensembles(kind, draw["pretrain"], draw["finetune"])


def take(x, group):
    """A group's members: (P, F, ...) -> (members, ...)."""
    return np.stack([x[p, f] for p, f in group])


def pick(values, proxy, groups_of):
    """A function draw -> (QUANTITIES, posts): values of the best of all n by proxy(group) (posts, n), mean over groups_of(draw). It remembers
    groups, since most draws bring old ones back. Of equal proxies argmax takes the first, as bon.best_of_n does."""
    @cache
    def best(group):
        return np.take_along_axis(values, proxy(group).argmax(-1)[None, :, None], -1)[..., 0]
    return lambda draw: np.mean([best(group) for group in groups_of(draw)], 0)


def plain(grid, groups_of):
    """`pick` by the mean of the members' scores: the reference."""
    return pick(grid.values, lambda group: take(grid.scores, group).mean(0), groups_of)


def whole(sizes):
    """The draw that draws everything once."""
    return {axis: np.arange(size) for axis, size in sizes.items()}


def means(picked, sizes):
    """{quantity: mean over posts} of a `pick`."""
    return dict(zip(QUANTITIES, picked(whole(sizes)).mean(-1)))


def changes(after, before, sizes):
    """What one `pick` does that another does not, paired: the same posts and members -> {quantity: {before, after, estimate, ci_low, ci_high}}.
    The 95 % interval speaks of new ones on every axis in sizes, for each quantity alone; None if an axis has size 1."""
    estimates, variances = bootstrap(lambda draw: (after(draw) - before(draw))[:, draw["posts"]].mean(-1), sizes)
    old, new, found = means(before, sizes), means(after, sizes), {}
    for i, name in enumerate(QUANTITIES):
        low, high = interval(estimates[i], {axis: x[i] for axis, x in variances.items()}, sizes)
        found[name] = {"before": old[name], "after": new[name], "estimate": estimates[i], "ci_low": low, "ci_high": high}
    return found


def reference(grid):
    """What methods are held against: mean quantities of SFT, of the plain ensembles' picks and of the gold reward's own (the oracle), and the
    `shared` hacks {trait: 1, or -1 for one that falls}: what best-of-n by these pretrain ensembles moves away from SFT, beyond the
    chance in the choice of posts, and away from the oracle. (A list is; a number stated, if the oracle states still more, is not.)"""
    sizes, posts, by_kind, shared = grid.sizes, {"posts": grid.sizes["posts"]}, {kind: plain(grid, of_kind(kind)) for kind in KINDS}, {}
    sft, oracle = (lambda draw: grid.values.mean(-1)), means(pick(grid.values, lambda group: grid.values[0], lambda draw: ["oracle"]), posts)
    for name, r in changes(lambda draw: by_kind["pretrain"]({**whole(sizes), **draw}), sft, posts).items():
        beyond_chance = not r["ci_low"] <= 0 <= r["ci_high"]
        away = abs(r["after"] - oracle[name]) > abs(r["before"] - oracle[name])
        if name != "gold" and beyond_chance and away:
            shared[name] = 1 if r["estimate"] > 0 else -1
    return {"sft": means(sft, posts), **{kind: means(picked, sizes) for kind, picked in by_kind.items()}, "oracle": oracle, "shared": shared,
            "changes": changes(by_kind["pretrain"], by_kind["single"], sizes)}


# ----- in words -----------------------------------------------------------------------------------------

def sentence(subject, found, shared):
    """What `changes` found, in words, for shared {trait: sign}: an interval that holds zero, or none at all, leaves it undecided. The numbers
    are in the table (report.beyond_section)."""
    def word(name, sign, yes, no):
        return {"reproduced": yes, "opposite": no, "inconclusive": "undecided"}[verdict(found[name]["ci_low"], found[name]["ci_high"], sign)]
    hacks = {"reduced": [], "made worse": [], "undecided": []}
    for name, sign in shared.items():
        hacks[word(name, -sign, "reduced", "made worse")].append(name.replace("_", " "))
    listed = "; ".join(f"{kind}: {', '.join(items) or 'none'}" for kind, items in hacks.items())
    without = " (no interval: one seed of something)" if found["gold"]["ci_low"] is None else ""
    return (f"{subject}{without}: gold {word('gold', 1, 'higher', 'lower')}; "
            + (f"shared hacks {listed}." if shared else "no hack is shared beyond chance."))


# ----- the methods: method(grid, shared, out) -> (what beyond.json holds, one sentence) -----------------

def swept(grid, shared, name, proxy, kinds):
    """A penalised proxy(group, weight) -> (posts, n), at every weight. The weight whose picks have the best gold is chosen on one half of the
    posts and used on the other: on its own half it would be the best by luck too. (Intervals take the choice as given.)"""
    found, half = {"label": f"weight of the {name}", "curves": {}, "chosen": {}, "changes": {}}, np.arange(grid.sizes["posts"]) % 2
    for kind in kinds:
        # (weights, QUANTITIES, posts)
        curve = np.array([pick(grid.values, partial(proxy, weight=weight), of_kind(kind))(whole(grid.sizes)) for weight in WEIGHTS])
        chosen = np.array(WEIGHTS)[held_out_best(np.array([curve[:, 0, half == h].mean(-1) for h in (0, 1)]))]
        penalised = pick(grid.values, partial(proxy, weight=chosen[half][:, None]), of_kind(kind))
        found["curves"][kind] = {"x": [f"{weight:g}" for weight in WEIGHTS], **dict(zip(QUANTITIES, curve.mean(-1).T))}
        found["chosen"][kind], found["changes"][kind] = chosen, changes(penalised, plain(grid, of_kind(kind)), grid.sizes)
        print(f"{name}: {KINDS[kind]}, {len(WEIGHTS)} weights", flush=True)
    even, odd = found["chosen"]["pretrain"]
    subject = f"pretrain ensemble without -> with a penalty on the {name} (weight {even:g} on even posts, {odd:g} on odd ones, each chosen for gold on the others)"
    return found, sentence(subject, found["changes"]["pretrain"], shared)


def mahalanobis(states, known, ridge=RIDGE):
    """Distance of states (B, D) from the mean of `known` (N, D), in standard deviations of `known` in that direction -> (B,).

    subtle: a layer norm makes every state sum to zero, so the covariance is singular: without a ridge its inverse would be noise."""
    states, known = states.cpu().double(), known.cpu().double()
    covariance = torch.cov(known.T, correction=0)
    covariance = covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance))
    x = states - known.mean(0)
    return (x * torch.linalg.solve(covariance, x.T).T).sum(1).sqrt()


@torch.no_grad()
def last_states(rm, prompts, responses):
    """(B, P), (B, R) -> (B, D): the hidden state of the last real token, caught where the head reads it."""
    states = []
    with rm.head.register_forward_pre_hook(lambda head, inputs: states.append(inputs[0])):
        for rows in torch.arange(len(prompts)).split(512):
            rm(prompts[rows], responses[rows])
    return torch.cat(states)


def distance(grid, shared, out):
    """Every reward model's own distances, standardised over the bank: in a unit as large as the scores'."""
    pipeline, s, far = grid.pipeline, grid.pipeline.s, []
    prompts, first, second = pipeline.judgements(s.pairs, "training pairs")
    known = (prompts, first) if s.task == "nli" else (prompts.repeat(2, 1), torch.cat([first, second]))          # nli: second is labels
    bank, code = (grid.bank["posts"].repeat_interleave(s.n, 0), grid.bank["responses"]), [fingerprint(mahalanobis), fingerprint(last_states)]
    def of_one(m, rm):
        compute = lambda: mahalanobis(last_states(rm, *bank), last_states(rm, *known), RIDGE)
        return pipeline.stage(f"distance-{s.task}-{m}", "", compute, grid.keys[m], grid.bank_key, code, RIDGE)[0].cpu().numpy()

    for x in pipeline.share("distances", [partial(of_one, m, rm) for m, rm in enumerate(grid.rms)]):
        far.append((x - x.mean()) / x.std())
    far = np.reshape(far, grid.scores.shape)
    proxy = lambda group, weight: (take(grid.scores, group) - weight * take(far, group)).mean(0)
    return swept(grid, shared, "distance", proxy, list(KINDS))


def uwo(grid, shared, out):
    """Uncertainty-weighted optimisation: mean - weight * variance."""
    def proxy(group, weight):
        scores = take(grid.scores, group)
        return scores.mean(0) - weight * scores.var(0)
    return swept(grid, shared, "variance", proxy, ["finetune", "pretrain"])


def average(rms):
    """One reward model whose every weight is the mean of the members'. Its mean and std mean nothing yet: normalise it."""
    rm, states = copy.deepcopy(rms[0]), [rm.state_dict() for rm in rms]
    rm.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return rm


def averaged(grid, shared, out):
    """Members of a finetune ensemble started from one trunk (each with a head of its own), those of a pretrain ensemble from trunks that have
    nothing to do with each other. Intervals: over posts and over the given ensembles (members can't be drawn anew without scoring anew)."""
    pipeline, found, sentences = grid.pipeline, {"label": "mean of the members' ...", "curves": {}, "changes": {}}, []
    sft, sft_key = pipeline.finetune_policy()
    validation = pipeline.judgements(VALIDATION_PAIRS, "validation pairs")
    for kind, axis in (("finetune", "pretrainings"), ("pretrain", "finetunings of these pretrainings")):
        groups = ensembles(kind, range(grid.sizes["pretrain"]), range(grid.sizes["finetune"]))
        teams = [[grid.rms[p * grid.sizes["finetune"] + f] for p, f in group] for group in groups]
        rms = [average(team) for team in teams]
        for rm in rms:
            normalise(rm, sft["posts"], sft["responses"])
        name, keys = f"averaged-{kind}-{pipeline.s.task}", [grid.keys, sft_key, fingerprint(average), fingerprint(ensembles), code_of(Ensemble)]
        scored, = pipeline.share(f"bank scored by averaged weights, {kind}", [partial(pipeline.score_bank, name, rms, keys, grid.bank, grid.bank_key)])
        scores = dict(zip(groups, scored))
        right = lambda: [np.mean([pipeline.right(Ensemble(team), validation) for team in ones]).item() for ones in (teams, [[rm] for rm in rms])]
        accuracy = pipeline.stage(f"{name}-accuracy", "", right, keys, VALIDATION_PAIRS)[0]
        sizes, drawn = {"ensembles": len(groups), "posts": grid.sizes["posts"]}, lambda draw: [groups[i] for i in draw["ensembles"]]
        before, after = plain(grid, drawn), pick(grid.values, scores.get, drawn)
        old, new = means(before, sizes), means(after, sizes)
        found["curves"][kind] = {"x": ["scores", "weights"], **{name: [old[name], new[name]] for name in QUANTITIES}, "accuracy": accuracy}
        found["changes"][kind] = changes(after, before, sizes)
        subject = f"{KINDS[kind]}, scores averaged -> weights averaged (accuracy {accuracy[0]:.3f} -> {accuracy[1]:.3f}; over posts and {axis})"
        sentences.append(sentence(subject, found["changes"][kind], shared))
        print(f"averaged: {KINDS[kind]}", flush=True)
    return found, " ".join(sentences)


def members(grid, shared, out):
    """Mean over CHOICES random orders of the members: across pretrainings (one of each, then a second of each ...), and within one. The sentence
    compares all P * F with the pretrain ensembles, which have one of each."""
    P, F, rng, found = grid.sizes["pretrain"], grid.sizes["finetune"], np.random.default_rng(0), {"label": "members", "curves": {}}
    draws = [(rng.permutation(P), [rng.permutation(F) for _ in range(P)]) for _ in range(CHOICES)]
    orders = [{"across": [(p, fs[p][i]) for i in range(F) for p in ps], "within": [(ps[0], f) for f in fs[ps[0]]]} for ps, fs in draws]
    for way, largest in (("across", P * F), ("within", F)):
        sizes = [size for size in sorted({*SIZES, P, F, P * F}) if size <= largest]
        rows = [means(plain(grid, lambda draw: [tuple(order[way][:size]) for order in orders]), grid.sizes) for size in sizes]
        found["curves"][way] = {"x": [str(size) for size in sizes], **{name: [row[name] for row in rows] for name in QUANTITIES}}
    found["changes"] = {"pretrain": changes(plain(grid, of_kind("all")), plain(grid, of_kind("pretrain")), grid.sizes)}
    return found, sentence(f"pretrain ensemble, members {P} -> {P * F}: 1 -> {F} of each pretraining", found["changes"]["pretrain"], shared)


def more_data(name, grid, shared, out):
    """A sweep of sweep.py. The sentence compares its ends, from worse data to better: the same posts, pretrainings and finetuning seeds."""
    s, device, stages, team = grid.pipeline.s, grid.pipeline.device, grid.pipeline.cache, grid.pipeline.team
    found = sweep(name, s, device, out, stages, team)
    print(f"\n{sweep_table(found)}\n", flush=True)
    worse, better = sorted((found["values"][0], found["values"][-1]), reverse=name == "flipped")
    ends = [measure(Pipeline(replace(s, **{name: value}), device, stages, lambda text: None, team)) for value in (worse, better)]
    before, after = (plain(end, of_kind("pretrain")) for end in ends)
    found = {"values": [worse, better], "changes": {"pretrain": changes(after, before, grid.sizes)}}
    return found, sentence(f"pretrain ensemble, {name} {worse:g} -> {better:g}", found["changes"]["pretrain"], shared)


METHODS = {"distance": distance, "uwo": uwo, "averaged": averaged, "members": members, "pairs": partial(more_data, "pairs"),
           "flipped": partial(more_data, "flipped")}


# ----- tables, figures, the command line ----------------------------------------------------------------

def curves_table(found):
    """Every point of a method's figure, and the traits that it does not show."""
    columns = [name for name in next(iter(found["curves"].values())) if name != "x"]
    rows = [[LABELS[line], x, *(curve[name][i] for name in columns)] for line, curve in found["curves"].items() for i, x in enumerate(curve["x"])]
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
        axis.margins(x=0.1)
    axes[0].legend(fontsize=9, framealpha=0.9, frameon=True)
    return figure


def work(team, settings, device, out, names):
    """Measure the grid, then the named methods on it; beyond.json is whole after each."""
    device, path = pick_device(device, team.rank), out / "beyond.json"
    print(f"on a grid of reward models; what is not in {out / 'cache'} is trained first", flush=True)
    grid = measure(Pipeline(settings, device, Cache(out / "cache", device), team=team))
    compared = rounded(reference(grid))
    shared = compared["shared"]
    plainly = sentence("one reward model -> pretrain ensemble", compared["changes"], shared)
    code = hashlib.sha256(code_of("experiments/beyond.py").encode()).hexdigest()[:12]        # edited, the file has nothing to keep
    results = {"version": VERSION, "settings": json.loads(to_json(asdict(settings))), "code": code, "reference": compared, "sentences": {"plain": plainly}}
    kept = json.loads(path.read_text()) if path.exists() else {}
    if all(kept.get(name) == results[name] for name in ("version", "settings", "code", "reference")):
        results = kept                       # the methods that are not asked for now stay
    for name in names:
        found, results["sentences"][name] = METHODS[name](grid, shared, out)
        results[name] = rounded(found)
        if team.rank == 0:
            write_whole(path, lambda file: file.write(to_json(results)))
        if "curves" in found:
            if team.rank == 0:
                write_figure(draw(results[name], compared), out / f"beyond-{name}.png")
            print(f"\n{curves_table(results[name])}\n", flush=True)
    rows = [[label, *(compared[key][name] for name in QUANTITIES)] for key, label in {"sft": "SFT", **KINDS, "oracle": "the gold reward itself"}.items()]
    print(f"\n{table([f'best of {settings.n} by', *QUANTITIES], rows)}\n")
    print(beyond_section({"beyond": results}))
    print(f"\nbeyond.json and the figures are in {out}")


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="method", help=f"{', '.join(METHODS)} (default: all)")
    *common, own = parse(argv, parser)

    def look():
        for name in own["methods"]:
            if name not in METHODS:
                raise ValueError(f"method: {name!r} is none of {', '.join(METHODS)}")
        if common[0].task == "all":
            raise ValueError("--task: beyond.py takes one task at a time")

    return launch(work, *common, own["methods"] or list(METHODS), look=look)


if __name__ == "__main__":
    sys.exit(main())
