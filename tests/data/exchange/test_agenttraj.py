"""Formats of the neighbours: turns, flags and outcomes survive both ways, and what cannot be read is named."""

import json

import pytest
from exchange_records import BUY, ODD, annotation, broken, record, refused, three_steps, turns_of, write

from atlas_ray.data.exchange import (
    export_agenttraj,
    export_messages,
    import_agenttraj,
    import_annotations,
    import_messages,
)
from atlas_ray.data.exchange.turns import read_agent_turn
from atlas_ray.trajectory import Step, Trajectory, read_trajectories, write_trajectories

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
        ("Thought:\nT\n\nAction:\nsearch\nAction Input: cup", "T", "search cup"),
        ("Action:\nput\nthe box", None, "put"),
        ("Action:\n```\nput\nthe box\n```", None, "put\nthe box"),
        ("Thought:\n見る 😀\n\nAction:\nlire «é»", "見る 😀", "lire «é»"),
    ],
)
def test_thought_and_action_are_found(text, thought, action):
    said = read_agent_turn(text)
    assert (said.thought, said.action) == (thought, action)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Thought:\nI am stuck",
        "click[Buy Now]",
        "my next action: look",
        "Reaction: no",
        "Action:",
        "Thought: x\nAction:\n\n",
        "<think>\nAction: look\n</think>",
    ],
)
def test_a_text_without_an_action_has_none(text):
    said = read_agent_turn(text)
    assert said.action is None and said.problem


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
                Step(observation="page 1", thought="Time to buy it.", action="click[Buy Now]", reward=0.0),
            ),
            score=None,
            success=None,
            source="AgentTraj-L",
        )
    ]


def test_the_outcome_can_be_told(tmp_path):
    path = write(tmp_path / "a.json", record(BUY, BUY))
    for told, rewards in ((False, [0, 0]), (True, [0, 1])):
        (item,) = import_agenttraj(path, source="agent-7b", success=told)
        found = (item.source, item.success, item.score, [s.reward for s in item.steps])
        assert found == ("agent-7b", told, float(told), rewards)


def test_a_last_observation_is_no_step(tmp_path):
    path = write(tmp_path / "a.json", record(BUY), record(BUY, last="Done.", item_id="webshop_7"))
    assert [len(t.steps) for t in import_agenttraj(path)] == [1, 1]


def test_the_neighbouring_format_is_read(tmp_path):
    turns = [
        {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
        for t in turns_of(BUY, last="x")
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


@pytest.mark.parametrize(
    ("where", "value", "field", "says"),
    [
        (["conversations", 5, "value"], "Thought:\nlost", "conversations[5].value", 'no "Action:"'),
        (["conversations", 3, "value"], 7, "conversations[3].value", "must be a string, is a number"),
        (["conversations", 3, "value"], KeyError, "conversations[3].content", "must be a string"),
        (["conversations", 2, "value"], "\ud800", "", "half of a surrogate pair"),
        (["item_id"], "\udc00_1", "", "half of a surrogate pair"),
        (["conversations", 2, "from"], "gpt", "conversations[2].from", "must be the human's"),
        (["conversations", 0, "from"], "system", "conversations[1].from", "must be the human's"),
        (["conversations", 2, "from"], "system", "conversations[2].from", "must be the human's, is the system's"),
        (["conversations", 3, "from"], "critic", "conversations[3].from", "must be one of"),
        (["conversations", 3, "from"], KeyError, "conversations[3].role", "must be one of"),
        (["conversations", 3], "text", "conversations[3]", "must be a JSON object"),
        (["conversations"], turns_of(), "conversations", "no step yet"),
        (["conversations"], None, "conversations", "must be a list"),
        (["conversations"], KeyError, "conversations", "must be a list"),
        (["item_id"], 3.5, "item_id", "must be a name like"),
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
        ('"text"\n', 1, "this is a text"),
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
    assert export_agenttraj(tmp_path / "a.json", [item], [annotation(item.id, 0, 2)]) == 1
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
    made[0]["conversations"] += turns_of(BUY)[2:]
    error = refused(import_agenttraj, write(tmp_path / "a.json", *made))
    assert error.field == "[0].atlas_ray.rewards" and "1 rewards for 2 steps" in error.message
