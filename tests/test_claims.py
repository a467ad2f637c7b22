"""The claims: the statistics over worlds, and each claim on evidence that was made by hand."""

from math import gamma, pi, sqrt

import numpy as np
import pytest
from claims import (
    CLAIMS,
    T_975,
    Evidence,
    claims_table,
    interval,
    judged,
    measure,
    pair_means,
    rank_correlation,
    same_spread,
    verdict,
)

from bon import best_of_n

IDS = """
accuracy_spread bon_self_vs_same bon_same_vs_other rank_corr_shift rank_corr_pretrain
overopt_bon overopt_rl bon_finetune_vs_single bon_pretrain_vs_finetune bon_pretrain_vs_single
rl_finetune_vs_single rl_pretrain_vs_finetune rl_pretrain_vs_single herd_list herd_numbers
herd_length herd_wrong_facts control_list
""".split()
P, F, POSTS, N = 4, 4, 60, 32


def evidence(own_trait=0.0, own_noise=0.0, pretraining_noise=0.0, seed=0):
    """Reward models that share the truth, have a noise of their pretraining and one of their own, and like a
    trait of their own by `own_trait`; a PPO run of each kind at each of two KL weights."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(POSTS, N))
    traits = {f"trait{i}": rng.normal(size=(POSTS, N)) for i in range(P * F)}
    traits |= {name: rng.random((POSTS, N)) for name in ("list", "numbers", "length", "wrong_facts")}
    likes = np.reshape([traits[f"trait{i}"] for i in range(P * F)], (P, F, POSTS, N))
    scores = gold + own_trait * likes + own_noise * rng.normal(size=(P, F, POSTS, N))
    scores = scores + pretraining_noise * rng.normal(size=(P, 1, POSTS, N))
    golds = {"single": 0.0, "finetune": 1.0, "pretrain": 3.0}
    runs = []
    for kl_weight in (0.1, 0.02):
        for kind, value in golds.items():
            runs.append(
                {
                    "kind": kind,
                    "kl_weight": kl_weight,
                    "gold": np.full(POSTS, value + (kl_weight == 0.1)),
                    "scores": rng.normal(size=POSTS) + rng.normal(size=(P * F, POSTS)),
                    "traits": {name: np.full(POSTS, 2.0) for name in traits},
                }
            )
    return Evidence(
        accuracy=np.full((P, F), 0.6),
        scores=scores,
        control=scores[:, 0],
        gold=gold,
        traits=traits,
        aggregate=lambda members: members.mean(0),
        runs=runs,
    )


def test_interval_is_the_textbooks():
    """A biased std, or another quantile: four numbers of mean 5 and std 2.58 give 5 +- 3.182 * 2.58 / 2."""
    mean, low, high = interval([2, 4, 6, 8])
    assert mean == 5
    assert high == pytest.approx(5 + 3.182 * np.std([2, 4, 6, 8], ddof=1) / 2)
    assert low == pytest.approx(10 - high)


def test_interval_of_students_own_data():
    """The same, on the data of Student's paper (1908): hours of sleep that ten patients gained."""
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert interval(gained) == pytest.approx((1.58, 0.70, 2.46), abs=0.005)
    assert interval([1.0]) == (1, -np.inf, np.inf)


def test_quantiles_are_students():
    """A wrong number in the table of quantiles: 47.5 % of the density lie between 0 and each."""
    for freedom, quantile in enumerate(T_975, start=1):
        x = np.linspace(0, quantile, 20_001)
        scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
        density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        area = ((density[1:] + density[:-1]) / 2).sum() * x[1]
        assert area == pytest.approx(0.475, abs=3e-5), f"{freedom} degrees of freedom"


@pytest.mark.parametrize(
    "numbers, sign, expected",
    [
        ([1.0, 1.1, 0.9], 1, "reproduced"),
        ([-1.0, -1.1, -0.9], 1, "opposite"),
        ([-1.0, -1.1, -0.9], -1, "reproduced"),
        ([1.0, -1.0, 0.5], 1, "inconclusive"),
        ([1.0, 1.1], 1, ""),
        ([1.0, 1.1, 0.9], 0, "described"),
    ],
)
def test_verdicts(numbers, sign, expected):
    """A verdict from too few worlds, or on the wrong side of zero."""
    assert verdict(numbers, sign) == expected


def test_the_ids_are_the_papers_claims():
    """A claim was lost, or one was added."""
    assert list(CLAIMS) == IDS


def test_pair_means():
    """A model is paired with itself, or pretrainings are mixed up: two pretrainings of two models."""
    matrix = np.array([[9, 1, 2, 2], [1, 9, 2, 2], [2, 2, 9, 1], [2, 2, 1, 9]])
    assert pair_means(matrix, 2) == [9, 1, 2]


def test_rank_correlation():
    """Pearson's in place of Spearman's: only the order counts."""
    assert rank_correlation(np.array([[1, 2, 3], [1, 2, 100], [3, 2, 1]]))[0] == pytest.approx([1, 1, -1])


def test_same_spread():
    """The samples to compare with vary more than the texts do."""
    rng = np.random.default_rng(0)
    samples, texts = rng.normal(size=(5, 200, 64)), 5 + 0.1 * rng.normal(size=(5, 200))
    matched = same_spread(samples, texts)
    assert matched.mean(0).std() == pytest.approx(texts.mean(0).std(), rel=0.2)
    assert samples.mean(0).std() > 3 * matched.mean(0).std()


