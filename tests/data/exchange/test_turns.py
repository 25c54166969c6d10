"""Turns of users' conversations: whose they are, which are steps, and what is refused, so that no step is lost."""

import json

import pytest
from exchange_records import BUY, record, refused, write

from atlas_ray.data.exchange import Notices, Options, check_file, import_agenttraj, import_annotations, import_file
from atlas_ray.data.exchange import import_messages as read_messages
from atlas_ray.data.exchange.turns import read_observation
from atlas_ray.trajectory import read_trajectories


def human(text, **more):
    return {"from": "human", "value": text, **more}


def gpt(text, **more):
    return {"from": "gpt", "value": text, **more}


def system(text, **more):
    return {"from": "system", "value": text, **more}


def share(*turns, **more):
    return {"id": "box_1", "conversations": list(turns), **more}


def read(tmp_path, row, **how):
    (item,) = import_agenttraj(write(tmp_path / "a.jsonl", row), **how)
    return item


def taken(item):
    return [(s.observation, s.action) for s in item.steps]


OPEN, CLOSE = gpt("Action: open"), gpt("Thought: b\nAction: close")
BOTH = [("A box.", "open"), ("Empty.", "close")]

# --- which turns are steps ---


@pytest.mark.parametrize(
    ("row", "instruction", "steps"),
    [
        (share(human("A box."), OPEN, human("Empty."), CLOSE), "", BOTH),
        (share(human("A box."), OPEN), "", BOTH[:1]),
        (share(system("Rules."), human("A box."), OPEN, human("Empty."), CLOSE), "Rules.", BOTH),
        (share(system("Rules."), system("More."), human("A box."), OPEN), "Rules.\n\nMore.", BOTH[:1]),
        (share(human("A box."), OPEN, human("Empty."), CLOSE, system="Rules."), "Rules.", BOTH),
        (share(human("Goal."), gpt("OK."), human("A box."), OPEN, system="Rules."), "Rules.\n\nGoal.", BOTH[:1]),
        (share(human("Goal."), gpt("OK."), human("A box."), OPEN, system="Goal."), "Goal.", BOTH[:1]),
        (share(human("Goal."), gpt("OK."), human("A box."), OPEN, system=""), "Goal.", BOTH[:1]),
        (share(human("Goal."), gpt("OK."), human("A box."), OPEN, system=None), "Goal.", BOTH[:1]),
        (share(system("S."), human("Goal."), gpt("Sure!"), human("A box."), OPEN), "S.\n\nGoal.", BOTH[:1]),
        (share(human("Goal."), gpt("I am set.", loss=False), human("A box."), OPEN), "Goal.", BOTH[:1]),
        (share(human("Goal."), gpt("", loss=False), human("A box."), OPEN), "Goal.", BOTH[:1]),
        (
            share(human("Goal."), gpt("OK. I'll answer\nThought: ...\nAction: ...", loss=False), human("A box."), OPEN),
            "Goal.",
            BOTH[:1],
        ),
        (share(human("A box."), gpt("OK.\nAction: open"), human("Empty."), CLOSE), "", BOTH),
        (share(human("A box."), OPEN, human("Empty."), CLOSE, human("Done.")), "", BOTH),
        (share(human("A box."), OPEN, human("Empty."), CLOSE, human("Done."), human("Bye.")), "", BOTH),
        (share(human("A box."), OPEN, human("Empty."), CLOSE, system("reward = 0")), "", BOTH),
        (share(human("A box."), OPEN, human("Empty."), CLOSE, human("reward = 0"), gpt("Bye.")), "", BOTH),
        (share(human("Observation: A box."), OPEN), "", BOTH[:1]),
        (share({"role": "User", "content": "A box."}, {"role": "model", "content": "Action: open"}), "", BOTH[:1]),
        (share({"from": "observation", "value": "A box."}, OPEN), "", BOTH[:1]),
    ],
)
def test_every_step_is_found_and_nothing_else(tmp_path, row, instruction, steps):
    item = read(tmp_path, row)
    assert (item.instruction, taken(item)) == (instruction, steps)
    chat = {"messages": row["conversations"], **{k: v for k, v in row.items() if k == "system"}}
    (item,) = read_messages(write(tmp_path / "m.jsonl", chat))
    assert (item.instruction, taken(item)) == (instruction, steps)


