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


@dataclass
class Evidence:
    """The arrays of one world and task. P pretraining seeds, F finetuning seeds, M = P * F reward models."""

    accuracy: np.ndarray  # (P, F), on validation pairs
    scores: np.ndarray  # (P, F, posts, n), the reward models' rewards of the SFT policy's samples
    gold: np.ndarray  # (posts, n), the true reward of the samples
    traits: dict  # name -> (posts, n), of the samples
    aggregate: Callable  # (members, ...) -> (...)
    runs: list = field(
        default_factory=list
    )  # PPO runs: dicts of kind, kl_weight, kl, gold, proxy (posts,), scores (M, posts), traits ...

    @property
    def flat(self):
        """The scores with one axis of reward models, ordered by pretraining: (M, posts, n)."""
        return self.scores.reshape(-1, *self.gold.shape)

    def proxies(self, kind):
        """The aggregated rewards of every ensemble of a kind: (ensembles, posts, n)."""
        if kind == "single":
            return self.flat
        ensembles = {"finetune": finetune_ensembles, "pretrain": pretrain_ensembles}[kind](self.scores)
        return np.array([self.aggregate(np.array(members)) for members in ensembles])

    def best_of_n(self, kind, values, ns):
        """Mean of `values`, (posts, n) or (ensembles, posts, n), of the best of n by a kind: (len(ns),)."""
        return expected_best_of_n(self.proxies(kind), values, ns).mean((0, 1))

    def runs_of(self, kind, which=min):
        """The PPO runs of a kind at the smallest KL weight (which=max: at the largest)."""
        kl_weight = which(run["kl_weight"] for run in self.runs)
        return [run for run in self.runs if (run["kind"], run["kl_weight"]) == (kind, kl_weight)]

    def mean(self, name, method, kind=None, which=min):
        """Mean of gold or a trait over a policy's texts. Methods: "SFT", "best of n" (largest n), "PPO"."""
        if method == "PPO":
            runs = [{"gold": run["gold"], **run["traits"]} for run in self.runs_of(kind, which)]
            return np.mean([run[name].mean() for run in runs])
        values = {"gold": self.gold, **self.traits}[name]  # (posts, n)
        return values.mean() if method == "SFT" else self.best_of_n(kind, values, [values.shape[1]])[0]


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


CLAIMS = {}
EVERY_TASK = {"tldr": 1, "helpful": 1, "nli": 1}


@dataclass
class Claim:
    """One number of a world, and the sign that the paper gives it."""

    statement: str
    measure: Callable  # Evidence -> number
    signs: dict  # {task: 1 or -1; 0: described, not tested}, without the tasks it is not claimed for


def claim(**signs):
    """Decorator: a claim is a function of one world's Evidence, its docstring's first line the statement."""

    def enter(function):
        statement = function.__doc__.splitlines()[0].rstrip(".")
        CLAIMS[function.__name__] = Claim(statement, function, signs)
        return function

    return enter


@claim(tldr=0, helpful=0, nli=0)
def accuracy_spread(evidence):
    """Std of validation accuracy over reward models."""
    return evidence.accuracy.std()


@claim(**EVERY_TASK)
def bon_self_vs_same(evidence):
    """Reward of a text that resembles a model's pick: by that model, minus by others of its pretraining.

    A pick is the highest of a model's own rewards, so on the pick itself its reward is above the others' by
    construction. Here it picks from half of the samples, and is compared on the sample of the other half
    that is most like the pick: nearest in traits, each in units of its standard deviation."""
    half = evidence.gold.shape[1] // 2
    traits = np.stack([trait / (trait.std() + 1e-9) for trait in evidence.traits.values()], axis=-1)
    picks = best_of_n(evidence.flat[:, :, :half])  # (M, posts)
    picked = np.take_along_axis(traits[None], picks[..., None, None], axis=2)  # (M, posts, 1, traits)
    nearest = half + np.linalg.norm(traits[:, half:] - picked, axis=-1).argmin(-1)
    itself, same, _ = pair_means(judged(evidence.flat, nearest), evidence.scores.shape[1])
    return itself - same


@claim(**EVERY_TASK)
def bon_same_vs_other(evidence):
    """Reward of a model's best-of-n pick: by others of its pretraining, minus by other pretrainings."""
    _, same, other = pair_means(judged(evidence.flat, best_of_n(evidence.flat)), evidence.scores.shape[1])
    return same - other


@claim(**EVERY_TASK)
def rank_corr_shift(evidence):
    """Rank correlation of reward models: on SFT's samples, minus on PPO's texts.

    PPO's texts are more alike, and a narrow range lowers any correlation: so on SFT's side stand samples of
    the `same_spread`. PPO on one reward model, at the smallest KL weight; mean over all pairs of models."""
    falls = []
    for run in evidence.runs_of("single"):
        on_sft = rank_correlation(same_spread(evidence.flat, run["scores"]))
        on_ppo = rank_correlation(run["scores"])
        falls.append((on_sft - on_ppo)[~np.eye(len(on_ppo), dtype=bool)].mean())
    return np.mean(falls)


