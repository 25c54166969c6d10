"""Pairs in TRL's and LLaMA-Factory's formats: exactly there and back, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray import cli
from atlas_ray.data.exchange import PAIR_FORMATS, export_pairs, import_pairs
from atlas_ray.errors import InputError
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import Pair, Step, Turn, write_pairs

TURN = {"thought": "the key first", "action": "go forward"}


def pair(**changes):
    given = {
        "id": "e/1",
        "episode": "e",
        "step": 1,
        "env": "BabyAIText/GoToLocal-v0",
        "task": "GoToLocal-v0",
        "seed": 4,
        "instruction": "go to the red ball",
        "source": "tiny-quick",
        "history": (Step(observation="You see a wall", action="turn left", reward=0.5, actor="quick"),),
        "observation": "You see a red ball",
        "chosen": Turn(**TURN, actor="expert"),
        "rejected": Turn(action="turn right"),
        "evidence": {"rollouts": 8, "chosen_successes": 7, "seeds": [1, 2]},
    }
    return Pair(**{**given, **changes})


def written(tmp_path, fmt, *items):
    return [json.loads(line) for line in export_pairs(tmp_path / "out.jsonl", items, fmt).read_text().splitlines()]


def test_a_record_of_trl_is_prompt_chosen_and_rejected_messages(tmp_path):
    (record,) = written(tmp_path, "trl-pairs", pair())
    assert record["prompt"] == [
        {"role": "system", "content": "go to the red ball"},
        {"role": "user", "content": "You see a wall"},
        {"role": "assistant", "content": "Action:\nturn left"},
        {"role": "user", "content": "You see a red ball"},
    ]
    assert record["chosen"] == [{"role": "assistant", "content": "Thought:\nthe key first\n\nAction:\ngo forward"}]
    assert record["rejected"] == [{"role": "assistant", "content": "Action:\nturn right"}]
    assert isinstance(record["atlas_ray"], str) and record.keys() == {"prompt", "chosen", "rejected", "atlas_ray"}


def test_a_record_of_llamafactory_is_a_conversation_that_ends_with_the_human(tmp_path):
    (record,) = written(tmp_path, "llamafactory-pairs", pair())
    assert record["system"] == "go to the red ball"
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt", "human"]
    assert record["chosen"] == {"from": "gpt", "value": "Thought:\nthe key first\n\nAction:\ngo forward"}
    assert record["rejected"] == {"from": "gpt", "value": "Action:\nturn right"}


texts = st.text(max_size=20)
turns = st.builds(Turn, thought=st.none() | texts, action=st.text(min_size=1, max_size=12), actor=st.none() | texts)
steps = st.builds(Step, observation=texts, thought=st.none() | texts, action=texts, reward=st.floats(0, 1))


@pytest.mark.parametrize("fmt", PAIR_FORMATS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_pair_goes_out_comes_back(tmp_path_factory, fmt, data):
    history = tuple(data.draw(st.lists(steps, max_size=2)))
    chosen = data.draw(turns)
    rejected = data.draw(turns.filter(lambda turn: turn.words() != chosen.words()))
    told = {"instruction": data.draw(texts), "observation": data.draw(texts), "evidence": {"a": [None, {"b": 1}]}}
    items = [pair(history=history, step=len(history), chosen=chosen, rejected=rejected, **told), pair(id="other")]
    assert import_pairs(export_pairs(tmp_path_factory.mktemp("trip") / "p.jsonl", items, fmt)) == items


@pytest.mark.parametrize(
    "text", ["Action: x\nAction:\ngo", "Observation: a", "<think>so</think> go", "go\n\nAction:\nb"]
)
@pytest.mark.parametrize("fmt", PAIR_FORMATS)
def test_a_turn_that_its_text_does_not_say_comes_back_too(tmp_path, fmt, text):
    item = pair(chosen=Turn(thought=text, action=text), observation=text, instruction="")
    assert import_pairs(export_pairs(tmp_path / "p.jsonl", [item], fmt)) == [item]


# --- records of others ---


def foreign(**changes):
    record = {
        "prompt": [{"role": "user", "content": "You see a door"}],
        "chosen": [{"role": "assistant", "content": "Action: open"}],
        "rejected": [{"role": "assistant", "content": "Thought: no\nAction: wait"}],
    }
    return {name: value for name, value in {**record, **changes}.items() if value is not ...}


def read(tmp_path, *records):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return import_pairs(path)


def test_records_of_others_become_pairs_of_unknown_episodes(tmp_path):
    chat = {
        "id": "x_7",
        "conversations": [
            {"from": "human", "value": "You see a door"},
            {"from": "gpt", "value": "Action: open"},
            {"from": "human", "value": "It is open"},
        ],
        "system": "leave",
        "chosen": {"from": "gpt", "value": "Action: go"},
        "rejected": {"from": "gpt", "value": "Action: wait"},
    }
    first, second = read(tmp_path, foreign(), chat)
    assert (first.id, first.episode, first.step, first.env, first.seed) == ("pairs_0", "pairs_0", 0, "unknown", 0)
    assert (first.instruction, first.observation, first.history) == ("", "You see a door", ())
    assert (first.chosen, first.rejected) == (Turn(action="open"), Turn(thought="no", action="wait"))
    assert (second.id, second.instruction, second.observation) == ("x_7", "leave", "It is open")
    assert second.history == (Step(observation="You see a door", action="open"),)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"prompt": ...}, "prompt", "has none of prompt"),
        ({"prompt": "You see a door"}, "prompt", "pairs of plain texts cannot be read"),
        ({"prompt": []}, "prompt", "must end with what the agent saw"),
        ({"prompt": [{"role": "assistant", "content": "Action: a"}]}, "prompt[0]", "must be human's"),
        ({"rejected": ...}, "rejected", "is missing"),
        ({"chosen": [{"role": "assistant", "content": "well"}] * 2}, "chosen", "must be one turn"),
        ({"chosen": [{"role": "assistant", "content": "Thought: well"}]}, "chosen", 'has no "Action:"'),
        ({"rejected": [{"role": "assistant", "content": "Action:  open"}]}, "rejected", "the same turn"),
        ({"atlas_ray": "{"}, "atlas_ray", "not what an export of pairs writes"),
        ({"atlas_ray": '{"history": [{}], "actors": [null, null]}'}, "atlas_ray", "tells of 1 steps"),
    ],
)
def test_a_bad_record_is_one_line_with_its_field(tmp_path, changes, field, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, foreign(id="a"), foreign(**changes))
    assert (caught.value.line, caught.value.field) == (2, field)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_turns_that_were_changed_beside_a_whole_copy_are_refused(tmp_path):
    (record,) = written(tmp_path, "trl-pairs", pair(chosen=Turn(thought="Action:", action="a\n\nAction:\nb")))
    assert "exact" in json.loads(record["atlas_ray"])
    record["rejected"][0]["content"] = "Action:\nwait"
    with pytest.raises(InputError, match="remove it where turns were changed"):
        read(tmp_path, record)


# --- the command ---


def exported(tmp_path, capsys, *more):
    run = tmp_path / "run"
    write_pairs(RunLayout(run).pairs("verified"), [pair()])
    RunLayout(run).recipe.write_text("{}")
    code = cli.main(["export", str(run), *more, "--out", str(tmp_path / "o.jsonl")])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("fmt", PAIR_FORMATS)
def test_the_command_writes_a_selectors_pairs(tmp_path, capsys, fmt):
    assert exported(tmp_path, capsys, "--format", fmt, "--selector", "verified")[0] == 0
    assert import_pairs(tmp_path / "o.jsonl") == [pair()]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--selector", "value"], "has no pairs of 'value', only of: verified"),
        (["--selector", "every-step"], "has no pairs of every step"),
        (["--selector", "verified", "--flag", "train"], "has no flags"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, more, words):
    code, err = exported(tmp_path, capsys, "--format", "trl-pairs", *more)
    assert code == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "o.jsonl").exists()
