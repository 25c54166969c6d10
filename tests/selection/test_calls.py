"""The selector `calls` and controls of the same size: which steps, of which trajectories, under which names."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.data.results import Arm, Score
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.recipe.select import Select, matched, members, with_members
from atlas_ray.report.reading import read_atlas
from atlas_ray.rundir.files import jsonl_rows
from atlas_ray.selection import stage
from atlas_ray.selection.calls import select_calls
from atlas_ray.selection.controls import select_matched, select_random
from atlas_ray.trajectory import Annotation, Step, Trajectory, read_annotations, write_trajectories


def trajectory(actors, name="a"):
    """One whose steps these took; ``q`` is quick, ``d`` deepthink, ``1`` model 1, ``?`` nobody knows."""
    names = {"q": "quick", "d": "deepthink", "1": "model 1", "?": None}
    steps = tuple(Step(observation=f"o{i}", action=f"a{i}", actor=names[a]) for i, a in enumerate(actors))
    about = {"env": "e", "task": "t", "seed": 0, "instruction": "i", "score": 1, "success": True, "source": "x"}
    return Trajectory(id=name, steps=steps, **about)


def marks(critical, name="a", fraction=0.3):
    return Annotation(trajectory_id=name, selector="value", fraction=fraction, critical=critical)


@pytest.mark.parametrize(
    ("actors", "called"), [("qdqqd", (1, 4)), ("q1d", (1, 2)), ("qqq", ()), ("dd", (0, 1)), ("d" * 9, tuple(range(9)))]
)
def test_calls_are_all_steps_of_any_model_but_the_first(actors, called):
    (made,) = select_calls([trajectory(actors)])
    assert made == Annotation(trajectory_id="a", selector="calls", fraction=1.0, critical=called)


def test_a_step_that_nobody_is_known_to_have_taken_is_neither_a_call_nor_none():
    made = select_calls([trajectory("q?d", "a"), trajectory("qd", "b"), trajectory("??", "c")])
    assert [a.trajectory_id for a in made] == ["b"]
    with pytest.raises(InputError, match="none of 2 trajectories.*collect.switch") as caught:
        select_calls([trajectory("q?d"), trajectory("??")])
    assert caught.value.field == "select.selectors"


@given(st.integers(1, 30), st.data(), st.integers(0, 5))
def test_controls_have_the_size_of_what_they_follow(steps, data, seed):
    marked = tuple(sorted(data.draw(st.sets(st.integers(0, steps - 1)))))
    t = [trajectory("q" * steps)]
    (any_step,) = select_matched("random", t, "value", [marks(marked)], seed)
    (rest,) = select_matched("non-critical", t, "value", [marks(marked)], seed)
    assert len(any_step.critical) == len(marked) and set(any_step.critical) <= set(range(steps))
    assert len(rest.critical) == min(len(marked), steps - len(marked)) and not set(rest.critical) & set(marked)
    assert (any_step.selector, rest.selector) == ("random_value", "non-critical_value")
    assert any_step.fraction == rest.fraction == 0.3
    drawn = random.Random(f"random/{seed}/a").sample(range(steps), len(marked))
    assert list(any_step.critical) == sorted(drawn), "the name of what it follows does not matter"


def test_a_control_of_as_many_steps_as_the_cap_draws_what_random_draws():
    t = [trajectory("q" * 10, n) for n in "abc"]
    followed = select_matched("random", t, "other", [marks((0, 1, 2), n) for n in "abc"], 4)
    assert [a.critical for a in followed] == [a.critical for a in select_random(t, 0.3, 4)]
    assert len({a.critical for a in followed}) > 1, "the draw depends on the trajectory"


def test_a_control_is_blind_where_its_selector_is():
    t = [trajectory("qqq", "a"), trajectory("qqq", "b")]
    assert [a.trajectory_id for a in select_matched("random", t, "value", [marks((0,), "b")], 0)] == ["b"]
    with pytest.raises(InputError, match="'b' has two annotations"):
        select_matched("random", t, "value", [marks((0,), "b"), marks((1,), "b")], 0)


@pytest.mark.parametrize(
    ("name", "follows", "made_of"),
    [
        ("random_calls", "calls", ("random_calls", "calls")),
        ("non-critical_union_value_last", "union_value_last", None),
        ("random", None, ("random",)),
        ("non-critical", None, ("non-critical",)),
        ("union_random_value", None, ("union_random_value", "random", "value")),
    ],
)
def test_the_name_of_a_control_says_what_it_follows(name, follows, made_of):
    assert matched(name) == follows
    assert not follows or members(name) == (follows,)
    assert with_members(name) == (made_of or (name, "union_value_last", "value", "last"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"selectors": ["value", "random_"]}, "small letters"),
        ({"selectors": ["value", "last", "random_value_last"]}, "the one selector that it follows"),
        ({"selectors": ["random_value"]}, "random_value follows value, which must be named too"),
        ({"selectors": ["random_valeu"]}, "did you mean 'value'"),
        ({"selectors": ["value", "last", "random_union_value_last"]}, "follows union_value_last, which must be"),
        ({"selectors": ["non-critical", "random_non-critical"], "rest_of": "random_non-critical"}, "its own rest"),
        ({"selectors": ["calls"], "files": {"calls": "x"}}, "files: 'calls' must be a new name"),
    ],
)
def test_names_that_mean_nothing_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Select.model_validate(given)


SELECTORS = ["non-critical_calls", "random_calls", "calls", "all", "non-critical", "random"]


@pytest.fixture
def run(tmp_path):
    """A recipe that reads trajectories of two models from a file, and its run directory."""
    items = [trajectory("qdqqd", "a"), trajectory("qqqqq", "b"), trajectory("ddd", "c"), trajectory("q?", "d")]
    write_trajectories(tmp_path / "mixed.jsonl", items)
    select = {"selectors": SELECTORS, "rest_of": "random_calls"}
    recipe = {"name": "x", "workers": 0, "collect": {"file": str(tmp_path / "mixed.jsonl")}, "select": select}
    return Recipe.model_validate(recipe), tmp_path / "run"


def test_a_run_selects_by_calls_and_its_controls(run, capsys):
    recipe, run_dir = run
    pipeline.run(recipe, run_dir, ("collect", "select"))
    made = {
        name: {a.trajectory_id: a.critical for a in read_annotations(run_dir / "annotations" / f"{name}.jsonl")}
        for name in recipe.select.selectors
    }
    assert made["calls"] == {"a": (1, 4), "b": (), "c": (0, 1, 2)}
    assert {name: len(steps) for name, steps in made["random_calls"].items()} == {"a": 2, "b": 0, "c": 3}
    assert {name: len(steps) for name, steps in made["non-critical_calls"].items()} == {"a": 2, "b": 0, "c": 0}
    assert set(made["non-critical"]) == {"a", "b", "c"} and not set(made["non-critical"]["a"]) & set(
        made["random_calls"]["a"]
    )
    assert "1 of 4 trajectories do not say who took each step" in capsys.readouterr().out
    (told,) = [e for e in jsonl_rows(run_dir / "events.jsonl") if e["event"] == "left out"]
    assert (told["selector"], told["trajectories"]) == ("calls", 1)
    for name in ("calls", "random_calls", "non-critical_calls"):
        assert stage.fraction_of(recipe, run_dir, name) == 1.0
    assert stage.fraction_of(recipe, run_dir, "non-critical") == 0.3


def test_trajectories_of_which_nobody_knows_who_acted_end_the_stage(tmp_path, capsys):
    write_trajectories(tmp_path / "own.jsonl", [trajectory("???")])
    path = tmp_path / "r.toml"
    path.write_text(f'name = "x"\n[collect]\nfile = "{tmp_path / "own.jsonl"}"\n[select]\nselectors = ["calls"]\n')
    out = ["--out", str(tmp_path / "run")]
    assert main(["collect", str(path), *out]) == 0
    assert main(["select", str(path), *out]) == 2
    assert "select.selectors: calls marks steps by who took them" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("annotations/*"))


def arm(selector, fraction, anchor=0.0):
    score = Score(success=0.5, ci95=(0.4, 0.6), episodes=50)
    return Arm(
        selector=selector,
        fraction=fraction,
        anchor=anchor,
        seeds=(0,),
        steps_share=0.3,
        trained_tokens=1,
        context_tokens=1,
        train_seconds=1.0,
        held_in=score,
        held_out=None,
    )


def test_the_report_holds_an_arm_against_the_controls_of_its_size():
    arms = [arm("calls", 1.0), arm("random_calls", 1.0), arm("random", 0.3), arm("all", 1.0), arm("value", 0.3)]
    said = [s.partition(":")[0] for s in read_atlas([*arms, arm("calls", 1.0, 0.5), arm("random_calls", 1.0, 0.5)])]
    assert said == [
        "critical (calls) minus all",
        "critical (calls) minus random_calls",
        "critical (value) minus random",
        "critical (value) minus all",
        "calls+anchor0.5 minus calls",
        "calls+anchor0.5 minus random_calls",
        "calls+anchor0.5 minus all",
        "calls+anchor0.5 minus random_calls+anchor0.5",
        "random_calls+anchor0.5 minus random_calls",
        "random_calls+anchor0.5 minus all",
    ]
