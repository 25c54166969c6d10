"""Formats of the neighbours: turns, flags and outcomes survive both ways, and what cannot be read is named."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atlas_ray.errors import EmptySelectionError, InputError
from atlas_ray.exchange import (
    export_agenttraj,
    export_messages,
    export_run,
    import_agenttraj,
    import_annotations,
    import_file,
    import_messages,
)
from atlas_ray.exchange.turns import compose, parse
from atlas_ray.trajectory import (
    Annotation,
    Step,
    Trajectory,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

BUY = "Thought:\nTime to buy it.\n\nAction:\nclick[Buy Now]"


def talk(*acts, last=None, losses=None, acknowledgement="Ok."):
    """The turns of a record with these agent's turns."""
    losses = [True] * len(acts) if losses is None else losses
    turns = [
        {"from": "human", "loss": None, "value": "You are web shopping."},
        {"from": "gpt", "loss": False, "value": acknowledgement},
    ]
    for number, (act, loss) in enumerate(zip(acts, losses, strict=True)):
        turns.append({"from": "human", "loss": None, "value": f"page {number}"})
        turns.append({"from": "gpt", "loss": loss, "value": act})
    if last is not None:
        turns.append({"from": "human", "loss": None, "value": last})
    return turns


def record(*acts, item_id="webshop_6", **kwargs):
    return {"item_id": item_id, "conversations": talk(*(acts or (BUY,)), **kwargs)}


def write(path, *records):
    text = json.dumps(list(records)) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in records)
    path.write_text(text, encoding="utf-8")
    return path


def refused(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return caught.value


def three_steps(**changes):
    base = {
        "id": "envs:BabyAIText/GoToLocal-v0/3",
        "env": "envs:BabyAIText/GoToLocal-v0",
        "task": "GoToLocal-v0",
        "seed": 3,
        "instruction": "go to the ball",
        "steps": (
            Step(observation="a wall", thought="explore", action="turn left", reward=0.0),
            Step(observation="a ball", action="go forward", reward=0.25),
            Step(observation="near", thought="", action="toggle", reward=0.5),
        ),
        "score": 0.75,
        "success": False,
        "source": "expert",
    }
    return Trajectory(**{**base, **changes})


def note(trajectory_id, *critical, selector="value", fraction=0.3):
    return Annotation(trajectory_id=trajectory_id, selector=selector, fraction=fraction, critical=critical)


# --- a turn ---


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        (BUY, "Time to buy it.", "click[Buy Now]"),
        ("Action:\nlook", None, "look"),
        ("\n\nthought: go on\nACTION :  look  \n", "go on", "look"),
        ("Thought:\n\n\nAction:\nlook", "", "look"),
        ("Thought:\r\nfirst\r\n\r\nAction:\r\nlook\r\n", "first", "look"),
        ("I think it is here.\nAction: look", "I think it is here.", "look"),
        ("Thought: it is here. Action: look", "it is here.", "look"),
        ("Thought:\nnot\nAction: this\nbut\n\nAction:\nthat", "not\nAction: this\nbut", "that"),
        ("Thought:\nmy next action: none\n\nAction:\nwait", "my next action: none", "wait"),
        ("Thought:\nT\n\nAction:\nadd with Action Input: {}", "T", "add with Action Input: {}"),
        ("Action:\nput\nthe box", None, "put\nthe box"),
        ("Thought:\n見る 😀\n\nAction:\nlire «é»", "見る 😀", "lire «é»"),
        ("Action:", None, ""),
    ],
)
def test_thought_and_action_are_found(text, thought, action):
    assert parse(text) == (thought, action)


@pytest.mark.parametrize("text", ["", "Thought:\nI am stuck", "click[Buy Now]", "my next action: look", "Reaction: no"])
def test_a_text_without_an_action_has_none(text):
    assert parse(text) is None


