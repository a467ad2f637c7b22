"""experiments/claims.py: each claim's formula on arrays made by hand, the bootstrap on simulated data, the verdicts."""
import json

import numpy as np
import pytest

import cache
import claims
from claims import (Statistics, frontier_heights, bootstrap, claims_of, claims_table, held_out_best, interval, own_win_rates, overoptimisation_bon,
                    overoptimisation_rl, verdict, win_rates)
import report

IDS = """accuracy_spread bon_self_vs_same bon_same_vs_other rank_corr_shift rank_corr_pretrain overopt_bon overopt_rl
    bon_finetune_vs_single bon_pretrain_vs_finetune bon_pretrain_vs_single rl_finetune_vs_single rl_pretrain_vs_finetune rl_pretrain_vs_single
    herd_list herd_numbers herd_length herd_wrong_facts control_list""".split()
TRAITS = ["length", "list", "numbers", "wrong_facts"]


def simulated(P=5, F=5, posts=40, n=8, W=2, S=4, seed=0, shared=1.0, own=1.0, finetune=0.5):
    """The arrays of a task, drawn: reward = gold + an error of its pretraining + one of its own; the least-penalised PPO lowers gold."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    gold = normal(posts, n)
    traits = np.stack([normal(posts, n) + 10, *(rng.random((3, posts, n)) < 0.3)]).astype(np.float32)
    liked = 2 * traits[1]                                                     # everybody likes lists, for no reason
    scores = gold + own * normal(P, 1, posts, n) * shared + finetune * normal(P, F, posts, n)
    kinds = 3
    ppo_gold = gold.mean(-1) + np.array([0.2, 0.6, 1.0])[:, None, None, None] * np.array([1.0, 2.0])[:W, None, None] + 0.1 * normal(kinds, W, S, posts)
    return {"accuracy": 0.7 + 0.01 * rng.normal(size=(P, F)), "scores": scores + liked, "control": scores, "gold": gold, "traits": traits,
            "ppo_scores": normal(kinds, W, S, P, F, posts), "ppo_proxy": normal(kinds, W, S, posts) + np.array([3.0, 1.0])[:W, None, None], "ppo_gold": ppo_gold,
            "ppo_kl": np.broadcast_to(np.array([4.0, 2.0])[:W, None, None], (kinds, W, S, posts)).astype(np.float32),
            "ppo_traits": np.stack([normal(kinds, W, S, posts) + 20, *np.ones((3, kinds, W, S, posts))]), "kl_weights": np.array([0.1, 0.2])[:W],
            "ppo_seeds": np.arange(S), "trait_names": np.array(TRAITS), "aggregator": np.array("mean")}


def whole(data):
    """Every statistic on the data as they are."""
    statistics = Statistics(data)
    return statistics({axis: np.arange(size) for axis, size in statistics.sizes.items()})


# ----- intervals and verdicts ---------------------------------------------------------------------------

@pytest.mark.parametrize("spread", [dict(pretrain=.3, finetune=.1, both=.2, post=.1), dict(pretrain=.1, finetune=.3, both=0, post=1), dict(pretrain=0, finetune=0, both=.4, post=0)])
def test_bootstrap_covers_the_truth(spread):
    """Intervals that speak of new prompts only, or are too narrow with five seeds: 95 % of them must hold the true mean."""
    rng, sizes, hits = np.random.default_rng(0), {"pretrain": 5, "finetune": 5, "posts": 30}, []
    for trial in range(150):
        table = (0.5 + spread["pretrain"] * rng.normal(size=(5, 1, 1)) + spread["finetune"] * rng.normal(size=(1, 5, 1)) + spread["both"] * rng.normal(size=(5, 5, 1))
                 + spread["post"] * rng.normal(size=(1, 1, 30)) + rng.normal(size=(5, 5, 30)))
        estimate, variances = bootstrap(lambda draw: np.array([table[np.ix_(*draw.values())].mean()]), sizes, replicates=60, seed=trial)
        low, high = interval(estimate[0], {axis: x[0] for axis, x in variances.items()}, sizes)
        hits.append(low <= 0.5 <= high)
    assert np.mean(hits) >= 0.91


def test_bootstrap_of_posts_alone_would_be_far_too_narrow():
    """The same data with the seeds' axes left out: that is the mistake which the axes are there for."""
    rng, hits = np.random.default_rng(0), []
    for trial in range(100):
        table = 0.5 + 0.3 * rng.normal(size=(5, 1, 1)) + rng.normal(size=(5, 5, 30))
        estimate, variances = bootstrap(lambda draw: np.array([table[:, :, draw["posts"]].mean()]), {"posts": 30}, replicates=60, seed=trial)
        low, high = interval(estimate[0], {"posts": variances["posts"][0]}, {"posts": 30})
        hits.append(low <= 0.5 <= high)
    assert np.mean(hits) < 0.75


