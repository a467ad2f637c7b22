"""The paper's claims, each as a number with a 95 % interval and a computed verdict.

    python experiments/claims.py runs/overopt        # the table once more, from the stored scores: seconds

All claims of a task are computed from one dict of arrays, the file scores-TASK.npz that overopt.py leaves (P pretraining
seeds, F finetuning seeds, n samples for each post; kinds are single, finetune, pretrain; W KL weights, S PPO seeds):

    accuracy (P, F)                                  validation accuracy of the reward models
    scores (P, F, posts, n)                          their rewards for the samples of the SFT policy
    control (P, F, posts, n)                         the same, trained without the spurious correlation (not for nli)
    gold (posts, n), traits (traits, posts, n)       of the same samples
    ppo_scores (kinds, W, S, P, F, posts)            rewards of the PPO policies' responses, one for each post
    ppo_proxy, ppo_gold, ppo_kl (kinds, W, S, posts), ppo_traits (traits, kinds, W, S, posts)
    kl_weights (W,), ppo_seeds (S,), trait_names (traits,), aggregator (), settings ()

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
from cache import rounded, to_json
import ensemble
from ensemble import pretrain_ensembles
from report import claims_section, load_results, survival_section, undecided_section

REPLICATES = 200         # bootstrap draws for each axis
KINDS = ["single", "finetune", "pretrain"]
PAIRS = [("finetune", "single"), ("pretrain", "finetune"), ("pretrain", "single")]

# ----- what is claimed --------------------------------------------------------------------------------

# axes: what is drawn anew in the bootstrap. sign: the direction of the claim. paper: what it reports; "ours: ..." if nothing.
Claim = namedtuple("Claim", "id statement paper axes sign", defaults=(1,))
GRID, RUNS = ("pretrain", "finetune", "posts"), ("seeds", "posts")
BOTH = ("pretrain", "finetune", "seeds", "posts")
SPREAD = 0.05        # a std of accuracy below this share of its mean is small: our choice (the paper's is 0.01)


def claims_of(task):
    """The list of claims for a task."""
    order = "pretrain > finetune > single"
    spread = {"tldr": "0.008", "helpful": "0.006"}.get(task, "ours: small")
    less, ours = (-1, "ours: falls") if task == "nli" else (1, "ours: rises")
    traits = [("list", "lists", "8 % -> 50 %" if task == "helpful" else "ours: rises", 1),
              ("numbers", "responses with a number", "fewer" if task == "nli" else ours, less),
              ("length", "tokens", {"tldr": "twice as long", "nli": "shorter"}.get(task, ours), less),
              ("wrong_facts", "wrong facts", "ours: rises", 1)]
    found = [
        Claim("accuracy_spread", f"std of validation accuracy over reward models (small: below {SPREAD:.0%} of the mean)", spread,
              ("pretrain", "finetune"), -1),
        Claim("bon_self_vs_same", "reward of a best-of-n pick by itself - by others of its pretraining", "higher by itself", GRID),
        Claim("bon_same_vs_other", "the same by others of its pretraining - by other pretrainings", "higher by its own", GRID),
        Claim("rank_corr_shift", "rank correlation of reward models: on SFT's texts - on the least-penalised PPO's", "falls", BOTH),
        Claim("rank_corr_pretrain", "the same on PPO's texts: within a pretraining - between", "higher within", BOTH),
        Claim("rank_corr_pretrain_shift", "that difference on PPO's texts - on SFT's", "falls more between", BOTH),
        Claim("overopt_bon", "one reward model: gold of the best n - of the largest", "falls (or halts: ?)", GRID),
        Claim("overopt_rl", "PPO on one reward model: gold at the best KL weight, or of SFT - at the smallest", "falls (or halts: ?)", RUNS)]
    for method, words, axes in (("bon", "best of n", GRID), ("rl", "PPO at matched KL", RUNS)):
        for suffix, quantity in (("", "gold"), ("_win", "win rate against SFT")):
            found += [Claim(f"{method}_{a}_vs_{b}{suffix}", f"{words}, {quantity}: {a} - {b}", order, axes) for a, b in PAIRS]
    for trait, words, paper, sign in traits:
        found.append(Claim(f"herd_{trait}", f"{words}: least-penalised PPO by the pretrain ensemble - SFT", paper, RUNS, sign))
    for trait, words, _, sign in traits:
        side = "ours: rises" if sign > 0 else "ours: falls"
        found.append(Claim(f"herd_{trait}_bon", f"{words}: best of n by the pretrain ensemble - SFT", side, GRID, sign))
    return found + [Claim("control_list", "lists, best of n by the pretrain ensemble: with the spurious correlation - without", "ours: rises", GRID)]


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
            enough = known & (np.isnan(drawn).mean(0) < 0.25)           # with two seeds every other draw has no pair to compare
            variances[axis][enough] = np.nanvar(drawn[:, enough], axis=0, ddof=1) * m / (m - 1)
    return estimate, variances


@functools.cache
def t_quantile(df):
    """97.5 % quantile of Student's t, by simulation: t_quantile(4) is 2.78 to 1 %."""
    return np.quantile(np.abs(np.random.default_rng(0).standard_t(df, 10**6)), 0.95)


