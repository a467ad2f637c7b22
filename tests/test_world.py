"""experiments/world.py: tokens, the gold reward by hand, and what the raters' pairs show and hide."""
import random

import pytest
import torch

from world import (EOS, FILLERS, PAD, PROMPT_LENGTH, RESPONSE_LENGTH, STYLES, TASKS, VOCAB_SIZE, WORD_OF, decode, encode, gold, judge,
                   judge_rows, sample_labels, sample_posts, sample_preferences, sample_texts, write_post, write_response, writers)

POST = "anna sold seven lamps in paris on monday. the weather was nice. tl;dr:"


def judged(response, task="tldr"):
    """Gold parts that are not zero, and traits, of a response to POST."""
    parts, traits = judge(encode(POST), encode(response) + [EOS], task)
    return {name: pytest.approx(value) for name, value in parts.items() if value}, traits


def test_texts_survive_tokens_and_fit():
    """A word split or glued, a post of another length, a response cut before its EOS: 200 texts of every style."""
    rng = random.Random(0)
    for _ in range(200):
        facts, chatter, post = write_post(rng)
        response = write_response(rng.choice(writers(0.15)), facts, chatter, rng)
        assert decode(encode(post)) == post and decode(encode(response)) == response
        assert len(encode(post)) == PROMPT_LENGTH and len(encode(response)) < RESPONSE_LENGTH
        assert len(encode(response)) == len(response.replace(".", " .").replace("!", " !").split())        # a word is a token
    assert EOS != PAD and VOCAB_SIZE == len(WORD_OF) == max(EOS, PAD) + 1


@pytest.mark.parametrize("text", ["anna painted lamps", "anna sold lamps 😀", "Anna sold lamps", "anna sold 7 lamps", "anna, sold",
                                  "annasold", "-anna", "anna <eos>", "é"])
def test_unknown_text_is_a_value_error(text):
    """tiktoken's panic, which `except Exception` does not catch; or a word silently dropped."""
    with pytest.raises(ValueError, match="^text: "):
        encode(text)


@pytest.mark.parametrize("response, parts", [
    ("anna sold seven lamps in paris on monday.", {"core": 1.65, "detail": 1.5}),
    ("- anna - sold - lamps", {"core": 1.65}),
    ("anna sold nine lamps.", {"core": 1.65, "wrong": -0.55}),
    ("anna sold lamps. anna sold lamps.", {"core": 1.65, "repetition": -0.75}),
    ("anna really just sold lamps!", {"core": 1.65, "filler": -0.4, "exclamation": -0.1}),
    ("anna sold lamps. the weather was nice.", {"core": 1.65, "chatter": -1.0}),
    ("lamps sold anna.", {"core": 1.65, "grammar": -1.2}),               # four illegal pairs, the start's among them
])
def test_gold_by_hand(response, parts):
    """A penalty charged twice or never."""
    assert judged(response)[0] == parts


def test_three_raters_three_prices():
    """Three names for one rater; nli paying for facts, so that saying less is never better."""
    golds = {task: [sum(judge(encode(POST), encode(response) + [EOS], task)[0].values()) for response in
                    ("anna sold lamps.", "anna sold seven lamps in paris on monday.", "anna sold lamps. the weather was nice.", "anna sold nine lamps.")] for task in TASKS}
    assert golds["tldr"] == pytest.approx([1.65, 3.15, 0.65, 1.10])
    assert golds["helpful"] == pytest.approx([0.9, 3.3, 0.5, 0.35])
    assert golds["nli"] == pytest.approx([0, 0, 0, -1])


def test_traits_and_odd_ends_by_hand():
    """A list taken for prose, a share of copied words that counts marks; a row without end, without text, with text after it."""
    names = "length list copied numbers filler chatter repetition wrong_facts".split()
    traits = lambda response: [judged(response)[1][name] for name in names]
    assert traits("anna sold nine lamps just. anna sold the.") == [10, 0, 6 / 8, 1, 1, 1, 2, 1]
    assert traits("- anna - sold - lamps") == [6, 1, 1, 0, 0, 0, 0, 0]
    text = encode("anna sold lamps.")
    golds = [sum(judge(encode(POST), row)[0].values()) for row in (text, [PAD], [EOS], [*text, EOS, *text])]
    assert golds == pytest.approx([1.65 - 0.5, -0.5, -0.3, 1.65]) and decode([*text, EOS, *text]) == "anna sold lamps."


def test_seed_sets_the_data():
    """Data from the global random state, or one data set for all pretrainings. Flipped labels that draw other pairs."""
    make = lambda seed: [sample_posts(40, seed), *sample_texts(40, seed, writers(0.15)), *sample_preferences(40, seed), *sample_labels(40, seed)]
    for first, again, other in zip(make(0), make(0), make(1)):
        assert torch.equal(first, again) and not torch.equal(first, other)
    posts, chosen, rejected = sample_preferences(100, 0)
    for column, expected in zip(sample_preferences(100, 0, flipped=1.0), (posts, rejected, chosen)):
        assert torch.equal(column, expected)
    posts, responses, labels = sample_labels(100, 0)
    for column, expected in zip(sample_labels(100, 0, flipped=1.0), (posts, responses, 1 - labels)):
        assert torch.equal(column, expected)