def test_variance_of_a_mean_by_hand():
    """The factor m / (m - 1) forgotten: the mean of 1, 2, 3, 6 has variance s^2 / 4 = 14 / 3 / 4."""
    x = np.array([1.0, 2, 3, 6])
    estimate, variances = bootstrap(lambda draw: np.array([x[draw["posts"]].mean()]), {"posts": 4}, replicates=4000)
    assert estimate[0] == 3 and variances["posts"][0] == pytest.approx(14 / 12, rel=0.08)


def test_t_quantile():
    """A normal quantile in place of Student's."""
    assert [claims.t_quantile(df) for df in (1, 4, 30)] == pytest.approx([12.71, 2.776, 2.042], rel=0.02)


@pytest.mark.parametrize("low, high, sign, bound, expected", [
    (0.1, 0.3, 1, 0, "reproduced"), (0.1, 0.3, -1, 0, "opposite"), (-0.3, -0.1, 1, 0, "opposite"), (-0.3, -0.1, -1, 0, "reproduced"), (-0.1, 0.3, 1, 0, "inconclusive"),
    (0.0, 0.3, 1, 0, "inconclusive"), (0.001, 0.02, -1, 0.03, "reproduced"), (0.001, 0.04, -1, 0.03, "inconclusive"), (None, None, 1, 0, "inconclusive")])
def test_verdict(low, high, sign, bound, expected):
    """A verdict that ignores the direction, the bound, or that there is no interval."""
    assert verdict(low, high, sign, bound) == expected


def test_one_seed_has_no_interval():
    """Zero width taken for certainty, when there is one pretraining, one finetuning or one PPO seed; or two, and every draw with a pair the same."""
    for sizes, without in ((dict(P=1), "bon_pretrain_vs_single"), (dict(F=1), "bon_pretrain_vs_single"), (dict(P=2), "bon_same_vs_other"), (dict(S=1), "rl_pretrain_vs_single")):
        rows = {row["id"]: row for row in claims_table(simulated(**sizes), "tldr")}
        assert rows[without]["ci_low"] is rows[without]["ci_high"] is None and rows[without]["verdict"] == "inconclusive"
        assert rows[without]["estimate"] is None or "no interval" in report.claim_cell(rows[without])
        json.dumps(cache.rounded(rows), allow_nan=False)
    assert rows["bon_pretrain_vs_single"]["ci_low"] is not None, "one PPO seed says nothing of best-of-n"


def test_times_needed():
    """More seeds promised to decide what is exactly nothing; or a number that does not fit the interval."""
    assert claims.times_needed(0.2, 0.6) == pytest.approx(4) and claims.times_needed(0.5, 0.9, bound=0.3) == pytest.approx(4)
    assert claims.times_needed(0.0, 0.4) is None and claims.times_needed(0.001, 0.4) is None


# ----- formulas ---------------------------------------------------------------------------------------

