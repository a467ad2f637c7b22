"""Fills in what README.md and experiments/results/README.md say of the records in experiments/results.

    python .ci/readme.py

A page marks a place with <!-- name --> and <!-- end -->: `sections` makes what stands between. README.md's
film is results/watch.txt, what `COLUMNS=175 python experiments/watch.py` printed, and difficulty.txt is what
`play.py --difficulty` printed. A test fails when a page and these files differ.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "experiments" / "more"), str(ROOT / "experiments"), str(ROOT)]

import numpy as np

import claims
import variants
from claims import BEST, CLAIMS, KINDS, PPO, mean_gain_at_equal_kl, runs_at, runs_of
from figures import in_std
from report import agreement, load_records, mean_and_interval

RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", RESULTS / "README.md"]


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def claims_markdown(tables, records):
    """A row for each claim, a column for each task: mean and interval; bold where it is reproduced."""
    rows = []
    for claim in CLAIMS:
        found = [table.get(claim.id) for table in tables.values()]
        rows.append([f"`{claim.id}`", *(cell(row) if row else "" for row in found)])
    return markdown(
        [
            "claim",
            *(f"{task} ({len(found)} world{'s' * (len(found) > 1)})" for task, found in records.items()),
        ],
        rows,
    )


def cell(row):
    """A claim's number: bold where it is reproduced; "fragile" where one world decides it, "ours" where the
    paper does not make the claim."""
    bold = "**" if row["verdict"] == "reproduced" else ""
    notes = [word for word, is_so in (("fragile", row["fragile"]), ("ours", not row["paper"])) if is_so]
    return f"{bold}{mean_and_interval(row['numbers'])}{bold}" + (f" ({', '.join(notes)})" if notes else "")


def full_markdown(table):
    """The claims of one task in full, with every world's number."""
    rows = []
    for id, row in table.items():
        each = " ".join(f"{number:+.2f}" for number in row["numbers"])
        verdict = row["verdict"] + (", fragile" if row["fragile"] else "")
        rows.append([f"`{id}`", mean_and_interval(row["numbers"]), agreement(row), verdict, each])
    return markdown(["claim", "mean and interval", "agree", "verdict", "each world"], rows)


def traits_markdown(records):
    """Mean traits and gold of each policy of a task, over worlds."""
    rows, names = [], list(records[0]["traits"]["SFT"])
    for policy in records[0]["traits"]:
        means = [np.mean([r["traits"][policy][name] for r in records]) for name in names]
        rows.append([policy, *(f"{mean:.2f}" for mean in means)])
    return markdown(["policy", *names], rows)


def of_contrast(worlds, records):
    """What contrast changes in texts of PPO on pretrain ensembles: {name: text}."""
    records = [record for record in records if str(record["seed"]) in worlds]
    std = np.array([record["gold_std"] for record in records])

    def ppo(remedy, name, kind="pretrain", kl_weight=0.02):
        return variants.numbers(worlds, f"PPO at {kl_weight}, {kind}", remedy, name)

    def rise(remedy, name):
        return ppo(remedy, name) - variants.numbers(worlds, "best of n, pretrain", "none", name, at=0)

    def shared(remedy):
        return shared_error(rise(remedy, "jury"), rise(remedy, "gold"), std)

    def first_runs(record):
        ends = [runs_at(record["ppo"], kind, 0.02)[0]["gold"] for kind in ("pretrain", "finetune")]
        return ends[0] - ends[1]

    def instead(change):
        return f"{change('contrast').mean():.2f} instead of {change('none').mean():.2f}"

    lists, rises = ppo("none", "list") > 0.5, ("rise", "rise_elsewhere")
    return {
        "contrast_gold": mean_and_interval(ppo("contrast", "gold") - ppo("none", "gold"), ""),
        "contrast_wrong": mean_and_interval(ppo("none", "wrong_facts") - ppo("contrast", "wrong_facts"), ""),
        "contrast_list": instead(lambda remedy: ppo(remedy, "list")),
        "contrast_shared": instead(shared),
        "contrast_single": mean_and_interval(
            ppo("contrast", "gold", "single", 0.1) - ppo("none", "gold", kl_weight=0.1)
        ),
        "lists": f"{lists.sum()} of {len(lists)}",
        **{f"{name}_lists": f"{ppo('none', name)[lists].mean():.2f}" for name in rises},
        **{f"{name}_no_lists": f"{ppo('none', name)[~lists].mean():.2f}" for name in rises},
        "rescaled_pretrain_vs_finetune": mean_and_interval(
            ppo("none", "gold") - ppo("none", "gold", "finetune")
        ),
        "not_rescaled": mean_and_interval([first_runs(record) for record in records]),
        "rescaled_wrong": mean_and_interval(
            ppo("none", "wrong_facts") - ppo("none", "wrong_facts", "finetune")
        ),
        "rescaled_pretrain_vs_single": mean_and_interval(ppo("none", "gold") - ppo("none", "gold", "single")),
    }


