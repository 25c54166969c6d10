"""How a view is worded: every clause, and thousands of views against a second implementation."""

import numpy as np
import pytest

from atlas_ray import envs
from atlas_ray.envs.babyai_text import ACTIONS, describe

UNSEEN, EMPTY, WALL, FLOOR, DOOR, KEY, BALL, BOX = range(8)

RED, GREEN, BLUE, PURPLE, YELLOW, GREY = range(6)

OPEN, CLOSED, LOCKED = range(3)

KINDS = ["unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent"]

COLORS = ["red", "green", "blue", "purple", "yellow", "grey"]


def view(cells, fill=EMPTY):
    """``{(right of the agent, forward of it): (kind, colour, state)}`` as a 7x7x3 array."""
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[:, :, 0] = fill
    for (right, forward), cell in cells.items():
        image[3 + right, 6 - forward] = cell
    return image


def expected(image, carrying=None):
    """papers.md, section 3, once more and in another way: by offsets from the agent instead of indices."""

    def cell(right, forward):
        return [int(v) for v in image[3 + right][6 - forward]]

    def count(n, word):
        return "1 step " + word if n == 1 else f"{n} steps " + word

    said = []
    if carrying is not None:
        said.append("You carry a {} {}".format(*carrying))
    for word, right, forward, reach in (("forward", 0, 1, 6), ("left", -1, 0, 3), ("right", 1, 0, 3)):
        ray = [(n, cell(n * right, n * forward)[0]) for n in range(1, reach + 1)]
        something = [(n, kind) for n, kind in ray if KINDS[kind] not in ("unseen", "empty")]
        if something and KINDS[something[0][1]] == "wall":
            said.append("You see a wall " + count(something[0][0], word))
    for right in (-3, -2, -1, 0, 1, 2, 3):
        for forward in (6, 5, 4, 3, 2, 1, 0):
            kind, color, state = cell(right, forward)
            if KINDS[kind] in ("unseen", "empty", "wall") or right == forward == 0:
                continue
            words = ["You see a"]
            if KINDS[kind] == "door":
                words.append(["open", "closed", "locked"][state])
            words += [COLORS[color], KINDS[kind]]
            where = []
            if right:
                where.append(count(abs(right), "left" if right < 0 else "right"))
            if forward:
                where.append(count(forward, "forward"))
            said.append(" ".join(words) + " " + " and ".join(where))
    return said


@pytest.mark.parametrize(
    ("cells", "facts"),
    [
        ({}, []),
        ({(0, 1): (BALL, RED, 0)}, ["You see a red ball 1 step forward"]),
        ({(0, 6): (KEY, GREEN, 0)}, ["You see a green key 6 steps forward"]),
        ({(-1, 0): (BOX, BLUE, 0)}, ["You see a blue box 1 step left"]),
        ({(3, 0): (BOX, PURPLE, 0)}, ["You see a purple box 3 steps right"]),
        ({(-1, 1): (BALL, GREY, 0)}, ["You see a grey ball 1 step left and 1 step forward"]),
        ({(2, 5): (BALL, YELLOW, 0)}, ["You see a yellow ball 2 steps right and 5 steps forward"]),
        ({(0, 2): (DOOR, YELLOW, OPEN)}, ["You see a open yellow door 2 steps forward"]),
        ({(0, 2): (DOOR, RED, CLOSED)}, ["You see a closed red door 2 steps forward"]),
        ({(-2, 3): (DOOR, GREY, LOCKED)}, ["You see a locked grey door 2 steps left and 3 steps forward"]),
        ({(0, 0): (BALL, RED, 0)}, []),
        ({(0, 0): (DOOR, RED, OPEN)}, []),
        ({(0, 1): (WALL, GREY, 0)}, ["You see a wall 1 step forward"]),
        ({(-2, 0): (WALL, GREY, 0)}, ["You see a wall 2 steps left"]),
        ({(3, 0): (WALL, GREY, 0)}, ["You see a wall 3 steps right"]),
        # only the first wall on a ray, and walls beside the rays not at all
        (
            {(0, 3): (WALL, GREY, 0), (0, 5): (WALL, GREY, 0), (1, 3): (WALL, GREY, 0)},
            ["You see a wall 3 steps forward"],
        ),
        # something before the wall hides it, an unseen cell is nothing
        ({(0, 2): (KEY, RED, 0), (0, 3): (WALL, GREY, 0)}, ["You see a red key 2 steps forward"]),
        ({(0, 2): (DOOR, RED, OPEN), (0, 3): (WALL, GREY, 0)}, ["You see a open red door 2 steps forward"]),
        ({(0, 1): (UNSEEN, 0, 0), (0, 2): (WALL, GREY, 0)}, ["You see a wall 2 steps forward"]),
        # an object behind a wall that is visible all the same
        (
            {(0, 2): (WALL, GREY, 0), (0, 3): (BALL, RED, 0)},
            ["You see a wall 2 steps forward", "You see a red ball 3 steps forward"],
        ),
        # an unseen cell keeps its colour to itself
        ({(0, 2): (UNSEEN, RED, 2)}, []),
    ],
)
def test_every_clause(cells, facts):
    assert describe(view(cells)) == facts


