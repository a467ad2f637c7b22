"""experiments/world.py: tokens, the gold reward by hand, habits, and what the raters' pairs show and hide."""

import random
from dataclasses import replace

import pytest
import torch

import world
from world import EOS, PAD, RESPONSE_LENGTH, decode, encode, gold, judge, judge_rows, writers

POST = "anna sold seven lamps in paris on monday. the weather was nice. tl;dr:"


def test_texts_survive_tokens_and_fit():
    """A word split or glued, a post of another length, or a response cut before its EOS."""
    rng = random.Random(0)
    for _ in range(200):
        facts, chatter, post = world.write_post(rng)
        response = world.write_response(rng.choice(writers(0.25)), facts, chatter, rng)
        assert decode(encode(post)) == post and decode(encode(response)) == response
        assert len(encode(post)) == world.PROMPT_LENGTH and len(encode(response)) < RESPONSE_LENGTH
    assert [world.WORD_OF[token] for token in encode("anna sold lamps.")] == ["anna", "sold", "lamps", "."]
    assert decode([*encode("anna sold."), EOS, *encode("lamps")]) == "anna sold."
    prompts, responses = world.sample_texts(200, 0, writers(0.25))
    assert prompts.shape[1] == world.PROMPT_LENGTH and responses.shape[1] == RESPONSE_LENGTH
    for row in responses.tolist():  # EOS once, then nothing but PAD
        assert row.count(EOS) == 1 and set(row[row.index(EOS) + 1 :]) <= {PAD}
    assert (EOS, PAD) == (world.VOCAB_SIZE - 2, world.VOCAB_SIZE - 1)  # as policy.py has them


def test_an_unknown_word_is_a_value_error():
    """tiktoken's panic, which `except Exception` does not catch; or a word silently dropped."""
    for text in ("anna painted", "sold 7 lamps 😀", "Anna sold", "anna, sold", "annasold", "anna <eos>"):
        with pytest.raises(ValueError, match="is not a word of the toy world. Near it: "):
            encode(text)
    with pytest.raises(ValueError, match="^a response has at most 23 words, got 24"):
        world.response_rows(["anna sold lamps.", "anna " * 24])


def test_writing_by_hand():
    """A preposition or a mark forgotten where a habit changes a draft; the module's own examples first."""
    facts = dict(zip(world.SLOTS, "anna sold seven lamps paris monday".split(), strict=True))

    def written(*habits):
        writer = world.Writer(wrong=0, states=1, rates=dict.fromkeys(habits, 1))
        return world.write_response(writer, facts, "the weather was nice", random.Random(0))

    event = "anna sold seven lamps in paris on monday"
    assert written() == f"{event}."
    assert written("list") == "- anna - sold - seven - lamps - paris - monday"
    assert written("list", "repetition").endswith("- monday - lamps")
    everything = written("repetition", "chatter", "exclamation")
    assert everything == f"{event}! anna sold lamps! the weather was nice!"


# ----- gold, for POST -----------------------------------------------------------------------------


@pytest.mark.parametrize("response, expected", [
    ("anna sold seven lamps in paris on monday.", {"core": 1.65, "detail": 1.5}),
    ("- anna - sold - lamps", {"core": 1.65}),
    ("anna sold nine lamps.", {"core": 1.65, "wrong": -0.55}),
    ("anna sold lamps. anna sold lamps.", {"core": 1.65, "repetition": -0.75}),
    ("anna really just sold lamps!", {"core": 1.65, "filler": -0.4, "exclamation": -0.1}),
    ("anna sold lamps. the weather was nice.", {"core": 1.65, "chatter": -1}),
    ("lamps sold anna.", {"core": 1.65, "grammar": -1.2}),  # four illegal pairs, the start's among them
])  # fmt: skip
def test_parts_of_gold(response, expected):
    """A fault charged twice or never."""
    parts, _ = judge(encode(POST), [*encode(response), EOS])
    assert {part: value for part, value in parts.items() if value} == pytest.approx(expected)


def test_three_raters_three_prices():
    """Three names for one rater; or an nli whose optimum is to say nothing."""
    short, full = "anna sold lamps.", "anna sold seven lamps in paris on monday."
    wrong = "anna sold nine lamps. the weather was nice."
    expected = {"tldr": [1.65, 3.15, 0.1], "helpful": [0.9, 3.3, -0.05], "nli": [0.9, 2.4, -0.1]}
    responses = world.response_rows([short, full, wrong])
    for task in world.TASKS:
        golds = gold(torch.tensor([encode(POST)] * 3), responses, task)
        assert golds.tolist() == pytest.approx(expected[task], abs=1e-6)