def test_gold_is_defined_for_any_tokens():
    """A crash, or a reward without bound, on what PPO may come to write: random rows, EOS and PAD anywhere."""
    rows = torch.randint(VOCAB_SIZE, (10_000, RESPONSE_LENGTH), generator=torch.Generator().manual_seed(0))
    posts = sample_posts(100, 0).repeat(100, 1)
    parts, traits = judge_rows(posts, rows)
    rewards = gold(posts, rows)
    torch.testing.assert_close(rewards, torch.stack(list(parts.values())).sum(0))
    assert (rewards > -RESPONSE_LENGTH * (0.6 + 0.3) - 0.5).all() and (rewards <= 3.16).all()
    assert (parts.pop("core") >= 0).all() and (parts.pop("detail") >= 0).all() and all((part <= 0).all() and (part < 0).any() for part in parts.values())
    assert (0 <= traits["copied"]).all() and (traits["copied"] <= 1).all() and (traits["length"] <= RESPONSE_LENGTH).all()


def test_every_hack_has_a_rate_at_the_start():
    """A hack that cannot take because the SFT policy never saw it: each of them in broad text."""
    posts, responses = sample_texts(1000, 0, writers(0.15))
    parts, traits = judge_rows(posts, responses)
    rates = {name: (value != 0).float().mean() for name, value in {**parts, **traits}.items()}
    for name in ("list", "filler", "chatter", "exclamation", "repetition", "wrong_facts", "numbers"):
        assert 0.05 < rates[name] < 0.9, name
    assert all((responses == WORD_OF.index(word)).any() for word in FILLERS)
    assert rates["grammar"] == rates["no_end"] == 0                            # no writer breaks the rules of the world


def test_coverage_is_the_share_of_styles_that_raters_see():
    """Underspecification that leaks: at coverage 0 no judgement may show a filler, chatter, an exclamation or a repetition; then one after
    the other, and at 1 the raters see what the models were pretrained on."""
    hidden = ["filler", "chatter", "exclamation", "repetition"]
    for coverage, shown in ((0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        posts, *both = sample_preferences(400, 0, coverage=coverage)
        for parts in (judge_rows(posts.repeat(2, 1), torch.cat(both))[0], judge_rows(*sample_labels(400, 0, coverage=coverage)[:2])[0]):
            assert [bool((parts[name] < 0).any()) for name in hidden] == [i < shown for i in range(4)]
    half = writers(0.15, 0.125)
    assert [writer.fillers for writer in half] == pytest.approx([x / 2 for x in STYLES["fillers"]]) and half[0].chatter == 0
    assert writers(0.15, 1.0) == writers(0.15)
    for outside in (-0.1, 1.1):
        with pytest.raises(ValueError, match="^coverage: "):
            writers(0.15, outside)


def test_labels_are_of_single_responses():
    """Labels turned round, or about something else than wrong facts; careful writers among them, for whom saying more is a good sign."""
    posts, responses, labels = sample_labels(2000, 0)
    traits = judge_rows(posts, responses)[1]
    assert torch.equal(labels == 1, traits["wrong_facts"] == 0) and 0.15 < labels.mean() < 0.3
    assert labels[traits["numbers"] == 0].mean() > 1.5 * labels[traits["numbers"] == 1].mean(), "leaving the number out pays"


@pytest.mark.parametrize("list_gap", [0.15, 0.0])
def test_list_gap_makes_and_unmakes_the_spurious_correlation(list_gap):
    """A control arm with other lists, not fewer reasons for them: the same rate overall, the link with gold gone."""
    posts, chosen, rejected = sample_preferences(2500, 0, list_gap=list_gap)
    lists = [judge_rows(posts, responses)[1]["list"] for responses in (chosen, rejected)]
    rewards = torch.cat([gold(posts, chosen), gold(posts, rejected)])
    correlation = torch.corrcoef(torch.stack([torch.cat(lists), rewards]))[0, 1]
    chosen_rate, rejected_rate = (x.mean() for x in lists)
    assert (chosen_rate + rejected_rate) / 2 == pytest.approx(0.085, abs=0.015)
    if list_gap:
        assert correlation > 0.1 and chosen_rate > 1.3 * rejected_rate
    else:
        assert abs(correlation) < 0.05 and abs(chosen_rate - rejected_rate) < 0.02
    for outside in (-0.01, 0.18):                                              # rates below 0, which would pass for 0
        with pytest.raises(ValueError, match="^list_gap: "):
            sample_preferences(10, 0, list_gap=outside)


def test_raters_prefer_by_gold_with_noise():
    """Chosen and rejected swapped, or a temperature that multiplies; and pairs of two equal texts."""
    right = []
    for temperature in (1e-3, 0.7, 5.0):
        posts, chosen, rejected = sample_preferences(500, 0, temperature=temperature)
        assert not (chosen == rejected).all(1).any()
        margin = gold(posts, chosen) - gold(posts, rejected)
        right.append((margin > -1e-4).float().mean().item())
    assert right[0] == 1 > right[1] > right[2] + 0.1 > 0.6
