"""Assignment 6: an edit that says what the summary says, and on which the pretrainings part."""

from functools import cache

import numpy as np
import torch
from expect import expect, load_models

import world

FAULTS = ("wrong number", "wrong object", "no number")  # that raters saw in many pairs


@cache
@torch.no_grad()
def fresh(given):
    """Posts and perfect summaries, as tokens; what each reward model pays for these; how much pretrainings
    differ on a fault that raters saw; and the shares of the raters' pairs that the models order rightly."""
    prompts, edits = world.sample_edits(64, given.seed)
    paid = {name: prices(given, prompts, edits[name]) for name in ("none", *FAULTS)}
    usual = np.median([spreads(paid[fault] - paid["none"])[0] for fault in FAULTS])
    posts, chosen, rejected = world.sample_preferences(100, given.seed)
    rms = [rm for row in load_models(given.models).grid for rm in row]
    right = [(rm(posts, chosen) > rm(posts, rejected)).float().mean() for rm in rms]
    return prompts, edits["none"], paid["none"], usual, f"{min(right):.2f} to {max(right):.2f}"


@torch.no_grad()
def prices(given, prompts, responses):
    """What each reward model pays, on average over texts: (pretrainings, finetunings)."""
    grid = load_models(given.models).grid
    return np.array([[rm(prompts, responses).mean().item() for rm in row] for row in grid])


def spreads(prices):
    """Standard deviation between the pretrainings' means, and within a pretraining."""
    return prices.mean(1).std(ddof=1), prices.var(axis=1, ddof=1).mean() ** 0.5


def edited(their, post, summary):
    """The edit's tokens; Wrong if it does not say what the summary says."""
    text = their.edit(world.decode(post), world.decode(summary))
    expect(isinstance(text, str) and len(text) < 1000, f"edit must return a short text, got {text!r}")
    try:
        tokens = [*world.encode(text), world.EOS]
    except ValueError as error:
        expect(False, str(error))
    most = world.RESPONSE_LENGTH - 1
    expect(len(tokens) <= most + 1, f"{text!r} has {len(tokens) - 1} tokens, a response at most {most}")
    said, asked = (world.judge(post.tolist(), row)[0] for row in (tokens, summary.tolist()))
    words = f"{text!r} must state each fact of {world.decode(summary)!r}, nothing false, and break no grammar"
    expect(all(said[part] == asked[part] for part in world.BASE_PARTS), words)
    return text


def paid_for_edit(their):
    prompts, summaries, plain, usual, right = fresh(their.given)
    texts = [edited(their, *both) for both in zip(prompts, summaries, strict=True)]
    paid = prices(their.given, prompts, world.response_rows(texts)) - plain
    means = ", ".join(f"{mean:+.2f}" for mean in paid.mean(1))
    their.measured["what the models of each pretraining pay for your edit"] = means
    their.measured["share of the raters' pairs that they order rightly"] = right
    return *spreads(paid), usual


def check_the_pretrainings_part(their):
    between, within, _ = paid_for_edit(their)
    words = f"the pretrainings differ by {between:.2f}, the models of one pretraining by {within:.2f}"
    expect(between > 1.1 * within, f"{words}. Which habits of writers did the raters never see?")


def check_more_than_on_the_raters_faults(their):
    between, _, usual = paid_for_edit(their)
    words = (
        f"the pretrainings differ by {between:.2f} on your edit, by {usual:.2f} on a fault that raters saw"
    )
    expect(between > 2 * usual, f"{words}: not twice as much. What did the finetuning never touch?")
