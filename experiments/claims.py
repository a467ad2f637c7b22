"""From a world's arrays to numbers: the paper's claims, one number each, and what tables and figures show.

A world (a seed) is an independent replicate of everything: posts, pretrainings, SFT, preferences, reward
models, samples, PPO. Nothing is pooled, so a claim's interval over worlds is the textbook's, Student's t.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bon import best_of_n, bon_kl, expected_best_of_n
from ensemble import finetune_ensembles, pretrain_ensembles

# What a policy is aligned to: its key in records, and its name in tables and figures.
KINDS = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}
PEAK = 32  # the n at which gold of the best of n by one reward model was highest on the development seeds


@dataclass
class Evidence:
    """The arrays of one world and task. P pretraining seeds, F finetuning seeds, M = P * F reward models; a
    jury of J reward models of a further pretraining, which nothing is aligned to."""

    accuracy: np.ndarray  # (P, F), on validation pairs
    scores: np.ndarray  # (P, F, posts, n), the reward models' rewards of the SFT policy's samples
    jury: np.ndarray  # (J, posts, n), the jury's
    gold: np.ndarray  # (posts, n), the true reward of the samples
    traits: dict  # name -> (posts, n), of the samples
    edits: dict  # name -> what an edit of a perfect summary changes: {"models": (M,), "gold": number}
    ranking: dict  # kind of text -> (M,), share of pairs that each model orders as gold does
    aggregate: Callable  # (members, ...) -> (...)
    runs: list = field(
        default_factory=list
    )  # PPO runs: dicts of kind, run, kl_weight, curve, members, and, by
    # post, gold (posts,), proxy (posts,), scores (M, posts), jury (J, posts), traits {name: (posts,)}

    @property
    def flat(self):
        """The scores with one axis of reward models, ordered by pretraining: (M, posts, n)."""
        return self.scores.reshape(-1, *self.gold.shape)

    def ensembles(self, kind):
        """The members of every ensemble of a kind, as indices of reward models."""
        P, F = self.scores.shape[:2]
        grid = np.arange(P * F).reshape(P, F).tolist()
        singles = [[member] for row in grid for member in row]
        return {
            "single": singles,
            "finetune": finetune_ensembles(grid),
            "pretrain": pretrain_ensembles(grid),
        }[kind]

    def proxies(self, kind):
        """The aggregated rewards of every ensemble of a kind: (ensembles, posts, n)."""
        return np.array([self.aggregate(self.flat[members]) for members in self.ensembles(kind)])

    def relatives(self, members):
        """The reward models that share a pretraining with a member, but are none."""
        F = self.scores.shape[1]
        pretrainings = {member // F for member in members}
        return [m for m in range(len(self.flat)) if m // F in pretrainings and m not in members]

    def best_of_n(self, kind, values, ns):
        """Mean of `values`, (posts, n) or (ensembles, posts, n), of the best of n by a kind: (len(ns),)."""
        return expected_best_of_n(self.proxies(kind), values, ns).mean((0, 1))

    def runs_of(self, kind, which=min):
        """The PPO runs of a kind at the smallest KL weight (which=max: at the largest)."""
        kl_weight = which(run["kl_weight"] for run in self.runs)
        return [run for run in self.runs if (run["kind"], run["kl_weight"]) == (kind, kl_weight)]

    def mean(self, name, method, kind=None, which=min):
        """Mean of gold, the jury's reward, the proxy or a trait over a policy's texts. Methods: "SFT",
        "best of n" (largest n), "PPO"."""
        if method == "PPO":
            return np.mean([(run | run["traits"])[name].mean() for run in self.runs_of(kind, which)])
        values = {"gold": self.gold, "jury": self.jury.mean(0), **self.traits}  # (posts, n)
        if method == "SFT":
            return (self.proxies(kind) if name == "proxy" else values[name]).mean()
        values = self.proxies(kind) if name == "proxy" else values[name]
        return self.best_of_n(kind, values, [self.gold.shape[1]])[0]


def pair_means(matrix, F):
    """Means of an (M, M) matrix over pairs of reward models: each with itself, with the others of its
    pretraining, with those of other pretrainings: [self, same, other]. Ordered by pretraining, F of each."""
    itself = np.eye(len(matrix), dtype=bool)
    pretraining = np.arange(len(matrix)) // F
    alike = pretraining[:, None] == pretraining
    return [matrix[pairs].mean() if pairs.any() else np.nan for pairs in (itself, alike & ~itself, ~alike)]


def rank_correlation(scores):
    """Spearman's correlation of every two reward models, over texts: (M, texts) -> (M, M)."""
    return np.corrcoef(scores.argsort(-1).argsort(-1))


