"""Assignment 6: the correlation is gone, nothing else is, and texts say so."""

import random

import numpy as np
from expect import MEASURED, expect, expect_close

import world

PAIRS = [world.writers(list_gap=0.15), world.writers(list_gap=0.0, habits=world.SEEN)]
PAIRS.append((world.Writer(0.3, 0.2, {"list": 0.1}), world.Writer(0.1, 0.6, {"list": 0.3})))


def controlled(their, pair):
    made = their.control(*pair)
    two = isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(w, world.Writer) for w in made)
    expect(two, f"control must return two world.Writer, (careless, careful), got {made!r}")
    return made


def check_stating_tells_nothing(their):
    for pair in PAIRS:
        a, b = controlled(their, pair)
        words = (
            f"the careless one states an optional fact at rate {a.states:g}, the careful one at {b.states:g}"
        )
        expect(a.states == b.states, f"{words}: stating more still points at one of them")
        before = (pair[0].states + pair[1].states) / 2
        words = f"together they stated an optional fact with probability {before:g}, now {a.states:g}"
        advice = "now the arms differ in length as well, which may explain what you see. Keep the mean"
        expect(abs(a.states - before) < 1e-9, f"{words}: {advice}")


def check_nothing_else_has_changed(their):
    for pair in PAIRS:
        made = controlled(their, pair)
        for who, old, new in zip(("careless", "careful"), pair, made, strict=True):
            words = f"the {who} writer's `wrong` was {old.wrong:g} and is {new.wrong:g}"
            expect(new.wrong == old.wrong, f"{words}. With no gap there, nobody learns that wrong is bad")
            words = f"the {who} writer's habits were {old.rates} and are {new.rates}"
            expect(new.rates == old.rates, f"{words}. They must stay (lists have a control arm of their own)")
        expect(made[0].states != pair[0].states, "the writers are as they were: nothing is taken out")


def check_the_gap(their):
    stated, careful = np.array([3, 2, 1, 0, 3]), np.array([True, True, False, False, False])
    slips = {
        "that is careless minus careful": 4 / 3 - 2.5,
        "that is the careful one's mean alone": 2.5,
        "that is a difference of sums, but the two may have written differently many": 1.0,
        "that is a correlation, not the difference of two means": np.corrcoef(stated, careful)[0, 1],
    }
    name = "gap of [3 2 1 0 3], the first two by the careful one,"
    expect_close(name, their.gap(stated, careful), 2.5 - 4 / 3, slips)
    for arm, pair in {"before": PAIRS[0], "in your control arm": controlled(their, PAIRS[0])}.items():
        MEASURED[f"gap in 2000 sampled responses {arm}"] = round(float(their.gap(*sampled(pair))), 2)


def sampled(pair, count=2000):
    """Optional facts stated in each response, and whether the careful writer wrote it: (count,) each."""
    rng, stated, careful = random.Random(0), [], np.arange(count) % 2 == 1
    for by_careful in careful:
        facts, chatter, _ = world.write_post(rng)
        words = world.write_response(pair[int(by_careful)], facts, chatter, rng).replace(".", " ").split()
        stated.append(sum(world.KIND.get(word) in world.DETAILS for word in words))
    return np.array(stated), careful
