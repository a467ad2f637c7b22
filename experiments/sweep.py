"""One setting turned, best-of-n measured at every value; the gains of ensembles with intervals.

    python experiments/sweep.py coverage              # the dial from helping to herding: styles that raters see, one after the other
    python experiments/sweep.py size                  # reward models of three widths, and a wider one as judge
    python experiments/sweep.py pairs                 # how many preferences
    python experiments/sweep.py flipped               # how many of the labels turned round

Takes the flags of overopt.py too (--quick, --seed, --task ...). Writes sweep-NAME.json and sweep-NAME.png into --out, and shares
the cache of a run there; an interrupted sweep continues where it stopped.
"""
import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))        # the five files live one folder up

import matplotlib.pyplot as plt
import numpy as np

from analysis import aggregate, arrays
from bon import best_of_n
from cache import Cache, rounded, to_json, write_whole
from claims import claims_table, own_win_rates
from ensemble import groups
from figures import COLOURS, write_figure
from overopt import SIZES, check, launch, parse, pick_device
from pipeline import VALIDATION_PAIRS, Pipeline
from report import VERSION, sweep_table

SWEEPS = {"coverage": (0.0, 0.25, 0.5, 0.75, 1.0), "size": tuple(SIZES.values()), "pairs": (250, 1000, 3000, 8000),
          "flipped": (0.0, 0.2, 0.4)}
LABELS = {"coverage": "coverage: share of the styles that raters see", "size": "width of the reward models", "pairs": "preference pairs",
          "flipped": "share of labels turned round"}
JUDGE_WIDTH = 256           # of the paper's kind of judge: a wider reward model, trained on the same data


def pick(scores, values, members, aggregator="mean"):
    """`values` (posts, n) of the best of all n by an ensemble of `members` among scores (M, posts, n) -> (posts,)."""
    best = best_of_n(aggregate(aggregator, scores[members]))
    return np.take_along_axis(values, best[:, None], -1)[:, 0]


def mean_pick(scores, values, choices, aggregator):
    """The same, mean over posts and over the ensembles in `choices`."""
    return np.mean([pick(scores, values, members, aggregator) for members in choices])


def measure(pipeline):
    """Best-of-n by a grid of reward models: accuracy, the claims' rows by id, and the gold of SFT and of the best of n by each kind,
    by `all` reward models in one ensemble and by the `oracle`, the gold reward.

    What all lose against the oracle is what they err in alike (they also share the preference pairs); what one of them loses on top of
    that is its own, which an ensemble can average away."""
    s = pipeline.s
    rms, accuracies, keys = pipeline.grid()
    bank, bank_key = pipeline.draw_bank()
    judged = pipeline.judge_bank(bank)
    scores, gold = pipeline.score_grid(f"scores-{s.task}", rms, keys, bank, bank_key), judged["gold"]
    kinds = groups(s.pretrain_seeds, s.finetune_seeds) | {"all": [list(range(len(rms)))]}
    golds = {kind: mean_pick(scores, gold, choices, s.aggregator) for kind, choices in kinds.items()}
    return {"accuracy": {"mean": np.mean(accuracies), "std": np.std(accuracies), "ceiling": pipeline.ceiling()},
            "gold": {"sft": gold.mean(), **golds, "oracle": gold.max(-1).mean()},
            "claims": {row["id"]: row for row in claims_table(arrays(s, accuracies, scores, judged), s.task)}}


def measure_judge(pipeline):
    """The paper's kind of judge beside the exact one: win rates against SFT of each kind's best of n, by gold and by a wider reward
    model of a pretraining of its own, trained on the same judgements.

    And where they part: the judge's score less what gold predicts of it (both in standard deviations over SFT's samples; less rho times
    gold, since noise alone would give rho < 1), mean over responses with more of a trait - with less."""
    s = pipeline.s
    wide = Pipeline(replace(s, rm_width=JUDGE_WIDTH), pipeline.device, pipeline.cache, pipeline.say, pipeline.team)
    sft, sft_key = wide.finetune_policy()
    training, validation = wide.judgements(s.pairs, "training pairs"), wide.judgements(VALIDATION_PAIRS, "validation pairs")
    (judge, judge_key), = wide.share("the judge", [partial(wide.train_reward_model, "judge", "judge", training, validation, sft, sft_key)])
    rms, _, keys = pipeline.grid()
    bank, bank_key = pipeline.draw_bank()
    judged = pipeline.judge_bank(bank)
    scores, gold = pipeline.score_grid(f"scores-{s.task}", rms, keys, bank, bank_key), judged["gold"]
    scored = partial(wide.score_bank, f"scores-{s.task}-judge", [wide.reward_model(judge["state"])], [judge_key], bank, bank_key)
    verdicts = wide.share("bank scored by the judge", [scored])[0][0]
    wins = {kind: {name: mean_pick(scores, own_win_rates(values), choices, s.aggregator) for name, values in (("gold", gold), ("judge", verdicts))}
            for kind, choices in groups(s.pretrain_seeds, s.finetune_seeds).items()}
    standard = lambda x: (x - x.mean()) / x.std()
    rho = np.corrcoef(verdicts.ravel(), gold.ravel())[0, 1]
    beyond = standard(verdicts) - rho * standard(gold)
    more = {name: x > (np.median(x) if name in ("length", "copied") else 0) for name, x in judged["traits"].items()}
    where = {name: beyond[x].mean() - beyond[~x].mean() for name, x in more.items() if 0 < x.mean() < 1}
    return {"width": JUDGE_WIDTH, "accuracy": judge["accuracy"], "wins": wins, "where": where, "correlation": rho}