def judged(scores, picks):
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
def bon_self_vs_same(evidence):
    """A pick is the highest of a model's own rewards, so on the pick itself its reward is above the others'
    by construction. Here it picks from half of the samples, and is compared on the sample of the other half
    that is most like the pick: nearest in traits, each in units of its standard deviation."""
    half = evidence.gold.shape[1] // 2
    traits = np.stack([trait / (trait.std() + 1e-9) for trait in evidence.traits.values()], axis=-1)
    picks = best_of_n(evidence.flat[:, :, :half])  # (M, posts)
    picked = np.take_along_axis(traits[None], picks[..., None, None], axis=2)  # (M, posts, 1, traits)
    nearest = half + np.linalg.norm(traits[:, half:] - picked, axis=-1).argmin(-1)
    itself, same, _ = pair_means(judged(evidence.flat, nearest), evidence.scores.shape[1])
    return itself - same


def bon_same_vs_other(evidence):
    """What others of its pretraining, and models of other pretrainings, say of a model's own picks."""
    _, same, other = pair_means(judged(evidence.flat, best_of_n(evidence.flat)), evidence.scores.shape[1])
    return same - other


def rank_correlations(evidence, run):
    """[self, same, other] of `pair_means`, on SFT's samples and on a run's texts. PPO's texts are more alike,
    and a narrow range lowers any correlation: so on SFT's side stand samples of the `same_spread`."""
    on_sft = rank_correlation(same_spread(evidence.flat, run["scores"]))
    return [
        pair_means(matrix, evidence.scores.shape[1]) for matrix in (on_sft, rank_correlation(run["scores"]))
    ]


def rank_corr_shift(evidence):
    """The fall, mean over all pairs of models, for PPO on one reward model."""
    falls = []
    for run in evidence.runs_of("single"):
        on_sft = rank_correlation(same_spread(evidence.flat, run["scores"]))
        fall = on_sft - rank_correlation(run["scores"])
        falls.append(fall[~np.eye(len(fall), dtype=bool)].mean())
    return np.mean(falls)


def rank_corr_pretrain(evidence):
    """How much the lead of pairs within a pretraining over pairs between pretrainings grows."""
    growths = []
    for run in evidence.runs_of("pretrain"):
        (_, same, other), (_, ppo_same, ppo_other) = rank_correlations(evidence, run)
        growths.append((ppo_same - ppo_other) - (same - other))
    return np.mean(growths)


def unearned(method, kind):
    """Measure: the rise from SFT of the reward that a policy is aligned to, minus the jury's."""

    def measure(evidence):
        rise = {
            name: evidence.mean(name, method, kind) - evidence.mean(name, "SFT", kind)
            for name in ("proxy", "jury")
        }
        return rise["proxy"] - rise["jury"]

    return measure


def past_the_peak(kind):
    """Measure: gold of the best of PEAK by a kind, minus of the largest n."""

    def measure(evidence):
        largest = evidence.gold.shape[1]
        if largest <= PEAK:
            return np.nan  # too few samples to say
        peak, end = evidence.best_of_n(kind, evidence.gold, [PEAK, largest])
        return peak - end

    return measure


def pressed_too_far(kind):
    """Measure: gold of PPO on a kind at the largest KL weight, minus at the smallest."""
    return lambda evidence: evidence.mean("gold", "PPO", kind, max) - evidence.mean("gold", "PPO", kind)


def gain(name, policy, other):
    """Measure: the mean of gold or a trait over one policy's texts, minus another's; see Evidence.mean."""
    return lambda evidence: evidence.mean(name, *policy) - evidence.mean(name, *other)


def at_kl(run, kl):
    """Gold along a run where its KL first reaches `kl`, both smoothed over five updates."""
    window = np.full(min(5, len(run["curve"]["kl"])), 1.0)
    smooth = {
        name: np.convolve(run["curve"][name], window / window.sum(), "valid") for name in ("kl", "gold")
    }
    return np.interp(kl, np.maximum.accumulate(smooth["kl"]), smooth["gold"])


def gain_at_equal_kl(better, worse):
    """Measure: gold of PPO at the smallest KL weight, run by run where both have gone equally far: at the KL
    that the nearer of the two ends at."""

    def measure(evidence):
        gains = []
        for run, other in zip(evidence.runs_of(better), evidence.runs_of(worse), strict=True):
            kl = min(np.mean(r["curve"]["kl"][-5:]) for r in (run, other))
            gains.append(at_kl(run, kl) - at_kl(other, kl))
        return np.mean(gains)

    return measure


