"""The paper's claims, each as a number with a 95 % interval and a computed verdict.

    python experiments/claims.py runs/overopt        # the table once more, from the stored scores: seconds

All claims of a task are computed from one dict of arrays, the file scores-TASK.npz that overopt.py leaves (P pretraining
seeds, F finetuning seeds, n samples for each post; kinds are single, finetune, pretrain; W KL weights, S PPO seeds):

    accuracy (P, F)                                  validation accuracy of the reward models
    scores (P, F, posts, n)                          their rewards for the samples of the SFT policy
    control (P, C, posts, n)                         the same, trained without the spurious correlation; C <= F
    gold (posts, n), traits (traits, posts, n)       of the same samples
    ppo_scores (kinds, W, S, P, F, posts)            rewards of the PPO policies' responses, one for each post
    ppo_proxy, ppo_gold, ppo_kl (kinds, W, S, posts), ppo_traits (traits, kinds, W, S, posts)
    kl_weights (W,), ppo_seeds (S,), trait_names (traits,), aggregator ()

Without the arrays of PPO, or of the control arm, the claims that need them are left out.
"""
import argparse
from collections import namedtuple
import functools
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import numpy as np
import torch

from bon import best_of_n, expected_best_of_n
import ensemble
from ensemble import pretrain_ensembles

REPLICATES = 200         # bootstrap draws for each axis
KINDS = ["single", "finetune", "pretrain"]
PAIRS = [("finetune", "single"), ("pretrain", "finetune"), ("pretrain", "single")]

# ----- what is claimed --------------------------------------------------------------------------------

# axes: what is drawn anew in the bootstrap. sign: the direction of the claim.
Claim = namedtuple("Claim", "id statement paper axes sign", defaults=(1,))
GRID, RUNS, ALL = ("pretrain", "finetune", "posts"), ("seeds", "posts"), ("pretrain", "finetune", "seeds", "posts")
SPREAD = 0.05        # a std of accuracy below this share of its mean is small: our choice (the paper's is 0.01)


def claims_of(task):
    """The list of claims for a task. What the paper does not say is ours, and says so."""
    less = -1 if task == "nli" else 1                   # the paper: shorter and without numbers there, longer elsewhere
    ours = "not reported"
    better = "in this order: pretrain ensemble, finetune ensemble, single"
    found = [
        Claim("accuracy_spread", f"std of validation accuracy over reward models (small: below {SPREAD:.0%} of its mean)", "71.4 +- 0.8 % (TL;DR)",
              ("pretrain", "finetune"), -1),
        Claim("bon_self_vs_same", "reward of a best-of-n pick by itself - by reward models of its pretraining", "higher by itself", GRID),
        Claim("bon_same_vs_other", "the same by reward models of its pretraining - of other pretrainings", "higher by its pretraining", GRID),
        Claim("rank_corr_shift", "rank correlation of reward models on SFT's texts - on those of the least-penalised PPO", "falls", ALL),
        Claim("rank_corr_pretrain", "on PPO's texts: rank correlation within a pretraining - between", "falls more between", ALL),
        Claim("overopt_bon", "one reward model: gold of the best n - of the largest n", "stops improving, or falls", GRID),
        Claim("overopt_rl", "PPO on one reward model: gold at the best KL weight - at the smallest", "stops improving, or falls", RUNS)]
    for method, words, axes in (("bon", "best of n", GRID), ("rl", "PPO at matched KL", RUNS)):
        for quantity, suffix in (("gold", ""), ("win rate against SFT", "_win")):
            found += [Claim(f"{method}_{a}_vs_{b}{suffix}", f"{words}, {quantity}: {a} - {b}", better, axes) for a, b in PAIRS]
    for trait, words, paper, sign in (("list", "lists", "8 % -> 50 % (Helpfulness)" if task == "helpful" else ours, 1),
                                      ("numbers", "responses with a number", "fewer" if task == "nli" else ours, less),
                                      ("length", "tokens", {"tldr": "twice as long", "nli": "shorter"}.get(task, ours), less),
                                      ("wrong_facts", "wrong facts", ours, 1)):
        found += [Claim(f"herd_{trait}{suffix}", f"{words}: {method} by the pretrain ensemble - SFT", paper, axes, sign)
                  for suffix, method, axes in (("", "least-penalised PPO", RUNS), ("_bon", "best of n", GRID))]
    return found + [Claim("control_list", "lists, best of n by the pretrain ensemble: with the spurious correlation - without", ours, GRID)]