def test_self_is_not_the_winners_curse():
    """The claim holds by construction. It must be near zero for models that differ by mere noise."""
    noisy = evidence(own_noise=1.0)
    noise = measure(noisy, "tldr")["bon_self_vs_same"]
    liking = measure(evidence(own_trait=1.0), "tldr")["bon_self_vs_same"]
    assert abs(noise) < 0.1
    assert liking > 0.3
    itself, same, _ = pair_means(judged(noisy.flat, best_of_n(noisy.flat)), F)
    assert itself - same > 1  # the curse: what the pick itself would show


def test_same_pretraining_agrees_more():
    """Same and other are swapped, or differ where pretrainings do not."""
    assert measure(evidence(pretraining_noise=1.0), "tldr")["bon_same_vs_other"] > 0.3
    assert abs(measure(evidence(own_noise=1.0), "tldr")["bon_same_vs_other"]) < 0.1


def test_rank_correlation_within_and_between_pretrainings():
    """The claim's sign is flipped, or it reads the runs on another kind of ensemble."""
    rng, found = np.random.default_rng(1), evidence()
    for run in found.runs_of("pretrain"):
        alike = np.repeat(rng.normal(size=(P, POSTS)), F, axis=0)
        run["scores"] = alike + 0.1 * rng.normal(size=(P * F, POSTS))
    assert measure(found, "tldr")["rank_corr_pretrain"] > 0.7


@pytest.mark.parametrize("common, noise, low, high", [(0.3, 1.0, -0.07, 0.07), (0.5, 2.0, 0.2, 0.6)])
def test_shift_is_not_a_narrow_range(common, noise, low, high):
    """Texts that are merely more alike lower any correlation: that alone is no shift, but noise is."""
    rng, found = np.random.default_rng(2), evidence(own_noise=1.0)
    (run,) = found.runs_of("single")
    run["scores"] = common * rng.normal(size=2000) + noise * rng.normal(size=(P * F, 2000))
    sft = rng.normal(size=(2000, N))
    found.scores = (sft + rng.normal(size=(P * F, 2000, N))).reshape(P, F, 2000, N)
    found.gold = sft
    assert low < CLAIMS["rank_corr_shift"].measure(found) < high


@pytest.mark.parametrize("peak, sign", [(1.0, 1), (9.0, -1)])
def test_overoptimised_best_of_n(peak, sign):
    """The sign is flipped: gold that turns down above a proxy of 1 falls from n = 8 to 32, or else rises."""
    found = evidence()
    found.gold = np.minimum(found.scores[0, 0], 2 * peak - found.scores[0, 0])
    assert sign * measure(found, "tldr")["overopt_bon"] > 0.1


def test_control_arm_picks_fewer_lists():
    """With and without the spurious correlation are swapped."""
    found = evidence()
    found.scores = found.scores + 3 * found.traits["list"]
    assert measure(found, "tldr")["control_list"] > 0.2


def test_too_small_to_say():
    """One pretraining has no others: NaN in the record, which is no JSON, or a zero that is averaged."""
    found = evidence(own_noise=1.0)
    found.scores, found.accuracy = found.scores[:1], found.accuracy[:1]
    for run in found.runs:
        run["scores"] = run["scores"][:F]
    numbers = measure(found, "tldr")
    assert numbers["bon_same_vs_other"] is None and numbers["rank_corr_pretrain"] is None
    assert numbers["bon_self_vs_same"] is not None


def test_gold_comparisons():
    """A kind or a KL weight is mixed up: PPO's golds are 0, 1, 3, and 1 more at the largest weight."""
    numbers = measure(evidence(own_noise=1.0, pretraining_noise=1.0), "tldr")
    assert numbers["rl_finetune_vs_single"] == pytest.approx(1)
    assert numbers["rl_pretrain_vs_finetune"] == pytest.approx(2)
    assert numbers["rl_pretrain_vs_single"] == pytest.approx(3)
    assert numbers["overopt_rl"] == pytest.approx(1)
    assert numbers["bon_pretrain_vs_single"] > numbers["bon_finetune_vs_single"] > 0
    assert numbers["herd_list"] == pytest.approx(1.5, abs=0.05)


def test_nli_has_no_lists():
    """nli's raters see careless writers alone: there is nothing planted to claim."""
    assert {"herd_list", "control_list"}.isdisjoint(measure(evidence(), "nli"))
    assert CLAIMS["herd_length"].signs["nli"] == -1


def test_table_keeps_every_world():
    """A world is dropped, or one that could not say is counted as zero."""
    records = [{"task": "tldr", "claims": {"overopt_bon": x}} for x in (0.5, None, 0.7, -0.1)]
    (row,) = claims_table(records)
    assert row["numbers"] == [0.5, 0.7, -0.1]
    assert (row["agree"], row["median"], row["verdict"]) == (2, 0.5, "inconclusive")
    assert claims_table([{"task": "tldr", "claims": {"overopt_bon": None}}]) == []
    records = [{"task": "nli", "claims": {"herd_length": x}} for x in (-1.0, -2.0, 0.5)]
    assert claims_table(records)[0]["agree"] == 2  # the paper's sign is -1