def of_members(worlds):
    """What ever more pretrainings change in the best of 64: {name: text}."""

    def best(members, name):
        return variants.numbers(worlds, "best of n, pretrain", members, name)

    ten, twenty = best("10", "below_best"), best("20", "below_best")
    return {
        "members_middle": mean_and_interval(best("5", "below_best") - ten),
        "members_last": mean_and_interval(ten - twenty),
        "below_best": mean_and_interval(twenty, ""),
        "below_best_of_five": f"{best('5', 'below_best').mean():.2f}",
        "below_best_at_last": mean_and_interval(twenty - (ten - twenty), ""),
        "members_wrong": f"{best('20', 'wrong_facts').mean():.2f}",
        "members_wrong_of_one": f"{best('1', 'wrong_facts').mean():.2f}",
        "members_list": mean_and_interval(best("20", "list") - best("1", "list")),
        "members_list_of_five": mean_and_interval(best("20", "list") - best("5", "list")),
    }


def of_arms(worlds):
    """What raters see, and what an ensemble then gains and picks: {name: text}."""

    def best(kind, arm, name, at=-1):
        return variants.numbers(worlds, f"best of n, {kind}", arm, name, at)

    def less_seen(kind):
        few, all_habits = (best(kind, arm, "gain_over_single") for arm in ("lists", "all habits"))
        return marked(list(few - all_habits), 1)

    def by_kind(arm, name):
        return ", ".join(f"{best(kind, arm, name).mean():.2f}" for kind in KINDS)

    def by_ensembles(arm, name, sign):
        return marked(list(best("pretrain", arm, name) - best("single", arm, name)), sign)

    sft = best("pretrain", "lists", "chatter", at=0)
    alike = [best("pretrain", arm, "rank_correlation") for arm in ("lists", "lists, chatter", "all habits")]
    return {
        "arms_alike": ", ".join(f"{numbers.mean():.2f}" for numbers in alike),
        "arms_gain": less_seen("pretrain"),
        "arms_gain_finetune": less_seen("finetune"),
        "arms_unseen": by_kind("lists", "chatter"),
        "arms_unseen_change": by_ensembles("lists", "chatter", -1),
        "arms_unseen_sft": f"{sft.mean():.2f}",
        "arms_unseen_rise": marked(list(best("pretrain", "lists", "chatter") - sft), 1),
        "arms_seen": by_kind("lists, chatter", "chatter"),
        "arms_list": by_kind("lists, chatter", "list"),
        "arms_list_change": by_ensembles("lists, chatter", "list", 1),
        "arms_list_alone_change": by_ensembles("lists", "list", 1),
        "arms_no_gap_change": by_ensembles("no gap", "list", -1),
    }


REMEDIES = {  # column: method and quantity
    "best of 64: gold": ("best of n", "gold"),
    "PPO at 0.02: gold": ("PPO at 0.02", "gold"),
    "its gold at equal KL": ("PPO at 0.02", "gain_at_equal_kl"),
    "its wrong facts": ("PPO at 0.02", "wrong_facts"),
    "its lists": ("PPO at 0.02", "list"),
    "PPO at 0.1: gold": ("PPO at 0.1", "gold"),
}