# ----- the bootstrap ----------------------------------------------------------------------------------

def bootstrap(statistic, sizes, replicates=REPLICATES, seed=0):
    """Estimate and variances: statistic(draw) -> array (claims,), for draws {axis: indices}, sizes {axis: size}
    -> (estimate (claims,), {axis: variance (claims,)}).

    One axis at a time is drawn anew, with replacement, the others staying as they are: of a grid of reward models all that a
    pretraining seed (or a finetuning seed) made comes and goes together. m values drawn from m show (m - 1) / m of
    their variance: hence the factor. An axis of one shows nothing: NaN."""
    rng = np.random.default_rng(seed)
    whole = {axis: np.arange(size) for axis, size in sizes.items()}
    estimate, variances = statistic(whole), {}
    known = np.isfinite(estimate)                    # without, say, a second pretraining a statistic is NaN in every draw
    for axis, m in sizes.items():
        variances[axis] = np.full(estimate.shape, np.nan)
        if m > 1:
            drawn = np.array([statistic({**whole, axis: rng.integers(m, size=m)}) for _ in range(replicates)])
            variances[axis][known] = np.nanvar(drawn[:, known], axis=0, ddof=1) * m / (m - 1)
    return estimate, variances


@functools.cache
def t_quantile(df):
    """97.5 % quantile of Student's t, by simulation: t_quantile(4) is 2.78 to 1 %."""
    return np.quantile(np.abs(np.random.default_rng(0).standard_t(df, 10**6)), 0.95)


def interval(estimate, variances, sizes):
    """95 % interval (low, high) of a claim: variances and sizes {axis: ...} of the axes that it speaks of; (None, None) if one of
    them has size 1.

    estimate +- t * standard error. The axes' variances add up, and t has Welch and Satterthwaite's degrees of freedom, since
    five seeds are few. Percentiles of the draws would be too narrow with five, and off centre: an ensemble drawn with
    replacement has some members twice. What seeds only make together is counted on both axes, so intervals are rather too wide."""
    if not np.isfinite(estimate) or any(size < 2 for size in sizes.values()):
        return None, None
    parts = {axis: variances[axis] for axis in sizes}
    total = sum(parts.values())
    freedom = total**2 / sum(part**2 / (sizes[axis] - 1) for axis, part in parts.items()) if total else np.inf
    half = t_quantile(max(1, round(freedom))) * total**0.5 if total else 0.0
    return estimate - half, estimate + half


def verdict(low, high, sign, bound=0.0):
    """"reproduced" if the interval lies on the paper's side of the bound, "opposite" on the other, else "inconclusive"."""
    if low is None or low <= bound <= high:
        return "inconclusive"
    return "reproduced" if (low > bound) == (sign > 0) else "opposite"


def times_needed(estimate, variances, sizes, bound=0.0):
    """About how many times as many seeds and posts on every axis would make the interval leave out the bound, if the estimate
    stayed: variances go down with 1 / size. None beyond 100."""
    if estimate == bound:
        return None
    times = 1.96**2 * sum(variances[axis] for axis in sizes) / (estimate - bound) ** 2
    return max(times, 1.0) if times < 100 else None


# ----- the statistics ---------------------------------------------------------------------------------

def win_rates(gold, against):
    """Chance that a response beats a random one of `against` (posts, n) on the same post, ties half: gold (..., posts) -> the same."""
    gold = np.asarray(gold)[..., None]
    return (gold > against).mean(-1) + 0.5 * (gold == against).mean(-1)


def own_win_rates(gold):
    """win_rates of each of (posts, n) against the others of its post; with one sample there is no other: 0.5."""
    n = gold.shape[1]
    return (n * win_rates(gold.T, gold).T - 0.5) / (n - 1) if n > 1 else np.full_like(gold, 0.5)


def ranks(scores):
    """Place of each score in its row, from 0: (..., samples) -> the same. (Equal scores are as good as absent.)"""
    return scores.argsort(-1).argsort(-1).astype(np.float32)


