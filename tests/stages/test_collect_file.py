"""A recipe that reads its trajectories from a file: its fields, what is said, and what the later stages make of it."""

import json

import pytest
from exchange_records import BUY, broken, record, refused, write

from atlas_ray import pipeline
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.report.episode_view import marked_episode
from atlas_ray.rundir.files import read_json, write_json
from atlas_ray.trajectory import read_annotations, read_trajectories


def recipe(path, **fields):
    select = {"selectors": ["all", "random"], "fraction": 0.5}
    return Recipe.model_validate(
        {"name": "x", "workers": 0, "collect": {"file": str(path), **fields}, "select": select}
    )


def collected(run):
    return read_trajectories(run / "trajectories" / "expert.jsonl")


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["on_bad", "success_field", "success", "reasoning", "examples"])
def test_how_a_file_is_read_is_only_said_of_a_file(name):
    value = {"on_bad": "skip", "success_field": "won", "success": True, "reasoning": "thought", "examples": "drop"}[
        name
    ]
    with pytest.raises(ValueError, match=f"{name}: says how a file is read"):
        Recipe.model_validate({"name": "x", "collect": {"levels": {"GoToLocal": 1}, name: value}})
    assert getattr(recipe("a.json", **{name: value}).collect, name) == value


def test_stages_take_trajectories_whose_outcome_is_unknown(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", record(BUY, BUY), record(BUY, item_id="b_1") | {"won": False})
    pipeline.run(recipe(path), tmp_path / "run", ("collect", "select", "report"))
    items = collected(tmp_path / "run")
    assert [t.success for t in items] == [None, False]
    marks = read_annotations(tmp_path / "run" / "annotations" / "random.jsonl", items)
    assert [len(a.critical) for a in marks] == [1, 1]
    said = capsys.readouterr()
    assert "the outcome of 1 of 2 trajectories is unknown" in said.out + said.err
    assert (tmp_path / "run" / "report.html").is_file()
    shown = [str(marked_episode(t, {"random": a})) for t, a in zip(items, marks, strict=True)]
    assert "AgentTraj-L: outcome unknown;" in shown[0] and "AgentTraj-L: no success;" in shown[1]


def test_the_fields_of_a_recipe_reach_the_file(tmp_path, capsys):
    turns = [{"from": "human", "value": "o"}, {"from": "gpt", "value": "<musing>m</musing>Action: x", "reasoning": "r"}]
    rows = [{"conversations": turns, "eval": {"ok": 1}}, {"conversations": turns}, broken(["conversations"], [])]
    fields = {"on_bad": "skip", "success_field": "eval.ok", "success": False, "reasoning": "thought"}
    made = recipe(write(tmp_path / "a.jsonl", *rows), **fields)
    made = made.model_copy(update={"agent": made.agent.model_copy(update={"thinking": ["<musing>"]})})
    pipeline.run(made, tmp_path / "run", ("collect",))
    items = collected(tmp_path / "run")
    assert [(t.success, t.score, t.steps[0].thought) for t in items] == [(True, 1.0, "r\n\nm"), (False, 0.0, "r\n\nm")]
    said = capsys.readouterr()
    assert "1 record could not be read" in said.out + said.err
    dropped = [e for e in events(tmp_path / "run") if e["event"] == "dropped"]
    assert [(e["records"], len(e["why"])) for e in dropped] == [(1, 1)]


def test_a_bad_record_stops_and_the_way_on_is_named(tmp_path):
    for name in ("a.jsonl", "a.json"):
        path = write(tmp_path / name, record(), broken(["conversations", 3, "value"], "?"))
        error = refused(pipeline.run, recipe(path), tmp_path / f"run-{name}", ("collect",))
        assert 'collect.on_bad = "skip"' in error.message and error.exit_code == 2
        assert not (tmp_path / f"run-{name}" / "trajectories").exists()
    with pytest.raises(InputError) as caught:
        pipeline.run(recipe(tmp_path / "none.json"), tmp_path / "other", ("collect",))
    assert "collect.on_bad" not in caught.value.message


def test_a_run_of_a_version_without_these_fields_goes_on(tmp_path):
    path, run = write(tmp_path / "a.jsonl", record(BUY, BUY)), tmp_path / "run"
    pipeline.run(recipe(path), run, ("collect",))
    old = read_json(run / "recipe.resolved.json")
    for name in ("on_bad", "success_field", "success", "reasoning", "examples"):
        del old["collect"][name]
    write_json(run / "recipe.resolved.json", old)
    path.unlink()
    (run / "trajectories" / "expert.jsonl").write_text(
        (run / "trajectories" / "expert.jsonl")
        .read_text()
        .replace('"score": null, "success": null', '"score": 1.0, "success": true')
    )
    path.write_text(json.dumps(record()))
    pipeline.run(recipe(path), run, ("collect", "select"))
    assert collected(run)[0].success is True


OUTCOMES = [{"won": True}, {"won": False}, {}, {"won": True}]


def kept(tmp_path, **fields):
    rows = [record(BUY, BUY, item_id=f"w_{n}") | more for n, more in enumerate(OUTCOMES)]
    own = recipe(write(tmp_path / "a.jsonl", *rows), **fields)
    pipeline.run(own, tmp_path / "run", ("collect",))
    return [(t.id, t.success) for t in collected(tmp_path / "run")]


@pytest.mark.parametrize(
    ("keep", "ids", "left_out"),
    [
        ("all", ["w_0", "w_1", "w_2", "w_3"], None),
        ("successes", ["w_0", "w_3"], {"successes": 0, "failures": 1, "unknown": 1}),
        ("failures", ["w_1"], {"successes": 2, "failures": 0, "unknown": 1}),
    ],
)
def test_an_episode_of_unknown_outcome_is_neither_kind_and_what_is_left_out_is_counted(
    tmp_path, capsys, keep, ids, left_out
):
    made = kept(tmp_path, keep=keep)
    assert [name for name, _ in made] == ids
    rows = [e for e in events(tmp_path / "run") if e["event"] == "left out"]
    assert [{k: e[k] for k in left_out or ()} for e in rows] == ([left_out] if left_out else [])
    said = capsys.readouterr().out
    assert ("left out by collect.keep" in said) == bool(left_out)
    assert ("1 of unknown outcome" in said) == (keep != "none")


def test_a_stated_outcome_counts_and_none_of_a_kind_is_an_error(tmp_path):
    assert [n for n, _ in kept(tmp_path, keep="successes", success=True)] == ["w_0", "w_2", "w_3"]
    path = write(tmp_path / "b.jsonl", record(BUY, BUY) | {"won": True}, record(BUY, item_id="x"))
    error = refused(pipeline.run, recipe(path, keep="failures"), tmp_path / "other", ("collect",))
    assert error.exit_code == 2 and "1 success, 1 of unknown outcome" in error.message
    assert not (tmp_path / "other" / "trajectories").exists()