def test_the_table_has_every_claim_in_every_task():
    """A claim lost, named twice, or with another direction than the paper's: shorter and without numbers in nli, longer in tldr."""
    for task in ("tldr", "helpful", "nli"):
        ids = [claim.id for claim in claims_of(task)]
        assert set(IDS) <= set(ids) and len(ids) == len(set(ids))
        signs = {claim.id: claim.sign for claim in claims_of(task)}
        assert signs["herd_length"] == signs["herd_numbers"] == (-1 if task == "nli" else 1) and signs["herd_list"] == 1 and signs["accuracy_spread"] == -1
    rows = claims_table(simulated(), "tldr")
    assert [row["id"] for row in rows] == [claim.id for claim in claims_of("tldr")]
    assert all({"id", "task", "statement", "paper", "estimate", "ci_low", "ci_high", "n", "verdict"} <= row.keys() for row in rows)
    assert all(row["ci_low"] <= row["estimate"] <= row["ci_high"] for row in rows)


def test_self_same_other_and_ensembles_by_hand():
    """Picker and judge mixed up, or an ensemble of other members: two pretrainings x two finetunings, one post, three samples.

    RM 00 likes sample 0, 01 sample 1, 10 and 11 sample 2. Best of 3 by itself is worth 3, 3, 3, 3."""
    scores = np.array([[[[3, 1, 0]], [[0, 3, 1]]], [[[0, 1, 3]], [[1, 0, 3]]]], dtype=np.float32)
    gold = np.array([[5.0, 1.0, 2.0]], dtype=np.float32)
    traits = np.array([[[1.0, 0.0, 1.0]]], dtype=np.float32)
    data = {"accuracy": np.array([[0.6, 0.8], [0.6, 0.8]]), "scores": scores, "control": scores[:, :, :, ::-1], "gold": gold, "traits": traits,
            "trait_names": np.array(["list"]), "aggregator": np.array("mean")}
    data |= {name: np.repeat(data[name], 2, axis=-2) for name in ("scores", "control", "gold", "traits")}        # the post twice
    found = whole(data)
    # judged by the other one of its pretraining: 00's pick by 01: 0; 01's by 00: 1; 10's by 11: 3; 11's by 10: 3
    assert found["bon_self_vs_same"] == pytest.approx(3 - 7 / 4)
    # judged by the other pretraining: 00's: 0, 1; 01's: 1, 0; 10's: 0, 1; 11's: 0, 1
    assert found["bon_same_vs_other"] == pytest.approx(7 / 4 - 4 / 8)
    # single: gold 5, 1, 2, 2. finetune ensembles: [3 4 1] / 2 -> 1, [1 1 6] / 2 -> 2. pretrain: 00 + 11 = [4 1 3] -> 5, 01 + 10 = [0 4 4]: the first of equals -> 1
    assert found["bon_finetune_vs_single"] == pytest.approx(1.5 - 2.5)
    assert found["bon_pretrain_vs_finetune"] == pytest.approx(3 - 1.5)
    assert found["bon_pretrain_vs_single"] == pytest.approx(3 - 2.5)
    # chance to beat a fresh sample of the post: gold 5 in 3 of 4, 2 in 2 of 4, 1 in 1 of 4
    assert found["bon_pretrain_vs_single_win"] == pytest.approx((3 + 1) / 8 - (3 + 1 + 2 + 2) / 16)
    assert found["herd_list_bon"] == pytest.approx(0.5 - 2 / 3) and found["single_list_bon"] == pytest.approx(0.75 - 2 / 3)
    assert found["accuracy_spread"] == pytest.approx(0.1)
    # the control arm, samples reversed: [3 1 4] -> 2, [4 4 0] -> 0: lists in both
    assert found["control_list"] == pytest.approx(0.5 - 1)


def test_a_bootstrap_draw_knows_who_is_who():
    """A reward model drawn twice that counts as another of its pretraining; a pretraining drawn twice that counts as two."""
    statistics = Statistics(simulated())
    draw = {axis: np.arange(size) for axis, size in statistics.sizes.items()}
    again = statistics({**draw, "finetune": np.array([2, 2, 2, 2, 2])})
    assert np.isnan(again["bon_self_vs_same"]), "there is no other of the same pretraining"
    again = statistics({**draw, "pretrain": np.array([3, 3, 3, 3, 3])})
    assert np.isnan(again["bon_same_vs_other"]), "there is no other pretraining"
    swapped = statistics({**draw, "pretrain": np.array([4, 3, 2, 1, 0]), "posts": draw["posts"][::-1]})
    for name in ("bon_self_vs_same", "bon_same_vs_other", "bon_finetune_vs_single", "overopt_rl", "rank_corr_pretrain"):
        assert swapped[name] == pytest.approx(statistics(draw)[name], abs=1e-6), "an order of the draw that matters"