def correlation(x):
    """Pearson's between the rows of (..., M, samples) -> (..., M, M)."""
    x = x - x.mean(-1, keepdims=True)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x @ np.swapaxes(x, -1, -2)


def held_out_best(curve):
    """curve (halves, options) of means -> for each half the option that is best for the *others*: chosen on its own half, the best
    is never below the last, and an interval for the fall would be about noise."""
    others = curve.sum(0) - curve if len(curve) > 1 else curve
    return others.argmax(-1)


def overoptimisation_bon(scores, gold):
    """For single RMs (P, F, posts): gold of the best n - of the largest; and how much the proxy still rises in between. The best n
    for the posts with even numbers is chosen on those with odd ones, and vice versa."""
    P, F, posts, n = scores.shape
    ns = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
    golds, proxies = expected_best_of_n(scores, gold, ns), expected_best_of_n(scores, scores, ns)        # (P, F, posts, ns)
    half = np.arange(posts) % 2
    best = held_out_best(np.array([golds[:, :, half == h].mean((0, 1, 2)) for h in (0, 1)]))[half]
    at = lambda x: np.take_along_axis(x, np.broadcast_to(best[:, None], (P, F, posts, 1)), -1)[..., 0]
    return at(golds) - golds[..., -1], proxies[..., -1] - at(proxies)


def overoptimisation_rl(gold, proxy, sft_gold, sft_proxy):
    """The same for PPO on single RMs: (W, S, posts), KL weights from small to large, and SFT's (posts,) -> two (S, posts). SFT is
    one of the policies to choose from; the choice for a seed is made on the other seeds."""
    golds, proxies = (np.concatenate([x, np.broadcast_to(sft, x[:1].shape)]) for x, sft in ((gold, sft_gold), (proxy, sft_proxy)))
    best = held_out_best(golds.mean(-1).T)
    seeds = np.arange(gold.shape[1])
    return golds[best, seeds] - golds[0], proxies[0] - proxies[best, seeds]


def at_matched_kl(kl, values, sft_values, points=20):
    """Mean height of each kind's frontier over the KL that all kinds reach: kl (kinds, W), values (kinds, W, posts) and SFT's (posts,)
    -> (kinds, posts).

    A frontier goes from SFT (KL 0) through the policies of one seed's KL weights, in straight lines. Matched is the whole
    range from 0 to the largest KL that every kind reaches, on an even grid."""
    grid = np.linspace(0, kl.max(1).min(), points + 1)[1:]
    heights = []
    for x, y in zip(kl, values):
        order = np.argsort(x)
        weights = [np.interp(grid, np.append(0, x[order]), unit).mean() for unit in np.eye(len(x) + 1)]
        heights.append(weights @ np.concatenate([sft_values[None], y[order]]))
    return np.array(heights)


