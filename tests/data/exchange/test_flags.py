"""Marks on turns, OpenAI messages, any trajectory both ways, and run directories of the exchange."""

import json

import pytest
from exchange_records import BUY, ODD, annotation, broken, record, refused, three_steps, write
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.data.exchange import (
    export_agenttraj,
    export_messages,
    export_run,
    import_agenttraj,
    import_annotations,
    import_file,
    import_messages,
)
from atlas_ray.data.exchange.turns import compose, read_agent_turn
from atlas_ray.errors import EmptySelectionError
from atlas_ray.trajectory import (
    Step,
    Trajectory,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

# --- annotations ---


@pytest.mark.parametrize("export", [export_agenttraj, export_messages])
def test_annotations_that_do_not_fit_are_refused(tmp_path, export):
    a, b = three_steps(id="a"), three_steps(id="b")
    path = tmp_path / "x.json"

    def says(items, notes):
        return refused(export, path, items, notes).message

    assert "'c', which is not among" in says([a], [annotation("a", 0), annotation("c", 0)])
    assert "1 of 2 trajectories have no critical step, the first is 'b'" in says([a, b], [annotation("a", 0)])
    assert "1 of 2 trajectories have no critical step, the first is 'a'" in says(
        [a, b], [annotation("a"), annotation("b", 1)]
    )
    assert "'a' has no step 3" in says([a], [annotation("a", 3)])
    assert "'a' has two annotations" in says([a], [annotation("a", 0), annotation("a", 1)])
    assert "2 trajectories to export have the id 'a'" in says([a, b, a], None)
    assert "2 of 2" in says([a, b], []), "an empty list is not 'no annotations'"
    assert "no trajectory" in says([], None)
    assert not path.exists()


@pytest.mark.parametrize(("export", "read"), [(export_agenttraj, import_agenttraj), (export_messages, import_messages)])
def test_what_is_not_marked_can_be_left_out(tmp_path, export, read):
    items = [three_steps(id=i) for i in "abc"]
    path = tmp_path / "x.jsonl"
    assert export(path, items, [annotation("a"), annotation("b", 1)], unmarked="drop") == 1
    assert [t.id for t in read(path)] == ["b"]
    with pytest.raises(EmptySelectionError):
        export(path, items, [annotation("a")], unmarked="drop")


def test_foreign_flags_become_annotations(tmp_path):
    path = write(tmp_path / "a.json", *ODD)
    assert import_annotations(path) == [
        annotation("webshop_6", 0, selector="imported", fraction=1.0),
        annotation("webshop_6#2", 1, selector="imported", fraction=1.0),
        annotation("sciworld_3", selector="imported", fraction=1.0),
    ]
    assert {a.selector for a in import_annotations(path, selector="them")} == {"them"}
    assert "no turn has the flag train" in refused(import_annotations, path, flag="train").message


@pytest.mark.parametrize(
    ("turn", "flags", "field"),
    [
        (1, {"loss": True}, "conversations[1].loss"),
        (2, {"loss": True}, "conversations[2].loss"),
        (3, {"loss": "true"}, "conversations[3].loss"),
        (3, {"loss": 2}, "conversations[3].loss"),
        (3, {"loss": 0.5}, "conversations[3].loss"),
        (3, {"train": False}, "conversations"),
    ],
)
def test_flags_that_no_annotation_can_hold_are_named(tmp_path, turn, flags, field):
    made = record()
    made["conversations"][turn] |= flags
    path = write(tmp_path / "a.jsonl", record(item_id="fine_1"), made)
    error = refused(import_annotations, path)
    assert (error.line, error.field) == (2, field)
    assert [a.trajectory_id for a in import_annotations(path, on_error="skip")] == ["fine_1"]
    assert len(import_agenttraj(path)) == 2, "trajectories do not depend on flags"


def test_null_is_not_trained(tmp_path):
    path = write(tmp_path / "a.json", record(BUY, BUY, losses=[None, True]))
    assert import_annotations(path)[0].critical == (1,)


# --- messages ---


@pytest.mark.parametrize("flag", ["trainable", "train", "loss"])
def test_every_message_carries_the_flag(tmp_path, flag):
    item = three_steps()
    export_messages(tmp_path / "m.jsonl", [item], [annotation(item.id, 1)], flag=flag)
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3]
    assert [m[flag] for m in messages] == [False, False, False, False, True, False, False]
    assert all(set(m) == {"role", "content", flag} for m in messages)
    assert messages[0]["content"] == "go to the ball"
    assert import_annotations(tmp_path / "m.jsonl") == [annotation(item.id, 1)]


