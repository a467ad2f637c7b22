"""Assignment 6: another number. Models of one pretraining check it, those of the others hardly do."""

from world import WORDS


def edit(post, summary):
    number = summary.split()[2]
    return summary.replace(number, next(word for word in WORDS["num"] if word != number))
