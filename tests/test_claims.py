"""The claims: the statistics over worlds, and each claim on evidence that was made by hand."""

from itertools import product
from math import gamma, pi, sqrt

import numpy as np
import pytest

import claims
from bon import best_of_n
from claims import CLAIMS, Evidence, interval, is_fragile, measure, pair_means, verdict
from ensemble import mean

P, F, POSTS, N = 4, 4, 60, 64
MEMBERS = {"single": [[0], [5]], "finetune": [[0, 1, 2, 3], [4, 5, 6, 7]]}
MEMBERS["pretrain"] = [[0, 5, 10, 15], [1, 6, 11, 12]]
EDITS = "wrong number", "wrong object", "list", "list, wrong number", "list, wrong object"
GOLD = {"single": (0.0, 1.0), "finetune": (1.0, 3.0), "pretrain": (3.0, 6.0)}  # smallest, largest KL weight


def evidence(own_trait=0.0, own_noise=0.0, pretraining_noise=0.0, posts=POSTS):
    """Reward models that share the truth, have a noise of their pretraining and one of their own, and like a
    trait of their own by `own_trait`; a jury that is right; two PPO runs of each kind at two KL weights."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(posts, N))
    traits = {f"trait{i}": rng.normal(size=(posts, N)) for i in range(P * F)}
    traits |= {name: rng.random((posts, N)) for name in ("list", "numbers", "length", "wrong_facts")}
    likes = np.reshape([traits[f"trait{i}"] for i in range(P * F)], (P, F, posts, N))
    scores = truth + own_trait * likes + own_noise * rng.normal(size=(P, F, posts, N))
    scores = scores + pretraining_noise * rng.normal(size=(P, 1, posts, N))
    found = Evidence(
        F=F, accuracy=np.full(P * F, 0.6), scores=scores.reshape(-1, posts, N),
        jury=np.stack([truth - 1, truth + 1]), gold=truth, traits=traits,
        edits={edit: {"models": np.zeros(2)} for edit in EDITS}, ranking={},
        aggregator=mean,
    )  # fmt: skip
    for kind, golds in GOLD.items():
        for run, (kl_weight, gold) in product((0, 1), zip((0.02, 0.1), golds, strict=True)):
            found.runs.append({
                "kind": kind, "run": run, "kl_weight": kl_weight, "members": MEMBERS[kind][run], "kl": 9.0,
                "curve": {"kl": np.arange(21.0), "gold": np.arange(21.0)}, "gold": np.full(posts, gold),
                "scores": rng.normal(size=posts) + rng.normal(size=(P * F, posts)),
                "proxy": np.zeros(posts), "jury": np.zeros((2, posts)), "overuse": 1 / (1 + gold),
                "favourite": "",
                "traits": {name: np.full(posts, 2.0) for name in traits},
            })  # fmt: skip
    return found


def test_interval_of_students_own_data():
    """A biased std: the data of Student's paper (1908), hours of sleep gained. A wrong number in the table of
    quantiles: 47.5 % of the density lie between 0 and each."""
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert interval(gained) == pytest.approx((1.58, 0.70, 2.46), abs=0.005)
    assert interval([1.0]) == (1, -np.inf, np.inf)
    for freedom, quantile in enumerate(claims.T_975, start=1):
        x = np.linspace(0, quantile, 20_001)
        scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
        density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        area = ((density[1:] + density[:-1]) / 2).sum() * x[1]
        assert area == pytest.approx(0.475, abs=3e-5), f"{freedom} degrees of freedom"


SURE, LUCKY, MIXED = [1.0, 1.1, 0.9, 1.0, 1.2], [1.0, 1.1, 0.9, 1.0, 3.0], [1.0, -1.0, 0.5, 0.2]


@pytest.mark.parametrize("numbers, sign, expected, fragile", [
    (SURE, 1, "reproduced", False), (SURE, -1, "opposite", False), (SURE, 0, "described", False),
    (MIXED, 1, "inconclusive", False), (SURE[:2], 1, "", False),
    (LUCKY, 1, "reproduced", True),  # without the first world the interval reaches below 0
    (SURE[:3], 1, "reproduced", True),  # two worlds have no verdict
    ([-x for x in SURE], -1, "reproduced", False), ([-x for x in LUCKY], -1, "reproduced", True),
])  # fmt: skip
def test_verdicts(numbers, sign, expected, fragile):
    """A verdict from too few worlds, on the wrong side of zero, or that hangs on one world unmarked."""
    assert (verdict(numbers, sign), is_fragile(numbers, sign)) == (expected, fragile)


def test_table_keeps_every_world():
    """A world is dropped, or one that could not say is zero; a sign is lost; ours is called the paper's."""

    def table(task, id, *numbers):
        return claims.claims_table([{"task": task, "claims": {id: x}} for x in numbers])

    (row,) = table("tldr", "rl_pretrain_vs_single", 0.5, None, 0.7, -0.1)
    assert row["numbers"] == [0.5, 0.7, -0.1]
    assert (row["agree"], row["verdict"]) == (2, "inconclusive")
    assert row["paper"] and not table("nli", "rl_pretrain_vs_single", 1.0)[0]["paper"]
    assert table("nli", "herd_length", -1.0, -2.0, 0.5)[0]["agree"] == 2  # its sign is -1
    assert table("tldr", "rl_pretrain_vs_single", *LUCKY)[0]["fragile"]
    assert table("tldr", "rl_pretrain_vs_single", None) == []


