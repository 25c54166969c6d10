"""Controls and ensembles of selectors: which steps they take, how many, and what they call it."""

import hashlib
import json
import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atlas_ray.errors import InputError
from atlas_ray.recipe.select import Select, members
from atlas_ray.selection.controls import (
    by_trajectory,
    select_all,
    select_last,
    select_non_critical,
    select_random,
    select_uniform,
)
from atlas_ray.selection.ensembles import mark_scores, select_intersection, select_rank_mean, select_union
from atlas_ray.trajectory import Annotation, Step, Trajectory, max_critical_steps, read_annotations, write_annotations

lengths = st.integers(1, 40)
fractions = st.floats(0.01, 1.0)


def trajectory(steps, name="a"):
    made = tuple(Step(observation=f"o{i}", action=f"a{i}") for i in range(steps))
    return Trajectory(
        id=name, env="e", task="t", seed=0, instruction="i", steps=made, score=1, success=True, source="expert"
    )


def note(critical, name="a", selector="value", fraction=0.3, **more):
    return Annotation(trajectory_id=name, selector=selector, fraction=fraction, critical=critical, **more)


def digest(annotations):
    return hashlib.sha256(json.dumps([a.row() for a in annotations]).encode()).hexdigest()[:16]


# --- controls ---


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"),
    [
        (10, 0.3, (1, 5, 8)),
        (10, 0.2, (2, 7)),
        (9, 0.3, (1, 4, 7)),
        (5, 0.1, (2,)),
        (1, 0.3, (0,)),
        (4, 1.0, (0, 1, 2, 3)),
    ],
)
def test_uniform_takes_the_middles_of_equal_parts(steps, fraction, expected):
    (made,) = select_uniform([trajectory(steps)], fraction)
    assert made == note(expected, selector="uniform", fraction=fraction)


@given(lengths, fractions)
def test_uniform_is_even_and_keeps_the_cap(steps, fraction):
    critical = select_uniform([trajectory(steps)], fraction)[0].critical
    assert len(critical) == max_critical_steps(fraction, steps) and critical[-1] < steps
    gaps = {b - a for a, b in pairwise(critical)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("steps", "expected"), [(10, (7, 8, 9)), (4, (2, 3)), (1, (0,))])
def test_last_takes_the_end(steps, expected):
    (made,) = select_last([trajectory(steps)], 0.3)
    assert made == note(expected, selector="last")


def test_random_and_non_critical_draw_what_they_always_drew():
    """Fingerprints of what earlier versions wrote: arms of an old run and of a new one must be the same."""
    several = [trajectory(n, f"t{n}") for n in range(1, 30)]
    value = [note(tuple(range(0, n, 3)), f"t{n}") for n in range(1, 30)]
    assert digest(select_random(several, 0.3, 7)) == "18d5796a20442e35"
    assert digest(select_non_critical(several, value, 0.3, 7)) == "6dc9395a5090cc1a"


def test_non_critical_draws_from_what_any_selector_left():
    several = [trajectory(8, "a"), trajectory(8, "b"), trajectory(2, "c")]
    oracle = [note((0, 5), "a", "oracle"), note((0, 1), "c", "oracle")]
    made = select_non_critical(several, oracle, 0.3, 0)
    assert [(a.trajectory_id, a.selector) for a in made] == [("a", "non-critical"), ("c", "non-critical")]
    assert len(made[0].critical) == max_critical_steps(0.3, 8) and not {0, 5} & set(made[0].critical)
    assert made[1].critical == ()
    renamed = [a.model_copy(update={"selector": "value"}) for a in oracle]
    assert select_non_critical(several, renamed, 0.3, 0) == made, "the name of the selector does not matter"


def test_two_annotations_of_one_trajectory_are_refused():
    twice = [note((0,)), note((1,), selector="oracle")]
    for use in (by_trajectory, lambda notes: select_non_critical([trajectory(3)], notes, 0.3, 0)):
        with pytest.raises(InputError, match="'a' has two annotations"):
            use(twice)


# --- ensembles ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("value", ()),
        ("non-critical", ()),
        ("my_selector", ()),
        ("union_value_oracle", ("value", "oracle")),
        ("intersection_value_non-critical", ("value", "non-critical")),
        ("rank-mean_value_oracle_perplexity", ("value", "oracle", "perplexity")),
    ],
)
def test_an_ensembles_name_says_what_it_is(name, expected):
    assert members(name) == expected


@pytest.mark.parametrize("name", ["union", "union_value", "union_value_value", "union__value", "rank-mean_"])
def test_an_ensemble_needs_two_different_members(name):
    with pytest.raises(ValueError, match=r"two or more different selectors|no name of a selector"):
        Select(selectors=["value", name])


