"""How an episode ended is read where the file says it, and is unknown where it does not: never assumed a success."""

import json

import pytest
from exchange_records import BUY, broken, record, refused, three_steps, write

from atlas_ray.data.exchange import (
    Notices,
    Options,
    export_agenttraj,
    export_messages,
    import_agenttraj,
    import_file,
    import_messages,
)
from atlas_ray.data.exchange.outcomes import EpisodeOutcome, of_text
from atlas_ray.errors import InputError
from atlas_ray.trajectory import read_trajectories, write_trajectories


def outcome(tmp_path, row, **how):
    (item,) = import_agenttraj(write(tmp_path / "a.jsonl", row), **how)
    assert [s.reward for s in item.steps] == [0.0] * (len(item.steps) - 1) + [item.score or 0.0]
    return item.success, item.score


UNKNOWN = (None, None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, UNKNOWN),
        ({"reward": 0.0, "success": False}, (False, 0.0)),
        ({"success": False}, (False, 0.0)),
        ({"success": True}, (True, 1.0)),
        ({"success": 0}, (False, 0.0)),
        ({"success": 1.0}, (True, 1.0)),
        ({"success": "false"}, (False, 0.0)),
        ({"success": "True"}, (True, 1.0)),
        ({"success": None}, UNKNOWN),
        ({"success": "perhaps"}, UNKNOWN),
        ({"success": []}, UNKNOWN),
        ({"score": 0.0}, (False, 0.0)),
        ({"score": 0}, (False, 0.0)),
        ({"score": "0.0"}, (False, 0.0)),
        ({"score": 1}, (True, 1.0)),
        ({"score": 0.4}, (None, 0.4)),
        ({"score": 62}, UNKNOWN),
        ({"score": float("nan")}, UNKNOWN),
        ({"reward": float("nan")}, UNKNOWN),
        ({"reward": -100}, (False, 0.0)),
        ({"reward": 1.0}, (True, 1.0)),
        ({"reward": [0, 0, 1]}, UNKNOWN),
        ({"reward": 0.4, "success": True}, (True, 0.4)),
        ({"reward": 1, "success": False}, (False, 1.0)),
        ({"score": 85, "success": True}, (True, 1.0)),
        ({"final_reward": 0}, (False, 0.0)),
        ({"won": False}, (False, 0.0)),
        ({"is_success": 1}, (True, 1.0)),
        ({"outcome": "failure"}, (False, 0.0)),
        ({"outcome": "success"}, (True, 1.0)),
        ({"metadata": {"success": False}}, (False, 0.0)),
        ({"info": {"reward": 0}}, (False, 0.0)),
    ],
)
def test_the_fields_of_a_record_tell_its_outcome(tmp_path, fields, told):
    assert outcome(tmp_path, record(BUY, BUY) | fields) == told
    stated = (told[0] if told[0] is not None else True, told[1] if told[1] is not None else 1.0)
    assert outcome(tmp_path, record(BUY, BUY) | fields, success=True) == stated, "what is stated fills what is missing"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reward = 0", (False, 0.0)),
        ("The reward is 0.", (False, 0.0)),
        ("Reward: 0.0", (False, 0.0)),
        ("**Reward:** 0", (False, 0.0)),
        ('{"reward": 0, "done": true}', (False, 0.0)),
        ("You got a reward of 0", (False, 0.0)),
        ("score 0", (False, 0.0)),
        ("Your score is 0 of 100", (False, 0.0)),
        ("Final reward was -100", (False, None)),
        ("Thanks! [SEP] Your score (min 0.0, max 1.0) [SEP] 0.5 [SEP] Reward Details", (None, 0.5)),
        ("Your score (min 0.0, max 1.0): 1.0", (True, 1.0)),
        ("score: 100%", (True, 1.0)),
        ("score: 50 / 100", (None, 0.5)),
        ("reward = 1", (True, 1.0)),
        ("Total reward = 62.0", UNKNOWN),
        ("reward: 1,000", UNKNOWN),
        ("reward: 0. Then, after a retry, reward: 1", (True, 1.0)),
        ("success: false", (False, None)),
        ("Done. success = True, reward = 0.7", (True, 0.7)),
        ("The task has failed.", (False, None)),
        ("FAILURE", (False, None)),
        ("Your reward is zero.", (False, 0.0)),
        ("The task is not completed.", (False, None)),
        ("Game over. You lost!", (False, None)),
        ("You lost the key.", UNKNOWN),
        ("The action failed.", UNKNOWN),
        ("You won a prize: 1", UNKNOWN),
        ("You see a score sheet.", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_what_the_environment_says_last_tells_it(tmp_path, text, told):
    assert of_text(text) == EpisodeOutcome(*told)
    score = told[1] if told[1] is not None or told[0] is None else float(told[0])
    assert outcome(tmp_path, record(BUY, BUY, last=text)) == (told[0], score)
    assert outcome(tmp_path, record(BUY, BUY, last=text) | {"success": False})[0] is False, "a field comes first"
    inside = record(BUY, BUY)
    inside["conversations"][2]["value"] = text
    assert outcome(tmp_path, inside) == UNKNOWN, "only what is said behind the last step"


def test_turns_behind_the_end_tell_it_too(tmp_path):
    row = record(BUY, last="You bought it.")
    row["conversations"] += [{"from": "human", "value": "reward = 0"}, {"from": "gpt", "value": "Pity."}]
    assert outcome(tmp_path, row) == (False, 0.0)


def test_a_score_of_one_is_no_success_where_others_go_beyond_it(tmp_path):
    rows = [record(item_id=f"a_{n}") | {"score": score} for n, score in enumerate([1, 62, 0, 0.5])]
    items = import_agenttraj(write(tmp_path / "a.jsonl", *rows))
    assert [(t.success, t.score) for t in items] == [UNKNOWN, UNKNOWN, (False, 0.0), (None, 0.5)]


def test_a_field_of_the_users_counts_alone(tmp_path):
    row = record() | {"success": True, "eval": {"passed": 0}, "a.b": "yes"}
    assert outcome(tmp_path, row, success_field="eval.passed") == (False, 0.0)
    assert outcome(tmp_path, row, success_field="a.b") == (True, 1.0)
    assert outcome(tmp_path, row, success_field="eval.nothing") == UNKNOWN
    error = refused(import_agenttraj, tmp_path / "a.jsonl", success_field="conversations")
    assert (error.line, error.field) == (1, "conversations") and "true or false" in error.message
    error = refused(import_file, tmp_path / "a.jsonl", tmp_path / "run", options=Options(success_field="rewrd"))
    assert error.field == "collect.success_field" and "no record of" in error.message
    assert not (tmp_path / "run").exists()
    rows = [row, record(item_id="b_1")]
    notices = Notices()
    import_file(
        write(tmp_path / "b.jsonl", *rows), tmp_path / "run", options=Options(success_field="a.b"), notices=notices
    )
    assert (notices.without_field, notices.unknown, notices.conversations) == (1, 1, 2)


def test_what_is_unknown_is_counted_and_never_written_as_a_success(tmp_path):
    path, notices = write(tmp_path / "a.jsonl", record(), record(item_id="b_1") | {"success": True}), Notices()
    import_file(path, tmp_path / "run", notices=notices)
    lines = (tmp_path / "run" / "trajectories" / "expert.jsonl").read_text().splitlines()
    assert [(row["success"], row["score"]) for row in map(json.loads, lines)] == [(None, None), (True, 1.0)]
    assert any("outcome of 1 of 2 trajectories is unknown" in line for line in notices.lines())
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert json.loads(events) == {"stage": "collect", "event": "unknown outcome", "trajectories": 1}
    import_file(path, tmp_path / "stated", options=Options(success=True))
    assert all(t.success for t in read_trajectories(tmp_path / "stated" / "trajectories" / "expert.jsonl"))
    assert not (tmp_path / "stated" / "events.jsonl").exists(), "nothing is unknown"


@pytest.mark.parametrize(
    ("export", "read", "name"),
    [(export_agenttraj, import_agenttraj, "x.json"), (export_messages, import_messages, "x.jsonl")],
)
def test_an_unknown_outcome_stays_unknown(tmp_path, export, read, name):
    items = [three_steps(success=None, score=None), three_steps(id="b", success=None)]
    export(tmp_path / name, items)
    assert read(tmp_path / name) == read(tmp_path / name, success=True) == items, "the export says that it is unknown"
    write_trajectories(tmp_path / "t.jsonl", items)
    assert read_trajectories(tmp_path / "t.jsonl") == items
    row = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert list(row)[-3:] == ["score", "success", "source"] and row["score"] is None


# --- bad records among good ones ---


def test_bad_records_are_left_out_and_counted_when_told_so(tmp_path):
    bad = [broken(["conversations", 3, "value"], "?") for _ in range(5)]
    path = write(tmp_path / "a.jsonl", record(item_id="a_1"), *bad, record(item_id="b_1"))
    with pytest.raises(InputError):
        import_file(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    notices = Notices()
    assert import_file(path, tmp_path / "run", on_bad="skip", notices=notices) == 2
    found = read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")
    assert [t.id for t in found] == ["a_1", "b_1"]
    first = next(iter(map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())))
    assert (first["event"], first["records"], len(first["why"])) == ("dropped", 5, 3)
    assert "a.jsonl:2: conversations[3].value: " in first["why"][0]
    said = list(notices.lines())
    assert said[0].startswith("5 records") and "a.jsonl:2" in said[1]
    only = write(tmp_path / "b.jsonl", *bad)
    error = refused(import_file, only, tmp_path / "other", on_bad="skip")
    assert "first of 5" in error.message
    assert not (tmp_path / "other").exists()


def test_a_bad_file_of_a_folder_does_not_keep_the_others_out(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", record(item_id="a_1"))
    write(folder / "b.jsonl", broken(["conversations", 3, "value"], "?"))
    write_trajectories(folder / "c.jsonl", [three_steps(id="c")])
    (folder / "d.jsonl").write_text('{"steps": []}\n')
    assert import_file(folder, tmp_path / "run", on_bad="skip") == 2