# --- AgentTraj-L in ---


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_record_becomes_a_trajectory(tmp_path, name):
    path = write(tmp_path / name, record("Thought:\nT\n\nAction:\nsearch[x]", BUY, item_id="lmrlgym_maze_12"))
    assert import_agenttraj(path) == [
        Trajectory(
            id="lmrlgym_maze_12",
            env="AgentGym/lmrlgym_maze-v0",
            task="lmrlgym_maze",
            seed=12,
            instruction="You are web shopping.",
            steps=(
                Step(observation="page 0", thought="T", action="search[x]", reward=0.0),
                Step(observation="page 1", thought="Time to buy it.", action="click[Buy Now]", reward=1.0),
            ),
            score=1.0,
            success=True,
            source="AgentTraj-L",
        )
    ]


def test_the_outcome_can_be_told(tmp_path):
    path = write(tmp_path / "a.json", record(BUY, BUY))
    (item,) = import_agenttraj(path, source="agent-7b", success=False)
    assert (item.source, item.success, item.score, [s.reward for s in item.steps]) == ("agent-7b", False, 0.0, [0, 0])


def test_a_last_observation_is_no_step(tmp_path):
    path = write(tmp_path / "a.json", record(BUY), record(BUY, last="Done.", item_id="webshop_7"))
    assert [len(t.steps) for t in import_agenttraj(path)] == [1, 1]


def test_the_neighbouring_format_is_read(tmp_path):
    turns = [
        {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]} for t in talk(BUY, last="x")
    ]
    named = [{"id": i, "game_file": "x.tw-pddl", "conversations": turns} for i in (7, "alfworld_9", "strange")]
    items = import_agenttraj(write(tmp_path / "a.json", *named))
    assert [(t.id, t.env, t.seed) for t in items] == [
        ("7", "AgentGym/alfworld-v0", 7),
        ("alfworld_9", "AgentGym/alfworld-v0", 9),
        ("strange", "AgentGym/alfworld-v0", 2),
    ]
    assert items[0].steps[0].action == "click[Buy Now]"
    assert "no turn has a flag" in refused(import_annotations, tmp_path / "a.json").message


def test_equal_ids_are_numbered(tmp_path):
    path = write(tmp_path / "a.jsonl", *(record(item_id=i) for i in ("a_1", "a_1", "a_1#2", "b_1", "a_1")))
    items = import_agenttraj(path)
    assert [t.id for t in items] == ["a_1", "a_1#2", "a_1#2#2", "b_1", "a_1#3"]
    assert [a.trajectory_id for a in import_annotations(path)] == [t.id for t in items]
    export_agenttraj(tmp_path / "part.json", items[1:2])
    assert json.loads((tmp_path / "part.json").read_text())[0]["item_id"] == "a_1"
    assert import_agenttraj(tmp_path / "part.json")[0].id == "a_1#2"


def test_byte_order_mark_line_ends_and_separators_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    row = record("Thought:\n\u2028\x85\n\nAction:\nlire\r\n")
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert import_agenttraj(path)[0].steps[0].action == "lire"


# --- what is refused, and how it is named ---