def test_intersection_and_union_by_hand(tmp_path):
    several = [trajectory(10, "a"), trajectory(4, "b"), trajectory(4, "c")]
    marks = {
        "value": [note((1, 4, 6), "a", reasons={4: "value 0.1 -> 0.9"}), note((0,), "b"), note((0,), "c")],
        "oracle": [
            note((2, 4), "a", "oracle", 0.2, categories={2: "plan creation", 4: "critical action"}, reasons={4: "key"}),
            note((3,), "b", "oracle", 0.2),
        ],
    }
    both, apart = select_intersection(several, marks)
    assert both == note(
        (4,),
        "a",
        "intersection_value_oracle",
        0.2,
        categories={4: "critical action"},
        reasons={4: "value: value 0.1 -> 0.9; oracle: key"},
    )
    assert apart == note((), "b", "intersection_value_oracle", 0.2, reasons={})
    wide, narrow = select_union(several, marks)
    assert wide.critical == (1, 2, 4, 6) and wide.fraction == 0.4, "over the members' caps, and it says so"
    assert wide.categories == {2: "plan creation", 4: "critical action"}
    assert wide.reasons == {1: "value", 2: "oracle", 4: "value: value 0.1 -> 0.9; oracle: key", 6: "value"}
    assert narrow.critical == (0, 3) and narrow.fraction == 0.5
    marks["value"][0] = note((1, 4), "a", categories={4: "self correction"})
    assert select_union(several, marks)[0].categories == {2: "plan creation", 4: "self correction"}, "the first counts"
    for made in ([both, apart], [wide, narrow]):
        name = made[0].selector
        assert members(name) == ("value", "oracle") and re.fullmatch(r"[\w-]+", name)
        write_annotations(tmp_path / f"{name}.jsonl", made)
        assert read_annotations(tmp_path / f"{name}.jsonl", several) == made


@st.composite
def marked(draw):
    steps = draw(lengths)
    sets = [draw(st.sets(st.integers(0, steps - 1))) for _ in range(draw(st.integers(2, 4)))]
    caps = [min(1.0, max(len(s), 1) / steps + draw(st.sampled_from([0.0, 0.3]))) for s in sets]
    marks = {
        f"s{k}": [note(tuple(sorted(s)), selector=f"s{k}", fraction=f)]
        for k, (s, f) in enumerate(zip(sets, caps, strict=True))
    }
    return trajectory(steps), sets, marks


@given(marked())
def test_intersection_and_union_are_the_sets_and_keep_their_own_fraction(given_):
    one, sets, marks = given_
    (inner,), (outer,) = select_intersection([one], marks), select_union([one], marks)
    assert set(inner.critical) == set.intersection(*sets)
    assert set(outer.critical) == set.union(*sets)
    for made in (inner, outer):
        assert len(made.critical) <= max_critical_steps(made.fraction, len(one.steps))


def test_rank_mean_by_hand():
    # ranks of a: 1 2 3 4 5; of b, where three are equal: 5 3 1 3 3
    scores = {"a": {"x": [0.9, 0.5, 0.1, 0.0, -1.0]}, "b": {"x": [1.0, 2.0, 40.0, 2.0, 2.0], "y": [1.0]}}
    several = [trajectory(5, "x"), trajectory(1, "y")]
    (made,) = select_rank_mean(several, scores, 0.4)
    assert made.critical == (1, 2) and made.selector == "rank-mean_a_b" and made.fraction == 0.4
    assert made.reasons == {1: "mean rank 2.50 of 5", 2: "mean rank 2.00 of 5"}
    (one,) = select_rank_mean(several, scores, 0.2)
    assert one.critical == (2,)
    opposite = {"a": {"x": [5, 4, 3, 2, 1]}, "b": {"x": [1, 2, 3, 4, 5]}}
    assert select_rank_mean(several, opposite, 0.4)[0].critical == (0, 1), "ties go to the earlier"


def test_rank_mean_of_marks_prefers_what_both_marked():
    several = [trajectory(6)]
    scores = {
        "value": mark_scores(several, [note((0, 3))]),
        "oracle": mark_scores(several, [note((3, 5)), note((0,), "elsewhere")]),
    }
    assert scores["value"] == {"a": [1, 0, 0, 1, 0, 0]}
    assert select_rank_mean(several, scores, 0.1)[0].critical == (3,)
    assert select_rank_mean(several, scores, 0.5)[0].critical == (0, 3, 5)


def test_rank_mean_refuses_scores_of_another_trajectory():
    with pytest.raises(InputError, match="b .*2 .*3 .*'a'"):
        select_rank_mean([trajectory(3)], {"a": {"a": [1, 2, 3]}, "b": {"a": [1, 2]}}, 0.3)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), fractions, st.data())
def test_rank_mean_sees_only_the_order_of_scores(first, fraction, data):
    second = data.draw(st.lists(st.integers(0, 5), min_size=len(first), max_size=len(first)))
    several = [trajectory(len(first))]
    (made,) = select_rank_mean(several, {"a": {"a": first}, "b": {"a": second}}, fraction)
    assert len(made.critical) == max_critical_steps(fraction, len(first))
    squeezed = {"b": {"a": second}, "a": {"a": [x**3 / 1000 - 4 for x in first]}}
    assert select_rank_mean(several, squeezed, fraction)[0].critical == made.critical
    (alone,) = select_rank_mean(several, {"a": {"a": first}}, fraction)
    assert sum(first[t] for t in alone.critical) == sum(sorted(first)[len(first) - len(alone.critical) :])


@given(lengths, fractions)
def test_no_control_exceeds_its_fraction(steps, fraction):
    one = trajectory(steps)
    assume(max_critical_steps(fraction, steps) < steps)
    rest = select_non_critical([one], select_last([one], fraction), fraction, 0)
    for made in (select_all([one]), select_random([one], fraction, 0), select_last([one], fraction), rest):
        assert len(made[0].critical) <= max_critical_steps(made[0].fraction, steps)
