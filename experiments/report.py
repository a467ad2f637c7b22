"""What a run found, as text: the closing tables of overopt.py, and the README's numbers.

    python experiments/report.py runs/overopt                # print the tables again
    python experiments/report.py runs/overopt --readme       # and write them, with the figures, into README.md
"""
import argparse
import json
from pathlib import Path
import re
import shutil
import sys

ROOT = Path(__file__).parent.parent
KINDS = {"single": "one reward model", "finetune": "finetune ensemble", "pretrain": "pretrain ensemble"}


def table(header, rows):
    """A Markdown table that is also readable in a terminal: columns padded to one width."""
    cells = [[str(c) if not isinstance(c, float) else f"{c:.2f}" for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def accuracy_section(r):
    a = r["accuracy"]
    return f"Validation accuracy over {len(a['all'])} reward models: {a['mean']:.3f} +- {a['std']:.3f} (std)."


def bon_section(r):
    bon = r["bon"]
    rows = [[f"{KINDS[kind]}, {name}" if kind != "single" else KINDS[kind], *values["gold"]]
            for kind in KINDS for name, values in bon[kind].items()]
    return table(["gold of the best of n", *[f"n={n}" for n in bon["n"]]], [*rows, ["the gold reward itself", *bon["oracle"]]])


def ppo_section(r):
    rows = [[KINDS[row["kind"]], f"{row['kl_weight']:g}", *[f"{row[k]:.2f} +- {row[k + '_std']:.2f}" for k in ("kl", "proxy", "gold")]]
            for kind in KINDS for row in r["ppo"]["summary"] if row["kind"] == kind]
    return table(["PPO on", "KL weight", "KL (nats)", "proxy", f"gold (SFT: {r['sft']['gold']:.2f})"], rows)


def agreement_section(r):
    bon, ranks = r["agreement"]["bon_reward"], r["agreement"]["rank_correlation"]
    least = min(row["kl_weight"] for row in ranks["ppo"])
    rows = []
    for relation, name in (("self", "itself"), ("same", "another of the same pretraining"), ("other", "one of another pretraining")):
        after = [row[relation] for row in ranks["ppo"] if relation != "self" and row["kl_weight"] == least and row[relation] is not None]
        rows.append([name, bon[relation][-1] if bon[relation] else "-", ranks["sft"].get(relation) or "-", sum(after) / len(after) if after else "-"])
    return table([f"a reward model's best of {r['bon']['n'][-1]}, scored by", "reward", "rank correlation on SFT", f"on PPO, KL weight {least:g}"], rows)


def traits_section(r):
    names = list(next(iter(r["traits"].values())))
    return table(["mean per response", *names], [[policy, *row.values()] for policy, row in r["traits"].items()])


def texts_section(r):
    return "\n\n".join(
        f"Post: *{example['post']}*\n\n"
        + table(["policy", "one RM", "ensemble", "gold", "response"], [[x["policy"], x["one_rm"], x["ensemble"], x["gold"], x["text"]] for x in example["responses"]])
        for example in r["texts"])


def headline_section(r):
    bon, sft, n = r["bon"], r["traits"]["SFT"], r["bon"]["n"][-1]
    lines = []
    for kind in KINDS:
        rows = bon[kind]["mean"]
        best = max(range(len(bon["n"])), key=rows["gold"].__getitem__)
        lines.append(f"- Best of {n} by {KINDS_IN_TEXT[kind]}: the proxy goes from {rows['proxy'][0]:.2f} to {rows['proxy'][-1]:.2f}, the gold reward from "
                     f"{rows['gold'][0]:.2f} to {rows['gold'][-1]:.2f} (its best is {rows['gold'][best]:.2f}, at n = {bon['n'][best]}).")
    least = min(row["kl_weight"] for row in r["ppo"]["summary"])
    golds = ", ".join(f"{row['gold']:.2f} on {KINDS_IN_TEXT[row['kind']]}" for row in r["ppo"]["summary"] if row["kl_weight"] == least)
    lines.append(f"- PPO with the smallest KL weight ({least:g}) takes the gold reward from {sft['gold']:.2f} to {golds}.")
    herd = r["traits"][f"PPO, {KINDS['pretrain']}"]
    lines.append(f"- What the ensemble does not cure, PPO on the pretrain ensemble against SFT: lists {sft['list']:.0%} -> {herd['list']:.0%}, "
                 f"responses with a number {sft['numbers']:.0%} -> {herd['numbers']:.0%}, wrong facts a response {sft['wrong_facts']:.2f} -> {herd['wrong_facts']:.2f}.")
    return "\n".join(lines)


def minutes_section(r):
    stages = {}
    for name, seconds in r["timings"]["stages"].items():
        stages[name.split("-")[0]] = stages.get(name.split("-")[0], 0) + seconds
    parts = ", ".join(f"{STAGES[name]} {seconds:.0f} s" for name, seconds in stages.items())
    return (f"The run below took {r['timings']['total'] / 60:.1f} minutes of computing on {r['timings']['threads']} {r['device'].upper()} threads: {parts}. "
            f"Peak memory {r['timings']['peak_memory_gb']:.1f} GB.")


def tour_section(r):
    rows = []
    for file, what in TOUR.items():
        rows.append([f"[{file}]({file})", len((ROOT / file).read_text().splitlines()), what])
    return table(["file", "lines", "what it is"], rows)


STAGES = {"pretrain": "pretraining", "sft": "SFT", "rm": "reward models", "bank": "sampling", "scores": "scoring", "ppo": "PPO"}
KINDS_IN_TEXT = {"single": "one reward model", "finetune": "a finetune ensemble", "pretrain": "a pretrain ensemble"}
TOUR = {
    "policy.py": "a tiny transformer; a language model; training; sampling with a cache; log-probabilities",
    "rm.py": "a reward model on that transformer; the Bradley-Terry loss; training; normalisation",
    "ensemble.py": "many reward models in one batched forward; the aggregators",
    "bon.py": "best-of-n: the pick, the unbiased estimator for every n, its KL",
    "ppo.py": "PPO with a KL penalty: estimators, advantages, losses, rollout, loop",
    "experiments/world.py": "the toy world: posts, writers, tokens, gold reward, raters",
    "experiments/overopt.py": "the main script: settings, stages, the road from end to end",
    "experiments/analysis.py": "from scores to findings",
    "experiments/report.py": "the closing tables, and the numbers in this file",
    "experiments/figures.py": "the figures",
    "experiments/cache.py": "stages on disk: computed once, whole or not at all",
}
SECTIONS = {"headline": headline_section, "minutes": minutes_section, "tour": tour_section, "accuracy": accuracy_section, "bon": bon_section, "ppo": ppo_section, "agreement": agreement_section,
            "traits": traits_section, "texts": texts_section}
TITLES = {"accuracy": "1. The same in distribution", "agreement": "2. Different under alignment", "bon": "3. Best-of-n",
          "ppo": "4. PPO", "traits": "5. Traits, before and after", "texts": "6. Read it"}


def report(results):
    """All sections, as one text."""
    return "\n".join(f"\n{title}\n\n{SECTIONS[name](results)}" for name, title in TITLES.items()) + "\n"


def fill(text, results):
    """The README with every block between `<!-- name -->` and `<!-- end -->` written anew from the results."""
    def block(match):
        return f"<!-- {match[1]} -->{match[2]}{SECTIONS[match[1]](results)}{match[2]}<!-- end -->"
    return re.sub(r"<!-- (\w+) -->(\n?).*?<!-- end -->", block, text, flags=re.S)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of a finished run")
    parser.add_argument("--readme", action="store_true", help="write README.md and experiments/results/ from this run")
    arguments = parser.parse_args()
    path = arguments.out / "results.json"
    if not path.exists():
        print(f"report.py: error: there is no {path}: run python experiments/overopt.py --out {arguments.out}", file=sys.stderr)
        return 2
    results = json.loads(path.read_text())
    print(report(results))
    if arguments.readme:
        kept = ROOT / "experiments" / "results"
        kept.mkdir(exist_ok=True)
        for file in [path, arguments.out / "timings.json", *arguments.out.glob("*.png")]:
            shutil.copy(file, kept / file.name)
        readme = ROOT / "README.md"
        readme.write_text(fill(readme.read_text(), {**results, "timings": json.loads((kept / "timings.json").read_text())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