def interval(estimate, variances, sizes):
    """95 % interval (low, high) of a claim: variances and sizes {axis: ...} of the axes that it speaks of; (None, None) if one of
    them shows no variance, as an axis of one seed does not.

    estimate +- t * standard error. The axes' variances add up, and t has Welch and Satterthwaite's degrees of freedom, since
    five seeds are few. Percentiles of the draws would be too narrow with five, and off centre: an ensemble drawn with
    replacement has some members twice. What seeds only make together is counted on both axes, so intervals are rather too wide."""
    parts = {axis: variances[axis] for axis in sizes}
    total = sum(parts.values())
    if not np.isfinite(total):
        return None, None
    freedom = total**2 / sum(part**2 / (sizes[axis] - 1) for axis, part in parts.items()) if total else np.inf
    half = t_quantile(min(100, max(1, round(freedom)))) * total**0.5 if total else 0.0
    return estimate - half, estimate + half


def verdict(low, high, sign, bound=0.0):
    """"reproduced" if the interval lies on the paper's side of the bound, "opposite" on the other, else "inconclusive"."""
    if low is None or low <= bound <= high:
        return "inconclusive"
    return "reproduced" if (low > bound) == (sign > 0) else "opposite"


def times_needed(estimate, high, bound=0.0):
    """About how many times as many seeds and posts on every axis would make the interval leave out the bound, if the estimate
    stayed: its width goes with 1 / sqrt(size). None beyond 100."""
    times = ((high - estimate) / (estimate - bound)) ** 2 if estimate != bound else np.inf
    return times if times < 100 else None


# ----- the statistics ---------------------------------------------------------------------------------

def win_rates(gold, against):
    """Chance that a response beats a random one of `against` (posts, n) on the same post, ties half: gold (..., posts) -> the same."""
    gold = np.asarray(gold)[..., None]
    return (gold > against).mean(-1) + 0.5 * (gold == against).mean(-1)


def own_win_rates(gold):
    """Chance that a sample beats a *fresh* one of its post, from the n that there are: gold (posts, n) -> the same. The best of n is
    below one fresh sample in n + 1, so the others of its post, all below, would flatter it."""
    n = gold.shape[1]
    return (n * win_rates(gold.T, gold).T + 0.5) / (n + 1)


def powers_of_two(N):
    """1, 2, 4 ... and N itself: powers_of_two(12) == [1, 2, 4, 8, 12]."""
    return [2**i for i in range(N.bit_length()) if 2**i < N] + [N]


def relations(P, F):
    """(P * F, P * F) boolean matrices of pairs of reward models: itself, another of the same pretraining, of another one, any other."""
    pretraining, itself = np.arange(P * F) // F, np.eye(P * F, dtype=bool)
    alike = pretraining[:, None] == pretraining
    return {"self": itself, "same": alike & ~itself, "other": ~alike, "all": ~itself}


def ranks(scores):
    """Place of each score in its row, from 0: (..., samples) -> the same. (Equal scores are as good as absent.)"""
    return scores.argsort(-1).argsort(-1).astype(np.float32)


def correlation(x):
    """Pearson's between the rows of (..., M, samples) -> (..., M, M)."""
    x = x - x.mean(-1, keepdims=True)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x @ np.swapaxes(x, -1, -2)


def held_out_best(curves):
    """curves (parts, options) of means -> for each part the option that is best in the *others*: chosen on its own data, the
    best is never below the last, and pure noise would show a fall."""
    others = curves.sum(0) - curves if len(curves) > 1 else curves
    return others.argmax(-1)


def overoptimisation_bon(scores, gold):
    """For single RMs (P, F, posts): gold of the best n - of the largest; and how much the proxy still rises in between. The best n is
    chosen on other data: for posts with even numbers on odd ones, and vice versa, and on the other pretrainings."""
    P, F, posts, n = scores.shape
    ns = powers_of_two(n)
    golds, proxies = expected_best_of_n(scores, gold, ns), expected_best_of_n(scores, scores, ns)        # (P, F, posts, ns)
    half = np.arange(posts) % 2
    curves = np.stack([golds[:, :, half == h].mean((1, 2)) for h in (1, 0)])                             # (half, P, ns), of the other half
    best = np.stack([held_out_best(curve) for curve in curves], axis=1)[:, None, half, None]             # (P, 1, posts, 1)
    best = np.broadcast_to(best, (P, F, posts, 1))
    fall = np.take_along_axis(golds, best, -1)[..., 0] - golds[..., -1]
    return fall, proxies[..., -1] - np.take_along_axis(proxies, best, -1)[..., 0]