class Statistics:
    """Every claim's statistic as one function of a bootstrap draw: statistics(draw) -> {id: value}. What no draw changes is
    computed once, here."""

    def __init__(self, data):
        self.aggregator, self.names = str(data["aggregator"]), [str(name) for name in data["trait_names"]]
        self.accuracy, self.scores, self.control = data["accuracy"], data["scores"], data.get("control")
        gold, posts = data["gold"], len(data["gold"])
        P, F = self.accuracy.shape
        self.sizes = {"pretrain": P, "finetune": F, "posts": posts}
        rms = self.scores.reshape(P * F, posts, -1)
        self.values = np.stack([gold, own_win_rates(gold), *data["traits"]])                      # (values, posts, n)
        picks = best_of_n(rms)
        self.single = np.take_along_axis(self.values[:, None], picks[None, ..., None], -1).reshape(-1, P, F, posts)
        self.judged = np.take_along_axis(rms[None], picks[:, None, :, None], -1)[..., 0]          # (picker, judge, posts)
        self.ranks = ranks(rms.reshape(P * F, -1)).reshape(rms.shape)
        self.bon_fall, self.bon_rise = overoptimisation_bon(self.scores, gold)
        pretraining = np.arange(P * F) // F
        alike = pretraining[:, None] == pretraining
        self.pairs = {"self": np.eye(P * F, dtype=bool), "same": alike & ~np.eye(P * F, dtype=bool), "other": ~alike, "all": ~np.eye(P * F, dtype=bool)}
        if "ppo_seeds" in data:
            self.read_ppo(data)

    def read_ppo(self, data):
        P, F, posts, gold = *self.scores.shape[:3], data["gold"]
        self.sizes["seeds"] = len(data["ppo_seeds"])
        # The smallest KL weight comes first.
        order = np.argsort(data["kl_weights"])
        kl, golds, proxy, traits, scores = (data[f"ppo_{name}"].take(order, axis) for name, axis in
                                            (("kl", 1), ("gold", 1), ("proxy", 1), ("traits", 2), ("scores", 1)))
        self.least_traits = traits[:, :, 0]                                                       # (traits, kinds, S, posts)
        self.least_ranks = ranks(scores[:, 0].reshape(*golds[:, 0].shape[:2], P * F, posts))      # (kinds, S, M, posts)
        self.rl_fall, self.rl_rise = overoptimisation_rl(golds[0], proxy[0], gold.mean(-1), np.zeros(posts))
        both = zip((golds, win_rates(golds, gold)), (gold.mean(-1), np.full(posts, 0.5)))
        self.matched = np.array([[at_matched_kl(kl[:, :, s].mean(-1), values[:, :, s], sft) for s in range(golds.shape[2])]
                                 for values, sft in both]).swapaxes(1, 2)                         # (gold and win rate, kinds, S, posts)

    def ensemble_picks(self, scores, members):
        """Values (values, ensembles, posts) of the best of all n by ensembles, given as lists of (pretraining, finetuning)."""
        found = []
        for group in members:
            proxy = ensemble.aggregate(self.aggregator, torch.from_numpy(np.stack([scores[p, f] for p, f in group]))).numpy()
            found.append(np.take_along_axis(self.values, proxy.argmax(-1)[None, :, None], -1)[..., 0])
        return np.stack(found, 1)

    def __call__(self, draw):
        p, f, posts = (draw[axis] for axis in ("pretrain", "finetune", "posts"))
        P, F = self.accuracy.shape
        weights = np.outer(np.bincount(p, minlength=P), np.bincount(f, minlength=F)).ravel().astype(float)

        def over_pairs(matrix, relation):
            """Mean of an (M, M) matrix over the drawn pairs of reward models that are related so; NaN if there is none."""
            w = np.outer(weights, weights) * self.pairs[relation] if relation != "self" else np.diag(weights)
            return (w * matrix).sum() / w.sum() if w.sum() else np.nan

        judged = self.judged[..., posts].mean(-1)
        own, same, other = (over_pairs(judged, relation) for relation in ("self", "same", "other"))
        found = {"accuracy_spread": self.accuracy[np.ix_(p, f)].std(), "bon_self_vs_same": own - same, "bon_same_vs_other": same - other,
                 "overopt_bon": self.bon_fall[np.ix_(p, f, posts)].mean()}
        diagonals = [[(p[m // F], f[m % F]) for m in group] for group in pretrain_ensembles(P, F)]
        picks = {"single": self.single[:, p][:, :, f].reshape(len(self.values), -1, self.values.shape[1]),
                 "finetune": self.ensemble_picks(self.scores, [[(i, j) for j in f] for i in p]),
                 "pretrain": self.ensemble_picks(self.scores, diagonals)}
        bon, sft = {kind: x[..., posts].mean((1, 2)) for kind, x in picks.items()}, self.values[2:, posts].mean((1, 2))
        found |= comparisons("bon", bon) | self.rises("_bon", {kind: x[2:] for kind, x in bon.items()}, sft)
        if self.control is not None:
            C, i = self.control.shape[1], 2 + self.names.index("list")
            diagonals = [[(p[m // C], f[m % C] % C) for m in group] for group in pretrain_ensembles(P, C)]
            lists = [self.ensemble_picks(scores, diagonals)[i][:, posts].mean() for scores in (self.scores, self.control)]
            found["control_list"] = lists[0] - lists[1]
        if "seeds" in draw:
            seeds = draw["seeds"]
            on_sft = correlation(self.ranks[:, posts].reshape(P * F, -1))
            on_ppo = correlation(self.least_ranks[:, seeds][..., posts]).mean((0, 1))
            found |= {"rank_corr_shift": over_pairs(on_sft, "all") - over_pairs(on_ppo, "all"),
                      "rank_corr_pretrain": over_pairs(on_ppo, "same") - over_pairs(on_ppo, "other"),
                      "overopt_rl": self.rl_fall[np.ix_(seeds, posts)].mean()}
            found |= comparisons("rl", dict(zip(KINDS, self.matched[:, :, seeds][..., posts].mean((2, 3)).T)))
            found |= self.rises("", dict(zip(KINDS, self.least_traits[:, :, seeds][..., posts].mean((2, 3)).T)), sft)
        return found

    def rises(self, suffix, after, before):
        """How far the traits rise over SFT's, under the pretrain ensemble and under one reward model."""
        return {f"{name}_{trait}{suffix}": after[kind][i] - before[i] for i, trait in enumerate(self.names)
                for name, kind in (("herd", "pretrain"), ("single", "single"))}


def comparisons(method, height):
    """Differences in gold and in win rate between the kinds: height {kind: (gold, win rate, ...)}."""
    return {f"{method}_{a}_vs_{b}{suffix}": height[a][i] - height[b][i] for a, b in PAIRS for i, suffix in enumerate(("", "_win"))}


# ----- the table --------------------------------------------------------------------------------------

def claims_table(data, task):
    """The rows of a task: {id, task, statement, paper, estimate, ci_low, ci_high, n {axis: size}, verdict}, and where it applies

    survives: for a trait, the share of one reward model's rise that the pretrain ensemble leaves (if that rise is itself beyond
    chance); proxy_rise: for a fall in gold, what the proxy gains on the same way; times_needed: for an inconclusive one, how many
    times as many seeds and posts would decide it (null: over 100)."""
    statistics = Statistics(data)
    names = list(statistics({axis: np.arange(size) for axis, size in statistics.sizes.items()}))
    estimates, variances = bootstrap(lambda draw: np.array([*statistics(draw).values()]), statistics.sizes)

    def measured(name, axes):
        i = names.index(name)
        return estimates[i], {axis: variances[axis][i] for axis in axes}, {axis: statistics.sizes[axis] for axis in axes}

    rows = []
    for claim in (claim for claim in claims_of(task) if claim.id in names):
        bound = SPREAD * data["accuracy"].mean() if claim.id == "accuracy_spread" else 0.0
        estimate, parts, sizes = measured(claim.id, claim.axes)
        low, high = interval(estimate, parts, sizes)
        row = {"id": claim.id, "task": task, "statement": claim.statement, "paper": claim.paper, "estimate": estimate if np.isfinite(estimate) else None,
               "ci_low": low, "ci_high": high, "n": sizes, "verdict": verdict(low, high, claim.sign, bound)}
        if claim.id.startswith("overopt_"):
            row["proxy_rise"] = (statistics.bon_rise if claim.id == "overopt_bon" else statistics.rl_rise).mean()
            if row["verdict"] == "reproduced" and row["proxy_rise"] <= 0:
                row["verdict"] = "inconclusive"
        if claim.id.startswith("herd_"):
            alone = measured(claim.id.replace("herd_", "single_"), claim.axes)
            row["survives"] = estimate / alone[0] if verdict(*interval(*alone), claim.sign) == "reproduced" else None
        if row["verdict"] == "inconclusive" and low is not None:
            row["times_needed"] = times_needed(estimate, parts, sizes, bound)
        rows.append(row)
    return rows


def load_scores(path):
    """The dict of arrays in a scores-TASK.npz; ValueError that says what to run if there is none."""
    if not path.exists():
        raise ValueError(f"there is no {path}: run python experiments/overopt.py --out {path.parent}")
    with np.load(path) as arrays:
        return dict(arrays)


def main():
    """The command line: the claims table of a finished run, computed anew from its stored scores."""
    from analysis import rounded
    from report import claims_section, load_results, survival_section, undecided_section
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    out = parser.parse_args().out
    try:
        results = load_results(out)
        rows = [row for task in results["tasks"] for row in rounded(claims_table(load_scores(out / f"scores-{task}.npz"), task))]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for section in (claims_section, survival_section, undecided_section):
        print(f"\n{section({**results, 'claims': rows})}")


if __name__ == "__main__":
    main()