def test_weight_is_a_number_on_assistants_and_nothing_else_is_there(tmp_path):
    item = three_steps()
    export_messages(tmp_path / "m.jsonl", [item], [annotation(item.id, 1)], flag="weight")
    row = json.loads((tmp_path / "m.jsonl").read_text())
    assert list(row) == ["messages"]
    assert [m.get("weight") for m in row["messages"]] == [None, None, 0, None, 1, None, 0]
    assert all(type(m["weight"]) is int for m in row["messages"][2::2])
    (back,) = import_messages(tmp_path / "m.jsonl")
    assert (back.id, back.env, back.seed, back.source) == ("messages_0", "unknown", 0, "messages")
    assert [(s.thought, s.action) for s in back.steps] == [(s.thought, s.action) for s in item.steps]
    assert import_annotations(tmp_path / "m.jsonl") == [annotation("messages_0", 1, selector="imported", fraction=1.0)]


def test_a_flag_nobody_reads_is_refused(tmp_path):
    assert refused(export_messages, tmp_path / "m.jsonl", [three_steps()], flag="trained").field == "flag"
    assert not (tmp_path / "m.jsonl").exists()


def test_foreign_messages_are_read(tmp_path):
    chat = [{"role": "user", "content": "o"}, {"role": "assistant", "content": BUY}, {"role": "user", "content": "end"}]
    path = write(tmp_path / "m.jsonl", {"messages": chat}, {"messages": [{"role": "developer", "content": "i"}, *chat]})
    first, second = import_messages(path, source="them")
    assert (first.instruction, second.instruction, len(first.steps), first.source) == ("", "i", 1, "them")
    assert (second.success, second.score, second.steps[0].reward) == (None, None, 0.0)
    assert len(import_messages(write(path, {"messages": [*chat, chat[0]]}))[0].steps) == 1, (
        "two observations at the end"
    )
    for bad, field in [
        ([chat[0], *chat], "messages[1].role"),
        ([chat[0], {"role": "assistant", "content": None}], "messages[1].content"),
        ([chat[0], {"role": "assistant", "content": "Sure!"}], "messages[1].content"),
        ([chat[0], {"role": "tool", "content": "x"}], "messages[1].role"),
        ([chat[0], {"role": "system", "content": "x"}], "messages[1].role"),
        ([{"role": "system", "content": "x"}, chat[0]], "messages"),
    ]:
        assert refused(import_messages, write(path, {"messages": chat}, {"messages": bad})).field == field


# --- any trajectory ---

