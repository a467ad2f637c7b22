"""6. A control arm.

Careful writers make fewer errors *and* state more optional facts (number, place, day). So the raters'
preferences say "more facts is better" even where the facts are wrong: a spurious correlation. Take it out,
and nothing else, as a control arm does; and measure how much of it there was.

Read: `Writer` and `write_response` in experiments/world.py.
Hint: dataclasses.replace copies a frozen dataclass with some fields changed. Each writer writes half of the
responses.
"""


def control(careless, careful):
    """Two world.Writer -> two others, in this order. Whether an optional fact is stated no longer tells
    who writes; over both writers together it is stated as often as before; and all other habits of each
    are as before."""
    raise NotImplementedError("control is yours to write")


def gap(stated, by_careful):
    """How many more optional facts a response of the careful writer states than one of the careless, on
    average.

    stated: an array (N,), optional facts in each of N responses, 0 to 3; by_careful: (N,), True where the
    careful writer wrote it -> one number."""
    raise NotImplementedError("gap is yours to write")