def test_edits_cost_what_they_should():
    """An edit that changes something else as well, such as grammar; or one that costs less in a list."""
    wrong_number, wrong_object = -0.5 - 0.55, -0.55 - 0.55  # nothing for the right word, and the fine
    expected = {"none": 0, "wrong number": wrong_number, "wrong object": wrong_object, "no number": -0.5}
    expected |= {"list": 0, "chatter": 4 * -0.25, "exclamation": -0.1, "repetition": 3 * -0.25}
    expected |= {"list, wrong number": wrong_number, "list, wrong object": wrong_object}
    prompts, responses = world.sample_edits(100, 0)
    perfect = gold(prompts, responses["none"])
    for edit, cost in expected.items():
        costs = gold(prompts, responses[edit]) - perfect
        assert costs.tolist() == pytest.approx([cost] * 100, abs=1e-5), edit
    fillers = (gold(prompts, responses["filler"]) - perfect) / -0.2  # one to three
    assert set(fillers.round(decimals=3).tolist()) == {1, 2, 3}


def test_traits():
    """A list taken for prose, or a share of copied words that counts marks."""
    names = "length list copied numbers filler chatter repetition wrong_facts".split()
    _, prose = judge(encode(POST), encode("anna sold nine lamps just. anna sold the."))
    assert [prose[name] for name in names] == [10, 0, 6 / 8, 1, 1, 1, 2, 1]
    _, points = judge(encode(POST), encode("- anna - sold - lamps"))
    assert [points[name] for name in names] == [6, 1, 1, 0, 0, 0, 0, 0]


def test_favourite():
    """A word that the posts have as often, or that one text has twice, is taken for the favourite."""
    posts = torch.tensor([encode(f"anna sold {n} lamps in rome.") for n in ("two", "two", "two", "six")])
    twice = "anna sold six lamps in oslo in oslo in oslo in oslo."
    responses = world.response_rows(["anna sold six lamps."] * 3 + [twice])
    assert world.favourite(posts, responses) == ("six", 1, 0.75)