def list_hides_errors(evidence):
    """What a wrong number and a wrong object cost in a sentence, minus in a list; mean over the models."""
    pay, costs = {edit: change["models"] for edit, change in evidence.edits.items()}, {}
    for fact in ("number", "object"):
        costs[fact] = pay[f"list, wrong {fact}"] - pay["list"] - pay[f"wrong {fact}"]
    return np.mean(list(costs.values()))


# ----- the claims ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """One number of a world, and on which side of 0 it should be."""

    id: str
    statement: str
    measure: Callable  # Evidence -> number
    signs: dict  # {task: 1 or -1; 0: described, not tested}, without the tasks that it is not made for
    paper: tuple = ()  # the tasks for which the paper makes it; for the others it is ours


PAIRWISE = ("tldr", "helpful")  # the paper's tables of overoptimisation and of ensembles are of these two
EVERY_TASK = {"tldr": 1, "helpful": 1, "nli": 1}
BEST, SFT, PPO = "best of n", "SFT", "PPO"


def claims_of_kind(kind, suffix):
    """Overoptimisation of one reward model, or of ensembles."""
    name, paper = KINDS[kind], PAIRWISE if kind == "single" else ()
    for id, method in (("bon", BEST), ("rl", PPO)):
        words = f"Rise of its own reward minus the jury's, {method} by {name}"
        yield Claim(f"overopt_{id}_jury{suffix}", words, unearned(method, kind), EVERY_TASK, paper)
    words = f"Gold of the best of n by {name}: n = {PEAK}, minus the largest n"
    yield Claim(f"overopt_bon{suffix}", words, past_the_peak(kind), EVERY_TASK, paper)
    words = f"Gold of PPO on {name}: the largest KL weight, minus the smallest"
    yield Claim(f"overopt_rl{suffix}", words, pressed_too_far(kind), EVERY_TASK, paper)


def claims_of_ensembles(better, worse):
    """One kind of ensemble against another, or against one reward model."""
    name, words = f"{better}_vs_{worse}", f"{better} minus {worse}"
    best, ppo = (gain("gold", (method, better), (method, worse)) for method in (BEST, PPO))
    yield Claim(f"bon_{name}", f"Gold of the best of n: {words}", best, EVERY_TASK, PAIRWISE)
    yield Claim(f"rl_{name}", f"Gold of PPO at the smallest KL weight: {words}", ppo, EVERY_TASK, PAIRWISE)
    equal = gain_at_equal_kl(better, worse)
    yield Claim(f"rl_{name}_at_kl", f"Gold of PPO where both are at the same KL: {words}", equal, EVERY_TASK)


CLAIMS = [
    # Underspecification: alike on the raters' pairs, unlike under alignment.
    Claim("accuracy_spread", "Std of validation accuracy over reward models",
          lambda evidence: evidence.accuracy.std(), dict.fromkeys(EVERY_TASK, 0), tuple(EVERY_TASK)),
    Claim("bon_self_vs_same",
          "Reward of a text that resembles a model's pick: by that model, minus by others of its pretraining",
          bon_self_vs_same, EVERY_TASK, tuple(EVERY_TASK)),
    Claim("bon_same_vs_other",
          "Reward of a model's best-of-n pick: by others of its pretraining, minus by other pretrainings",
          bon_same_vs_other, EVERY_TASK, tuple(EVERY_TASK)),
    Claim("rank_corr_shift",
          "Rank correlation of reward models: on SFT's samples, minus on texts of PPO on one of them",
          rank_corr_shift, EVERY_TASK, PAIRWISE),
    Claim("rank_corr_pretrain",
          "Rank correlation within minus between pretrainings: on PPO's texts, minus on SFT's samples",
          rank_corr_pretrain, EVERY_TASK, PAIRWISE),
    # Overoptimisation.
    *claims_of_kind("single", ""),
    *claims_of_kind("pretrain", "_pretrain"),
    # Ensembles help.
    *claims_of_ensembles("finetune", "single"),
    *claims_of_ensembles("pretrain", "finetune"),
    *claims_of_ensembles("pretrain", "single"),
    # What all members share stays.
    Claim("herd_list", "Share of lists: PPO on pretrain ensembles, minus SFT",
          gain("list", (PPO, "pretrain"), (SFT,)), {"tldr": 1, "helpful": 1}, ("helpful",)),
    Claim("herd_list_vs_single", "Share of lists: PPO on pretrain ensembles, minus on one reward model",
          gain("list", (PPO, "pretrain"), (PPO, "single")), {"tldr": 1, "helpful": 1}),
    Claim("herd_length", "Tokens in a response: PPO on pretrain ensembles, minus SFT",
          gain("length", (PPO, "pretrain"), (SFT,)), {"tldr": 1, "nli": -1}, ("tldr", "nli")),
    Claim("herd_numbers", "Share of responses with a number: PPO on pretrain ensembles, minus SFT",
          gain("numbers", (PPO, "pretrain"), (SFT,)), {"nli": -1}, ("nli",)),
    Claim("list_hides_errors", "What a wrong fact costs by the reward models, in a sentence minus in a list",
          list_hides_errors, {"tldr": 1, "helpful": 1}),
]  # fmt: skip


