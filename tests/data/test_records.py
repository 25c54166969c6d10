"""Files of trajectories and annotations: what is written is read again, what is wrong is named by line and field."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import atlas_ray.trajectory
from atlas_ray.errors import InputError
from atlas_ray.trajectory import (
    Annotation,
    Step,
    Trajectory,
    iter_trajectories,
    max_critical_steps,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)


def row(**changes):
    base = {
        "id": "a",
        "env": "BabyAIText/GoToLocal-v0",
        "task": "GoToLocal-v0",
        "seed": 3,
        "instruction": "go to the ball",
        "steps": [
            {"observation": "You see nothing", "thought": "explore", "action": "turn left", "reward": 0.0},
            {"observation": "You see a red ball", "action": "go forward", "reward": 0.9},
        ],
        "score": 1.0,
        "success": True,
        "source": "expert",
    }
    return {**base, **changes}


def trajectory(**changes):
    return Trajectory.model_validate_json(json.dumps(row(**changes)))


def write_rows(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def refused(path, reader=read_trajectories, **kwargs):
    with pytest.raises(InputError) as caught:
        reader(path, **kwargs)
    return caught.value


# --- round trips ---

texts = st.text(max_size=30)
finite = st.floats(allow_nan=False, allow_infinity=False)
steps = st.builds(Step, observation=texts, thought=st.none() | texts, action=texts, reward=finite)
trajectories = st.builds(
    Trajectory,
    id=st.text(min_size=1, max_size=8),
    env=texts,
    task=texts,
    seed=st.integers(),
    instruction=texts,
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
    score=st.floats(0, 1),
    success=st.booleans(),
    source=texts,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(trajectories, min_size=1, max_size=4, unique_by=lambda t: t.id))
def test_any_trajectories_survive_the_round_trip(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trip") / "t.jsonl"
    write_trajectories(path, items)
    assert read_trajectories(path) == items
    assert len(path.read_bytes().split(b"\n")) == len(items) + 1, "one line each, whatever the text holds"


def test_the_line_is_the_documented_object(tmp_path):
    write_trajectories(tmp_path / "t.jsonl", [trajectory()])
    assert json.loads((tmp_path / "t.jsonl").read_text()) == row()
    assert "thought" not in json.loads((tmp_path / "t.jsonl").read_text())["steps"][1]


def test_unicode_is_written_as_it_is(tmp_path):
    path = tmp_path / "t.jsonl"
    text = '日本 ünïcode \u2028 \x85 😀 \r\n \\ " <|end|>'
    write_trajectories(path, [trajectory(instruction=text)])
    assert read_trajectories(path)[0].instruction == text
    assert "日本 ünïcode".encode() in path.read_bytes()


def test_an_annotation_survives_with_integer_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    items = [
        Annotation(
            trajectory_id="a",
            selector="oracle",
            fraction=0.3,
            critical=(0, 2, 10),
            categories={0: "plan creation", 10: "critical action"},
            reasons={2: "weil es so ist"},
            prompt_sha256="00",
            model="m",
        ),
        Annotation(trajectory_id="b", selector="value", fraction=1.0, critical=()),
    ]
    write_annotations(path, items)
    assert read_annotations(path) == items
    assert json.loads(path.read_text().splitlines()[1]) == {
        "trajectory_id": "b",
        "selector": "value",
        "fraction": 1.0,
        "critical": [],
    }


def test_reading_is_lazy(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", row(), "{", row(id="b"))
    stream = iter_trajectories(path)
    assert next(stream).id == "a"
    with pytest.raises(InputError):
        next(stream)


# --- what is refused, and how it is named ---


def step(**changes):
    return [{"observation": "o", "action": "a", "reward": 0, **changes}]


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"seed": "3"}, "seed", "integer"),
        ({"seed": 3.0}, "seed", "integer"),
        ({"seed": True}, "seed", "integer"),
        ({"seed": None}, "seed", "integer"),
        ({"id": 7}, "id", "string"),
        ({"id": ""}, "id", "at least 1"),
        ({"success": 1}, "success", "boolean"),
        ({"success": "true"}, "success", "boolean"),
        ({"score": "1"}, "score", "number"),
        ({"score": True}, "score", "number"),
        ({"score": 1.01}, "score", "less than or equal to 1"),
        ({"score": -0.01}, "score", "greater than or equal to 0"),
        ({"score": float("nan")}, "score", "finite"),
        ({"score": float("inf")}, "score", "finite"),
        ({"steps": []}, "steps", "at least 1"),
        ({"steps": {}}, "steps", "array"),
        ({"steps": step(reward=float("nan"))}, "steps.0.reward", "finite"),
        ({"steps": step(reward="0")}, "steps.0.reward", "number"),
        ({"steps": step(action=3)}, "steps.0.action", "string"),
        ({"steps": step(actoin="x")}, "steps.0.actoin", "not permitted"),
        ({"steps": [*step(), {"observation": "o"}]}, "steps.1.action", "required"),
        ({"steps": [*step(), "go forward"]}, "steps.1", "object"),
        ({"colour": "red"}, "colour", "not permitted"),
    ],
)
def test_a_wrong_value_is_named_by_line_and_field(tmp_path, changes, field, says):
    path = write_rows(tmp_path / "t.jsonl", row(id="fine"), row(**changes))
    error = refused(path)
    assert (error.path, error.line, error.field) == (path, 2, field)
    assert says in error.message
    assert str(error).startswith(f"{path}:2: {field}: ")


@pytest.mark.parametrize("key", sorted(row()))
def test_every_key_of_a_trajectory_is_required(tmp_path, key):
    line = row()
    del line[key]
    error = refused(write_rows(tmp_path / "t.jsonl", line))
    assert (error.line, error.field) == (1, key)
    assert "required" in error.message


def test_an_unknown_outcome_is_null(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", row(score=None, success=None), row(id="b", success=None))
    items = read_trajectories(path)
    assert [(t.success, t.score) for t in items] == [(None, None), (None, 1.0)]
    write_trajectories(path, items)
    assert [json.loads(line)["success"] for line in path.read_text().splitlines()] == [None, None]
    assert read_trajectories(path) == items


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_probability_is_one(tmp_path, value):
    path = write_rows(tmp_path / "t.jsonl", row(steps=step(actor="quick", probability=value)))
    assert refused(path).field == "steps.0.probability"


def test_an_integer_is_fine_where_a_number_is_wanted(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", row(score=1, steps=step(reward=2)))
    read = read_trajectories(path)[0]
    assert (read.score, read.steps[0].reward) == (1.0, 2.0)
    assert type(read.score) is type(read.steps[0].reward) is float


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2]", "this is a list"),
        ("3", "this is a number"),
        ("null", "this is null"),
        ('"text"', "this is a text"),
        ("{'id': 'a'}", "not JSON at column 2"),
        ('{"id": "a"} {"id": "b"}', "not JSON at column 13"),
        ('{"id": "a\\ud800"}', ""),
        ('{"seed": ' + "1" * 5000 + "}", "digits"),
        ("[" * 100_000, "not JSON"),
        (json.dumps(row())[:-1] + ', "success": false}', "has the key 'success' twice"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, says):
    error = refused(write_rows(tmp_path / "t.jsonl", row(), line, row(id="b")))
    assert error.line == 2
    assert says in error.message


@pytest.mark.parametrize("length", [1, 10, 60, 200, -1])
def test_a_line_cut_short_is_named(tmp_path, length):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row()) + "\n\n" + json.dumps(row(id="b"))[:length])
    error = refused(path)
    assert error.line == 3
    assert "cut short" in error.message


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n{"id": "\xe9"}\n')
    error = refused(path)
    assert (error.line, error.message) == (2, "not UTF-8 at byte 8")
    path.write_bytes(json.dumps(row()).encode("utf-16"))
    assert refused(path).line == 1


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n")
    assert read_trajectories(path) == [trajectory()]


def test_blank_lines_are_no_lines_but_count(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", "", "  ", row(), "\t", "{")
    assert refused(path).line == 5
    path = write_rows(tmp_path / "t.jsonl", "", row(), " ", row(id="b"), "")
    assert [t.id for t in read_trajectories(path)] == ["a", "b"]


@pytest.mark.parametrize("reader", [read_trajectories, read_annotations])
def test_a_file_without_anything_is_an_error(tmp_path, reader):
    for content in ("", "\n \n"):
        (tmp_path / "t.jsonl").write_text(content)
        for on_error in ("stop", "skip"):
            assert "holds no" in refused(tmp_path / "t.jsonl", reader, on_error=on_error).message
    assert refused(tmp_path / "none.jsonl", reader).message == "no such file"
    assert refused(tmp_path, reader).path == tmp_path


def test_an_id_that_stands_twice_is_named_with_both_lines(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", row(id="x"), "", row(), row(id="x", seed=9))
    error = refused(path)
    assert (error.line, error.field) == (4, "id")
    assert "line 1" in error.message
    dropped = []
    assert [(t.id, t.seed) for t in read_trajectories(path, "skip", dropped)] == [("x", 3), ("a", 3)]
    assert [(e.line, e.field) for e in dropped] == [(4, "id")]


def test_skip_goes_on_and_reports_every_line_that_was_dropped(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", "{", row(), row(id="b", score=2), "", "[]", row(id="c"), row(id="d", x=1))
    dropped = []
    assert [t.id for t in read_trajectories(path, "skip", dropped)] == ["a", "c"]
    assert [(e.line, e.field) for e in dropped] == [(1, None), (3, "score"), (5, None), (7, "x")]
    assert [t.id for t in read_trajectories(path, "skip")] == ["a", "c"]
    assert refused(path).line == 1


def test_skip_with_nothing_left_is_still_an_error(tmp_path):
    dropped = []
    error = refused(write_rows(tmp_path / "t.jsonl", "{", row(score=7)), on_error="skip", dropped=dropped)
    assert "holds no trajectory" in error.message
    assert len(dropped) == 2


def test_the_error_is_a_value_error_and_crosses_processes():
    error = pickle.loads(pickle.dumps(InputError("wrong", "f.jsonl", 3, "steps.0.action")))
    assert isinstance(error, ValueError)
    assert (str(error), error.line, error.field) == ("f.jsonl:3: steps.0.action: wrong", 3, "steps.0.action")
    assert error.exit_code == 2


# --- annotations ---


def note(**changes):
    return {"trajectory_id": "a", "selector": "value", "fraction": 0.5, "critical": [0], **changes}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"critical": [1, 0]}, None, "ascending"),
        ({"critical": [0, 0]}, None, "without repeats"),
        ({"critical": [-1, 0]}, "critical.0", "greater than or equal to 0"),
        ({"critical": [0, 1.0]}, "critical.1", "integer"),
        ({"critical": ["0"]}, "critical.0", "integer"),
        ({"critical": [True]}, "critical.0", "integer"),
        ({"critical": None}, "critical", "array"),
        ({"fraction": 0}, "fraction", "greater than 0"),
        ({"fraction": 1.1}, "fraction", "less than or equal to 1"),
        ({"selector": ""}, "selector", "at least 1"),
        ({"categories": {"first": "plan creation"}}, "categories.first.[key]", "integer"),
        ({"categoris": {}}, "categoris", "not permitted"),
        ({"critical": [0, 2]}, "critical", "step 2 of 'a' does not exist, it has steps 0 to 1"),
        ({"trajectory_id": "zzz"}, "trajectory_id", "'zzz'"),
    ],
)
def test_a_wrong_annotation_is_named_by_line_and_field(tmp_path, changes, field, says):
    path = write_rows(tmp_path / "a.jsonl", note(), "", note(**changes), note(critical=[1]))
    error = refused(path, read_annotations, trajectories=[trajectory()])
    assert (error.path, error.line) == (path, 3)
    assert (error.field or None) == field
    assert says in error.message
    dropped = []
    kept = read_annotations(path, [trajectory()], "skip", dropped)
    assert [a.critical for a in kept] == [(0,), (1,)]
    assert [str(e) for e in dropped] == [str(error)]


def test_steps_are_checked_only_against_trajectories_that_are_given(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", note(critical=[0, 500]))
    assert read_annotations(path)[0].critical == (0, 500)


def test_what_is_read_cannot_be_changed_in_passing():
    item = trajectory()
    with pytest.raises(ValidationError):
        item.score = 0.5
    assert isinstance(item.steps, tuple)


@pytest.mark.parametrize(
    ("fraction", "steps", "most"),
    [
        (0.3, 10, 3),
        (0.3, 11, 4),
        (0.3, 1, 1),
        (0.3, 3, 1),
        (0.3, 4, 2),
        (0.3, 100, 30),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.001, 5, 1),
        (1.0, 7, 7),
        (1 / 3, 3, 1),
        (1 / 3, 9, 3),
        (0.5, 7, 4),
    ],
)
def test_the_cap_is_the_ceiling_and_at_least_one(fraction, steps, most):
    assert max_critical_steps(fraction, steps) == most


def test_the_cap_of_every_percent_equals_whole_numbers():
    for percent in range(1, 101):
        for count in range(1, 60):
            assert max_critical_steps(percent / 100, count) == -(-percent * count // 100)


def test_the_old_name_of_the_cap_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="max_critical_steps"):
        from atlas_ray.trajectory import cap
    assert cap is max_critical_steps
    assert not hasattr(atlas_ray.trajectory, "caps")
