"""Does an ensemble that distrusts what is unlike its training data give up the hack that all members share?

    python experiments/more/distance.py --quick              # one small world: minutes
    python experiments/more/distance.py --seeds 1 2 3 4 5    # five worlds: intervals and verdicts

Where all members extrapolate in the same wrong way, their disagreement gives no warning. The paper proposes
uncertainty that knows the distance to the training data, and leaves it open. Here is a simple one: from each
member's reward subtract weight x Mahalanobis distance, between the response's last hidden state and those of
the training responses, then average over members. Like rewards, distances have mean 0 and std 1 on samples of
the SFT policy. What do pretrain ensembles then pick as the best of n? Takes the flags of overopt.py (no PPO:
its flags change nothing). An interrupted run continues; --out runs/overopt uses what that run has made.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # overopt.py and what it imports
sys.path.insert(0, str(Path(__file__).parents[2]))  # the five files of the core

import numpy as np
import torch

import overopt
from bon import expected_best_of_n
from claims import interval
from ensemble import pretrain_ensembles
from figures import COLOURS, band, plt, write_png
from policy import trim
from pool import Pool, processes
from report import exit_status, parser_of, write_json

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
QUANTITIES = ("gold", "list", "length", "wrong_facts")


def mahalanobis(features, reference):
    """Distance of features (B, D) from the mean of reference (N, D), in its std in that direction: [[3, 4]],
    [[1, 1], [1, -1], [-1, 1], [-1, -1]] -> [5]. The covariance is almost singular: a tenth of
    it is replaced by a multiple of the identity, of the same mean variance."""
    covariance = torch.cov(reference.T, correction=0)
    sphere = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    x = features - reference.mean(0)
    return (x * torch.linalg.solve(0.9 * covariance + 0.1 * sphere, x.T).T).sum(1).sqrt()


def penalised(scores, distances, weight):
    """Mean over members of score - weight * distance, (M, ...), (M, ...) -> (...):
    [[1, 2], [3, 4]], [[0, 1], [0, 3]], 0.5 -> [2, 2]."""
    return (scores - weight * distances).mean(0)


@torch.no_grad()
def last_hidden_states(model, posts, responses):
    """What the head reads of n responses to each post: posts (B, P), responses (B * n, R) -> (B * n, D)."""
    n, states = len(responses) // len(posts), []
    size = max(1, 256 // n)
    for b_posts, rows in zip(posts.split(size), responses.split(size * n), strict=True):
        rows = trim(rows, model.config.pad)
        _, cache = model.trunk.prefill(b_posts)
        hidden_states = model.trunk(rows, cache.select(torch.arange(len(rows)) // n))
        last = (rows != model.config.pad).sum(1) - 1
        states.append(hidden_states[torch.arange(len(rows)), last].double())
    return torch.cat(states)


def distances(config, state, training, calibration, bank):
    """One reward model's distances of the bank's responses, normalised on SFT's samples: (posts * n,)."""
    model = overopt.reward_model(config, state, "cpu")
    reference, sft, bank = (last_hidden_states(model, *texts) for texts in (training, calibration, bank))
    std, mean = torch.std_mean(mahalanobis(sft, reference), correction=0)
    return (mahalanobis(bank, reference) - mean) / std


def measure(s, seed, pool):
    """One world: each quantity of the best of n at each weight, mean over pretrain ensembles (4, weights)."""
    trained = overopt.train_models(s, seed, "tldr", "cpu", pool)
    evidence, P, F = overopt.evaluate_samples(trained, pool), s.pretrain_seeds, s.finetune_seeds
    prompts, chosen, rejected = overopt.judgements(s, "tldr", s.pairs, overopt.seed_for(seed, "training"))
    job = {"config": trained.rm_config, "calibration": trained.calibration}
    job["training"] = (prompts, torch.stack([chosen, rejected], 1).flatten(0, 1))
    job["bank"] = (trained.posts, trained.bank)
    jobs = [{**job, "state": state} for state in trained.states]
    away = np.array([x.numpy() for x in pool.map(distances, jobs)]).reshape(evidence.scores.shape)
    values = np.stack([evidence.gold, *(evidence.traits[name] for name in QUANTITIES[1:])])
    values = values[:, None]  # (4, 1, posts, n)
    members = np.transpose(pretrain_ensembles(np.arange(P * F).reshape(P, F)))  # a column is an ensemble
    proxies = [penalised(evidence.scores[members], away[members], weight) for weight in WEIGHTS]
    found = np.transpose([expected_best_of_n(p, values, [s.n]).mean((1, 2, 3)) for p in proxies])
    for name, row in zip(QUANTITIES, found, strict=True):
        pool.say(f"    {name:<12}" + ", ".join(f"{x:.2f}" for x in row))
    return found


def tell(s, seeds, values, out):
    """Print and write what changes from weight 0, over worlds: values (4, worlds, weights)."""
    record = {"settings": asdict(s), "seeds": seeds, "weights": WEIGHTS}
    for name, x in zip(QUANTITIES, values, strict=True):
        record[name] = x.round(5).tolist()  # a row for each seed
        print(f"{name} of the best of {s.n}: {x[:, 0].mean():.2f} at weight 0; from there")
        for weight, changes in zip(WEIGHTS[1:], (x[:, 1:] - x[:, :1]).T, strict=True):
            mean, low, high = interval(changes)
            verdict = "higher" if low > 0 else "lower" if high < 0 else "inconclusive"
            print(f"    weight {weight:3g}: {mean:+.2f} [{low:+.2f}, {high:+.2f}] {verdict}")
    write_json(record, out / "distance.json")
    write_png(draw(values, s.n), out / "distance.png")
    print(f"distance.json and distance.png are in {out}")


def draw(values, n):
    """Each quantity against the weight: values (4, worlds, weights)."""
    figure, axes = plt.subplots(1, len(values), figsize=(14, 3.6), layout="constrained")
    for axis, name, x in zip(axes, QUANTITIES, values, strict=True):
        band(axis, WEIGHTS, x, COLOURS["pretrain"], None)
        axis.set(title=f"{name.replace('_', ' ')}, best of {n}", xlabel="weight of the distance")
    return figure


def main(argv=None):
    """The command line, checked as far as can be before the work, then the work."""
    parser = parser_of(__doc__)
    overopt.add_flags(parser)
    given = parser.parse_args(argv)
    s, out = overopt.settings_from(given), given.out or Path("runs/distance")
    overopt.check_folder(out, s, given.seeds, "tldr")
    with processes(given.processes) as executor:
        pool = Pool(executor, out / "cache")
        values = np.stack([measure(s, seed, pool) for seed in given.seeds], axis=1)  # (4, worlds, weights)
    tell(s, given.seeds, values, out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
