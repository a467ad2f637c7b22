"""What a run found, as text: the closing tables of overopt.py, and the README's numbers.

    python experiments/report.py runs/overopt                # print the tables again
    python experiments/report.py runs/all --readme runs/overopt       # and write README.md, from a run of all tasks and one of another seed

The folder of all tasks must also hold the sweeps of coverage and size (sweep.py) and beyond.py.
"""
import argparse
from functools import partial
import json
from pathlib import Path
import re
import shutil
from statistics import mean

from cache import write_whole
from world import PRICES

VERSION = 2              # of results.json
ROOT = Path(__file__).parent.parent
KINDS = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}


def least_weight(r):
    """The smallest KL weight: where PPO moves farthest, and what the tables show if they show one."""
    return min(row["kl_weight"] for row in r["ppo"]["summary"])


def policy_name(policy, r):
    """"sft", "bon-pretrain", "ppo-single" ... in words."""
    if policy == "sft":
        return "SFT"
    method, kind = policy.split("-")
    return {"bon": f"best of {r['bon']['n'][-1]}", "ppo": f"PPO (KL weight {least_weight(r):g})"}[method] + f", {KINDS[kind]}"


def table(header, rows):
    """A Markdown table that is also readable in a terminal: columns padded to one width."""
    cells = [[str(c) if not isinstance(c, float) else f"{c:.2f}" for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def accuracy_section(r):
    a = r["accuracy"]
    return (f"Validation accuracy (share of pairs in the rater's order) over {len(a['all'])} reward models: {a['mean']:.3f} +- {a['std']:.3f} (std). "
            f"The gold reward itself reaches {a['ceiling']:.3f} of the rater's judgements.")


def agreement_section(r):
    bon, ranks = r["agreement"]["bon_reward"], r["agreement"]["rank_correlation"]
    least, rows = least_weight(r), []
    for relation, name in (("self", "itself"), ("same", "another of the same pretraining"), ("other", "one of another pretraining")):
        on_sft = ranks["sft"].get(relation)
        on_ppo = [row[relation] for row in ranks["ppo"] if row["kl_weight"] == least] if on_sft is not None else []
        rows.append([name] + ["-" if x is None else x for x in (
            bon[relation] and bon[relation][-1], on_sft, sum(on_ppo) / len(on_ppo) if on_ppo else None)])
    return table([f"a reward model's best of {r['bon']['n'][-1]}, scored by", "reward", "rank correlation on SFT", f"on PPO's texts (KL weight {least:g})"], rows)


def bon_section(r):
    bon = r["bon"]
    rows = [[KINDS[kind] + (f", {name}" if kind != "single" else ""), *values["gold"]] for kind in KINDS for name, values in bon[kind].items()]
    return table(["gold of the best of n", *[f"n={n}" for n in bon["n"]]], [*rows, ["the gold reward itself", *bon["oracle"]]])


def ppo_section(r):
    seeds = len(r["settings"]["ppo_seeds"])
    number = lambda row, k: f"{row[k]:.2f}" + (f" +- {row[k + '_std']:.2f}" if seeds > 1 else "")
    rows = [[KINDS[kind], f"{row['kl_weight']:g}", *[number(row, k) for k in ("kl", "proxy", "gold")]]
            for kind in KINDS for row in r["ppo"]["summary"] if row["kind"] == kind]
    header = f"PPO on (mean +- std of {seeds} seeds)" if seeds > 1 else "PPO on (one seed)"
    return table([header, "KL weight", "KL (nats)", "proxy", f"gold (SFT: {r['sft']['gold']:.2f})"], rows)


MARKS = {"reproduced": "yes", "opposite": "NO", "inconclusive": "?"}


def claim_cell(row):
    """A claim's estimate, interval and verdict, short: "+0.29 [+0.17, +0.41] yes"."""
    if row["estimate"] is None:
        return "unavailable"
    if row["ci_low"] == row["ci_high"] == row["estimate"] == 0:
        return "none at all ?"
    digits = 3 if row["id"] == "accuracy_spread" else 2
    if row["ci_low"] is None:
        return f"{row['estimate']:+.{digits}f} (too few seeds: no interval)"
    return f"{row['estimate']:+.{digits}f} [{row['ci_low']:+.{digits}f}, {row['ci_high']:+.{digits}f}] {MARKS[row['verdict']]}"


def verdicts(r):
    """How often each verdict fell on a claim of the paper, by task; our own claims apart, the win rates not counted again."""
    rows = [row for row in r["claims"] if not row["id"].endswith("_win")]              # they tell of the same picks as the gold rows
    count = lambda task, ours, verdict: sum((row["task"], row["paper"].startswith("ours"), row["verdict"]) == (task, ours, verdict) for row in rows)
    line = lambda task, ours: ", ".join(f"{count(task, ours, verdict)} {verdict}" for verdict in MARKS)
    return "; ".join(f"{task}: {line(task, False)} (of ours: {line(task, True)})" for task in r["tasks"])


def claims_section(r):
    """All claims of all tasks, one line each, and how often each verdict fell. With a run of another seed beside it: its columns too."""
    columns = {task: {row["id"]: row for row in r["claims"] if row["task"] == task} for task in r["tasks"]}
    if "again" in r:
        again = r["again"]
        columns |= {f"{task}, seed {again['settings']['seed']}": {row["id"]: row for row in again["claims"] if row["task"] == task} for task in again["tasks"]}
    lines = {"": [], "_win": []}
    for name in dict.fromkeys(row["id"] for row in r["claims"]):
        found = {column: rows[name] for column, rows in columns.items() if name in rows}
        papers = {row["task"]: row["paper"] for row in found.values()}
        told = [f"{paper} ({task})" for task, paper in papers.items() if not paper.startswith("ours")]
        paper = next(iter(papers.values())) if len(set(papers.values())) == 1 else "; ".join(told or [f"{paper} ({task})" for task, paper in papers.items()])
        cells = [claim_cell(found[column]) if column in found else "-" for column in columns]
        lines["_win" * name.endswith("_win")].append([name, next(iter(found.values()))["statement"], paper, *cells])
    wins = [[name, *cells] for name, _, _, *cells in lines["_win"]]
    return (table(["id", "claim", "paper", *columns], lines[""])
            + "\n\nEstimate [95 % interval] (*none at all*: 0 in every draw), and whether the interval leaves out zero (for accuracy_spread: the bound named there) on the claim's side (yes), on the other (NO) or "
            "not at all (?). Only the direction is tested, not the paper's size. A fall in gold counts only if the proxy rises.\n\n"
            f"- The paper's claims, {verdicts(r)}." + (f"\n- With --seed {r['again']['settings']['seed']}, {verdicts(r['again'])}." if "again" in r else "")
            + "\n\nThe same differences in win rate against SFT:\n\n" + table(["id", *columns], wins))


def undecided_section(r):
    """The inconclusive claims, each with how many times as many seeds and posts would decide it: one line for each task."""
    lines = []
    for task in r["tasks"]:
        mine = [row for row in r["claims"] if row["task"] == task and row["verdict"] == "inconclusive"]
        times = [f"`{row['id']}` {row['times_needed'] or 100:.1f}{'' if row['times_needed'] else ' or more'}" for row in mine if "times_needed" in row]
        flat = [f"`{row['id']}` (its proxy's rise, {row['proxy_rise']:+.2f}, is not beyond chance)" for row in mine if "times_needed" not in row and row["ci_low"] is not None]
        without = [f"`{row['id']}` (no interval, for want of seeds)" for row in mine if row["ci_low"] is None]
        lines.append(f"- {task}: {', '.join(times + flat + without) or 'nothing'}.")
    return "\n".join(lines)


def survival_section(r):
    """How much of what one reward model does to a trait the pretrain ensemble still does."""
    rows = [row for row in r["claims"] if row.get("survives") is not None]
    return table(["task", "trait", "one reward model - SFT", "pretrain ensemble - SFT", "share"],
                 [[row["task"], row["statement"].removesuffix(" by the pretrain ensemble - SFT"), f"{row['single']:+.2f}", claim_cell(row), f"{row['survives']:.0%}"]
                  for row in rows])


def traits_section(r):
    names = list(r["traits"]["sft"])
    return table(["mean per response", *names], [[policy_name(policy, r), *row.values()] for policy, row in r["traits"].items()])


def tasks_section(r):
    """Each task's hacks: the traits of SFT and of both ways to align to the pretrain ensemble."""
    names, rows = ["length", "list", "numbers", "wrong_facts", "filler", "chatter", "gold"], []
    for task in r["tasks"]:
        own = view(r, task)
        rows += [[task, policy_name(policy, own), *[own["traits"][policy][name] for name in names]] for policy in ("sft", "bon-pretrain", "ppo-pretrain")]
    return table(["task", "mean per response", *names], rows)


def sweep_section(r, name):
    return sweep_table(r["sweeps"][name])


def beyond_section(r):
    """What each method of beyond.py changes in the picks of the pretrain ensemble: a table, and its computed sentence."""
    beyond, names = r["beyond"], ["gold", *r["beyond"]["reference"]["shared"]]

    def cell(change):
        if change["ci_low"] is None:
            return f"{change['before']:.2f} -> {change['after']:.2f}"
        mark = "?" if change["ci_low"] <= 0 <= change["ci_high"] else "up" if change["estimate"] > 0 else "down"
        return f"{change['before']:.2f} -> {change['after']:.2f} [{change['ci_low']:+.2f}, {change['ci_high']:+.2f}] {mark}"

    changes = {"plain": beyond["reference"]["changes"], **{method: beyond[method]["changes"]["pretrain"] for method in beyond["sentences"] if method != "plain"}}
    rows = [[method, *[cell(change[name]) for name in names]] for method, change in changes.items()]
    sentences = [f"- **{method}**: {sentence}" for method, sentence in beyond["sentences"].items()]
    return table(["best of n by the pretrain ensemble", *names], rows) + "\n\n" + "\n".join(sentences)


def texts_section(r):
    header = ["policy", "one RM", "ensemble", "gold", "response"]
    return "\n\n".join(
        f"Post: *{example['post']}*\n\n"
        + table(header, [[policy_name(x["policy"], r), x["one_rm"], x["ensemble"], x["gold"], x["text"]] for x in example["responses"]])
        for example in r["texts"])


def sweep_table(found):
    """A sweep of sweep.py as a table, and for sizes the judge's too."""
    header = [found["name"], "accuracy (gold's own)", "gold: SFT", "single", "finetune", "pretrain", "all in one", "oracle", "finetune - single",
              "pretrain - finetune", "lists: pretrain - SFT"]
    rows = []
    for value, row in zip(found["values"], found["rows"]):
        accuracy, gold, claims = row["accuracy"], row["gold"], row["claims"]
        rows.append([f"{value:g}", f"{accuracy['mean']:.3f} ({accuracy['ceiling']:.3f})", *[gold[kind] for kind in ("sft", *KINDS, "all", "oracle")],
                     *[claim_cell(claims[name]) for name in ("bon_finetune_vs_single", "bon_pretrain_vs_finetune", "herd_list_bon")]])
    return table(header, rows) + (f"\n\n{judge_table(found['judge'])}" if "judge" in found else "")


def judge_table(judge):
    """The wider reward model beside the gold reward, as judges of the same best-of-n; and where it misleads."""
    wins = [[name, *[f"{wins[key]:.1%}" for wins in judge["wins"].values()]] for name, key in (("the judge", "judge"), ("gold", "gold"))]
    return (f"A reward model of width {judge['width']} as judge, trained on the same judgements: accuracy {judge['accuracy']:.3f}, correlation with gold over SFT's samples "
            f"{judge['correlation']:.2f}. Win rates against SFT of the best of n:\n\n"
            + table(["judged by", *[KINDS[kind] for kind in judge["wins"]]], wins)
            + "\n\nWhere it misleads: take from the judge's score what gold predicts of it; how much more do responses with (more of) a trait still get, in standard deviations?\n\n"
            + table(list(judge["where"]), [[f"{x:+.2f}" for x in judge["where"].values()]]))


def headline_section(r):
    """The first task in a few sentences: numbers and intervals; the verdicts are computed in claims.py."""
    bon, n, least, task = r["bon"], r["bon"]["n"][-1], least_weight(r), r["task"]
    rows = {row["id"]: row for row in r["claims"] if row["task"] == task}
    one, name = bon["single"][r["settings"]["aggregator"]], r["settings"]["aggregator"]
    best = max(range(len(bon["n"])), key=one["gold"].__getitem__)
    golds = {kind: mean([run["gold"] for run in r["ppo"]["runs"] if (run["kind"], run["kl_weight"]) == (kind, least)]) for kind in KINDS}
    bon_golds = {kind: bon[kind][name]["gold"][-1] for kind in KINDS}
    before, after = r["traits"]["sft"], r["traits"]["ppo-pretrain"]
    hacks = [f"{words} {before[trait]:{show}} -> {after[trait]:{show}}" for trait, words, show in
             (("list", "lists (no rater pays for one)", ".0%"), ("numbers", "responses with a number", ".0%"), ("length", "tokens", ".1f"), ("wrong_facts", "wrong facts", ".2f"))
             if rows[f"herd_{trait}"]["verdict"] == "reproduced"]

    def each(values):
        return ", ".join(f"{KINDS[kind]} {value:.2f}" for kind, value in values.items())

    decided = any(rows[f"herd_{trait}"]["ci_low"] is not None for trait in ("list", "numbers", "length", "wrong_facts"))
    none = "none of the traits watched" if decided else "nobody knows what: there are too few seeds for an interval"
    lines = [
        f"**One reward model**, best of n: its own score goes from {one['proxy'][0]:.2f} (n = 1) to {one['proxy'][-1]:.2f} (n = {n}), the true (gold) reward from "
        f"{one['gold'][0]:.2f} to {one['gold'][best]:.2f} (n = {bon['n'][best]}) and {one['gold'][-1]:.2f} (n = {n}). Overoptimisation: {rows['overopt_bon']['verdict']}.",
        f"**Ensembles**, gold of the best of {n}: {each(bon_golds)}. Pretrain ensemble over one reward model {claim_cell(rows['bon_pretrain_vs_single'])}: "
        f"{rows['bon_pretrain_vs_single']['verdict']}.",
        f"**PPO** with the smallest KL weight ({least:g}), gold (SFT: {r['sft']['gold']:.2f}): {each(golds)}. Pretrain ensemble over one reward model at matched KL "
        f"{claim_cell(rows['rl_pretrain_vs_single'])}: {rows['rl_pretrain_vs_single']['verdict']}. Overoptimisation of one reward model: {rows['overopt_rl']['verdict']}.",
        f"**What survives**: PPO on pretrain ensembles still moves, from SFT and beyond chance, {', '.join(hacks) or none}.",
        f"**All claims of the paper**, {verdicts({**r, 'tasks': [task]})}."]
    few = [f"With {r['settings']['pretrain_seeds']} pretrainings and {len(r['settings']['ppo_seeds'])} PPO seeds hardly a claim can be decided: the default run has more."]
    return "\n".join(f"- {line}" for line in lines + few * (min(r["settings"]["pretrain_seeds"], len(r["settings"]["ppo_seeds"])) < 4))


def prices_section(r):
    """What each rater pays and takes, from world.py."""
    return table(["gold reward", *PRICES], [[part.replace("_", " "), *[f"{prices[part]:+g}" for prices in PRICES.values()]] for part in PRICES["tldr"]])


def minutes_section(r):
    """What a run of one task took, stage by stage, and from that about what all tasks take."""
    stages, timings = {}, r["timings"]
    for name, seconds in timings["stages"].items():
        stages[name.split("-")[0]] = stages.get(name.split("-")[0], 0) + seconds
    parts = ", ".join(f"{STAGES[name]} {seconds:.0f} s" for name, seconds in stages.items())
    took, total = timings["this_run"], timings["total"]
    more = 1 - sum(stages[name] for name in ("pretrain", "sft", "bank")) / total
    return (f"A run with `--task {timings['task']} --seed {timings['seed']}` took {took / 60:.1f} minutes on {timings['hardware']}. Together these were at work for: {parts}. "
            f"Peak memory of one: {timings['peak_memory_gb']:.1f} GB. A further task costs all but pretraining, SFT and sampling once more, so that `--task all` comes to about "
            f"{took * (1 + 2 * more) / 60:.0f} minutes.")


WORKLOADS = {
    "score": "25 reward models x 512 sequences of 40 tokens",
    "score_loop": "the same, member by member",
    "score_batched": "the same, all members in one forward pass",
    "score_bon": "25 reward models x 64 prompts x 64 responses",
    "sample_full": "512 prompts x 24 tokens, no stop",
    "sample_bon": "64 prompts x 64 samples, up to 24 tokens",
    "lm_step": "a training step on 64 texts of up to 40 tokens",
    "rm_step": "a training step on 64 pairs",
    "ppo_update": "128 prompts, rewarded by 5 reward models",
}


def speed_section(r):
    """What speed.py measured."""
    found = r["speed"]
    ms = lambda seconds: f"{seconds * 1e3:.1f}"
    times = lambda a, b: f"{a / b:.1f}x"
    return "\n\n".join([
        f"On {found['hardware']}; one large float32 product runs at {found['gemm_peak'] / 1e9:.0f} GFLOP/s.",
        table(["workload", "", "ms", "per second", "GFLOP/s", "of GEMM peak"],
              [[f"`{name}`", WORKLOADS[name], ms(x["seconds"]), f"{x['per_second']:,.0f}", f"{x['flops_per_second'] / 1e9:.0f}", f"{x['gemm_share']:.2f}"]
               for name, x in ((name, found[name]) for name in WORKLOADS)]),
        "What each idea gives, in milliseconds:",
        table(["idea", "without", "with", "gain"], [[name, ms(a), ms(b), times(a, b)] for name, (a, b) in found["ideas"].items()]),
        "How the cost of scoring grows, in milliseconds (sequences of 40 tokens):",
        table(["members", "sequences", "member by member", "all in one pass", "gain"],
              [[x["members"], x["sequences"], ms(x["loop"]), ms(x["batched"]), times(x["loop"], x["batched"])] for x in found["growth"]]),
        "With the width, 512 sequences, one member: " + ", ".join(f"{ms(s)} ms at {width}" for width, s in found["widths"].items())
        + ". Sampling, with the samples for each of 64 prompts: " + ", ".join(f"{ms(s)} ms for {n}" for n, s in found["samples"].items()) + "."])


def tour_section(r):
    rows = [[f"[{file}]({file})", len((ROOT / file).read_text().splitlines()), what] for file, what in TOUR.items()]
    return table(["file", "lines", "what it is"], rows)


STAGES = {"pretrain": "pretraining", "sft": "SFT", "rm": "reward models", "bank": "sampling", "scores": "scoring", "control": "control arm", "ppo": "PPO"}
TOUR = {
    "policy.py": "a tiny transformer; a language model; training; sampling with a cache; log-probabilities",
    "rm.py": "a reward model on that transformer; the Bradley-Terry loss; training; normalisation",
    "ensemble.py": "many reward models in one batched forward; the aggregators",
    "bon.py": "best-of-n: the pick, the unbiased estimator for every n, its KL",
    "ppo.py": "PPO with a KL penalty: estimators, advantages, losses, rollout, loop",
    "experiments/world.py": "the toy world: tokens, posts, writers, gold reward, raters",
    "experiments/overopt.py": "the main script: settings, and the run from end to end",
    "experiments/pipeline.py": "its stages, and what each depends on",
    "experiments/sweep.py": "one setting turned: coverage (the dial), size, preferences, label noise",
    "experiments/beyond.py": "beyond the paper: can anything reduce the shared hacks?",
    "experiments/analysis.py": "from scores to findings",
    "experiments/claims.py": "the paper's claims: statistics, bootstrap, intervals, verdicts",
    "experiments/report.py": "the closing tables, and the numbers in this file",
    "experiments/figures.py": "the figures",
    "experiments/pairs.py": "a real preference file, from lines to tokens: read, encoded, cut, split",
    "experiments/real.py": "reward models on real preferences: spread, agreement, calibration, length",
    "experiments/processes.py": "several processes share one run",
    "experiments/explain.py": "what `--explain` says",
    "experiments/speed.py": "how fast it is, and what each idea gives",
    "experiments/cache.py": "stages on disk: computed once, whole or not at all",
}
SECTIONS = {"headline": headline_section, "minutes": minutes_section, "tour": tour_section, "accuracy": accuracy_section, "agreement": agreement_section,
            "bon": bon_section, "ppo": ppo_section, "traits": traits_section, "texts": texts_section, "claims": claims_section,
            "undecided": undecided_section, "survival": survival_section, "prices": prices_section, "speed": speed_section, "tasks": tasks_section, "beyond": beyond_section,
            **{f"sweep_{name}": partial(sweep_section, name=name) for name in ("coverage", "size")}}
PER_TASK = {"accuracy": "Accuracy", "agreement": "Agreement between reward models", "bon": "Best-of-n", "ppo": "PPO", "traits": "Traits, before and after",
            "texts": "Read it", "headline": "In short"}
OVERALL = {"claims": "The claims", "survival": "What survives the pretrain ensemble", "undecided": "What this run does not decide"}


def view(results, task=None):
    """The results with one task's findings (the first's) at the top: what a section takes."""
    task = task or next(iter(results["tasks"]))
    return {**results, "task": task, **results["tasks"][task]}


def report(results):
    """All sections that a run prints, as one text."""
    parts = [(f"{task}: {title}", SECTIONS[name](view(results, task))) for task in results["tasks"] for name, title in PER_TASK.items()]
    parts += [(title, SECTIONS[name](results)) for name, title in OVERALL.items()]
    return "".join(f"\n{title}\n\n{text}\n" for title, text in parts)


def load_results(folder):
    """results.json of a finished run; ValueError that says what is wrong and what to run."""
    path, again = Path(folder) / "results.json", f"python experiments/overopt.py --out {folder}"
    if not path.exists():
        why = "its run has not finished: the command that began it continues there" if (path.parent / "cache").exists() else f"run {again} (with the flags of that run; see that the name is right)"
        raise ValueError(f"there is no {path}: {why}")
    try:
        results = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is not whole: run {again}") from None
    if results.get("version") != VERSION:
        raise ValueError(f"{path} is of version {results.get('version', 1)}, this code reads {VERSION}: run {again} (with the flags of that run)")
    return results


def fill(text, results):
    """The README with every block between `<!-- name -->` and `<!-- end -->` written anew from the results."""
    results = view(results)
    def block(match):
        return f"<!-- {match[1]} -->{match[2]}{SECTIONS[match[1]](results)}{match[2]}<!-- end -->"
    return re.sub(r"<!-- (\w+) -->(\n?).*?<!-- end -->", block, text, flags=re.S)


def main():
    """The command line: print the tables of a run, or write them into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    parser.add_argument("--readme", type=Path, metavar="AGAIN", help="write README.md and experiments/results/ from this run (all tasks), and from the folder of a "
                        "default run of another seed: its claims and its minutes")
    arguments = parser.parse_args()
    try:
        results = load_results(arguments.out)
        if arguments.readme:
            write_readme(arguments.out, arguments.readme)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(report(results))


KEPT = ROOT / "experiments" / "results"          # the run that the README tells of


def load_kept(folder=KEPT):
    """Everything that the README's numbers come from: results.json with the other files' contents under their names. ValueError if
    one of them is missing or does not belong to the run."""
    results, others = load_results(folder), {}
    mine = {**results["settings"], "task": None}
    if list(results["tasks"]) != list(PRICES):
        raise ValueError(f"{folder}/results.json is not of all tasks: run python experiments/overopt.py --task all --out {folder}")
    for name, command in (("timings", "overopt.py --out"), ("sweep-coverage", "sweep.py coverage --out"), ("sweep-size", "sweep.py size --out"),
                          ("beyond", "beyond.py --out"), ("speed", "speed.py --json")):
        path = Path(folder) / f"{name}.json"
        try:
            others[name] = json.loads(path.read_text())
        except (OSError, ValueError):
            raise ValueError(f"{path} is missing or damaged: run python experiments/{command} {path if name == 'speed' else folder}") from None
        if {**others[name].get("settings", mine), "task": None} != mine:
            raise ValueError(f"{path} is of other settings than results.json: run python experiments/{command} {folder} with those")
    if (Path(folder) / "again").exists():
        results["again"] = load_results(Path(folder) / "again")
    return {**results, **{name: others[name] for name in ("timings", "beyond", "speed")}, "sweeps": {name: others[f"sweep-{name}"] for name in ("coverage", "size")}}


def write_readme(folder, again):
    """Keep the results and figures of a run in experiments/results, and of another seed's in results/again, and fill the README's blocks."""
    load_kept(folder)                              # all there? Before anything is replaced
    seconds = json.loads((again / "timings.json").read_text())
    load_results(again)
    if seconds["this_run"] * seconds["processes"] < seconds["total"]:
        raise ValueError(f"--readme: {again} was continued, so it does not tell how long a run takes: run it again in an empty folder")
    if seconds["task"] == "all":
        raise ValueError(f"--readme: {again} is not a run of one task, so it does not tell how long one takes")
    (KEPT / "again").mkdir(parents=True, exist_ok=True)
    for file in [*folder.glob("*.json"), *folder.glob("*.png")]:
        shutil.copy(file, KEPT / file.name)
    shutil.copy(folder / "bank-tldr.npz", KEPT / "bank-tldr.npz")
    shutil.copy(again / "results.json", KEPT / "again" / "results.json")
    shutil.copy(again / "timings.json", KEPT / "timings.json")
    text = fill((ROOT / "README.md").read_text(), load_kept())
    write_whole(ROOT / "README.md", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
