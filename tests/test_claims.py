"""The claims: the statistics over worlds, and each claim on evidence that was made by hand."""

import numpy as np
import pytest
from claims import (
    CLAIMS,
    T_975,
    Evidence,
    claims_table,
    interval,
    measure,
    pair_means,
    rank_correlation,
    same_spread,
    verdict,
)

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


def test_quantiles_are_students():
    """A wrong number in the table of quantiles: by simulation, to one per cent."""
    rng = np.random.default_rng(0)
    for freedom in (2, 4, 7, 11, 28):
        simulated = np.quantile(np.abs(rng.standard_t(freedom, 400_000)), 0.95)
        assert T_975[freedom - 1] == pytest.approx(simulated, rel=0.015)


@pytest.mark.parametrize(
    "numbers, sign, expected",
    [
        ([1.0, 1.1, 0.9], 1, "reproduced"),
        ([-1.0, -1.1, -0.9], 1, "opposite"),
        ([-1.0, -1.1, -0.9], -1, "reproduced"),
        ([1.0, -1.0, 0.5], 1, "inconclusive"),
        ([1.0, 1.1], 1, "one world"),
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
    noise = measure(evidence(own_noise=1.0), "tldr")["bon_self_vs_same"]
    liking = measure(evidence(own_trait=1.0), "tldr")["bon_self_vs_same"]
    assert abs(noise) < 0.1
    assert liking > 0.3


def test_same_pretraining_agrees_more():
    """Same and other are swapped."""
    assert measure(evidence(pretraining_noise=1.0), "tldr")["bon_same_vs_other"] > 0.3


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
    assert CLAIMS["herd_length"].sign("nli") == -1


def test_table_keeps_every_world():
    """A world is dropped, or one that could not say is counted as zero."""
    records = [{"task": "tldr", "claims": {"overopt_bon": x}} for x in (0.5, None, 0.7, -0.1)]
    (row,) = claims_table(records)
    assert row["numbers"] == [0.5, 0.7, -0.1]
    assert (row["agree"], row["median"]) == (2, 0.5)
