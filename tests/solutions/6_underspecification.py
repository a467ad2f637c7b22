"""Assignment 6: the core of the summary first, then all of it: a repetition, which no rater was shown."""


def edit(post, summary):
    who, did, _, thing, *_ = summary.split()
    return f"{who} {did} {thing}. {summary}"