@pytest.mark.parametrize(
    ("turns", "field", "says"),
    [
        ([human("o"), gpt("open the box"), human("p"), OPEN], "[1].value", 'has no "Action:"'),
        ([human("o"), OPEN, human("p"), gpt("Sure!"), human("q"), CLOSE], "[3].value", 'has no "Action:"'),
        ([human("o"), OPEN, human("p"), gpt("I am done.")], "[3].value", 'has no "Action:"'),
        ([human("o"), OPEN, human("p"), gpt("Thought: x\nAction:")], "[3].value", "or nothing behind it"),
        ([human("o"), gpt("Sure. Action: like this"), human("p"), OPEN], "[1].value", "may be an ack"),
        ([human("o"), human("p"), OPEN], "[1].from", "must be the gpt's, is the human's"),
        ([human("o"), OPEN, CLOSE], "[2].from", "must be the human's, is the gpt's"),
        ([OPEN, human("o"), CLOSE], "[0].from", "must be the human's, is the gpt's"),
        ([human("o"), OPEN, system("x"), CLOSE], "[2].from", "must be the human's, is the system's"),
        ([human("o"), OPEN, {"from": "function_call", "value": "{}"}], "[2].from", "OpenAI messages only"),
        ([human("o"), {"from": "tool", "value": "{}"}], "[1].from", "OpenAI messages only"),
        ([human("o"), gpt("Action: x", tool_calls=[{"id": "1"}])], "[1].tool_calls", "OpenAI messages only"),
        ([human("o"), {"role": "assistant", "content": None, "tool_calls": [{}]}], "[1].tool_calls", "as text"),
        ([human("o"), {"role": "assistant", "content": None}], "[1].content", "is null"),
        ([{"role": "user", "content": None}, OPEN], "[0].content", "is null"),
        ([human([{"type": "image_url", "image_url": {}}]), OPEN], "[0].value[0]", "only parts of text"),
        ([human([{"type": "tool_result", "content": "x"}]), OPEN], "[0].value[0]", "OpenAI messages only"),
        ([human("o"), gpt([{"type": "text", "text": 3}])], "[1].value[0].text", "must be a string"),
        ([human("o"), gpt(7)], "[1].value", "must be a string, is a number"),
        ([human("o"), gpt("x" * 100_001)], "[1].value", "is longer than"),
        ([{"from": "tutor", "value": "o"}, OPEN], "[0].from", "must be one of"),
    ],
)
def test_what_may_be_a_step_is_refused_and_not_lost(tmp_path, turns, field, says):
    path = write(tmp_path / "a.jsonl", share(*turns))
    error = refused(import_agenttraj, path)
    assert error.field == f"conversations{field}" and says in error.message
    assert refused(check_file, path).field == error.field


@pytest.mark.parametrize("system", [3, ["Rules."]], ids=["a number", "a list"])
def test_a_system_prompt_beside_the_turns_must_be_text(tmp_path, system):
    error = refused(import_agenttraj, write(tmp_path / "a.jsonl", share(human("o"), OPEN, system=system)))
    assert error.field == "system" and "must be a string" in error.message


# --- what a turn holds ---


def test_parts_of_text_are_joined(tmp_path):
    parts = [{"type": "text", "text": "Thought: x\n"}, {"type": "text", "text": "Action: "}, "open"]
    assert taken(read(tmp_path, share(human([{"type": "text", "text": "A box."}]), gpt(parts)))) == BOTH[:1]