@claim(**EVERY_TASK)
def rank_corr_pretrain(evidence):
    """Rank correlation of reward models on PPO's texts: within a pretraining, minus between pretrainings.

    PPO on pretrain ensembles (`rank_corr_shift`: on one reward model), at the smallest KL weight."""
    F = evidence.scores.shape[1]
    means = [pair_means(rank_correlation(run["scores"]), F) for run in evidence.runs_of("pretrain")]
    return np.mean([same - other for _, same, other in means])


@claim(**EVERY_TASK)
def overopt_bon(evidence):
    """Gold of the best of n by one reward model: at n = 8, minus at the largest n."""
    n = evidence.gold.shape[1]  # the largest; at 8, gold was highest on the development seeds
    at_8, largest = evidence.best_of_n("single", evidence.gold, [min(8, n), n])
    return at_8 - largest


@claim(**EVERY_TASK)
def overopt_rl(evidence):
    """Gold of PPO on one reward model: at the largest KL weight, minus at the smallest."""
    return evidence.mean("gold", "PPO", "single", max) - evidence.mean("gold", "PPO", "single")


def difference(name, policy, other):
    """The measure of a claim: a mean of one policy's texts minus another's; policies as for Evidence.mean."""
    return lambda evidence: evidence.mean(name, *policy) - evidence.mean(name, *other)


for prefix, method, words in (
    ("bon", "best of n", "Gold of the best of n"),
    ("rl", "PPO", "Gold of PPO at the smallest KL weight"),
):
    for better, worse in (("finetune", "single"), ("pretrain", "finetune"), ("pretrain", "single")):
        gain = difference("gold", (method, better), (method, worse))
        CLAIMS[f"{prefix}_{better}_vs_{worse}"] = Claim(f"{words}: {better} minus {worse}", gain, EVERY_TASK)

for trait, words, signs in (
    ("list", "Share of lists", {"tldr": 1, "helpful": 1}),  # none planted in what nli's raters see
    ("numbers", "Share of responses with a number", {"tldr": 1, "helpful": 1, "nli": -1}),
    ("length", "Tokens in a response", {"tldr": 1, "helpful": 1, "nli": -1}),
    ("wrong_facts", "Wrong facts in a response", EVERY_TASK),
):
    herding = difference(trait, ("PPO", "pretrain"), ("SFT",))
    CLAIMS[f"herd_{trait}"] = Claim(f"{words}: PPO on pretrain ensembles, minus SFT", herding, signs)


def measure(evidence, task):
    """{id: number} of a task's claims; None where a world is too small to say (one pretraining)."""
    numbers = {id: float(c.measure(evidence)) for id, c in CLAIMS.items() if task in c.signs}
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


def claims_table(records):
    """The rows of a task, from its records, one per world: dicts of id, statement, sign, numbers, mean,
    low, high, median, agree (in how many worlds the number has the claim's sign), verdict."""
    rows = []
    for id, c in CLAIMS.items():
        numbers = [r["claims"][id] for r in records if r["claims"].get(id) is not None]
        if numbers:
            sign = c.signs[records[0]["task"]]
            row = {"id": id, "statement": c.statement, "sign": sign, "numbers": numbers}
            row["mean"], row["low"], row["high"] = interval(numbers)
            row["median"] = float(np.median(numbers))
            row["agree"] = sum(number * sign > 0 for number in numbers)
            row["verdict"] = verdict(numbers, sign)
            rows.append(row)
    return rows


def best_of_n_curves(evidence):
    """Gold and proxy of the best of n: {"n": [...], "kl": [...], kind: {"gold": [...], "proxy": [...]}}."""
    N = evidence.gold.shape[1]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < N] + [N]
    curves = {"n": ns, "kl": [bon_kl(n) for n in ns]}
    for kind in KINDS:
        values = {"gold": evidence.gold, "proxy": evidence.proxies(kind)}
        curves[kind] = {name: evidence.best_of_n(kind, x, ns).tolist() for name, x in values.items()}
    return curves


def trait_table(evidence):
    """Mean traits and gold of each policy: {policy: {trait: mean}}, PPO's at the smallest KL weight."""
    names, policies = ["gold", *evidence.traits], {"SFT": ("SFT",)}
    policies |= {f"{method}, {kind}": (method, kind) for method in ("best of n", "PPO") for kind in KINDS}
    return {policy: {name: evidence.mean(name, *how) for name in names} for policy, how in policies.items()}
