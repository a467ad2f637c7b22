"""From a world's arrays to numbers: the paper's claims, one number each, and what tables and figures show.

A world (a seed) is an independent replicate of everything: posts, pretrainings, SFT, preferences, reward
models, samples, PPO. Nothing is pooled, so a claim's interval over worlds is the textbook's, Student's t.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from bon import best_of_n, expected_best_of_n
from ensemble import aggregate, finetune_ensembles, pretrain_ensembles

# What a policy is aligned to: its key in records, and its name in tables and figures.
KINDS = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}
BEST, SFT, PPO = "best of n", "SFT", "PPO"  # methods
PEAK = 32  # the n at which gold of the best of n by one reward model was highest on the development seeds


@dataclass
class Evidence:
    """The arrays of one world and task. P pretraining seeds, F finetuning seeds, M = P * F reward models; a
    jury of J reward models of a further pretraining, which nothing is aligned to."""

    F: int  # reward models of each pretraining
    accuracy: np.ndarray  # (M,), on validation pairs; models are ordered by pretraining, F of each
    scores: np.ndarray  # (M, posts, n), the reward models' rewards of the SFT policy's samples
    jury: np.ndarray  # (J, posts, n), the jury's
    gold: np.ndarray  # (posts, n), the true reward of the samples
    traits: dict  # name -> (posts, n), of the samples
    edits: dict  # name -> what an edit of a perfect summary changes: {"models": (M,), "elsewhere": (M,), the
    # same under another post, "gold": number}
    ranking: dict  # kind of text -> (M,), share of pairs that each model orders as gold does
    aggregator: Callable  # of an ensemble: a function of ensemble.AGGREGATORS
    # PPO runs: dicts of kind, run, kl_weight, members, kl, curve, favourite (a fact), overuse (share of texts
    # that have it, minus of posts) and, by post, gold and proxy (posts,), scores (M, posts), jury (J, posts),
    # traits {name: (posts,)}
    runs: list = field(default_factory=list)

    def ensembles(self, kind):
        """The members of every ensemble of a kind, as indices of reward models."""
        return all_ensembles(len(self.scores) // self.F, self.F)[kind]

    def aggregate(self, scores):
        """The rewards of an ensemble's members as one: (members, ...) -> (...)."""
        return aggregate(self.aggregator, torch.from_numpy(scores)).numpy()

    def proxies(self, kind):
        """The aggregated rewards of every ensemble of a kind: (ensembles, posts, n)."""
        return np.array([self.aggregate(self.scores[members]) for members in self.ensembles(kind)])

    def relatives(self, members):
        """The reward models that share a pretraining with a member, but are none."""
        pretrainings = {member // self.F for member in members}
        return [m for m in range(len(self.scores)) if m // self.F in pretrainings and m not in members]

    def mean_of_best(self, kind, values, ns):
        """Mean of `values`, (posts, n) or (ensembles, posts, n), of the best of n by a kind: (len(ns),)."""
        return expected_best_of_n(self.proxies(kind), values, ns).mean((0, 1))

    def runs_of(self, kind, which=min):
        """See `runs_of`."""
        return runs_of(self.runs, kind, which)

    def mean(self, name, method, kind=None, which=min):
        """Mean of gold, the jury's reward, the proxy or a trait over a policy's texts, or of PPO's `overuse`
        over its runs. Methods: SFT, BEST (largest n), PPO."""
        if method == PPO:
            return np.mean([np.mean((run | run["traits"])[name]) for run in self.runs_of(kind, which)])
        values = {"gold": self.gold, "jury": self.jury.mean(0), **self.traits}  # (posts, n)
        values = self.proxies(kind) if name == "proxy" else values[name]
        return values.mean() if method == SFT else self.mean_of_best(kind, values, values.shape[-1:])[0]


def runs_at(runs, kind, kl_weight):
    """The PPO runs of a kind at a KL weight."""
    return [run for run in runs if (run["kind"], run["kl_weight"]) == (kind, kl_weight)]


def runs_of(runs, kind, which=min):
    """The PPO runs of a kind at the smallest KL weight (which=max: at the largest)."""
    return runs_at(runs, kind, which(run["kl_weight"] for run in runs))


def all_ensembles(P, F):
    """{kind: the members of each of its ensembles}, as indices of reward models, ordered by pretraining."""
    grid = np.arange(P * F).reshape(P, F).tolist()
    singles = [[member] for row in grid for member in row]
    return dict(zip(KINDS, (singles, finetune_ensembles(grid), pretrain_ensembles(grid)), strict=True))


def pair_means(matrix, F):
    """Means of an (M, M) matrix over pairs of reward models: each with itself, with the others of its
    pretraining, with those of other pretrainings: [self, same, other]. Ordered by pretraining, F of each."""
    itself = np.eye(len(matrix), dtype=bool)
    pretraining = np.arange(len(matrix)) // F
    alike = pretraining[:, None] == pretraining
    return [matrix[pairs].mean() if pairs.any() else np.nan for pairs in (itself, alike & ~itself, ~alike)]


def rank_correlation(scores):
    """Spearman's correlation of every two reward models, over texts: (M, texts) -> (M, M)."""
    return np.corrcoef(scores.argsort(-1).argsort(-1)).reshape(len(scores), -1)


def rewards_of_picks(scores, picks):
    """Mean reward by each model of what each has picked: (M, posts, n), (M, posts) -> (picker, model)."""
    return np.take_along_axis(scores[None], picks[:, None, :, None], axis=-1)[..., 0].mean(-1)


def same_spread(samples, texts):
    """SFT's samples (M, posts, n), one picked for each post -> (M, posts): so that the consensus, the mean
    reward of all models, varies from post to post as much as it does over some texts, (M, posts)."""
    consensus, target = samples.mean(0), texts.mean(0)
    wanted = consensus.mean() + target - target.mean()
    nearest = np.abs(consensus - wanted[:, None]).argmin(-1)
    return np.take_along_axis(samples, nearest[None, :, None], axis=-1)[..., 0]


# ----- the measures: Evidence of one world -> a number ---------------------------------------------
def accuracy_spread(evidence):
    """In distribution, reward models hardly differ."""
    return evidence.accuracy.std()


def bon_self_vs_same(evidence):
    """A pick is the highest of a model's own rewards, so on the pick itself its reward is above the others'
    by construction. Here it picks from half of the samples, and is compared on the sample of the other half
    that is most like the pick: nearest in traits, each in units of its standard deviation."""
    half = evidence.gold.shape[1] // 2
    traits = np.stack([trait / (trait.std() + 1e-9) for trait in evidence.traits.values()], axis=-1)
    picks = best_of_n(evidence.scores[:, :, :half])  # (M, posts)
    picked = np.take_along_axis(traits[None], picks[..., None, None], axis=2)  # (M, posts, 1, traits)
    nearest = half + np.linalg.norm(traits[:, half:] - picked, axis=-1).argmin(-1)
    itself, same, _ = pair_means(rewards_of_picks(evidence.scores, nearest), evidence.F)
    return itself - same


def bon_same_vs_other(evidence):
    """What others of its pretraining, and models of other pretrainings, say of a model's own picks."""
    _, same, other = pair_means(rewards_of_picks(evidence.scores, best_of_n(evidence.scores)), evidence.F)
    return same - other


def fall_in_rank_correlation(evidence, kind):
    """From SFT's samples to texts of PPO on a kind, mean over its runs: (M, M). PPO's texts are more alike,
    and a narrow range lowers any correlation: so on SFT's side stand samples of the `same_spread`."""
    texts = [run["scores"] for run in evidence.runs_of(kind)]
    falls = [rank_correlation(same_spread(evidence.scores, x)) - rank_correlation(x) for x in texts]
    return np.mean(falls, axis=0)


def rank_corr_shift(evidence):
    """The fall, mean over all pairs of models, for PPO on one reward model."""
    fall = fall_in_rank_correlation(evidence, "single")
    return fall[~np.eye(len(fall), dtype=bool)].mean()


def rank_corr_pretrain(evidence):
    """How much the lead of pairs within a pretraining over pairs between pretrainings grows."""
    fall = fall_in_rank_correlation(evidence, "pretrain")
    _, same, other = pair_means(fall, evidence.F)
    return other - same


def gain(evidence, name, policy, other):
    """The mean of gold or a trait over one policy's texts, minus another's; see Evidence.mean."""
    return evidence.mean(name, *policy) - evidence.mean(name, *other)


def unearned(evidence, method, kind):
    """The rise from SFT of the reward that a policy is aligned to, minus the jury's."""
    if method == PPO:  # of the very members that it is aligned to: there are fewer runs than ensembles
        start = np.mean([evidence.aggregate(evidence.scores[r["members"]]) for r in evidence.runs_of(kind)])
    else:
        start = evidence.proxies(kind).mean()
    jury = evidence.mean("jury", method, kind) - evidence.mean("jury", SFT)
    return evidence.mean("proxy", method, kind) - start - jury


def past_the_peak(evidence, kind):
    """Gold of the best of PEAK by a kind, minus of the largest n; NaN if there are too few samples to say."""
    largest = evidence.gold.shape[1]
    peak, end = evidence.mean_of_best(kind, evidence.gold, [min(PEAK, largest), largest])
    return peak - end if largest > PEAK else np.nan


def smooth(curve):
    """A curve's mean over five updates, (updates,) -> (updates - 4,)."""
    window = min(5, len(curve))
    return np.convolve(curve, np.ones(window) / window, "valid")


def at_kl(run, kl, name="gold"):
    """Gold or proxy along a run where its KL first reaches `kl`, both smoothed."""
    return np.interp(kl, np.maximum.accumulate(smooth(run["curve"]["kl"])), smooth(run["curve"][name]))


def mean_gain_at_equal_kl(runs, others, name="gold"):
    """Gold (or proxy) of some runs minus that of others, run by run, each pair at the KL that the nearer one
    ends at."""
    gains = []
    for run, other in zip(runs, others, strict=True):
        kl = min(np.mean(r["curve"]["kl"][-5:]) for r in (run, other))
        gains.append(at_kl(run, kl, name) - at_kl(other, kl, name))
    return np.mean(gains)


def gain_at_equal_kl(evidence, better, worse):
    """Gold of PPO at the smallest KL weight, run by run where both have gone equally far: at the KL that the
    nearer of the two ends at."""
    return mean_gain_at_equal_kl(evidence.runs_of(better), evidence.runs_of(worse))


def list_hides_errors(evidence):
    """What a wrong number and a wrong object cost in a sentence, minus in a list; mean over the models."""
    pay = {edit: change["models"].mean() for edit, change in evidence.edits.items()}
    wrongs = ("wrong number", "wrong object")
    return np.mean([pay[f"list, {wrong}"] - pay["list"] - pay[wrong] for wrong in wrongs])


# ----- the claims ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """One number of a world, and on which side of 0 it should be."""

    id: str
    statement: str
    measure: Callable  # measure(evidence, *arguments) -> number
    arguments: tuple
    signs: dict  # {task: the side of 0 where it should be, 1 or -1; 0: described, not tested}
    paper: tuple = ()  # the tasks for which the paper makes it; for the others it is ours


PAIRWISE = ("tldr", "helpful")  # the paper's tables of overoptimisation and of ensembles are of these two
EVERY_TASK = {"tldr": 1, "helpful": 1, "nli": 1}


def claims_of_kind(kind, suffix):
    """Overoptimisation of one reward model, or of ensembles."""
    name = "one reward model" if kind == "single" else f"{kind} ensembles"
    paper = PAIRWISE if kind == "single" else ()
    for id, method in (("bon", BEST), ("rl", PPO)):
        words = f"Rise of its own reward minus the jury's, {method} {'by' if method == BEST else 'on'} {name}"
        yield Claim(f"overopt_{id}_jury{suffix}", words, unearned, (method, kind), EVERY_TASK, paper)
    words = f"Gold of the best of n by {name}: n = {PEAK}, minus the largest n"
    yield Claim(f"overopt_bon{suffix}", words, past_the_peak, (kind,), EVERY_TASK, paper)
    words = f"Gold of PPO on {name}: the largest KL weight, minus the smallest"
    ends = ("gold", (PPO, kind, max), (PPO, kind))
    yield Claim(f"overopt_rl{suffix}", words, gain, ends, EVERY_TASK, paper)


def claims_of_ensembles(better, worse):
    """One kind of ensemble against another, or against one reward model."""
    name, words = f"{better}_vs_{worse}", f"{better} minus {worse}"
    for id, method, where in (("bon", BEST, "the best of n"), ("rl", PPO, "PPO at the smallest KL weight")):
        two = ("gold", (method, better), (method, worse))
        yield Claim(f"{id}_{name}", f"Gold of {where}: {words}", gain, two, EVERY_TASK, PAIRWISE)
    words, two = f"Gold of PPO where both are at the same KL: {words}", (better, worse)
    yield Claim(f"rl_{name}_at_kl", words, gain_at_equal_kl, two, EVERY_TASK)


CLAIMS = [
    # Underspecification: alike on the raters' pairs, unlike under alignment.
    Claim("accuracy_spread", "Std of validation accuracy over reward models",
          accuracy_spread, (), dict.fromkeys(EVERY_TASK, 0), tuple(EVERY_TASK)),
    Claim("bon_self_vs_same",
          "Reward of a text that resembles a model's pick: by that model, minus by others of its pretraining",
          bon_self_vs_same, (), EVERY_TASK, PAIRWISE),
    Claim("bon_same_vs_other",
          "Reward of a model's best-of-n pick: by others of its pretraining, minus by other pretrainings",
          bon_same_vs_other, (), EVERY_TASK, PAIRWISE),
    Claim("rank_corr_shift",
          "Rank correlation of reward models: on samples of SFT with equal spread, minus on PPO's texts",
          rank_corr_shift, (), EVERY_TASK, PAIRWISE),
    Claim("rank_corr_pretrain",
          "Rank correlation within minus between pretrainings: on PPO's texts, minus on such samples",
          rank_corr_pretrain, (), EVERY_TASK, PAIRWISE),
    # Overoptimisation.
    *claims_of_kind("single", ""),
    *claims_of_kind("pretrain", "_pretrain"),
    # Ensembles help.
    *claims_of_ensembles("finetune", "single"),
    *claims_of_ensembles("pretrain", "finetune"),
    *claims_of_ensembles("pretrain", "single"),
    # Noticed on the reported worlds of tldr, and so not tested on them.
    Claim("overuse_single_vs_pretrain",
          "How much PPO's texts overuse a favourite fact: on one reward model, minus on pretrain ensembles",
          gain, ("overuse", (PPO, "single"), (PPO, "pretrain")), {"tldr": 0, "helpful": 1, "nli": 1}),
    # What all members share stays.
    Claim("herd_list", "Share of lists: PPO on pretrain ensembles, minus SFT",
          gain, ("list", (PPO, "pretrain"), (SFT,)), {"tldr": 1, "helpful": 1}, ("helpful",)),
    Claim("herd_list_vs_single", "Share of lists: PPO on pretrain ensembles, minus on one reward model",
          gain, ("list", (PPO, "pretrain"), (PPO, "single")), {"tldr": 1, "helpful": 1}),
    Claim("herd_length", "Tokens in a response: PPO on pretrain ensembles, minus SFT",
          gain, ("length", (PPO, "pretrain"), (SFT,)), {"tldr": 1, "nli": -1}, ("tldr", "nli")),
    Claim("herd_numbers", "Share of responses with a number: PPO on pretrain ensembles, minus SFT",
          gain, ("numbers", (PPO, "pretrain"), (SFT,)), {"nli": -1}, ("nli",)),
    Claim("list_hides_errors", "What a wrong fact costs by the reward models, in a sentence minus in a list",
          list_hides_errors, (), {"tldr": 1, "helpful": 1}),
]  # fmt: skip


def measure(evidence, task):
    """{id: number} of a task's claims; NaN where a world is too small to tell, as with one pretraining."""
    found = [claim for claim in CLAIMS if task in claim.signs]
    return {claim.id: float(claim.measure(evidence, *claim.arguments)) for claim in found}


# 97.5 % quantiles of Student's t with 1, 2, 3 ... degrees of freedom; the last serves for more.
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145]
T_975 += [2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048]


def interval(numbers):
    """Mean and 95 % t-interval of one number per world: interval([1, 2, 3]) is (2, -0.48, 4.48)."""
    n, mean = len(numbers), float(np.mean(numbers))
    if n < 2:
        return mean, -np.inf, np.inf
    half = T_975[min(n - 2, len(T_975) - 1)] * float(np.std(numbers, ddof=1)) / n**0.5
    return mean, mean - half, mean + half


def verdict(numbers, sign):
    """Is the interval on the claim's side of 0 ("reproduced"), on the other ("opposite")? "": < 3 worlds."""
    if sign == 0:
        return "described"
    if len(numbers) < 3:
        return ""
    _, low, high = interval(numbers)
    if low <= 0 <= high:
        return "inconclusive"
    return "reproduced" if (low > 0) == (sign > 0) else "opposite"


def is_fragile(numbers, sign):
    """Would the verdict "reproduced" be lost if any one of the worlds were left out?"""
    without = [numbers[:i] + numbers[i + 1 :] for i in range(len(numbers))]
    return verdict(numbers, sign) == "reproduced" and any(verdict(x, sign) != "reproduced" for x in without)


def claims_table(records):
    """The rows of a task, from its records, one per world: dicts of id, sign, paper, numbers, agree (in how
    many worlds the number has the claim's sign), verdict, fragile."""
    rows, task = [], records[0]["task"]
    for claim in CLAIMS:
        numbers = [r["claims"][claim.id] for r in records if r["claims"].get(claim.id) is not None]
        if numbers:
            sign = claim.signs[task]
            row = {"id": claim.id, "sign": sign, "paper": task in claim.paper, "numbers": numbers}
            row |= {"agree": sum(number * sign > 0 for number in numbers)}
            rows.append(row | {"verdict": verdict(numbers, sign), "fragile": is_fragile(numbers, sign)})
    return rows


# ----- what tables and figures show ---------------------------------------------------------------
def correlation_with_gold(evidence):
    """On SFT's samples: of one reward model (mean), and of the mean of all."""
    scores, gold = evidence.scores.reshape(len(evidence.scores), -1), evidence.gold.ravel()
    one = np.mean([np.corrcoef(x, gold)[0, 1] for x in scores])
    return {"one": one, "all": np.corrcoef(scores.mean(0), gold)[0, 1]}


def ranked_as_gold(scores, gold):
    """Share of pairs that each model orders as gold does: (M, posts, n), (posts, n) -> (M,). A pair: a post's
    first and second response, its third and fourth, ...; those of equal gold do not count."""
    n = gold.shape[-1] // 2 * 2
    difference, truth = (x[..., 1:n:2] - x[..., 0:n:2] for x in (scores, gold))
    return (difference * truth > 0)[:, truth != 0].mean(-1)


def ranked_on_ppo(evidence):
    """`ranked_as_gold` on what PPO's runs at the smallest KL weight answer to a post: of each kind, the first
    and the second run are a pair, the third and the fourth, ...; NaN if there is only one."""
    found = [evidence.runs_of(kind) for kind in KINDS]
    runs = [run for of_kind in found for run in of_kind[: len(of_kind) // 2 * 2]]
    if not runs:
        return np.full(len(evidence.scores), np.nan)
    scores, gold = (np.stack([run[name] for run in runs], axis=-1) for name in ("scores", "gold"))
    return ranked_as_gold(scores, gold)


def powers(N):
    """The n that curves show: powers(N=12) -> [1, 2, 4, 8, 12]."""
    return [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < N] + [N]


def best_of_n_curves(evidence):
    """For every n and kind, means over the best of n: {"n": [...], kind: {quantity: [...]}}. The quantities:
    gold; proxy, the reward that picks; jury; same, the reward by other models of the members' pretrainings
    (finetune ensembles leave none)."""
    ns = powers(evidence.gold.shape[1])
    curves = {"n": ns}
    for kind in KINDS:
        values = {"gold": evidence.gold, "proxy": evidence.proxies(kind), "jury": evidence.jury.mean(0)}
        relatives = [evidence.relatives(members) for members in evidence.ensembles(kind)]
        if all(relatives):
            values["same"] = np.array([evidence.scores[models].mean(0) for models in relatives])
        curves[kind] = {name: evidence.mean_of_best(kind, x, ns).tolist() for name, x in values.items()}
    return curves


def summary_of(evidence, run):
    """What a record keeps of a PPO run: its curve, and at its end means over the posts, of the quantities of
    `best_of_n_curves`."""
    names = ("kind", "run", "kl_weight", "members", "kl", "curve", "favourite", "overuse")
    kept = {name: run[name] for name in names}
    kept |= {name: run[name].mean() for name in ("proxy", "gold", "jury")}
    relatives = evidence.relatives(run["members"])
    return kept | ({"same": run["scores"][relatives].mean()} if relatives else {})


def trait_table(evidence):
    """Mean traits and gold of each policy: {policy: {trait: mean}}, PPO's at the smallest KL weight."""
    names, policies = ["gold", *evidence.traits], {SFT: (SFT,)}
    policies |= {f"{method}, {kind}": (method, kind) for method in (BEST, PPO) for kind in KINDS}
    return {policy: {name: evidence.mean(name, *how) for name in names} for policy, how in policies.items()}