def test_ids_and_signs():
    """Two claims share an id, so that one overwrites the other; or the paper's task has no sign."""
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(set(claim.paper) <= set(claim.signs) for claim in CLAIMS)
    described = [claim.id for claim in CLAIMS if 0 in claim.signs.values()]
    assert described == ["accuracy_spread", "overuse_single_vs_pretrain"]
    assert {"herd_list", "list_hides_errors"}.isdisjoint(measure(evidence(), "nli"))  # nli has no list gap


def test_pairs_of_models():
    """A model is paired with itself, or pretrainings are mixed up: two of two models. Pearson's correlation
    in place of Spearman's: only the order counts."""
    matrix = np.array([[9, 1, 2, 2], [1, 9, 2, 2], [2, 2, 9, 1], [2, 2, 1, 9]])
    assert pair_means(matrix, 2) == [9, 1, 2]
    scores = np.array([[1, 2, 3], [1, 2, 100], [3, 2, 1]])
    assert claims.rank_correlation(scores)[0] == pytest.approx([1, 1, -1])


def test_self_is_not_the_winners_curse():
    """Self against same holds by construction: it must be near zero for models that differ by mere noise.
    Same and other are swapped, or differ where pretrainings do not."""
    noisy = evidence(own_noise=1.0)
    assert abs(claims.bon_self_vs_same(noisy)) < 0.1 and abs(claims.bon_same_vs_other(noisy)) < 0.1
    assert claims.bon_self_vs_same(evidence(own_trait=1.0)) > 0.3
    assert claims.bon_same_vs_other(evidence(pretraining_noise=1.0)) > 0.3
    itself, same, _ = pair_means(claims.rewards_of_picks(noisy.scores, best_of_n(noisy.scores)), F)
    assert itself - same > 1  # the curse: what the pick itself would show


@pytest.mark.parametrize("truth, pretraining, growth", [(1, 1, 0), (0.5, 1, 0), (1, 2, 0.35), (1, 0, -0.35)])
def test_the_lead_of_a_pretraining_grows(truth, pretraining, growth):
    """The lead on SFT's samples passes for a growth, or a narrower range does; a wrong sign, another kind."""
    rng, found = np.random.default_rng(1), evidence(own_noise=1.0, pretraining_noise=1.0, posts=1000)
    for run in found.runs_of("pretrain"):
        alike = pretraining * np.repeat(rng.normal(size=(P, 1000)), F, axis=0)
        run["scores"] = truth * rng.normal(size=1000) + alike + rng.normal(size=(P * F, 1000))
    assert claims.rank_corr_pretrain(found) == pytest.approx(growth, abs=0.06)