def broken(where, value):
    """A record with one place changed; ``where`` is a path of keys."""
    made = record(BUY, BUY)
    inner = made
    for key in where[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return made


@pytest.mark.parametrize(
    ("where", "value", "field", "says"),
    [
        (["conversations", 5, "value"], "Thought:\nlost", "conversations[5].value", 'no "Action:"'),
        (["conversations", 3, "value"], 7, "conversations[3].value", "must be a string, is a int"),
        (["conversations", 3, "value"], KeyError, "conversations[3].content", "must be a string"),
        (["conversations", 2, "value"], "\ud800", "", "half of a surrogate pair"),
        (["item_id"], "\udc00_1", "", "half of a surrogate pair"),
        (["conversations", 2, "from"], "gpt", "conversations[2].from", "must be the human's"),
        (["conversations", 0, "from"], "system", "conversations[0].from", "must be the human's"),
        (["conversations", 3, "from"], "tool", "conversations[3].from", "must be one of"),
        (["conversations", 3, "from"], KeyError, "conversations[3].role", "must be one of"),
        (["conversations", 3], "text", "conversations[3]", "must be a JSON object"),
        (["conversations"], talk(), "conversations", "no step yet"),
        (["conversations"], None, "conversations", "must be a list"),
        (["conversations"], KeyError, "conversations", "must be a list"),
        (["item_id"], KeyError, "id", "must be a name like"),
        (["item_id"], "", "item_id", "must be a name like"),
        (["item_id"], True, "item_id", "must be a name like"),
        (["atlas_ray"], [], "atlas_ray", "object"),
        (["atlas_ray"], {"id": "a"}, "atlas_ray.env", "required"),
    ],
)
def test_what_is_wrong_is_named_by_line_or_record_and_field(tmp_path, where, value, field, says):
    lines = write(tmp_path / "a.jsonl", record(item_id="fine_1"), broken(where, value))
    error = refused(import_agenttraj, lines)
    assert (error.path, error.line) == (lines, 2)
    assert error.field == field and says in error.message
    array = write(tmp_path / "a.json", record(item_id="fine_1"), broken(where, value))
    error = refused(import_agenttraj, array)
    assert (error.path, error.line) == (array, None)
    assert error.field == f"[1].{field}".rstrip(".")
    for path in (lines, array):
        dropped = []
        assert [t.id for t in import_agenttraj(path, on_error="skip", dropped=dropped)] == ["fine_1"]
        assert len(dropped) == 1 and says in dropped[0].message


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('{"item_id": "a_1"\n', 1, "not JSON at column"),
        ('\n\n{"item_id": }\n', 3, "not JSON at column 13"),
        ("[\n{},\n{]\n", 3, "not JSON at column 2"),
        ('"text"\n', 1, "this is a str"),
        ("[" * 100_000, None, "not JSON"),
        ("", None, "holds no record"),
        ("[]", None, "holds no record"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, text, line, says):
    (tmp_path / "a.json").write_text(text)
    error = refused(import_agenttraj, tmp_path / "a.json")
    assert error.line == line and says in error.message


def test_other_files_are_named(tmp_path):
    assert refused(import_agenttraj, tmp_path / "none.json").message == "no such file"
    (tmp_path / "a.json").write_bytes(b'\n{"item_id": "\xe9"}')
    error = refused(import_agenttraj, tmp_path / "a.json")
    assert (error.line, error.message) == (2, "not UTF-8 at byte 14")


def test_the_formats_are_not_mistaken_for_each_other(tmp_path):
    export_messages(tmp_path / "m.jsonl", [three_steps()])
    export_agenttraj(tmp_path / "a.json", [three_steps()])
    assert refused(import_agenttraj, tmp_path / "m.jsonl").field == "messages"
    assert refused(import_messages, tmp_path / "a.json").field == "[0].conversations"


# --- AgentTraj-L out ---


def test_loss_is_true_on_critical_steps_only(tmp_path):
    item = three_steps()
    assert export_agenttraj(tmp_path / "a.json", [item], [note(item.id, 0, 2)]) == 1
    (made,) = json.loads((tmp_path / "a.json").read_text())
    assert [t["from"] for t in made["conversations"]] == ["human", "gpt"] * 4
    assert [t["loss"] for t in made["conversations"]] == [None, False, None, True, None, False, None, True]
    assert [t["value"] for t in made["conversations"]] == [
        "go to the ball",
        "OK.",
        "a wall",
        "Thought:\nexplore\n\nAction:\nturn left",
        "a ball",
        "Action:\ngo forward",
        "near",
        "Thought:\n\n\nAction:\ntoggle",
    ]
    assert made["item_id"] == "GoToLocal-v0_3"
    assert made["item_id"].split("_")[-1] == "3", "AgentGym's loaders take the index like this"


def test_without_annotations_every_step_is_trained(tmp_path):
    export_agenttraj(tmp_path / "a.json", [three_steps()])
    assert [t["loss"] for t in json.loads((tmp_path / "a.json").read_text())[0]["conversations"][3::2]] == [True] * 3


def test_the_suffix_decides_between_an_array_and_lines(tmp_path):
    items = [three_steps(), three_steps(id="b", instruction="日本")]
    for name in ("a.json", "a.jsonl", "a.txt"):
        export_agenttraj(tmp_path / name, items)
        assert import_agenttraj(tmp_path / name) == items
    assert len(json.loads((tmp_path / "a.txt").read_text())) == 2
    assert [json.loads(line)["conversations"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert "日本".encode() in (tmp_path / "a.json").read_bytes()


ODD = [
    record(BUY, BUY, last="You bought it.", losses=[True, False], acknowledgement="OK. I'll try my best."),
    record("\n\nThought: a \n\nAction: \nclick[x]\n", BUY, item_id="webshop_6", losses=[False, True]),
    record("Action:look", "Thought:\nb\r\n\r\nAction:\r\nc", item_id="sciworld_3", losses=[False, False], last=""),
]


def test_a_foreign_file_comes_back_word_by_word(tmp_path):
    path = write(tmp_path / "a.json", *ODD)
    export_agenttraj(tmp_path / "b.json", import_agenttraj(path)[:2], import_annotations(path)[:2])
    back = json.loads((tmp_path / "b.json").read_text())
    assert [r["conversations"] for r in back] == [r["conversations"] for r in ODD[:2]]
    assert [r["item_id"] for r in back] == ["webshop_6", "webshop_6"]
    assert import_agenttraj(tmp_path / "b.json") == import_agenttraj(path)[:2]
    assert import_annotations(tmp_path / "b.json") == import_annotations(path)[:2]


def test_a_changed_trajectory_is_not_exported_as_it_was_read(tmp_path):
    (item,) = import_agenttraj(write(tmp_path / "a.json", ODD[0]))
    shorter = item.model_copy(update={"steps": item.steps[:1]})
    renamed = item.model_copy(update={"id": "x_1", "instruction": "Shop."})
    export_agenttraj(tmp_path / "b.json", [shorter, renamed])
    back = import_agenttraj(tmp_path / "b.json")
    assert [len(t.steps) for t in back] == [1, 2]
    assert back[1].instruction == "Shop."


def test_an_imported_trajectory_is_a_trajectory(tmp_path):
    (item,) = import_agenttraj(write(tmp_path / "a.json", ODD[0]))
    write_trajectories(tmp_path / "t.jsonl", [item])
    (plain,) = read_trajectories(tmp_path / "t.jsonl")
    assert item == plain and plain == item and hash(item) == hash(plain)
    assert item != plain.model_copy(update={"seed": 5})
    assert "conversation" not in item.row()


def test_an_action_that_was_edited_in_the_file_counts(tmp_path):
    item = three_steps(steps=(Step(observation="o", thought=" kept ", action="a\nAction: b"),))
    export_agenttraj(tmp_path / "a.json", [item])
    assert import_agenttraj(tmp_path / "a.json") == [item], "white space and headings survive"
    made = json.loads((tmp_path / "a.json").read_text())
    made[0]["conversations"][3]["value"] = "Thought:\nnew\n\nAction:\nc"
    write(tmp_path / "a.json", *made)
    assert import_agenttraj(tmp_path / "a.json")[0].steps[0] == Step(observation="o", thought="new", action="c")
    made[0]["conversations"] += talk(BUY)[2:]
    error = refused(import_agenttraj, write(tmp_path / "a.json", *made))
    assert error.field == "[0].atlas_ray.rewards" and "1 rewards for 2 steps" in error.message


# --- annotations ---


@pytest.mark.parametrize("export", [export_agenttraj, export_messages])
def test_annotations_that_do_not_fit_are_refused(tmp_path, export):
    a, b = three_steps(id="a"), three_steps(id="b")
    path = tmp_path / "x.json"

    def says(items, notes):
        return refused(export, path, items, notes).message

    assert "'c', which is not among" in says([a], [note("a", 0), note("c", 0)])
    assert "1 of 2 trajectories have no critical step, the first is 'b'" in says([a, b], [note("a", 0)])
    assert "1 of 2 trajectories have no critical step, the first is 'a'" in says([a, b], [note("a"), note("b", 1)])
    assert "'a' has no step 3" in says([a], [note("a", 3)])
    assert "'a' has two annotations" in says([a], [note("a", 0), note("a", 1)])
    assert "2 trajectories to export have the id 'a'" in says([a, b, a], None)
    assert "2 of 2" in says([a, b], []), "an empty list is not 'no annotations'"
    assert "no trajectory" in says([], None)
    assert not path.exists()


@pytest.mark.parametrize(("export", "read"), [(export_agenttraj, import_agenttraj), (export_messages, import_messages)])
def test_what_is_not_marked_can_be_left_out(tmp_path, export, read):
    items = [three_steps(id=i) for i in "abc"]
    path = tmp_path / "x.jsonl"
    assert export(path, items, [note("a"), note("b", 1)], unmarked="drop") == 1
    assert [t.id for t in read(path)] == ["b"]
    with pytest.raises(EmptySelectionError):
        export(path, items, [note("a")], unmarked="drop")


def test_foreign_flags_become_annotations(tmp_path):
    path = write(tmp_path / "a.json", *ODD)
    assert import_annotations(path) == [
        note("webshop_6", 0, selector="imported", fraction=1.0),
        note("webshop_6#2", 1, selector="imported", fraction=1.0),
        note("sciworld_3", selector="imported", fraction=1.0),
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
    export_messages(tmp_path / "m.jsonl", [item], [note(item.id, 1)], flag=flag)
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3]
    assert [m[flag] for m in messages] == [False, False, False, False, True, False, False]
    assert all(set(m) == {"role", "content", flag} for m in messages)
    assert messages[0]["content"] == "go to the ball"
    assert import_annotations(tmp_path / "m.jsonl") == [note(item.id, 1)]


def test_weight_is_a_number_on_assistants_and_nothing_else_is_there(tmp_path):
    item = three_steps()
    export_messages(tmp_path / "m.jsonl", [item], [note(item.id, 1)], flag="weight")
    row = json.loads((tmp_path / "m.jsonl").read_text())
    assert list(row) == ["messages"]
    assert [m.get("weight") for m in row["messages"]] == [None, None, 0, None, 1, None, 0]
    assert all(type(m["weight"]) is int for m in row["messages"][2::2])
    (back,) = import_messages(tmp_path / "m.jsonl")
    assert (back.id, back.env, back.seed, back.source) == ("messages_0", "unknown", 0, "messages")
    assert [(s.thought, s.action) for s in back.steps] == [(s.thought, s.action) for s in item.steps]
    assert import_annotations(tmp_path / "m.jsonl") == [note("messages_0", 1, selector="imported", fraction=1.0)]


def test_a_flag_nobody_reads_is_refused(tmp_path):
    assert refused(export_messages, tmp_path / "m.jsonl", [three_steps()], flag="trained").field == "flag"
    assert not (tmp_path / "m.jsonl").exists()


def test_foreign_messages_are_read(tmp_path):
    chat = [{"role": "user", "content": "o"}, {"role": "assistant", "content": BUY}, {"role": "user", "content": "end"}]
    path = write(tmp_path / "m.jsonl", {"messages": chat}, {"messages": [{"role": "developer", "content": "i"}, *chat]})
    first, second = import_messages(path, source="them")
    assert (first.instruction, second.instruction, len(first.steps), first.source) == ("", "i", 1, "them")
    assert second.steps[0].reward == second.score == 1.0
    for bad, field in [
        ([*chat, chat[0]], "messages[3].role"),
        ([chat[0], {"role": "assistant", "content": None}], "messages[1].content"),
        ([chat[0], {"role": "assistant", "content": "Sure!"}], "messages[1].content"),
        ([chat[0], {"role": "tool", "content": "x"}], "messages[1].role"),
        ([chat[0], {"role": "system", "content": "x"}], "messages[1].role"),
        ([{"role": "system", "content": "x"}, chat[0]], "messages"),
    ]:
        assert refused(import_messages, write(path, {"messages": chat}, {"messages": bad})).field == field


# --- any trajectory ---

texts = st.text(max_size=20) | st.sampled_from(["Action:", "\nAction:\n", "Thought: x", " \r\n", "a\n\nAction:\nb"])
finite = st.floats(allow_nan=False, allow_infinity=False)
steps = st.builds(Step, observation=texts, thought=st.none() | texts, action=texts, reward=finite)
trajectories = st.builds(
    Trajectory,
    id=st.text(min_size=1, max_size=6) | st.sampled_from(["a_1", "a_1#2"]),
    env=texts,
    task=texts,
    seed=st.integers(),
    instruction=texts,
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
    score=st.floats(0, 1),
    success=st.booleans(),
    source=texts,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(trajectories, min_size=1, max_size=3, unique_by=lambda t: t.id), st.data())
@pytest.mark.parametrize(
    ("export", "read", "name"),
    [(export_agenttraj, import_agenttraj, "x.json"), (export_messages, import_messages, "x.jsonl")],
)
def test_any_trajectories_and_marks_survive(tmp_path_factory, export, read, name, items, data):
    path = tmp_path_factory.mktemp("trip") / name
    chosen = [data.draw(st.sets(st.integers(0, len(t.steps) - 1), min_size=1)) for t in items]
    notes = [note(t.id, *sorted(c)) for t, c in zip(items, chosen, strict=True)]
    export(path, items, notes)
    assert read(path) == items
    assert import_annotations(path) == notes


acts = st.builds(compose, st.none() | st.text(max_size=10), st.text(max_size=10)) | st.text(max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.lists(acts, min_size=1, max_size=4), st.text(max_size=5), st.none() | texts, st.data())
def test_any_conversation_survives(tmp_path_factory, spoken, acknowledgement, last, data):
    assume(all(parse(a) for a in spoken))
    losses = data.draw(st.lists(st.booleans(), min_size=len(spoken), max_size=len(spoken)).filter(any))
    made = record(*spoken, last=last, losses=losses, acknowledgement=acknowledgement)
    path = write(tmp_path_factory.mktemp("trip") / "x.jsonl", made)
    items = import_agenttraj(path)
    again = path.with_name("y.json")
    export_agenttraj(again, items, import_annotations(path))
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
    write_annotations(run / "annotations" / "value.jsonl", [note("a", 2), note("b")])
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
    export_messages(tmp_path / "m.jsonl", items, [note("a", 2), note("b", 0, 1, 2)])
    assert import_file(tmp_path / "m.jsonl", tmp_path / "run") == 2
    assert read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl") == items
    marks = tmp_path / "run" / "annotations" / "value.jsonl"
    assert read_annotations(marks, items) == [note("a", 2), note("b", 0, 1, 2)]


def test_a_file_that_marks_everything_brings_no_annotations(tmp_path):
    import_file(write(tmp_path / "a.json", record()), tmp_path / "run")
    assert not (tmp_path / "run" / "annotations").exists()


def test_marks_of_several_selectors_are_refused(tmp_path):
    items = [three_steps(id="a"), three_steps(id="b")]
    export_messages(tmp_path / "m.jsonl", items, [note("a", 2), note("b", 0, selector="random")])
    assert "several selectors" in refused(import_file, tmp_path / "m.jsonl", tmp_path / "run").message
    assert not (tmp_path / "run").exists()


def test_a_selector_of_a_stranger_cannot_name_a_path(tmp_path):
    item = three_steps()
    export_agenttraj(tmp_path / "a.json", [item], [note(item.id, 0, selector="../../x")])
    assert "cannot be the name of a file" in refused(import_file, tmp_path / "a.json", tmp_path / "run").message
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json"]


def test_a_wrong_file_leaves_no_run(tmp_path):
    path = write(tmp_path / "a.json", ODD[0], broken(["conversations", 5, "value"], "?"))
    assert refused(import_file, path, tmp_path / "run").field == "[1].conversations[5].value"
    assert not (tmp_path / "run").exists()