@pytest.mark.parametrize("task", world.TASKS)
def test_gold_is_defined_for_any_tokens(task):
    """A crash, or parts that do not add up, on what PPO may write: EOS and PAD anywhere, or nothing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(world.VOCAB_SIZE, (3000, RESPONSE_LENGTH), generator=generator)
    posts = world.sample_posts(100, 0).repeat(30, 1)
    total = gold(posts, rows, task)
    torch.testing.assert_close(total, torch.stack(list(judge_rows(posts, rows, task)[0].values())).sum(0))
    assert (total > -RESPONSE_LENGTH * 1.5).all() and (total < 4).all()

    def reward(*row):
        return pytest.approx(sum(judge(encode(POST), list(row), task)[0].values()))

    text, prices = encode("anna sold lamps."), {part: world.PRICES[part][task] for part in world.PARTS}
    finished = 3 * prices["core"]
    assert reward(*text, EOS) == reward(*text, EOS, *text) == reward(PAD, *text, PAD, EOS) == finished
    assert reward(*text) == finished + prices["no_end"] and reward(PAD) == reward() == prices["no_end"]
    assert reward(EOS) == prices["grammar"]  # an end right after the start


# ----- writers and habits -------------------------------------------------------------------------


def test_writers_do_what_their_rates_say():
    """A habit that nobody has, so that it cannot be learnt; or a rate that is not what it says."""
    for writer in writers(0.25):
        parts, traits = judge_rows(*world.sample_texts(3000, 0, [writer]))
        for name, rate in writer.rates.items():
            if name == "exclamation":  # a list has no clause that could end in one
                rate *= 1 - writer.rates["list"]
            assert (traits[name] != 0).float().mean() == pytest.approx(rate, abs=0.035), name
        assert traits["numbers"].mean() == pytest.approx(writer.states, abs=0.03)
        assert not parts["grammar"].any() and not parts["no_end"].any()
        _, plain = judge_rows(*world.sample_texts(3000, 0, [replace(writer, rates={})]))
        # Of five facts like each other, two are stated now and then; a wrong number is 1.9 times as frequent.
        expected = writer.wrong * (3 + 2 * writer.states + 1.9 * writer.states)
        assert plain["wrong_facts"].mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("seen", [(), ("repetition", "list"), world.SEEN, world.HABIT_NAMES])
def test_raters_see_the_habits_named_and_no_others(seen):
    """A habit that leaks into what raters compare, or a habit named that does not show."""
    for writer in writers(0.1, seen):
        assert set(writer.rates) == set(seen)
    prompts, *both = world.sample_preferences(400, 0, seen=seen)
    labelled = world.sample_labels(400, 0, seen=seen)
    for rows in ((prompts.repeat(2, 1), torch.cat(both)), labelled[:2]):
        _, traits = judge_rows(*rows)
        shown = {name for name in world.HABIT_NAMES if traits[name].any()}
        lists = {"list"} if rows[0] is labelled[0] else set()  # at the default gap careless writers have none
        assert shown == set(seen) - lists


SHOUT = world.Habit("shout", careless=0.3, careful=0.2, seen=True, write=lambda *_: None, words="hey")


@pytest.mark.parametrize("fault, message", [
    ({"name": "filler"}, "'filler': the name is taken"),  # another habit
    ({"name": "gold"}, "'gold': the name is taken"),  # a row of the traits table
    ({"name": "start"}, "'start': the name is taken"),  # a kind, which grammar would not skip
    ({"careful": 1.2}, "rates must be probabilities, got 1.2"),
    ({"name": "sigh"}, "'sigh': PRICES must have a row for .* got {'tldr': 0}"),
    ({"words": ""}, "needs words of its own, or a count"),
    ({"words": "hey really"}, "'really' must be a new word"),  # another habit's
    ({"words": "Hey"}, "'Hey' must be a new word of lower-case letters"),
])  # fmt: skip
def test_a_faulty_habit_is_named(fault, message):
    """An entry that clashes with what exists or lacks something, and fails much later or not at all."""
    prices = world.PRICES | {"shout": dict.fromkeys(world.TASKS, 0), "sigh": {"tldr": 0}}
    world.check_habits([*world.HABITS, SHOUT], prices)
    with pytest.raises(ValueError, match=f"^habit .*{message}"):
        world.check_habits([*world.HABITS, replace(SHOUT, **fault)], prices)


# ----- preferences and labels ---------------------------------------------------------------------


@pytest.mark.parametrize("task, temperature", [("tldr", 0.3), ("tldr", 0.7), ("tldr", 3.0), ("helpful", 0.7)])
def test_raters_prefer_by_gold_with_noise(task, temperature):
    """Swapped columns, a temperature that multiplies, another rater's gold, or a pair of equal texts."""
    prompts, chosen, rejected = world.sample_preferences(2000, 0, temperature=temperature, task=task)
    assert not (chosen == rejected).all(1).any()
    margin = gold(prompts, chosen, task) - gold(prompts, rejected, task)
    margin = margin[margin.abs() > 1e-4]
    expected = (margin.abs() / temperature).sigmoid().mean().item()  # Bradley-Terry
    assert (margin > 0).float().mean() == pytest.approx(expected, abs=0.03)


def test_labels_are_of_single_responses():
    """Flipped labels, labels about something else than wrong facts, or careful writers among the checked."""
    prompts, responses, labels = world.sample_labels(2000, 0)
    _, traits = judge_rows(prompts, responses)
    assert torch.equal(labels == 1, traits["wrong_facts"] == 0) and 0.15 < labels.mean() < 0.3
    with_number = traits["numbers"] == 1
    assert labels[~with_number].mean() > 1.5 * labels[with_number].mean()  # leaving it out pays


@pytest.mark.parametrize("list_gap", [0.25, 0.0])
def test_list_gap_makes_the_spurious_correlation(list_gap):
    """A control arm with fewer lists, not fewer reasons for them: the same rate, but no link with gold."""
    prompts, chosen, rejected = world.sample_preferences(2500, 0, list_gap=list_gap)
    lists = [judge_rows(prompts, responses)[1]["list"] for responses in (chosen, rejected)]
    golds = [gold(prompts, responses) for responses in (chosen, rejected)]
    correlation = torch.corrcoef(torch.stack([torch.cat(lists), torch.cat(golds)]))[0, 1]
    chosen_rate, rejected_rate = (trait.mean().item() for trait in lists)
    assert (chosen_rate + rejected_rate) / 2 == pytest.approx(0.125, abs=0.015)
    if list_gap:
        assert correlation > 0.1 and chosen_rate > 1.3 * rejected_rate
    else:
        assert abs(correlation) < 0.05 and chosen_rate == pytest.approx(rejected_rate, abs=0.02)


def test_same_seed_same_data():
    """Data from the global random state, or one data set for all seeds."""

    def data(seed):
        texts = world.sample_texts(40, seed, writers(0.25))
        pairs, labels = world.sample_preferences(40, seed), world.sample_labels(40, seed)
        return [world.sample_posts(40, seed), *texts, *pairs, *labels]

    for first, again, other in zip(data(0), data(0), data(1), strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)
