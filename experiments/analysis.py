"""From scores to findings: what results.json tells of a task, its claims apart (they are in claims.py).

`scores` (M, posts, n) are rewards by all M reward models of the bank's samples, `groups` the lists of members that make
the single RMs, finetune and pretrain ensembles, `runs` the finished PPO runs.
"""
import numpy as np
import torch

from bon import best_of_n, bon_kl, expected_best_of_n
from cache import rounded
from claims import KINDS, correlation, powers_of_two, ranks, relations
import ensemble
import world


def aggregate(name, scores):
    """ensemble.aggregate on a numpy array (M, ...) -> (...)."""
    return ensemble.aggregate(name, torch.from_numpy(scores)).numpy()


def mean_over(matrix, mask):
    """Mean of an (..., M, M) array over the pairs of a mask; None where there is no such pair."""
    return matrix[..., mask].mean(-1) if mask.any() else None


def spearman(scores):
    """Rank correlation between the rows of (M, samples) -> (M, M)."""
    return correlation(ranks(scores))


def best_of_n_findings(scores, gold, groups, ns, aggregator):
    """Gold and proxy of the best of n, mean over posts and over the groups of a kind, for every aggregator that makes a difference."""
    found = {"n": ns, "kl": [bon_kl(n) for n in ns], "oracle": expected_best_of_n(gold, gold, ns).mean(0)}
    for kind, choices in groups.items():
        found[kind] = {}
        for name in ensemble.AGGREGATORS if kind != "single" else [aggregator]:
            proxies = [aggregate(name, scores[members]) for members in choices]
            golds = np.array([expected_best_of_n(proxy, gold, ns).mean(0) for proxy in proxies])
            found[kind][name] = {"gold": golds.mean(0), "gold_std_over_groups": golds.std(0),
                                 "proxy": np.mean([expected_best_of_n(proxy, proxy, ns).mean(0) for proxy in proxies], 0)}
    return found


def agreement_findings(scores, runs, groups, ns):
    """Reward that a RM's best-of-n pick has by itself, by RMs of the same pretraining, by the others; and the rank
    correlation between RMs on samples of the SFT policy and of the PPO policies."""
    pairs = relations(len(groups["finetune"]), len(groups["finetune"][0]))
    picked = np.array([expected_best_of_n(own, scores, ns).mean(1) for own in scores]).transpose(2, 0, 1)    # (ns, picker, judge)
    found = {"bon_reward": {"self": picked.diagonal(axis1=1, axis2=2).mean(-1), **{k: mean_over(picked, pairs[k]) for k in ("same", "other")}}}
    sft = spearman(scores.reshape(len(scores), -1))
    found["rank_correlation"] = {
        "sft": {k: mean_over(sft, pairs[k]) for k in ("same", "other")},
        "ppo": [{"kind": r["kind"], "kl_weight": r["kl_weight"], "kl": r["kl"].mean(),
                 **{k: mean_over(spearman(r["scores"]), pairs[k]) for k in ("same", "other")}} for r in runs]}
    return found


def run_findings(run, aggregator):
    """The numbers of one PPO run: final policy on the bank's posts, and the way there."""
    proxy = aggregate(aggregator, run["scores"][run["members"]])
    return {**{k: run[k] for k in ("kind", "seed", "kl_weight", "members")}, "kl": run["kl"].mean(), "proxy": proxy.mean(),
            "gold": run["gold"].mean(), "disagreement": run["scores"][run["members"]].std(0).mean(), "traits": {k: x.mean() for k, x in run["traits"].items()},
            "parts": {k: x.mean() for k, x in run["parts"].items()},
            "curve": {k: [record[k] for record in run["curve"]] for k in ("kl", "proxy", "gold", "entropy", "clip_fraction", "explained_variance")}}


def summary(found):
    """Mean and std over PPO's seeds for each kind and KL weight."""
    rows = []
    for kind, weight in dict.fromkeys((r["kind"], r["kl_weight"]) for r in found):
        mine = [r for r in found if (r["kind"], r["kl_weight"]) == (kind, weight)]
        rows.append({"kind": kind, "kl_weight": weight, **{f"{k}{end}": f([r[k] for r in mine]) for k in ("kl", "proxy", "gold")
                                                        for end, f in (("", np.mean), ("_std", np.std))}})
    return rows


def trait_findings(scores, traits, gold, groups, ns, found, aggregator):
    """Mean traits (and gold) of each policy: SFT, best of the largest n, PPO with the smallest KL weight."""
    quantities, least = {**traits, "gold": gold}, min(r["kl_weight"] for r in found)
    rows = {"sft": {k: x.mean() for k, x in quantities.items()}}
    for kind, choices in groups.items():
        proxies = [aggregate(aggregator, scores[members]) for members in choices]
        rows[f"bon-{kind}"] = {k: np.mean([expected_best_of_n(proxy, x, ns[-1:]) for proxy in proxies]) for k, x in quantities.items()}
    for kind in groups:
        mine = [{**r["traits"], "gold": r["gold"]} for r in found if (r["kind"], r["kl_weight"]) == (kind, least)]
        rows[f"ppo-{kind}"] = {k: np.mean([r[k] for r in mine]) for k in quantities}
    return rows