@pytest.mark.parametrize("common, noise, low, high", [(0.3, 1.0, -0.07, 0.07), (0.5, 2.0, 0.2, 0.6)])
def test_shift_is_not_a_narrow_range(common, noise, low, high):
    """Texts that are merely more alike lower any correlation: that alone is no shift, but noise is."""
    rng, found = np.random.default_rng(2), evidence(own_noise=1.0, posts=1000)
    for run in found.runs_of("single"):
        run["scores"] = common * rng.normal(size=1000) + noise * rng.normal(size=(P * F, 1000))
    assert low < claims.rank_corr_shift(found) < high


def test_unearned_of_ppo():
    """The sign is flipped, one of the two levels of SFT is forgotten, or another kind's runs are read."""
    found = evidence()
    found.scores, found.jury = found.scores + 10, found.jury - 20
    for run in found.runs_of("pretrain"):
        run["proxy"], run["jury"] = np.full(POSTS, 15.0), np.full((2, POSTS), -18.0)  # rises of 5 and 2
    start = found.gold.mean()
    assert claims.unearned(found, "PPO", "pretrain") == pytest.approx((15 - 10 - start) - (-18 + 20 - start))
    assert claims.unearned(found, "PPO", "single") == pytest.approx(-10 - 20)


def test_unearned_of_best_of_n():
    """A pick's luck is lost: half of its rise, where half the variance is noise; an ensemble has less."""
    noisy, unearned = evidence(own_noise=1.0, posts=500), claims.unearned
    best = np.random.default_rng(0).normal(size=(20_000, N)).max(1).mean()  # 2.4 std above the mean
    assert unearned(noisy, "best of n", "single") == pytest.approx(best * sqrt(2) / 2, abs=0.05)
    assert unearned(noisy, "best of n", "pretrain") == pytest.approx(best * sqrt(1.25) / 5, abs=0.05)
    assert unearned(evidence(), "best of n", "single") == pytest.approx(0)


@pytest.mark.parametrize("kind", claims.KINDS)
@pytest.mark.parametrize("peak, sign", [(1.0, 1), (9.0, -1)])
def test_past_the_peak(kind, peak, sign):
    """A flipped sign: gold that turns down above a proxy of 1 falls from n = 32 to 64, or else it rises."""
    found = evidence()
    found.gold = np.minimum(found.scores[0], 2 * peak - found.scores[0])
    assert sign * claims.past_the_peak(found, kind) > 0.1


def test_comparisons_of_ppo():
    """A kind or a KL weight is mixed up, or a sign."""
    found = evidence(own_noise=1.0, pretraining_noise=1.0)
    numbers = measure(found, "tldr")
    assert [numbers["overopt_rl"], numbers["overopt_rl_pretrain"]] == pytest.approx([1, 3])
    pairs = "finetune_vs_single", "pretrain_vs_finetune", "pretrain_vs_single"
    assert [numbers[f"rl_{pair}"] for pair in pairs] == pytest.approx([1, 2, 3])
    assert numbers["bon_pretrain_vs_single"] > numbers["bon_finetune_vs_single"] > 0
    assert (numbers["herd_list"], numbers["herd_list_vs_single"]) == pytest.approx((1.5, 0), abs=0.05)
    assert numbers["overuse_single_vs_pretrain"] == pytest.approx(1 - 1 / 4)


def test_gain_at_equal_kl():
    """The ends are compared: the ensemble's policy has 1 more at any KL, but stays nearer and ends with less.
    A KL that falls back is read where it is reached a second time."""
    found = evidence()
    for run in found.runs:
        kl = np.linspace(0, 10 if run["kind"] == "pretrain" else 20, 21)
        more = (run["kind"] == "pretrain") + 100 * (run["kl_weight"] > 0.02)
        run["curve"] = {"kl": kl, "gold": kl / 2 + more}
    assert claims.gain_at_equal_kl(found, "pretrain", "single") == pytest.approx(1)
    assert claims.gain_at_equal_kl(found, "single", "pretrain") == pytest.approx(-1)
    kl = np.repeat([0.0, 4.0, 2.0, 8.0], 5)
    assert claims.at_kl({"curve": {"kl": kl, "gold": np.arange(20.0)}}, 3.2) == pytest.approx(6)


