"""6. A control arm.

Goal    Careful writers err less *and* state optional facts (number, place, day) more often. So a rater's preferences say "more facts" even
        where the facts are wrong: a spurious correlation, like that of the lists. Take it out, and nothing else, as a control arm does; and
        measure how much of it there is.
Read    `Writer`, `writers` and `write_response` in experiments/world.py; claim `control_list` in README.md
Time    60 minutes
Points  15
Run     python -m pytest experiments/assignments/test_06_control.py
Hint    dataclasses.replace copies a frozen dataclass with some fields changed. Half of the responses come from each writer.
"""
import numpy as np


def control(careless, careful):
    """Two world.Writer -> two others, in the same order: stating an optional fact no longer tells who writes, while over both writers
    together it is as frequent as before, and every other habit of each is as before."""
    raise NotImplementedError("control is yours to write")


def gap(stated, by_careful):
    """How many optional facts more a careful writer's response states than a careless one's, on average: one number.

    stated (N,): optional facts in each of N responses, 0 to 3; by_careful (N,): True where the careful writer wrote it."""
    raise NotImplementedError("gap is yours to write")


# ----- the check: nothing to change below -----------------------------------------------------------

from dataclasses import asdict
import random

from checks import NOTES, expect, expect_close
import world

CASES = [world.writers(list_gap, coverage) for list_gap, coverage in ((0.15, 0.0), (0.15, 1.0), (0.0, 0.5))]
CASES.append((world.Writer(wrong=.3, states=.2, lists=.1), world.Writer(wrong=.1, states=.6, lists=.3)))


def controlled(pair):
    """The student's two writers for a pair; fails in words if they are not two writers."""
    made = control(*pair)
    expect(isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(writer, world.Writer) for writer in made),
           f"control must return two world.Writer, (careless, careful); yours returns {made!r}")
    return made


def test_stating_tells_nothing():
    for pair in CASES:
        a, b = controlled(pair)
        expect(a.states == b.states, f"the careless writer states an optional fact with probability {a.states:g}, the careful one with {b.states:g}: "
               f"stating more still tells who writes, {'now the careless one' if a.states > b.states else 'the careful one'}")
        before = (pair[0].states + pair[1].states) / 2
        expect(abs(a.states - before) < 1e-9, f"together they stated an optional fact with probability {before:g}, now {a.states:g}: texts are longer or "
               "shorter than in the other arm, and a difference between the arms may come from that. Keep the mean over both writers")


def test_nothing_else_has_changed():
    for pair in CASES:
        made = controlled(pair)
        for who, old, new in zip(("careless", "careful"), pair, made):
            old, new = asdict(old), asdict(new)
            changed = {name: f"{name} {old[name]:g} -> {new[name]:g}" for name in old if name != "states" and new[name] != old[name]}
            why = {"wrong": " That takes out why the careful one is better: then nobody learns about wrong facts either.",
                   "lists": " The lists are the repository's own control arm; here they must stay."}
            expect(not changed, f"the {who} writer's other habits must stay, but: {', '.join(changed.values())}.{''.join(why.get(name, '') for name in changed)}")
        expect(made[0].states != pair[0].states, "the writers are as they were: nothing is taken out")


def sample(pair, count=4000):
    """(optional facts stated (N,), written by the careful one (N,)) of sampled responses."""
    rng, stated, careful = random.Random(0), [], []
    for _ in range(count):
        facts, chatter, _ = world.write_post(rng)
        careful.append(rng.random() < 0.5)
        words = world.write_response(pair[careful[-1]], facts, chatter, rng).replace(".", " ").split()
        stated.append(sum(word in world.WORDS[slot] for slot in ("num", "place", "day") for word in words))
    return np.array(stated), np.array(careful)


def test_measured_in_texts():
    stated, careful = np.array([3, 2, 1, 0, 3]), np.array([True, True, False, False, False])
    expect_close("gap of [3 2 1 0 3], the first two by the careful one", gap(stated, careful), 2.5 - 4 / 3, {
        "careless minus careful: the other way round": 4 / 3 - 2.5, "that is the careful one's mean alone": 2.5,
        "that is a difference of sums; the two may have written differently many": 1.0,
        "that is a correlation; the difference of two means is asked for": np.corrcoef(stated, careful)[0, 1]})
    before, after = (float(gap(*sample(pair))) for pair in (CASES[0], controlled(CASES[0])))
    NOTES.append(f"optional facts, careful minus careless, in 4000 sampled responses: {before:+.2f} before, {after:+.2f} in your control arm (of three)")
    expect(abs(after) < 0.1 < before, f"in sampled texts the careful one states {after:+.2f} facts more in your control arm, {before:+.2f} before: "
           "it should be 0")