def remedies_markdown(worlds):
    """What every remedy changes on pretrain ensembles; the first row, none, is as it is."""
    rows = []
    for remedy in next(iter(worlds.values()))["best of n, pretrain"]:
        cells = []
        for method, name in REMEDIES.values():
            group = f"{method}, pretrain"
            none = variants.numbers(worlds, group, "none", name)
            change = variants.numbers(worlds, group, remedy, name) - none
            cells.append(mean_and_interval(none if remedy == "none" else change))
        rows.append([remedy, *cells])
    return markdown(["remedy", *REMEDIES], rows)


def blocks(worlds, groups):
    """The table of remedies.py or dial.py, as it is printed, of groups whose names end so."""
    worlds = {
        seed: {name: group for name, group in found.items() if name.endswith(groups)}
        for seed, found in worlds.items()
    }
    return f"\n```\n{variants.table(worlds)}\n```\n"


def shared_error(jury, gold, gold_std):
    """How much more the jury's reward rises than gold, in its std."""
    return jury - gold / gold_std


def world_line(task, records):
    """The worlds of a task: how well reward models know raters and gold, and PPO's critic the returns."""
    seeds = ", ".join(str(record["seed"]) for record in records)
    paid = " ".join(f"{list_on_flawed(r):+.2f}" for r in records)
    lists = " ".join(f"{r['traits']['PPO, pretrain']['list']:.2f}" for r in records)
    accuracy, ceiling = (np.mean([r["accuracy"][name] for r in records]) for name in ("mean", "ceiling"))
    one, all_models = (np.mean([r["correlation"][name] for r in records]) for name in ("one", "all"))
    explained = [np.mean(run["curve"]["explained_variance"][-5:]) for r in records for run in r["ppo"]]
    return (
        f"- {task}: seeds {seeds}. Reward models order {accuracy:.1%} of unseen pairs as the raters do, gold "
        f"{ceiling:.1%}. On SFT's samples one correlates with gold at {one:.2f}, the mean of all at "
        f"{all_models:.2f}. In PPO's last five updates the critic explains {np.mean(explained):.0%} of the "
        "variance of the returns. World by world, models pay for making a list of a summary with a wrong "
        f"fact {paid}, and of the texts of PPO on pretrain ensembles {lists} are lists"
    )


def mean_over(records, values):
    """Mean and 95 % interval over worlds of values(record)."""
    return mean_and_interval([values(record) for record in records])


def marked(numbers, sign):
    """Mean and interval, and whether one world decides that the interval lies on this side of 0."""
    note = " (fragile: without one world inconclusive)" * claims.is_fragile(numbers, sign)
    return mean_and_interval(numbers) + note


def reproduced(tables):
    """How many of the paper's claims that are tested are reproduced: "13 of 15 in tldr, ..."."""
    counts = []
    for task, table in tables.items():
        verdicts = [row["verdict"] for row in table.values() if row["sign"] and row["paper"]]
        counts.append(f"{verdicts.count('reproduced')} of {len(verdicts)} in {task}")
    return ", ".join(counts)


def fragile(table):
    """How many of the paper's claims are reproduced, but not without some one world."""
    return str(sum(row["fragile"] for row in table.values() if row["paper"]))


def astray(records):
    """How many of PPO's runs of each kind at the smallest KL weight end with gold below 0."""
    runs = [[run["gold"] for record in records for run in runs_of(record["ppo"], kind)] for kind in KINDS]
    counts = [str(sum(gold < 0 for gold in of_kind)) for of_kind in runs]
    return f"{', '.join(counts[:-1])} and {counts[-1]} of {len(runs[0])}"


def how_many(records, is_so):
    """In how many worlds something is so: "7 of 8"."""
    return f"{sum(map(is_so, records))} of {len(records)}"