REASONED = [
    gpt("Thought: b\nAction: open", reasoning_content="because"),
    gpt("Thought: b\nAction: open", reasoning="because"),
    gpt("<think>because</think>\nThought: b\nAction: open"),
    gpt("because\n</think>\nThought: b\nAction: open"),
    gpt("<think>because</think>\nThought: b\nAction: open", reasoning_content="because"),
    gpt([{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "Thought: b\nAction: open"}]),
]


@pytest.mark.parametrize("turn", REASONED)
def test_what_was_thought_beside_an_answer_is_left_out_and_counted_or_made_thought(tmp_path, turn):
    row = share(human("A box."), turn)
    assert [(s.thought, s.action) for s in read(tmp_path, row).steps] == [("b", "open")]
    assert read(tmp_path, row, reasoning="thought").steps[0].thought.replace("because\n\n", "", 1) in (
        "b",
        "because\n\nb",
    )
    notices = Notices()
    import_file(tmp_path / "a.jsonl", tmp_path / "run", notices=notices)
    assert notices.counts["reasoning"] == 1
    assert any("1 turn of 1 trajectory" in line and "collect.reasoning" in line for line in notices.lines())
    rows = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert {"stage": "collect", "event": "import: reasoning", "turns": 1, "trajectories": 1} in rows


def test_an_action_that_is_only_quoted_in_thinking_is_none(tmp_path):
    row = share(human("A box."), gpt("<think>\nAction: burn it\n</think>\n"))
    assert (
        "has no" in refused(import_agenttraj, write(tmp_path / "a.jsonl", row)).message
        or "is empty" in refused(import_agenttraj, tmp_path / "a.jsonl").message
    )


def test_tags_of_thinking_are_the_recipes(tmp_path):
    path = write(tmp_path / "a.jsonl", share(human("A box."), gpt("<musing>Action: burn</musing>\nAction: open")))
    import_file(path, tmp_path / "run", options=Options(thinking=("<musing>",)))
    (item,) = read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")
    assert [(s.thought, s.action) for s in item.steps] == [(None, "open")]


def test_rounds_that_the_agent_invented_are_cut_and_counted(tmp_path):
    said = "Thought: a\nAction: open\nObservation: a key.\nThought: b\nAction: take key"
    path, notices = write(tmp_path / "a.jsonl", share(human("A box."), gpt(said), human("Empty."), CLOSE)), Notices()
    import_file(path, tmp_path / "run", notices=notices)
    (item,) = read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")
    assert taken(item) == BOTH and item.steps[0].thought == "a"
    assert (notices.counts["invented"], notices.of["invented"]) == (1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Observation: A box.",
        "Observation:\nA box.",
        "observation : A box.",
        "**Observation:** A box.",
        "### Observation: A box.",
        "- Observation 3: A box.",
        "Observation: Observation: A box.",
        "Obs: A box.",
        "Observation\uff1aA box.",
    ],
)
def test_a_heading_of_what_was_seen_is_not_doubled(text):
    assert read_observation(text) == "A box."


@pytest.mark.parametrize("text", ["A box. Observation: x", "Observations are hard: x", "  A box.\n", "", "Observe: x"])
def test_any_other_text_is_left_as_it_is(text):
    assert read_observation(text) == text


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("Thoughts: a\nAct: x", "a", "x"),
        ("Think: a\nNext action: x", "a", "x"),
        ("Reasoning: a\nFinal action: x", "a", "x"),
        ("THOUGHT 2: a\nACTION 2: x", "a", "x"),
        ("**Thought:** a\n**Action**: x", "a", "x"),
        ("### Thought\na\n### Action\nx", "a", "x"),
        ("1. Thought: a\n2. Action: `x`", "a", "x"),
        ("> Thought: a\n> Action: x", "a", "x"),
        ("Thought\uff1aa\nAction\uff1ax", "a", "x"),
        ("a. Action: x", "a.", "x"),
        ("<action>x</action>", None, "x"),
        ("Action:\n```\nx\ny\n```", None, "x\ny"),
        ("Action: x\ny", None, "x"),
        ("Action: search\nAction Input: cup", None, "search cup"),
        ("<think>\nAction: y\n</think>\nAction: x", None, "x"),
        ("Action: y\n</think>\nAction: x</s>", None, "x"),
        ("Action: x<|eot_id|>", None, "x"),
    ],
)
def test_the_reader_of_replies_reads_files_too(tmp_path, text, thought, action):
    """The table in docs/formats.md."""
    (step,) = read(tmp_path, share(human("o"), gpt(text))).steps
    assert (step.thought, step.action) == (thought, action)