def overoptimisation_rl(gold, proxy, sft_gold, sft_proxy):
    """The same for PPO on single RMs: (W, S, posts), KL weights from small to large, and SFT's (posts,) -> two (S, posts). SFT is
    one of the policies to choose from; the choice for a seed is made on the other seeds."""
    golds = np.concatenate([gold, np.broadcast_to(sft_gold, gold[:1].shape)])
    proxies = np.concatenate([proxy, np.broadcast_to(sft_proxy, proxy[:1].shape)])
    best = held_out_best(golds.mean(-1).T)
    seeds = np.arange(gold.shape[1])
    return golds[best, seeds] - golds[0], proxies[0] - proxies[best, seeds]


def frontier_heights(kl, values, sft_values, points=20):
    """Mean height of each kind's frontier at matched KL: kl (kinds, W), values (kinds, W, posts) and SFT's (posts,) -> (kinds, posts).

    A frontier goes from SFT through the policies of one PPO seed's KL weights, in straight lines over d = sqrt(KL), on which gold is
    nearly a parabola (Gao et al. 2022). Matched is the whole range from 0 to the largest d that every kind reaches."""
    d = np.sqrt(np.maximum(kl, 0.0))
    grid = np.linspace(0, d.max(1).min(), points + 1)[1:]
    heights = []
    for x, y in zip(d, values):
        order = np.argsort(x)
        x, y = np.append(0, x[order]), np.concatenate([sft_values[None], y[order]])
        weights = np.array([np.interp(grid, x, unit).mean() for unit in np.eye(len(x))])     # of each policy in the mean
        heights.append(weights @ y)
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
        self.pairs, self.picked = relations(P, F), {}
        rms = self.scores.reshape(P * F, posts, -1)
        self.values = np.stack([gold, own_win_rates(gold), *data["traits"]])                      # (values, posts, n)
        picks = best_of_n(rms)
        self.single = np.take_along_axis(self.values[:, None], picks[None, ..., None], -1).reshape(-1, P, F, posts)
        self.judged = np.take_along_axis(rms[None], picks[:, None, :, None], -1)[..., 0]          # (picker, judge, posts)
        self.ranks = ranks(rms.reshape(P * F, -1)).reshape(rms.shape)
        self.bon_fall, self.bon_rise = overoptimisation_bon(self.scores, gold)
        if "ppo_seeds" in data:
            self.read_ppo(data)

    def read_ppo(self, data):
        """What the claims about PPO need. PPO seeds that share a pretraining (every P-th) come and go together: an axis of groups."""
        P, F, posts, gold = *self.scores.shape[:3], data["gold"]
        groups = data["ppo_seeds"] % P
        self.seed_groups = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.sizes["seeds"] = len(self.seed_groups)
        # The smallest KL weight comes first.
        order = np.argsort(data["kl_weights"])
        kl, golds, proxy, traits, scores = (data[f"ppo_{name}"].take(order, axis) for name, axis in
                                            (("kl", 1), ("gold", 1), ("proxy", 1), ("traits", 2), ("scores", 1)))
        self.least_traits = traits[:, :, 0]                                                       # (traits, kinds, S, posts)
        self.least_ranks = ranks(scores[:, 0].reshape(*golds[:, 0].shape[:2], P * F, posts))      # (kinds, S, M, posts)
        self.rl_fall, self.rl_rise = overoptimisation_rl(golds[0], proxy[0], gold.mean(-1), np.zeros(posts))

        def heights(values, sft):
            """(kinds, W, S, posts) and SFT's (posts,) -> (kinds, S, posts)."""
            return np.stack([frontier_heights(kl[:, :, s].mean(-1), values[:, :, s], sft) for s in range(values.shape[2])], 1)

        wins, half = win_rates(golds, gold), np.full(posts, 0.5)
        self.matched = np.stack([heights(golds, gold.mean(-1)), heights(wins, half)])             # (gold and win rate, kinds, S, posts)

    def ensemble_picks(self, arm, members):
        """Values (values, ensembles, posts) of the best of all n by ensembles, given as lists of (pretraining, finetuning), among
        the scores of an arm, "scores" or "control". Remembered: most draws bring old ensembles back."""
        found = []
        for group in members:
            key = arm, tuple(sorted(group))
            if key not in self.picked:
                scores = getattr(self, arm)
                proxy = ensemble.aggregate(self.aggregator, torch.from_numpy(np.stack([scores[p, f] for p, f in key[1]]))).numpy()
                self.picked[key] = np.take_along_axis(self.values, proxy.argmax(-1)[None, :, None], -1)[..., 0]
            found.append(self.picked[key])
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
                 "overopt_bon": self.bon_fall[np.ix_(p, f, posts)].mean(), "proxy_rise_bon": self.bon_rise[np.ix_(p, f, posts)].mean()}
        diagonals = [[(p[m // F], f[m % F]) for m in group] for group in pretrain_ensembles(P, F)]
        picks = {"single": self.single[:, p][:, :, f].reshape(len(self.values), -1, self.values.shape[1]),
                 "finetune": self.ensemble_picks("scores", [[(i, j) for j in f] for i in p]),
                 "pretrain": self.ensemble_picks("scores", diagonals)}
        bon, sft = {kind: x[..., posts].mean((1, 2)) for kind, x in picks.items()}, self.values[2:, posts].mean((1, 2))
        found |= comparisons("bon", bon) | self.rises("_bon", {kind: x[2:] for kind, x in bon.items()}, sft)
        if self.control is not None:
            i = 2 + self.names.index("list")
            found["control_list"] = bon["pretrain"][i] - self.ensemble_picks("control", diagonals)[i][:, posts].mean()
        if "seeds" in draw:
            seeds = np.concatenate([self.seed_groups[group] for group in draw["seeds"]])
            on_sft = correlation(self.ranks[:, posts].reshape(P * F, -1))
            on_ppo = correlation(self.least_ranks[:, seeds][..., posts]).mean((0, 1))
            within = over_pairs(on_ppo, "same") - over_pairs(on_ppo, "other")
            found |= {"rank_corr_shift": over_pairs(on_sft, "all") - over_pairs(on_ppo, "all"),
                      "rank_corr_pretrain": within,
                      "rank_corr_pretrain_shift": within - (over_pairs(on_sft, "same") - over_pairs(on_sft, "other")),
                      "overopt_rl": self.rl_fall[np.ix_(seeds, posts)].mean(), "proxy_rise_rl": self.rl_rise[np.ix_(seeds, posts)].mean()}
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

    single, survives: for a trait, one reward model's rise, and the share of it that the pretrain ensemble leaves (if that rise is
    itself beyond chance); proxy_rise: for a fall in gold, what the proxy gains on the same way; times_needed: for an inconclusive one, how many
    times as many seeds and posts would decide it (null: over 100). A fall in gold is "reproduced" only if the proxy's rise
    leaves out zero too. sign: the claim's side of the bound, 1 or -1."""
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
               "ci_low": low, "ci_high": high, "n": sizes, "sign": claim.sign, "verdict": verdict(low, high, claim.sign, bound)}
        if claim.id.startswith("overopt_"):
            rise = measured(claim.id.replace("overopt", "proxy_rise"), claim.axes)
            row["proxy_rise"] = rise[0]
            if row["verdict"] == "reproduced" and verdict(*interval(*rise), 1) != "reproduced":
                row["verdict"] = "inconclusive"
        if claim.id.startswith("herd_"):
            alone = measured(claim.id.replace("herd_", "single_"), claim.axes)
            row["single"] = alone[0]
            row["survives"] = estimate / alone[0] if verdict(*interval(*alone), claim.sign) == "reproduced" else None
        if low is not None and low <= bound <= high:
            row["times_needed"] = times_needed(estimate, high, bound)
        rows.append(row)
    return rows


def load_scores(path, settings):
    """The dict of arrays in a scores-TASK.npz; ValueError that says what to run if there is none, or one of other settings."""
    if not path.exists():
        raise ValueError(f"there is no {path}: run python experiments/overopt.py --out {path.parent}")
    with np.load(path) as arrays:
        data = dict(arrays)
    if data.get("settings") != to_json(settings):
        raise ValueError(f"{path} is of other settings than results.json: its run has not finished; the command that began it continues there")
    return data


def main():
    """The command line: the claims table of a finished run, computed anew from its stored scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    out = parser.parse_args().out
    torch.set_num_threads(1)                        # many small means: threads would only wait for each other
    try:
        results = load_results(out)
        rows = [row for task in results["tasks"] for row in claims_table(load_scores(out / f"scores-{task}.npz", results["settings"]), task)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = rounded(rows)
    for section in (claims_section, survival_section, undecided_section):
        print(f"\n{section({**results, 'claims': rows})}")


if __name__ == "__main__":
    main()