def test_order_of_the_facts():
    cells = {
        (1, 0): (BALL, RED, 0),
        (3, 2): (KEY, GREY, 0),
        (-3, 1): (BOX, BLUE, 0),
        (-3, 5): (DOOR, GREEN, LOCKED),
        (0, 4): (WALL, GREY, 0),
        (0, 2): (FLOOR, PURPLE, 0),
        (-1, 0): (WALL, GREY, 0),
    }
    assert describe(view(cells), ("yellow", "key")) == [
        "You carry a yellow key",
        "You see a wall 1 step left",
        "You see a locked green door 3 steps left and 5 steps forward",
        "You see a blue box 3 steps left and 1 step forward",
        "You see a purple floor 2 steps forward",
        "You see a red ball 1 step right",
        "You see a grey key 3 steps right and 2 steps forward",
    ]
    del cells[(0, 2)], cells[(1, 0)]
    cells[(2, 0)] = (WALL, GREY, 0)
    assert describe(view(cells))[:3] == [
        "You see a wall 4 steps forward",
        "You see a wall 1 step left",
        "You see a wall 2 steps right",
    ]


def test_thousands_of_random_views_equal_the_second_implementation():
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(3000):
        empty, wall = rng.uniform(0, 0.9), rng.uniform(0, 0.5)
        kinds = rng.integers(0, 11, (7, 7))
        kinds = np.where(rng.random((7, 7)) < wall, WALL, kinds)
        kinds = np.where(rng.random((7, 7)) < empty, rng.integers(0, 2, (7, 7)), kinds)
        image = np.stack([kinds, rng.integers(0, 6, (7, 7)), rng.integers(0, 3, (7, 7))], axis=-1).astype(np.uint8)
        carrying = None if rng.random() < 0.5 else (COLORS[rng.integers(6)], KINDS[rng.integers(5, 8)])
        assert describe(image, carrying) == expected(image, carrying)
        said += len(expected(image))
    assert said > 10_000


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64])
def test_any_integers_in_any_container(dtype):
    image = view({(0, 1): (WALL, GREY, 0), (2, 2): (DOOR, BLUE, CLOSED), (-1, 0): (KEY, RED, 0)})
    facts = expected(image)
    assert len(facts) == 3
    assert describe(image.astype(dtype)) == describe(image.tolist()) == facts
    assert describe(tuple(tuple(map(tuple, column)) for column in image.tolist())) == facts


@pytest.mark.parametrize("shape", [(7, 7), (7, 7, 4), (5, 7, 3), (3, 7, 7), (1, 7, 7, 3), (0,), (147,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="7x7x3"):
        describe(np.zeros(shape, dtype=int))


def test_ragged_lists_are_refused():
    image = view({}).tolist()
    image[3] = image[3][:5]
    with pytest.raises(ValueError, match="shape"):
        describe(image)


@pytest.mark.parametrize("cell", [(11, 0, 0), (BALL, 6, 0), (DOOR, 0, 3)])
def test_values_that_minigrid_does_not_know_are_refused(cell):
    with pytest.raises(ValueError, match=r"cell \(4, 3\)"):
        describe(view({(1, 3): cell}))


def test_real_views_are_worded_by_the_same_rules():
    """Through the environment, objects carried and doors of all states included."""
    seen = set()
    for level in ("GoToLocal", "KeyCorridorS3R2", "UnlockPickup", "Open"):
        env = envs.make(level)
        rng = np.random.default_rng(1)
        observation, _ = env.reset(seed=3)
        for _ in range(300):
            held = env.grid_env.carrying
            image = env.grid_env.gen_obs()["image"]
            facts = expected(image, (held.color, held.type) if held else None)
            assert observation == (", ".join(facts) or "You see nothing")
            assert observation in env.observation_space
            seen |= set(observation.split())
            observation, _, terminated, truncated, _ = env.step(ACTIONS[rng.integers(6)])
            if terminated or truncated:
                observation, _ = env.reset()
    assert {"carry", "open", "closed", "locked", "wall", "left", "right"} <= seen