# --- rounds of another problem in front ---

F, T = {"loss": False}, {"loss": True}


def flagged(*seen, flags, acknowledgement="OK."):
    """A conversation whose steps saw these texts and have these flags."""
    turns = [human("Rules."), gpt(acknowledgement, loss=False)]
    for number, (text, flag) in enumerate(zip(seen, flags, strict=True)):
        turns += [human(text), gpt(f"Action: a{number}", loss=flag)]
    return share(*turns)


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (flagged("Example: where is it?", "Real one: where is it?", flags=[False, True]), ["a1"]),
        (flagged("Here is one example. A cup.", "A shelf.", "A pan.", flags=[False, False, True]), ["a2"]),
        (
            flagged("A cup.", "A shelf.", "Now, I start a new problem. A pan.", "p", flags=[False, False, True, True]),
            ["a2", "a3"],
        ),
        (flagged("A cup.", "Your task is to heat a pan.", flags=[False, True]), ["a1"]),
        (flagged("Example: a cup.", "Now it is your turn. A pan.", flags=[None, None]), ["a1"]),
        (flagged("Example: a cup.", "Now it is your turn. A pan.", flags=[True, True]), ["a0", "a1"]),
        (flagged("A cup.", "A pan.", flags=[True, True]), ["a0", "a1"]),
        (flagged("A cup.", "A pan.", flags=[True, False]), ["a0", "a1"]),
        (flagged("A cup.", "A pan.", flags=[False, False]), ["a0", "a1"]),
        (flagged("A cup.", "A pan.", flags=[None, True]), ["a0", "a1"]),
        (flagged("Example town: a cup.", "A pan.", flags=[None, None]), ["a0", "a1"]),
        (
            flagged("Your task: x. A cup.", "Your task: x. A pan.", "Your task: x. c", flags=[None] * 3),
            ["a0", "a1", "a2"],
        ),
    ],
)
def test_an_example_in_front_is_no_step(tmp_path, row, kept):
    item = read(tmp_path, row)
    assert [s.action for s in item.steps] == kept and item.instruction == "Rules."
    notices = Notices()
    import_file(tmp_path / "a.jsonl", tmp_path / "run", notices=notices)
    assert notices.counts["examples"] == len(row["conversations"]) // 2 - 1 - len(kept)


def test_without_an_acknowledgement_the_rules_are_in_the_first_turn(tmp_path):
    turns = [human("Rules. My problem is: a cup."), gpt("Action: a0", loss=False)]
    turns += [human("Now, I start a new problem: a pan."), gpt("Action: a1", loss=True)]
    item = read(tmp_path, share(*turns))
    assert taken(item) == [("Now, I start a new problem: a pan.", "a1")]
    assert item.instruction == "Rules. My problem is: a cup."