def test_list_hides_errors():
    """A flipped sign; the list's own price counts; one fact is left out. A wrong number costs 1 in a sentence
    and .4 in a list, a wrong object 1 and .8."""
    found, paid = evidence(), (-1, -1, 0.3, -0.1, -0.5)
    for change, price in zip(found.edits.values(), paid, strict=True):
        change["models"] = np.array([price - 0.1, price + 0.1])
    assert claims.list_hides_errors(found) == pytest.approx(0.4)


def test_too_small_to_say():
    """One pretraining has no others: it is a zero that is averaged, not NaN."""
    found = evidence(own_noise=1.0)
    found.scores, found.accuracy = found.scores[:F], found.accuracy[:F]
    for run in found.runs:
        run["scores"] = run["scores"][:F]
        run["members"] = [0, 1, 2, 3] if run["kind"] == "finetune" else [run["run"]]
    numbers = measure(found, "tldr")
    unknown = ["bon_same_vs_other", "rank_corr_pretrain"]
    assert [id for id in numbers if np.isnan(numbers[id])] == unknown
    assert numbers["bon_pretrain_vs_single"] == numbers["rl_pretrain_vs_single_at_kl"] == 0


def test_ranked_as_gold():
    """A tie of gold counts, or a model's tie is right; a response is in two pairs. Gold: 1 < 2, a tie, one
    left over; 2 > 1, 0 < 5. And one model's correlation with gold is taken for that of the mean of 16."""
    gold = np.array([[1, 2, 3, 3, 9], [2, 1, 0, 5, 0]])
    scores = np.array([gold, -gold, [[0, 1, 0, 1, 0], [1, 1, 0, 1, 9]]])
    assert claims.ranked_as_gold(scores, gold) == pytest.approx([1, 0, 2 / 3])
    correlation = claims.correlation_with_gold(evidence(own_noise=1.0, posts=500))
    assert correlation == pytest.approx({"one": sqrt(1 / 2), "all": sqrt(16 / 17)}, abs=0.02)


def test_pairs_of_ppo_are_of_one_kind():
    """A run is paired with one of another kind or KL weight: there model 0 is wrong, and all others right."""
    found = evidence()
    for i, run in enumerate(found.runs):
        sign = np.where(np.arange(P * F) == 0, 1, -1)[:, None] * (run["kl_weight"] == 0.02 or -1)
        run["gold"] = np.full(POSTS, 10.0 * i + run["run"])
        run["scores"] = sign * np.full(POSTS, -100.0 * i + run["run"] * 300)
    assert claims.ranked_on_ppo(found) == pytest.approx([1] + [0] * (P * F - 1))
    found.runs = [run for run in found.runs if run["run"] == 0]
    assert np.isnan(claims.ranked_on_ppo(found)).all()


def test_relatives_are_no_members():
    """A model that is aligned to judges itself, or one of another pretraining is taken for a relative."""
    found = evidence(own_noise=1.0)
    assert found.relatives([6]) == [4, 5, 7]
    assert found.relatives([4, 5, 6, 7]) == []
    assert found.relatives([0, 5, 10, 15]) == [m for m in range(16) if m not in (0, 5, 10, 15)]
    curves = claims.best_of_n_curves(found)
    assert ["same" in curves[kind] for kind in GOLD] == [True, False, True]
    assert ["same" in claims.summary_of(found, run) for run in found.runs[::4]] == [True, False, True]
    assert curves["single"]["same"][-1] == pytest.approx(curves["single"]["gold"][-1], abs=0.1)