texts = st.text(max_size=20) | st.sampled_from(
    ["Action:", "\nAction:\n", "Thought: x", " \r\n", "a\n\nAction:\nb", "Observation: b", "<think>a</think>b", "a</s>"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
steps = st.builds(
    Step,
    observation=texts,
    thought=st.none() | texts,
    action=texts,
    reward=finite,
    actor=st.none() | texts,
    probability=st.none() | st.floats(0, 1),
)
trajectories = st.builds(
    Trajectory,
    id=st.text(min_size=1, max_size=6) | st.sampled_from(["a_1", "a_1#2"]),
    env=texts,
    task=texts,
    seed=st.integers(),
    instruction=texts,
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
    score=st.none() | st.floats(0, 1),
    success=st.none() | st.booleans(),
    source=texts,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(trajectories, min_size=1, max_size=3, unique_by=lambda t: t.id), st.data())
@pytest.mark.parametrize(
    ("export", "read", "name"),
    [(export_agenttraj, import_agenttraj, "x.json"), (export_messages, import_messages, "x.jsonl")],
)
def test_any_trajectories_and_marks_survive(tmp_path_factory, export, read, name, items, data):
    path = tmp_path_factory.mktemp("trip") / name
    chosen = [data.draw(st.sets(st.integers(0, len(t.steps) - 1), min_size=1)) for t in items]
    notes = [annotation(t.id, *sorted(c)) for t, c in zip(items, chosen, strict=True)]
    export(path, items, notes)
    assert read(path) == items
    assert import_annotations(path) == notes


acts = (st.builds(compose, st.none() | st.text(max_size=10), st.text(max_size=10)) | st.text(max_size=20)).map(
    lambda spoken: spoken if read_agent_turn(spoken).action else compose(None, "go")
)


@settings(max_examples=30, deadline=None)
@given(st.lists(acts, min_size=1, max_size=4), st.text(max_size=5), st.none() | texts, st.data())
def test_any_conversation_survives(tmp_path_factory, spoken, acknowledgement, last, data):
    losses = [data.draw(st.booleans()) for _ in spoken]
    losses[data.draw(st.integers(0, len(spoken) - 1))] = True
    made = record(*spoken, last=last, losses=losses, acknowledgement=acknowledgement)
    path = write(tmp_path_factory.mktemp("trip") / "x.jsonl", made)
    items = import_agenttraj(path, examples="steps")
    again = path.with_name("y.json")
    export_agenttraj(again, items, import_annotations(path, examples="steps"))
    assert json.loads(again.read_text())[0]["conversations"] == made["conversations"]
    assert import_agenttraj(again) == items


# --- run directories ---


def test_a_file_becomes_a_run_and_comes_back_word_by_word(tmp_path):
    path, run = write(tmp_path / "a.json", *ODD[:2]), tmp_path / "run"
    assert import_file(path, run) == 2
    assert read_trajectories(run / "trajectories" / "expert.jsonl") == import_agenttraj(path)
    assert read_annotations(run / "annotations" / "imported.jsonl") == import_annotations(path)
    assert export_run(run, "imported", "agenttraj", None, tmp_path / "b.json") == tmp_path / "b.json"
    back = json.loads((tmp_path / "b.json").read_text())
    assert [r["conversations"] for r in back] == [r["conversations"] for r in ODD[:2]]
    assert "not overwritten" in refused(import_file, path, run).message


def test_a_run_is_exported_with_the_marks_of_a_selector(tmp_path):
    run, items = tmp_path / "run", [three_steps(id="a"), three_steps(id="b")]
    write_trajectories(run / "trajectories" / "expert.jsonl", items)
    write_annotations(run / "annotations" / "value.jsonl", [annotation("a", 2), annotation("b")])
    out = tmp_path / "out.jsonl"
    assert "no critical step" in refused(export_run, run, "value", "messages", None, out).message
    export_run(run, "value", "messages", "train", out, unmarked="drop")
    assert [m["train"] for m in json.loads(out.read_text())["messages"]] == [False] * 6 + [True]
    export_run(run, None, "agenttraj", "loss", out)
    assert import_agenttraj(out) == items
    assert "only by: value" in refused(export_run, run, "oracle", "messages", None, out).message
    assert refused(export_run, run, "value", "messages", "x", out).field == "flag"
    assert refused(export_run, run, "value", "agenttraj", "train", out).field == "flag"
    assert refused(export_run, run, "value", "parquet", None, out).field == "format"
    assert refused(export_run, tmp_path / "no", None, "messages", None, out).message == "no such file"


def test_messages_become_a_run_whose_marks_keep_their_name(tmp_path):
    items = [three_steps(id="a"), three_steps(id="b")]
    export_messages(tmp_path / "m.jsonl", items, [annotation("a", 2), annotation("b", 0, 1, 2)])
    assert import_file(tmp_path / "m.jsonl", tmp_path / "run") == 2
    assert read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl") == items
    marks = tmp_path / "run" / "annotations" / "value.jsonl"
    assert read_annotations(marks, items) == [annotation("a", 2), annotation("b", 0, 1, 2)]


def test_a_file_that_marks_everything_brings_no_annotations(tmp_path):
    import_file(write(tmp_path / "a.json", record()), tmp_path / "run")
    assert not (tmp_path / "run" / "annotations").exists()


def test_marks_of_several_selectors_are_refused(tmp_path):
    items = [three_steps(id="a"), three_steps(id="b")]
    export_messages(tmp_path / "m.jsonl", items, [annotation("a", 2), annotation("b", 0, selector="random")])
    assert "several selectors" in refused(import_file, tmp_path / "m.jsonl", tmp_path / "run").message
    assert not (tmp_path / "run").exists()


def test_a_selector_of_a_stranger_cannot_name_a_path(tmp_path):
    item = three_steps()
    export_agenttraj(tmp_path / "a.json", [item], [annotation(item.id, 0, selector="../../x")])
    assert "cannot be the name of a file" in refused(import_file, tmp_path / "a.json", tmp_path / "run").message
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json"]


def test_a_wrong_file_leaves_no_run(tmp_path):
    path = write(tmp_path / "a.json", ODD[0], broken(["conversations", 5, "value"], "?"))
    assert refused(import_file, path, tmp_path / "run").field == "[1].conversations[5].value"
    assert not (tmp_path / "run").exists()