def test_rank_correlations_by_hand():
    """SFT and PPO swapped, or same and other; the largest KL weight taken for the least-penalised."""
    data = simulated(P=2, F=2, posts=30, n=1, S=2)
    a, b = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
    data["scores"] = np.broadcast_to(a[:, None], (2, 2, 30, 1)).copy()                     # on SFT's texts all agree
    data["ppo_scores"] = np.broadcast_to(np.stack([a, b])[:, None], (3, 2, 2, 2, 2, 30)).copy()        # on PPO's only within a pretraining
    data["ppo_scores"][:, 1] = 0.0                                                         # the larger KL weight, which must not count
    between = np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]
    found = whole(data)
    assert found["rank_corr_pretrain"] == pytest.approx(1 - between, abs=1e-5)
    assert found["rank_corr_shift"] == pytest.approx(1 - (4 * 1 + 8 * between) / 12, abs=1e-5)
    assert found["rank_corr_pretrain_shift"] == pytest.approx(found["rank_corr_pretrain"], abs=1e-5), "none on SFT's texts"
    data["ppo_scores"], data["kl_weights"] = data["ppo_scores"][:, ::-1], data["kl_weights"][::-1]
    assert whole(data)["rank_corr_pretrain"] == pytest.approx(1 - between, abs=1e-5), "KL weights in another order"


def test_win_rates_by_hand():
    """Ties that win, or a sample that beats itself."""
    gold = np.array([[1.0, 2.0, 2.0]])
    assert win_rates(np.array([2.0]), gold) == pytest.approx([1 / 3 + 1 / 3])
    assert own_win_rates(gold) == pytest.approx(np.array([[1 / 4, 5 / 8, 5 / 8]])) and own_win_rates(gold[:, :1]) == 0.5
    rng = np.random.default_rng(0)
    best, fresh = rng.normal(size=(20000, 4)), rng.normal(size=20000)
    assert own_win_rates(best).max(-1).mean() == pytest.approx((best.max(-1) > fresh).mean(), abs=0.01), "flattered by the others of its bank"


def test_the_best_is_chosen_on_other_data():
    """The best of noise is always above the last: a fall in gold that any data would show."""
    assert held_out_best(np.array([[1.0, 5, 2], [4, 1, 0]])).tolist() == [0, 1]
    falls = [overoptimisation_bon(*(lambda rng: (rng.normal(size=(1, 1, 20, 8)), rng.normal(size=(20, 8))))(np.random.default_rng(seed)))[0].mean() for seed in range(40)]
    assert abs(np.mean(falls)) < 3 * np.std(falls) / 40**0.5, "proxy and gold have nothing in common: no fall"


def test_overoptimisation_of_best_of_n_by_hand():
    """Proxy and gold swapped; the largest n taken for the best. The proxy orders samples 0 < 1 < 2 < 3, gold rises and falls."""
    proxy, gold = np.tile(np.arange(4.0), (1, 1, 2, 1)), np.tile([0.0, 3.0, 6.0, 0.0], (2, 1))
    fall, rise = overoptimisation_bon(proxy, gold)
    # n = 1: 9 / 4. n = 2: ranks 2, 3, 4 with chances 1/6, 2/6, 3/6: 0.5 + 2 = 2.5. n = 4: 0
    assert fall == pytest.approx(np.full((1, 1, 2), 2.5))
    assert rise == pytest.approx(np.full((1, 1, 2), 3 - (1 / 6 + 4 / 6 + 9 / 6)))


