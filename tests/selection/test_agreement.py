"""Agreement of two selectors: kappa and the rest by hand, their bounds and symmetry, what is left out."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.errors import InputError
from atlas_ray.selection.agreement import BINS, Counts, agreement, agreement_text, part_of
from atlas_ray.trajectory import Annotation, Step, Trajectory

NAMES = ("value", "oracle")


def trajectory(name, steps, env="e"):
    made = tuple(Step(observation="o", action="a") for _ in range(steps))
    return Trajectory(
        id=name, env=env, task="t", seed=0, instruction="i", steps=made, score=1, success=True, source="expert"
    )


def note(name, critical, categories=None):
    return Annotation(
        trajectory_id=name, selector="s", fraction=1.0, critical=tuple(sorted(critical)), categories=categories
    )


def textbook_kappa(a, b):
    """Cohen's kappa of two lists of labels, from the confusion matrix as in scikit-learn's cohen_kappa_score."""
    n = len(a)
    observed = [[sum(x == i and y == j for x, y in zip(a, b, strict=True)) for j in (0, 1)] for i in (0, 1)]
    rows = [sum(row) for row in observed]
    columns = [sum(row[j] for row in observed) for j in (0, 1)]
    expected = [[rows[i] * columns[j] / n for j in (0, 1)] for i in (0, 1)]
    return 1 - (observed[0][1] + observed[1][0]) / (expected[0][1] + expected[1][0])


# --- the measures by hand ---


@pytest.mark.parametrize(
    ("a", "b", "jaccard", "overlap", "kappa"),
    [
        ([1, 0, 1, 0], [1, 0, 1, 0], 1.0, 1.0, 1.0),  # perfect
        ([1, 0, 1, 0], [0, 1, 0, 1], 0.0, 0.0, -1.0),  # opposite
        ([1, 1, 0, 0], [1, 0, 1, 0], 1 / 3, 0.5, 0.0),  # exactly what chance gives
        ([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0, 0, 0], 0.5, 2 / 3, (0.8 - 0.58) / 0.42),
        ([1, 1, 0, 0, 0], [1, 0, 0, 0, 0], 0.5, 1.0, (0.8 - 0.56) / 0.44),  # one holds the other
        ([1, 1, 1, 1], [1, 0, 0, 0], 0.25, 1.0, 0.0),  # one marks everything
        ([0, 0, 0, 0], [1, 0, 0, 0], 0.0, None, 0.0),  # one marks nothing
        ([1, 1, 1], [1, 1, 1], 1.0, 1.0, None),  # both mark everything: agreement could not be otherwise
        ([0, 0, 0], [0, 0, 0], None, None, None),  # both mark nothing
        ([1, 1, 1], [0, 0, 0], 0.0, None, 0.0),
    ],
)
def test_measures_by_hand(a, b, jaccard, overlap, kappa):
    marks = [[i for i, x in enumerate(labels) if x] for labels in (a, b)]
    total = agreement([trajectory("t", len(a))], [note("t", marks[0])], [note("t", marks[1])], NAMES).total
    assert total == Counts(len(a), sum(a), sum(b), sum(x * y for x, y in zip(a, b, strict=True)))
    assert total.jaccard == (None if jaccard is None else pytest.approx(jaccard))
    assert total.overlap == (None if overlap is None else pytest.approx(overlap))
    assert total.kappa == (None if kappa is None else pytest.approx(kappa))


def test_nothing_is_measured_of_no_steps():
    assert Counts(0, 0, 0, 0).describe() == {
        **dict.fromkeys(["steps", "first", "second", "both"], 0),
        **dict.fromkeys(["first_share", "second_share", "jaccard", "overlap", "kappa"]),
    }


@pytest.mark.parametrize(
    ("steps", "parts"),
    [
        (1, [2]),
        (2, [1, 3]),
        (3, [0, 2, 4]),
        (5, [0, 1, 2, 3, 4]),
        (7, [0, 1, 1, 2, 3, 3, 4]),
        (10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_parts_of_an_episode(steps, parts):
    assert [part_of(t, steps) for t in range(steps)] == parts


def test_positions_environments_and_categories_by_hand():
    several = [
        trajectory("a", 10, "room"),
        trajectory("b", 5, "key"),
        trajectory("c", 5, "room"),
        trajectory("only value", 9),
        trajectory("only oracle", 9),
        trajectory("only oracle too", 9),
        trajectory("neither", 9),
    ]
    value = [note("a", [0, 1, 9]), note("b", [0]), note("c", []), note("only value", [1, 2])]
    oracle = [
        note("a", [0, 5, 9], {0: "plan creation", 5: "critical action", 9: "critical action", 3: "of no marked step"}),
        note("b", [4], {4: "critical action"}),
        note("c", [4]),
        note("only oracle", [1], {1: "self correction"}),
        note("only oracle too", []),
    ]
    result = agreement(several, value, oracle, NAMES)
    assert result.trajectories == 3 and result.alone == (1, 2)
    assert result.total == Counts(20, 4, 5, 2)
    assert result.positions == (
        Counts(4, 3, 1, 1),
        Counts(4, 0, 0, 0),
        Counts(4, 0, 1, 0),
        Counts(4, 0, 0, 0),
        Counts(4, 1, 3, 1),
    )
    assert result.environments == {"key": Counts(5, 1, 1, 0), "room": Counts(15, 3, 4, 2)}
    assert list(result.environments) == ["key", "room"]
    assert result.categories == ({}, {"critical action": 0.75, "plan creation": 0.25})
    told = json.loads(json.dumps(result.describe(), allow_nan=False))
    assert told["names"] == list(NAMES) and told["alone"] == [1, 2]
    assert told["positions"][1]["kappa"] is None and told["positions"][0]["first_share"] == 0.75
    assert told["kappa_ci95"] == list(result.kappa_ci95)
    assert told["categories"] == [{}, {"critical action": 0.75, "plan creation": 0.25}]

    text = agreement_text(result)
    lines = text.splitlines()
    assert lines[0] == "value against oracle: 20 steps of 3 trajectories"
    assert lines[1] == "annotated by one only, left out: 1 by value, 2 by oracle"
    assert lines[2].startswith("Cohen's kappa 0.29 [") and lines[2].endswith("Jaccard 0.29, overlap coefficient 0.50")
    rows = {cells[0]: cells[1:] for cells in (re.split(" {2,}", line) for line in lines[4:])}
    assert rows["all steps"] == ["20", "20.0%", "25.0%", "10.0%", "0.29", "0.29"]
    assert rows["at 20% to 40% of the episode"] == ["4", "0.0%", "0.0%", "0.0%", "-", "-"]
    assert rows["room"][:4] == ["15", "20.0%", "26.7%", "13.3%"]
    assert rows["critical action"] == ["-", "75.0%"]
    assert not any(line != line.rstrip() for line in lines)


def test_what_cannot_be_compared_is_refused():
    one = [trajectory("a", 3)]
    with pytest.raises(InputError, match="value and oracle"):
        agreement(one, [note("a", [0])], [note("b", [0])], NAMES)
    with pytest.raises(InputError, match="oracle .*step 3 of 'a'"):
        agreement(one, [note("a", [0])], [note("a", [3])], NAMES)
    with pytest.raises(InputError, match="two annotations"):
        agreement(one, [note("a", [0])] * 2, [note("a", [0])], NAMES)


# --- the interval ---


def test_the_interval_is_over_trajectories():
    """Trajectories that agree wholly or not at all: it widens as they get fewer, however many steps they have."""

    def width(count, steps):
        several = [trajectory(str(k), steps) for k in range(count)]
        half = range(steps // 2)
        rest = range(steps // 2, steps)
        value = [note(str(k), half) for k in range(count)]
        oracle = [note(str(k), half if k % 4 else rest) for k in range(count)]
        result = agreement(several, value, oracle, NAMES)
        assert result.total.kappa == pytest.approx(0.5)
        low, high = result.kappa_ci95
        assert low < 0.5 < high
        return high - low

    # kappa is 2 x - 1 for the share x of agreeing trajectories, so its interval is 2 * 2 * 1.96 standard errors
    normal = 4 * 1.96 * math.sqrt(0.75 * 0.25 / 100)
    assert width(100, 4) == pytest.approx(normal, rel=0.12)
    assert width(100, 40) == pytest.approx(normal, rel=0.12)
    assert width(12, 4) > 2 * width(100, 4)


def test_no_interval_of_one_trajectory_or_of_an_undefined_kappa():
    value, oracle = [note("a", [0, 1]), note("b", [0, 1])], [note("a", [0]), note("b", [0, 1])]
    several = [trajectory("a", 2), trajectory("b", 2)]
    assert agreement(several[:1], value, oracle, NAMES).kappa_ci95 is None
    all_of_them = agreement(several, value, value, NAMES)
    assert all_of_them.total.kappa is None and all_of_them.kappa_ci95 is None
    assert "Cohen's kappa - no interval" in agreement_text(all_of_them)


# --- properties ---


@st.composite
def pairs(draw):
    several, notes = [], ([], [])
    for k in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 12))
        several.append(trajectory(str(k), steps, env=draw(st.sampled_from(["e", "f"]))))
        for kept in notes:
            kept.append(note(str(k), draw(st.sets(st.integers(0, steps - 1)))))
    return several, *notes


@settings(max_examples=12, deadline=None)
@given(pairs())
def test_symmetry_bounds_and_sums(drawn):
    several, first, second = drawn
    there, back = agreement(several, first, second, NAMES), agreement(several, second, first, NAMES[::-1])
    assert (there.total.jaccard, there.total.overlap) == (back.total.jaccard, back.total.overlap)
    assert (there.total.kappa, there.kappa_ci95) == (back.total.kappa, back.kappa_ci95)
    assert there.total.shares == back.total.shares[::-1]
    for parts in (there.positions, list(there.environments.values())):
        assert there.total == Counts(
            *(sum(getattr(c, key) for c in parts) for key in ("steps", "first", "second", "both"))
        )
    assert len(there.positions) == BINS
    for counts in (there.total, *there.positions, *there.environments.values()):
        for value, least in ((counts.jaccard, 0), (counts.overlap, 0), (counts.kappa, -1)):
            assert value is None or least <= value <= 1
        if None not in (counts.jaccard, counts.overlap):
            assert counts.jaccard <= counts.overlap
    if there.kappa_ci95:
        assert -1 <= there.kappa_ci95[0] <= there.kappa_ci95[1] <= 1
    same = agreement(several, first, first, NAMES)
    assert same.total.kappa in (1.0, None) and same.total.jaccard in (1.0, None)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60))
def test_kappa_is_the_textbooks(labels):
    a, b = zip(*labels, strict=True)
    counts = Counts(len(labels), sum(a), sum(b), sum(x * y for x, y in labels))
    if counts.kappa is None:
        assert len(set(a)) == 1 and a == b
    else:
        assert counts.kappa == pytest.approx(textbook_kappa(a, b), abs=1e-12)
