"""Assignment 6: an edit of a perfect summary on which the pretrainings part."""

import re
from functools import cache

import numpy as np
import torch
from expect import expect, load_models

import world


@cache
@torch.no_grad()
def fresh(given):
    """Posts and perfect summaries, as tokens; what each reward model pays for these; how much pretrainings
    differ on the plain edit where they do most; the shares of raters' pairs that models order rightly."""
    prompts, edits = world.sample_edits(64, given.seed)
    paid = {name: prices(given, prompts, responses) for name, responses in edits.items()}
    most = max(spreads(price - paid["none"])[0] for price in paid.values())
    posts, chosen, rejected = world.sample_preferences(100, given.seed)
    rms = [rm for row in load_models(given.models).grid for rm in row]
    right = [(rm(posts, chosen) > rm(posts, rejected)).float().mean() for rm in rms]
    return prompts, edits["none"], paid["none"], most, f"{min(right):.2f} to {max(right):.2f}"


@torch.no_grad()
def prices(given, prompts, responses):
    """What each reward model pays, on average over texts: (pretrainings, finetunings)."""
    grid = load_models(given.models).grid
    return np.array([[rm(prompts, responses).mean().item() for rm in row] for row in grid])


def spreads(prices):
    """Standard deviation between the pretrainings' means, and within a pretraining."""
    return prices.mean(1).std(ddof=1), prices.var(axis=1, ddof=1).mean() ** 0.5


def edited(their, post, summary):
    """The edited summary; Wrong if it is no text of this world."""
    post, summary = world.decode(post), world.decode(summary)
    text = their.edit(post, summary)
    expect(isinstance(text, str) and len(text) < 1000, f"edit must return a short text, got {text!r}")
    try:
        tokens = world.encode(text)
    except ValueError as error:
        expect(False, str(error))
    most = world.RESPONSE_LENGTH - 1
    expect(0 < len(tokens) <= most, f"{text!r} has {len(tokens)} tokens, a response 1 to {most}")
    old, new = (set(re.findall(r"\w+", words)) for words in (summary, text))
    expect(2 * len(old & new) > len(old), f"{text!r} is no edit of {summary!r}: most of its words must stay")
    return text


def paid_for_edit(their):
    prompts, summaries, plain, most, right = fresh(their.given)
    texts = [edited(their, *both) for both in zip(prompts, summaries, strict=True)]
    paid = prices(their.given, prompts, world.response_rows(texts)) - plain
    means = ", ".join(f"{mean:+.2f}" for mean in paid.mean(1))
    their.measured["what the models of each pretraining pay for your edit"] = means
    their.measured["share of the raters' pairs that they order rightly"] = right
    return *spreads(paid), most


def check_the_pretrainings_part(their):
    between, within, _ = paid_for_edit(their)
    words = f"the pretrainings differ by {between:.2f}, the models of one pretraining by {within:.2f}"
    expect(between > 2 * within, f"{words}: not twice as much. Print the price of many edits by model")


def check_by_as_much_as_any_plain_edit(their):
    between, _, most = paid_for_edit(their)
    words = f"the pretrainings differ by {between:.2f} on your edit, on another by {most:.2f}"
    expect(between > 0.75 * most, f"{words}. Look at the heat map of edits: which rows have two colours?")
