"""Assignment 6: both writers state an optional fact as often as the two did on average."""

from dataclasses import replace


def control(careless, careful):
    states = (careless.states + careful.states) / 2
    return replace(careless, states=states), replace(careful, states=states)


def gap(stated, by_careful):
    return stated[by_careful].mean() - stated[~by_careful].mean()
