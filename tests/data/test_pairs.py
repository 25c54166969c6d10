"""Files of pairs: what is written is read again, what is wrong is named by line and field."""

import json

import pytest

from atlas_ray.errors import InputError
from atlas_ray.trajectory import Pair, Step, Turn, read_pairs, write_pairs

STEP = {"observation": "You see nothing", "action": "turn left", "reward": 0.0, "actor": "quick"}


def row(**changes):
    base = {
        "id": "e-7/1",
        "episode": "e-7",
        "step": 1,
        "env": "BabyAIText/GoToLocal-v0",
        "task": "GoToLocal-v0",
        "seed": 7,
        "instruction": "go to the ball",
        "source": "tiny-quick",
        "history": [STEP],
        "observation": "You see a red ball",
        "chosen": {"thought": "the ball", "action": "go forward", "actor": "expert"},
        "rejected": {"action": "turn left"},
        "evidence": {"rollouts": 8, "chosen_successes": 6, "rejected_successes": 0, "score": None},
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def written(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_a_pair_is_the_documented_object_and_comes_back(tmp_path):
    first, second = row(), row(id="e-7/0", step=0, history=[], evidence=...)
    items = read_pairs(written(tmp_path / "a.jsonl", first, second))
    write_pairs(tmp_path / "b.jsonl", items)
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [first, second]
    assert read_pairs(tmp_path / "b.jsonl") == items


def test_each_side_is_an_episode_that_ends_with_its_turn():
    pair = Pair.model_validate_json(json.dumps(row()))
    chosen, rejected = pair.trajectory("chosen"), pair.trajectory("rejected")
    assert chosen.steps[:-1] == rejected.steps[:-1] == pair.history
    assert chosen.steps[-1] == Step(
        observation="You see a red ball", thought="the ball", action="go forward", actor="expert"
    )
    assert rejected.steps[-1] == Step(observation="You see a red ball", action="turn left")
    assert (chosen.seed, chosen.env, chosen.instruction) == (7, "BabyAIText/GoToLocal-v0", "go to the ball")
    assert chosen.success is chosen.score is None and chosen.id != rejected.id


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"history": ...}, "history", "required"),
        ({"history": []}, "history", "has 0 steps, and the pair is at step 1"),
        ({"observation": ...}, "observation", "required"),
        ({"rejected": {"thought": " the  ball", "action": "go forward "}}, "rejected", "the same turn"),
        ({"rejected": {"action": ""}}, "rejected.action", "at least 1"),
        ({"margin": 1}, "margin", "not permitted"),
        ({"chosen": {"action": "go", "reward": 1.0}}, "chosen.reward", "not permitted"),
        ({"step": -1}, "step", "greater than or equal to 0"),
        ({"seed": "7"}, "seed", "integer"),
        ({"evidence": {"value": float("nan")}}, "evidence", "JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path, changes, field, words):
    with pytest.raises(InputError) as caught:
        read_pairs(written(tmp_path / "p.jsonl", row(), row(**{"id": "other", **changes})))
    assert (caught.value.line, caught.value.field) == (2, field)
    assert words in str(caught.value) and "p.jsonl" in str(caught.value)


def test_an_id_stands_once_and_bad_lines_can_be_left_out(tmp_path):
    path = written(tmp_path / "p.jsonl", row(), row(), "{", row(id="b"))
    with pytest.raises(InputError, match="stands already on line 1"):
        read_pairs(path)
    dropped = []
    assert [p.id for p in read_pairs(path, "skip", dropped)] == ["e-7/1", "b"]
    assert [error.line for error in dropped] == [2, 3]


def test_a_file_without_pairs_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no pair"):
        read_pairs(written(tmp_path / "p.jsonl"))
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_turn_is_compared_by_its_words():
    assert Turn(action=" go  on").words() == Turn(thought="  ", action="go on").words() == ("", "go on")