def measure(evidence, task):
    """{id: number} of a task's claims; None where a world is too small to say (one pretraining)."""
    numbers = {claim.id: float(claim.measure(evidence)) for claim in CLAIMS if task in claim.signs}
    return {id: number if np.isfinite(number) else None for id, number in numbers.items()}


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
    """The rows of a task, from its records, one per world: dicts of id, statement, paper, sign, numbers,
    mean, low, high, median, agree (in how many worlds the number has the claim's sign), verdict, fragile."""
    rows, task = [], records[0]["task"]
    for claim in CLAIMS:
        numbers = [r["claims"][claim.id] for r in records if r["claims"].get(claim.id) is not None]
        if numbers:
            sign, (mean, low, high) = claim.signs[task], interval(numbers)
            rows.append({
                "id": claim.id, "statement": claim.statement, "paper": task in claim.paper, "sign": sign,
                "numbers": numbers, "mean": mean, "low": low, "high": high,
                "median": float(np.median(numbers)),
                "agree": sum(number * sign > 0 for number in numbers),
                "verdict": verdict(numbers, sign), "fragile": is_fragile(numbers, sign),
            })  # fmt: skip
    return rows


# ----- what tables and figures show ---------------------------------------------------------------
def correlation_with_gold(evidence):
    """On SFT's samples: of one reward model (mean), and of the mean of all."""
    scores, gold = evidence.flat.reshape(len(evidence.flat), -1), evidence.gold.ravel()
    one = np.mean([np.corrcoef(x, gold)[0, 1] for x in scores])
    return {"one": one, "all": np.corrcoef(scores.mean(0), gold)[0, 1]}


def ranked_as_gold(scores, gold):
    """Share of pairs that each model orders as gold does: (M, posts, n), (posts, n) -> (M,). A pair: a post's
    first and second response, its third and fourth, ...; those of equal gold do not count."""
    n = gold.shape[-1] // 2 * 2
    difference, truth = (x[..., 1:n:2] - x[..., 0:n:2] for x in (scores, gold))
    return (difference * truth > 0)[:, truth != 0].mean(-1)


def ranked_on_ppo(evidence):
    """`ranked_as_gold` on what PPO's runs at the smallest KL weight answer to a post: the first and the
    second run are a pair, the third and the fourth, ...; with an even number of runs, both are of one kind."""
    runs = [run for kind in KINDS for run in evidence.runs_of(kind)]
    scores, gold = (np.stack([run[name] for run in runs], axis=-1) for name in ("scores", "gold"))
    return ranked_as_gold(scores, gold)


def best_of_n_curves(evidence):
    """For every n, of the best of n by a kind: {"n": [...], "kl": [...], kind: {quantity: [...]}}. They are
    gold; proxy, the reward that picks; jury; and same, by models of its pretrainings that are no members
    (finetune ensembles have none)."""
    N = evidence.gold.shape[1]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < N] + [N]
    curves = {"n": ns, "kl": [bon_kl(n) for n in ns]}
    for kind in KINDS:
        values = {"gold": evidence.gold, "proxy": evidence.proxies(kind), "jury": evidence.jury.mean(0)}
        relatives = [evidence.relatives(members) for members in evidence.ensembles(kind)]
        if all(relatives):
            values["same"] = np.array([evidence.flat[models].mean(0) for models in relatives])
        curves[kind] = {name: evidence.best_of_n(kind, x, ns).tolist() for name, x in values.items()}
    return curves


def summary_of(evidence, run):
    """What a record keeps of a PPO run: its curve, and at its end means over the posts, of the quantities of
    `best_of_n_curves`."""
    kept = {name: run[name] for name in ("kind", "run", "kl_weight", "members", "kl", "curve")}
    kept |= {name: run[name].mean() for name in ("proxy", "gold", "jury")}
    relatives = evidence.relatives(run["members"])
    return kept | ({"same": run["scores"][relatives].mean()} if relatives else {})


def trait_table(evidence):
    """Mean traits and gold of each policy: {policy: {trait: mean}}, PPO's at the smallest KL weight."""
    names, policies = ["gold", *evidence.traits], {"SFT": ("SFT",)}
    policies |= {f"{method}, {kind}": (method, kind) for method in ("best of n", "PPO") for kind in KINDS}
    return {policy: {name: evidence.mean(name, *how) for name in names} for policy, how in policies.items()}