def test_what_may_be_an_example_or_not_critical_is_asked_about(tmp_path):
    row = flagged("A cup.", "A pan.", "A lid.", flags=[False, True, True])
    path = write(tmp_path / "a.jsonl", row)
    for call in (import_agenttraj, import_annotations, lambda p: import_file(p, tmp_path / "run")):
        error = refused(call, path)
        assert error.field == "conversations[3].loss" and 'collect.examples = "drop"' in error.message
    assert [s.action for s in read(tmp_path, row, examples="drop").steps] == ["a1", "a2"]
    assert [s.action for s in read(tmp_path, row, examples="steps").steps] == ["a0", "a1", "a2"]
    assert [a.critical for a in import_annotations(path, examples="steps")] == [(1, 2)]
    assert [a.critical for a in import_annotations(path, examples="drop")] == [(0, 1)]
    masked = flagged("A cup.", "A pan.", flags=[True, False])
    path = write(tmp_path / "b.jsonl", row, masked)
    assert [len(t.steps) for t in import_agenttraj(path)] == [3, 2], "false behind true: the flags are marks on steps"


def test_an_example_behind_a_system_prompt_is_no_instruction(tmp_path):
    turns = [system("Rules."), human("Example: a cup."), gpt("Action: a0", loss=False)]
    turns += [human("Now it is your turn: a pan."), gpt("Action: a1", loss=True)]
    item = read(tmp_path, share(*turns))
    assert (item.instruction, taken(item)) == ("Rules.", [("Now it is your turn: a pan.", "a1")])


def test_an_empty_list_of_turns_is_none(tmp_path):
    chat = [{"role": "user", "content": "o"}, {"role": "assistant", "content": "Action: x"}]
    row = {"conversations": [], "messages": chat}
    assert import_file(write(tmp_path / "a.jsonl", row), tmp_path / "run") == 1


def test_flags_on_messages_tell_an_example_too(tmp_path):
    chat = [
        {"role": "user", "content": "For example: a cup."},
        {"role": "assistant", "content": "Action: a", "weight": 0},
    ]
    chat += [{"role": "user", "content": "A pan."}, {"role": "assistant", "content": "Action: b", "weight": 1}]
    (item,) = read_messages(write(tmp_path / "m.jsonl", {"messages": [{"role": "system", "content": "Rules."}, *chat]}))
    assert taken(item) == [("A pan.", "b")]


# --- flags ---


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.5, "there is no half of it"),
        ("false", "without quotation marks"),
        ("true", "without quotation marks"),
        (2, "is 2"),
        (-1, "is -1"),
        ([], "is []"),
    ],
)
def test_a_flag_that_is_neither_true_nor_false_is_no_mark(tmp_path, value, says):
    path = write(tmp_path / "a.jsonl", share(human("o"), gpt("Action: x", weight=value)))
    for call in (import_annotations, lambda p: import_file(p, tmp_path / "run")):
        error = refused(call, path)
        assert error.field == "conversations[1].weight" and says in error.message
    assert (
        import_file(
            write(tmp_path / "b.jsonl", share(human("o"), OPEN), json.loads(path.read_text())),
            tmp_path / "run",
            on_bad="skip",
        )
        == 1
    )


def test_a_flag_from_a_table_of_numbers_is_read(tmp_path):
    turns = [human("o"), gpt("Action: x", weight=1.0), human("p"), gpt("Action: y", weight=0.0)]
    assert [a.critical for a in import_annotations(write(tmp_path / "a.jsonl", share(*turns)))] == [(0,)]


# --- ids ---


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (None, ("conversations_0", "unknown", 0)),
        (3, ("3", "unknown", 3)),
        (3.0, ("3", "unknown", 3)),
        ("7d1e-44", ("7d1e-44", "unknown", 0)),
        ("box_4", ("box_4", "AgentGym/box-v0", 4)),
    ],
)
def test_an_id_may_be_anything_that_names(tmp_path, name, made):
    item = read(tmp_path, {"id": name, "conversations": [human("o"), OPEN]})
    assert (item.id, item.env, item.seed) == made


def test_agenttraj_is_read_as_ever(tmp_path):
    item = read(tmp_path, record("Thought:\nT\n\nAction:\nsearch[x]", BUY, last="end"))
    assert (item.instruction, [s.observation for s in item.steps]) == ("You are web shopping.", ["page 0", "page 1"])