def draw(found):
    """What ensembles gain; the error that reward models share, and their own; the hacks that the pretrain ensemble keeps."""
    values, rows = found["values"], found["rows"]
    figure, (gain, error, hacks) = plt.subplots(1, 3, figsize=(16, 4.2))

    def with_band(axis, claim, colour, label):
        claims = [row["claims"][claim] for row in rows]
        axis.plot(values, [row["estimate"] for row in claims], "o-", color=colour, label=label)
        if all(row["ci_low"] is not None for row in claims):
            axis.fill_between(values, [row["ci_low"] for row in claims], [row["ci_high"] for row in claims], color=colour, alpha=0.15, linewidth=0)

    with_band(gain, "bon_finetune_vs_single", COLOURS["finetune"], "finetune ensemble - one reward model")
    with_band(gain, "bon_pretrain_vs_single", COLOURS["pretrain"], "pretrain ensemble - one reward model")
    gain.set(title="Gain in gold, best of n (band: 95 %)", ylabel="gold reward")
    golds = [row["gold"] for row in rows]
    error.plot(values, [g["oracle"] - g["all"] for g in golds], "o-", color="#333333", label="shared: lost by all in one ensemble")
    error.plot(values, [g["all"] - g["single"] for g in golds], "o-", color=COLOURS["single"], label="its own: lost by one on top")
    error.set(title="Gold lost against the oracle", ylabel="gold reward", ylim=(min(0, error.get_ylim()[0]), None))
    for claim, colour, label in (("herd_list_bon", "#009e73", "lists (share)"), ("herd_numbers_bon", "#cc79a7", "numbers (share)"), ("herd_wrong_facts_bon", "#56b4e9", "wrong facts")):
        with_band(hacks, claim, colour, label)
    hacks.set(title="Pretrain ensemble - SFT (band: 95 %)", ylabel="change per response")
    for axis in (gain, error, hacks):
        axis.axhline(0, color="grey", linestyle=":")
        axis.set_xlabel(LABELS[found["name"]])
        axis.legend(fontsize=10)
        if found["name"] in ("size", "pairs"):
            axis.set_xscale("log", base=2)
            axis.set_xticks(values, [f"{value:g}" for value in values])
    return figure


def sweep(name, settings, device, out, cache, team):
    """All values of one sweep -> what sweep-NAME.json holds; writes it and the figure."""
    field, rows = "rm_width" if name == "size" else name, []
    each = [replace(settings, **{field: value}) for value in SWEEPS[name]]
    for s in each:
        check(s)                     # all of them, before any work
    print(f"{len(each)} grids of reward models; what is in {out / 'cache'} is not computed again", flush=True)
    for s, value in zip(each, SWEEPS[name]):
        print(f"{field} = {value}", flush=True)
        rows.append(measure(Pipeline(s, device, cache, team=team)))
    found = {"version": VERSION, "name": name, "settings": asdict(settings), "values": SWEEPS[name], "rows": rows}
    if name == "size":
        found["judge"] = measure_judge(Pipeline(settings, device, cache, team=team))
    found = rounded(found)
    if team.rank == 0:
        write_whole(out / f"sweep-{name}.json", lambda file: file.write(to_json(found)))
        write_figure(draw(found), out / f"sweep-{name}.png")
    return found


def work(team, settings, device, out, name):
    """What one process does."""
    device = pick_device(device, team.rank)
    found = sweep(name, settings, device, out, Cache(out / "cache", device), team)
    print(f"\n{sweep_table(found)}\n\nsweep-{name}.json and .png are in {out}")


def main(argv=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SWEEPS)
    *common, own = parse(argv, parser)

    def look():
        if common[0].task == "all":
            raise ValueError("--task: a sweep takes one task at a time")

    return launch(work, *common, own["name"], look=look)


if __name__ == "__main__":
    sys.exit(main())