def texts(scores, gold, bank, runs, groups, aggregator, count=3):
    """The first few posts with what each policy wrote, and its score by one RM, by the ensemble, by the gold reward."""
    least, n = min(r["kl_weight"] for r in runs), gold.shape[1]
    shown = {r["kind"]: r for r in reversed(runs) if r["kl_weight"] == least}          # the first seed of each kind
    one, several = shown["single"]["members"], shown["pretrain"]["members"]
    found = []
    for i in range(min(count, len(gold))):
        picks = {"sft": 0, "bon-single": best_of_n(scores[one[0], i]), "bon-pretrain": best_of_n(aggregate(aggregator, scores[several, i]))}
        written = {policy: (bank["responses"][i * n + j], scores[:, i, j], gold[i, j]) for policy, j in picks.items()}
        for kind in ("single", "pretrain"):
            written[f"ppo-{kind}"] = tuple(shown[kind][k][..., i] if k != "responses" else shown[kind][k][i] for k in ("responses", "scores", "gold"))
        found.append({"post": world.decode(bank["posts"][i]), "responses": [
            {"policy": policy, "text": world.decode(tokens), "one_rm": by_all[one[0]], "ensemble": aggregate(aggregator, by_all[several]), "gold": true}
            for policy, (tokens, by_all, true) in written.items()]})
    return found


def arrays(s, accuracies, scores, judged, control=None, runs=()):
    """What the claims of a task are computed from: see claims.py. Single precision where they are many."""
    P, F, single = s.pretrain_seeds, s.finetune_seeds, np.float32
    data = {"accuracy": np.reshape(accuracies, (P, F)), "scores": scores.reshape(P, F, *scores.shape[1:]).astype(single), "gold": judged["gold"].astype(single),
            "traits": np.stack([judged["traits"][name] for name in world.TRAITS]).astype(single), "trait_names": np.array(world.TRAITS),
            "aggregator": np.array(s.aggregator)}
    if control is not None:
        data["control"] = control.reshape(P, F, *control.shape[1:]).astype(single)
    if runs:
        by_name = {(r["kind"], r["kl_weight"], r["seed"]): r for r in runs}

        def square(value):
            """value(run) of all runs: (kinds, KL weights, seeds, ...)."""
            return np.array([[[value(by_name[kind, weight, seed]) for seed in s.ppo_seeds] for weight in s.kl_weights] for kind in KINDS])

        ppo = {"scores": square(lambda r: r["scores"].reshape(P, F, -1)),
               "proxy": square(lambda r: aggregate(s.aggregator, r["scores"][r["members"]])),
               "gold": square(lambda r: r["gold"]),
               "kl": square(lambda r: r["kl"]),
               "traits": np.stack([square(lambda r: r["traits"][name]) for name in world.TRAITS])}
        data |= {f"ppo_{name}": x.astype(single) for name, x in ppo.items()}
        data |= {"kl_weights": np.array(s.kl_weights), "ppo_seeds": np.array(s.ppo_seeds)}
    return data


def bank_arrays(s, scores, judged, bank):
    """What a bank-TASK.npz holds, to play with: see experiments/README.md, field by field."""
    spell = lambda rows: np.array([world.decode(row) for row in rows.tolist()])
    F = s.finetune_seeds
    return {
        "rewards": scores.astype(np.float32), "gold": judged["gold"].astype(np.float32),
        "pretrain_seed": np.arange(len(scores)) // F, "finetune_seed": np.arange(len(scores)) % F,
        "posts": spell(bank["posts"]), "responses": spell(bank["responses"]).reshape(judged["gold"].shape),
        **{f"part_{name}": x.astype(np.float32) for name, x in judged["parts"].items()},
        **{f"trait_{name}": x.astype(np.float32) for name, x in judged["traits"].items()}}


def analyse(s, accuracies, ceiling, scores, judged, bank, runs, groups):
    """A task's findings, ready for JSON."""
    gold, ns = judged["gold"], powers_of_two(s.n)
    found = [run_findings(r, s.aggregator) for r in runs]
    return rounded({
        "accuracy": {"mean": np.mean(accuracies), "std": np.std(accuracies), "ceiling": ceiling, "all": accuracies},
        "sft": {"gold": gold.mean(), "disagreement": {kind: np.mean([scores[members].std(0).mean() for members in choices]) for kind, choices in groups.items()},
                "parts": {k: x.mean() for k, x in judged["parts"].items()}},
        "bon": best_of_n_findings(scores, gold, groups, ns, s.aggregator),
        "agreement": agreement_findings(scores, runs, groups, ns),
        "ppo": {"summary": summary(found), "runs": found},
        "traits": trait_findings(scores, judged["traits"], gold, groups, ns, found, s.aggregator),
        "texts": texts(scores, gold, bank, runs, groups, s.aggregator),
    })
