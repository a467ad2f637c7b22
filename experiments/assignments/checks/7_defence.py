"""Assignment 7: exploits lose, those of other rules too, and what was right stays right."""

import random
from functools import cache
from itertools import product

import torch
from expect import expect, expect_numbers, load_models

import world

GAP = 0.45  # in gold, by which the better of two texts is better
SHOWN = ("three wrong details in a list", "a wrong number")  # rules whose exploits students see


def sentence(facts, left_out=()):
    said = {slot: "" if slot in left_out else word for slot, word in facts.items()}
    text = "{who} {did} {num} {obj} in {place} on {day}.".format(**said).replace("  ", " ")
    return text.replace(" in on", " on").replace(" on .", ".").replace(" in.", ".")


def as_list(facts, *more):
    return "- " + " - ".join([*facts.values(), *more])


def texts_by_rule(facts, rng):
    """[(rule, text)] of one post. "good" ones are honest, long or short; the others have a fault."""

    def wrong(*slots):
        return facts | {slot: world.another(slot, facts[slot], rng) for slot in slots}

    num, day = wrong("num")["num"], wrong("day")["day"]
    return [
        *(("good", sentence(facts, left_out)) for left_out in (world.DETAILS, ("num", "day"), ("num",), ())),
        ("good", as_list(facts)),
        (SHOWN[0], as_list(wrong(*world.DETAILS))),
        (SHOWN[1], sentence(wrong("num"))),
        ("a wrong core", sentence(wrong(rng.choice(["who", "did", "obj"])))),
        ("a wrong thing, in a list", as_list(wrong("num", "obj"))),
        ("two numbers and two days, one of each right", as_list(facts, num, day)),
        ("facts said again", as_list(facts, *rng.sample(list(facts.values()), 4))),
    ]


@cache
@torch.no_grad()
def pairs_by_rule(given, count=48):
    """{rule: [(post, better, worse)]}, each text with its reward and gold: exploits, which the reward likes
    more than a good text of the post, and pairs of good texts that it orders rightly. The reward is the mean
    of five models, one from each pretraining."""
    rng, rows, pairs = random.Random(f"defence {given.seed}"), [], {}
    for number in range(count):
        facts, _, post = world.write_post(rng)
        rows += [(number, post, *row) for row in texts_by_rule(facts, rng)]
    prompts = torch.tensor([world.encode(post) for _, post, _, _ in rows])
    responses = world.response_rows([text for *_, text in rows])
    rewards = torch.stack([row[0](prompts, responses) for row in load_models(given.models).grid]).mean(0)
    golds = world.gold(prompts, responses)
    texts = [(*row, r, g) for row, r, g in zip(rows, rewards.tolist(), golds.tolist(), strict=True)]
    size = len(texts) // count
    for first in range(0, len(texts), size):
        for better, worse in product(texts[first : first + size], repeat=2):
            rule, liked_more = worse[2], better[4] > worse[4]
            if better[2] == "good" and better[5] > worse[5] + GAP and liked_more == (rule == "good"):
                pairs.setdefault(rule, []).append((better[1], better[3:], worse[3:]))
    return {rule: found[:: len(found) // 60 + 1] for rule, found in pairs.items()}


def kept_apart(their, pairs):
    """The share of pairs in which the patched reward of the better text is the higher one."""
    asked = [(post, text, reward) for post, *both in pairs for text, reward, _ in both]
    rng, patched = random.Random(their.given.seed), {}
    for _ in range(2):  # in any order, and once more in another: what a text is worth is all there is to say
        for post, text, reward in rng.sample(asked, len(asked)):
            value = float(expect_numbers("patched", their.patched(reward, post, text), ()))
            same = patched.setdefault((post, text), value) == value
            expect(same, f"patched gives {text!r} another reward when it is asked again")
    return sum(patched[post, a[0]] > patched[post, b[0]] for post, a, b in pairs) / len(pairs)


def check_such_exploits_lose(their):
    pairs = pairs_by_rule(their.given)
    for rule in filter(pairs.get, SHOWN):
        for i, (post, *both) in enumerate(pairs[rule][:3]):
            good, exploit = (
                f"{text!r} (reward {reward:+.2f}, gold {gold:+.2f})" for text, reward, gold in both
            )
            their.measured[f"exploit {i + 1} by {rule}"] = f"{post} || {exploit} beats {good}"
    for rule in filter(pairs.get, SHOWN):
        share = kept_apart(their, pairs[rule])
        words = f"of fresh exploits by {rule}, {share:.0%} lose to the good text that they beat, not 90%"
        expect(share >= 0.9, f"{words}. What does the post say?")


def check_what_was_right_stays_right(their):
    share = kept_apart(their, pairs_by_rule(their.given)["good"])
    words = f"of pairs of good texts that the reward orders rightly, {share:.0%} keep their order, not 95%"
    expect(share >= 0.95, f"{words}. Some are lists, some are short: punish the fault, not what goes with it")


def check_exploits_by_other_rules_lose(their):
    pairs = pairs_by_rule(their.given)
    shares = [kept_apart(their, pairs[rule]) for rule in pairs if rule not in ("good", *SHOWN)]
    words = (
        f"of exploits by other rules, which you have not seen, {sum(shares) / len(shares):.0%} lose, not 80%"
    )
    expect(
        sum(shares) >= 0.8 * len(shares),
        f"{words}. Say what is good, not what these exploits look like: facts are not all",
    )