def edit(name, post="models"):
    """What the mean reward model pays for an edit of a perfect summary; post="elsewhere": of another post."""
    return lambda record: np.mean(record["edits"][name][post])


def list_on_flawed(record):
    """What the mean reward model pays for making a list of a summary with a wrong number, or object."""
    wrongs = ("wrong number", "wrong object")
    return np.mean([edit(f"list, {wrong}")(record) - edit(wrong)(record) for wrong in wrongs])


def list_fans(record):
    """The share of reward models that pay for it."""
    models = {name: np.array(change["models"]) for name, change in record["edits"].items()}
    pay = [models[f"list, {wrong}"] - models[wrong] for wrong in ("wrong number", "wrong object")]
    return np.mean(sum(pay) > 0)


def excess(name):
    """How much more what models pay for an edit differs between the means of pretrainings than it would by
    the luck of finetuning alone, which also shows within a pretraining. Standard deviations."""

    def difference(record):
        paid = np.reshape(record["edits"][name]["models"], (-1, record["settings"]["finetune_seeds"]))
        luck = paid.std(axis=1, ddof=1).mean() / paid.shape[1] ** 0.5
        return paid.mean(1).std(ddof=1) - luck

    return difference


def disagreement(record):
    """How much more pretrainings differ on errors than on lists: see `excess`."""
    errors = [excess(f"wrong {fact}")(record) for fact in ("number", "object")]
    return np.mean(errors) - excess("list")(record)


def ordered(method):
    """Is gold in the order single < finetune < pretrain? Method: "bon" or "rl", of the claims' names."""
    pairs = ("finetune_vs_single", "pretrain_vs_finetune")
    return lambda record: all(record["claims"][f"{method}_{pair}"] > 0 for pair in pairs)


def rise_of_best(kind, name):
    """How much more than SFT the best of n earns, by the proxy, the jury or gold; gold in its std."""

    def rise(record):
        curve = record["best_of_n"][kind][name]
        return in_std(record, curve[-1]) if name == "gold" else curve[-1] - curve[0]

    return rise


def rise_of_ppo(kind, name):
    """The same of PPO at the smallest KL weight."""

    def rise(record):
        end = np.mean([run[name] for run in runs_of(record["ppo"], kind, min)])
        return in_std(record, end) if name == "gold" else end - record["best_of_n"][kind][name][0]

    return rise


def more_than_sft(policy, trait):
    """A trait of a policy's texts, minus SFT's."""
    return lambda record: record["traits"][policy][trait] - record["traits"]["SFT"][trait]


def rise_markdown(records, method, by, rise):
    """How much more than SFT's a policy's texts earn, and of what there is more in them."""
    rows = []
    for kind, name in KINDS.items():
        numbers = [rise(kind, whose) for whose in ("proxy", "jury", "gold")]
        numbers += [more_than_sft(f"{method}, {kind}", trait) for trait in ("wrong_facts", "list")]
        rows.append([name, *(mean_over(records, number) for number in numbers)])
    return markdown([f"{method} {by}", "proxy", "jury", "gold", "wrong facts", "lists"], rows)


def weights_at_equal_kl(name, kind="single"):
    """Gold or proxy of PPO: at the largest KL weight, minus at the smallest, both at the same KL."""

    def difference(record):
        large, small = runs_of(record["ppo"], kind, max), runs_of(record["ppo"], kind, min)
        return mean_gain_at_equal_kl(large, small, name)

    return difference