def test_overoptimisation_of_ppo_by_hand():
    """The best KL weight of a seed chosen on that seed; SFT not among the choices."""
    gold = np.array([[0.0, 1.0], [3.0, 2.0]])[:, :, None]                                  # (2 KL weights, 2 seeds, 1 post), the smallest first
    fall, rise = overoptimisation_rl(gold, np.array([[5.0, 5.0], [2.0, 3.0]])[:, :, None], np.array([1.5]), np.array([0.0]))
    assert fall[:, 0].tolist() == [3.0, 1.0] and rise[:, 0].tolist() == [3.0, 2.0]
    fall, rise = overoptimisation_rl(gold - 9, np.ones((2, 2, 1)), np.array([1.5]), np.array([0.0]))
    assert fall[:, 0].tolist() == [10.5, 9.5] and rise[:, 0].tolist() == [1.0, 1.0], "SFT was best"


def test_matched_kl_by_hand():
    """Heights compared at different KLs; a kind that went farther credited for it."""
    kl = np.array([[4.0, 1.0], [1.0, 0.25]])                                               # sqrt(KL) 2, 1 and 1, 0.5
    gold = np.array([[[8.0], [4.0]], [[2.0], [1.0]]])
    grid = np.linspace(0, 1, 21)[1:]
    assert frontier_heights(kl, gold, np.array([0.0])) == pytest.approx(np.array([[4 * grid.mean()], [2 * grid.mean()]]))
    gold[0, 0] = 1000.0                                                                    # beyond what the other reaches
    assert frontier_heights(kl, gold, np.array([0.0]))[0] == pytest.approx(4 * grid.mean())


def test_ppo_seeds_of_one_pretraining_come_together():
    """Eight seeds on five pretrainings counted as eight: seeds 0 and 5 share a pretraining, and most of an ensemble."""
    statistics = Statistics(simulated(S=8))
    assert statistics.sizes["seeds"] == 5 and [group.tolist() for group in statistics.seed_groups] == [[0, 5], [1, 6], [2, 7], [3], [4]]


def test_what_is_there_is_found_and_what_is_not_is_not():
    """A table that always says "reproduced": errors of a pretraining's own make ensembles help; without them there is nothing to find."""
    rows = {row["id"]: row for row in claims_table(simulated(posts=300, n=16), "tldr")}
    for name in ("bon_self_vs_same", "bon_same_vs_other", "bon_pretrain_vs_finetune", "bon_pretrain_vs_single", "herd_list", "herd_list_bon", "control_list",
                 "rl_pretrain_vs_finetune", "herd_wrong_facts", "herd_numbers"):
        assert rows[name]["verdict"] == "reproduced", name
    rows = {row["id"]: row for row in claims_table(simulated(posts=100, n=16, shared=0.0, finetune=0.0), "tldr")}
    for name in ("bon_self_vs_same", "bon_same_vs_other", "bon_pretrain_vs_finetune", "bon_finetune_vs_single"):
        assert rows[name]["estimate"] == 0 and rows[name]["verdict"] == "inconclusive", name


def test_a_fall_needs_a_rising_proxy():
    """Gold that falls together with the proxy called overoptimisation."""
    data = simulated()
    data["ppo_gold"][0, 0] -= 5
    rows = {row["id"]: row for row in claims_table(data, "tldr")}
    assert rows["overopt_rl"]["verdict"] == "reproduced" and rows["overopt_rl"]["proxy_rise"] > 0
    data["ppo_proxy"][0, 0] -= 9
    rows = {row["id"]: row for row in claims_table(data, "tldr")}
    assert rows["overopt_rl"]["verdict"] == "inconclusive" and rows["overopt_rl"]["proxy_rise"] < 0


# ----- results.json -----------------------------------------------------------------------------------

def test_results_missing_old_or_unfinished(tmp_path):
    """A traceback, or a message that does not say what to run."""
    with pytest.raises(ValueError, match="there is no .*run python experiments/overopt.py --out"):
        report.load_results(tmp_path)
    (tmp_path / "cache").mkdir()
    with pytest.raises(ValueError, match="not finished"):
        report.load_results(tmp_path)
    for text, said in (('{"settings": {}}', "of version 1, this code reads"), ('{"version": 2, "ta', "not whole")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=f"{said}.*run python experiments/overopt.py --out"):
            report.load_results(tmp_path)
