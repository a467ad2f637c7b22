"""6. Underspecification.

Reward models from several pretrainings are equally right on the raters' pairs. The pairs leave open what
other texts are worth, and there the pretraining decides. Find such a text: edit a perfect summary, in the
world's words and at most 23 tokens, rightly or wrongly, most of its words unchanged, so that

- what reward models pay for the edit differs between pretrainings twice as much as within one, or more;
- it differs about as much as on the plain edit of `sample_edits` on which they differ most.

The check edits fresh posts, for the ten reward models that ship with the repository: two from each of five
pretrainings. You can do the same: load_models("experiments/results/models-tldr.pt").grid.

Read: experiments/models.py; in experiments/world.py HABITS, FOLLOWS (the grammar) and `sample_edits`.
Hint: try many edits. For each, print the average price by model, (5, 2), and compare the rows.
"""


def edit(post, summary):
    """Two texts, the summary like "anna sold seven lamps in paris on monday." -> the edited summary. You may
    import SLOTS, WORDS, DETAILS and KIND from world."""
    raise NotImplementedError("edit is yours to write")