def second_half(kind):
    """How gold changes along PPO at the smallest KL weight, from half-way to the end."""

    def change(record):
        curves = [claims.smooth(run["curve"]["gold"]) for run in runs_of(record["ppo"], kind)]
        return np.mean([curve[-1] - curve[len(curve) // 2] for curve in curves])

    return change


def over_kinds(records, value, form=".1f"):
    """The least and the largest of the three kinds' means of value(run), of PPO at the smallest KL weight."""
    runs = {kind: [run for record in records for run in runs_of(record["ppo"], kind)] for kind in KINDS}
    means = [np.mean([value(run) for run in runs[kind]]) for kind in KINDS]
    return f"{min(means):{form}} to {max(means):{form}}"


def end_of_ppo(kind, kl_weight, name="gold"):
    """Gold, or another number, of PPO at a KL weight."""
    return lambda record: np.mean([run[name] for run in runs_at(record["ppo"], kind, kl_weight)])


def pretrain_vs_finetune(kl_weight, name):
    """The same of pretrain ensembles, minus of finetune ensembles."""
    ends = [end_of_ppo(kind, kl_weight, name) for kind in ("pretrain", "finetune")]
    return lambda record: ends[0](record) - ends[1](record)


def overuse(kind, which=min):
    """How much PPO's texts overuse their favourite fact."""
    return lambda record: np.mean([run["overuse"] for run in runs_of(record["ppo"], kind, which)])


MEANS = {
    "gold_at_kl": weights_at_equal_kl("gold"),
    "gold_at_kl_pretrain": weights_at_equal_kl("gold", "pretrain"),
    "proxy_at_kl": weights_at_equal_kl("proxy"),
    "overuse": overuse("single"),
    "overuse_braked": overuse("single", max),
    "overuse_finetune": overuse("finetune"),
    "overuse_pretrain": overuse("pretrain"),
    "edit_list": edit("list"),
    "list_elsewhere": edit("list", "elsewhere"),
    "list_on_flawed": list_on_flawed,
    "edit_number": edit("wrong number"),
    "edit_no_number": edit("no number"),
    "edit_object": edit("wrong object"),
    "disagreement": disagreement,
    "half_single": second_half("single"),
    "half_pretrain": second_half("pretrain"),
    "further": pretrain_vs_finetune(0.02, "kl"),
    "further_braked": pretrain_vs_finetune(0.1, "kl"),
    "pretrain_vs_finetune_braked": pretrain_vs_finetune(0.1, "gold"),
}
LEVELS = {  # without an interval
    "end_single_braked": end_of_ppo("single", 0.2),
    "end_pretrain": end_of_ppo("pretrain", 0.02),
    "end_pretrain_braked": end_of_ppo("pretrain", 0.2),
    "wrong_left": lambda record: record["traits"]["PPO, pretrain"]["wrong_facts"],
    "wrong_sft": lambda record: record["traits"]["SFT"]["wrong_facts"],
}
SHOWN = {  # of the records of remedies.py and dial.py: the ends of the groups' names
    "remedies-tldr": ("pretrain", "PPO at 0.02, single"),
    "remedies-helpful": ("pretrain", "PPO at 0.02, single"),
    "remedies-nli": ("pretrain", "PPO at 0.02, single"),
    "remedies-unseen-chatter-tldr": ("pretrain", "PPO at 0.02, finetune"),
    "remedies-no-gap-tldr": ("pretrain", "PPO at 0.02, finetune"),
    "members-tldr": ("pretrain",),
    "dial-tldr": ("single", "pretrain"),
}


def sections(records):
    """{name: text} of all that a page may ask for. A claim's id: its mean and interval for tldr."""
    tables = {task: {row["id"]: row for row in claims.claims_table(found)} for task, found in records.items()}
    found = {name: [float(values(record)) for record in records["tldr"]] for name, values in MEANS.items()}
    texts = {name: marked(numbers, np.sign(np.mean(numbers))) for name, numbers in found.items()}
    lists = [(list_fans(x), edit("list", "elsewhere")(x), list_on_flawed(x)) for x in records["tldr"]]
    fans, elsewhere, here = np.mean(lists, axis=0)
    texts["list_fans"], texts["list_half"] = f"{100 * fans:.0f} %", f"{elsewhere / 2:.2f}"
    texts["list_here"] = f"{here:.2f}"
    texts["list_loses"] = how_many(lists, lambda x: x[1] / 2 > x[2])
    for name, values in LEVELS.items():
        texts[name] = f"{np.mean([values(record) for record in records['tldr']]):.2f}"
    wrong = [more_than_sft(f"{BEST}, {kind}", "wrong_facts") for kind in KINDS]
    wrong = [f"{np.mean([values(record) for record in records['tldr']]):+.2f}" for values in wrong]
    texts["wrong_of_best"] = ", ".join(wrong)
    for id, row in tables["tldr"].items():
        texts[id] = marked(row["numbers"], row["sign"])
    compared = {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["worlds"] for name in SHOWN}
    texts |= {name.replace("-", "_"): blocks(compared[name], groups) for name, groups in SHOWN.items()}
    remedies, no_gap = compared["remedies-tldr"], compared["remedies-no-gap-tldr"]
    none, contrast = (
        variants.numbers(no_gap, "PPO at 0.02, finetune", remedy, "wrong_facts")
        for remedy in ("none", "contrast")
    )
    texts["contrast_wrong_no_gap"] = mean_and_interval(none - contrast, "")
    results = [f"## {t}\n\n{full_markdown(tables[t])}\n\n{traits_markdown(records[t])}" for t in records]
    measures = "\n".join(f"- `{claim.id}`: {claim.statement}" for claim in CLAIMS)
    return texts | {
        "count": str(len(records["tldr"])),
        "others": ", ".join(str(len(found)) for found in records.values()),
        "kl": over_kinds(records["tldr"], lambda run: run["kl"]),
        "kl_cost": over_kinds(records["tldr"], lambda run: run["kl"] * run["kl_weight"], ".2f"),
        "kl_gain": over_kinds(records["tldr"], lambda run: run["proxy"], ".2f"),
        "paper": reproduced(tables),
        "fragile": fragile(tables["helpful"]),
        "astray": astray(records["helpful"]),
        "bon_order": how_many(records["tldr"], ordered("bon")),
        "rl_order": how_many(records["tldr"], ordered("rl")),
        "half_falls": how_many(records["tldr"], lambda record: second_half("single")(record) < 0),
        "list_taken": how_many(records["tldr"], lambda r: r["traits"]["PPO, pretrain"]["list"] > 0.5),
        "list_taken_single": how_many(records["tldr"], lambda r: r["traits"]["PPO, single"]["list"] > 0.5),
        "watch": f"\n```\n{shortened((RESULTS / 'watch.txt').read_text('utf-8'))}\n```\n",
        "difficulty": f"\n```\n{(RESULTS / 'difficulty.txt').read_text('utf-8').strip()}\n```\n",
        "remedies": f"\n{remedies_markdown(remedies)}\n",
        **of_contrast(remedies, records["tldr"]),
        **of_members(compared["members-tldr"]),
        **of_arms(compared["dial-tldr"]),
        "rise": f"\n{rise_markdown(records['tldr'], PPO, 'on', rise_of_ppo)}\n",
        "rise_best": f"\n{rise_markdown(records['tldr'], BEST, 'by', rise_of_best)}\n",
        "claims": f"\n{claims_markdown(tables, records)}\n",
        "measures": f"\n{measures}\n",
        "worlds": "\n" + "\n".join(world_line(*item) for item in records.items()) + "\n",
        "results": "\n" + "\n\n".join(results) + "\n",
    }


def shortened(film):
    """What watch.py prints, with only the first, the middle and the last of its updates, without its end."""
    lines = film.partition("\n\nAt the end")[0].splitlines()
    return "\n".join(line for line in lines if not line[:6].strip().isdigit() or int(line[:6]) % 20 == 0)


def fill(page, texts):
    """A page with its places filled in anew: fill("x <!-- a -->1<!-- end -->", {"a": "2"}) has 2 for 1."""
    place = re.compile(r"(<!-- (\w+) -->).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda match: match[1] + texts[match[2]] + match[3], page)


def main():
    """Fill both pages."""
    texts = sections(load_records(RESULTS))
    for path in PAGES:
        path.write_text(fill(path.read_text("utf-8"), texts), "utf-8")


if __name__ == "__main__":
    main()
