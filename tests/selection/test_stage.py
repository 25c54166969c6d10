"""The select stage: every selector by name, in whatever order, killed and started again, compared and tested."""

import pytest

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.cluster import result_file
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, recover_jsonl
from atlas_ray.selection import stage
from atlas_ray.selection.start_after import _compared, places_of, random_places
from atlas_ray.trajectory import (
    Annotation,
    max_critical_steps,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)


@pytest.fixture(scope="module")
def finished(recipe, small, tmp_path_factory, collected):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    trajectories = collected(recipe, run_dir)
    own = [Annotation(trajectory_id=t.id, selector="a colleague", fraction=1.0, critical=(0,)) for t in trajectories]
    write_annotations(small / "mine.jsonl", own)
    pipeline.run(recipe, run_dir, ("select",))
    return run_dir


def annotated(run_dir, selector):
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / f"{selector}.jsonl", trajectories)}


def test_every_selector_is_run_under_its_name_whatever_the_order(recipe, finished):
    lengths = {t.id: len(t.steps) for t in read_trajectories(finished / "trajectories" / "expert.jsonl")}
    for selector in recipe.select.selectors:
        found = annotated(finished, selector)
        assert list(found) == list(lengths), selector
        assert {a.selector for a in found.values()} == {selector}
        if selector not in ("all", "union_value_last", "mine"):
            assert all(len(a.critical) <= max_critical_steps(0.3, lengths[i]) for i, a in found.items()), selector
    value, last, union, rest = (annotated(finished, s) for s in ("value", "last", "union_value_last", "non-critical"))
    for name, steps in lengths.items():
        assert set(union[name].critical) == set(value[name].critical) | set(last[name].critical)
        assert not set(rest[name].critical) & set(union[name].critical)
        assert last[name].critical[-1] == steps - 1
    assert stage.fraction_of(recipe, finished, "mine") == stage.fraction_of(recipe, finished, "all") == 1.0
    assert stage.fraction_of(recipe, finished, "value") == 0.3
    assert stage.fraction_of(recipe, finished, "union_value_last") > 0.3


@pytest.mark.slow  # (tests/test_pipeline.py kills a run here too)
def test_a_run_killed_in_the_scores_ends_like_one_that_was_not(recipe, finished, tmp_path, monkeypatch, collected):
    run_dir, real = tmp_path / "broken", result_file.append_jsonl
    collected(recipe, run_dir)
    scored = ("value", "perplexity", "deviation")
    for names, calls in ((scored, 0), (scored, 1), (scored, 2), (("start-after",), 3)):
        with monkeypatch.context() as patch:
            count = iter(range(calls))

            def dying(path, rows, names=names, count=count):
                real(path, rows)
                if path.stem in names and next(count, None) is None:
                    raise KeyboardInterrupt

            patch.setattr(result_file, "append_jsonl", dying)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe, run_dir, ("select",))
        for path in (run_dir / "annotations" / "scores").iterdir():
            with path.open("a") as file:
                file.write('{"cut')
    pipeline.run(recipe, run_dir, ("select",))
    for name in (*(f"{s}.jsonl" for s in recipe.select.selectors), "scores/start-after.json"):
        assert (run_dir / "annotations" / name).read_bytes() == (finished / "annotations" / name).read_bytes(), name


def test_starts_are_behind_the_marks_and_behind_as_many_random_steps(recipe, finished):
    trajectories = read_trajectories(finished / "trajectories" / "expert.jsonl")
    made = {row["selector"]: row for row in read_json(finished / "annotations" / "scores" / "start-after.json")}
    played = {
        (r["id"], r["after"]): r for r in recover_jsonl(finished / "annotations" / "scores" / "start-after.jsonl")
    }
    for selector in ("value", "last"):
        places = places_of(trajectories, annotated(finished, selector).values())
        assert made[selector]["starts"] == sum(map(len, places.values()))
        assert all((name, p) in played and (name, -1) in played for name, each in places.items() for p in each)
        assert all(p < len(t.steps) - 1 for t in trajectories for p in places.get(t.id, ()))
        wins = sum(played[n, p]["success"] for n, each in places.items() for p in each)
        assert made[selector]["success"] == wins / made[selector]["starts"]
    for t in trajectories:
        for count in range(1, len(t.steps) - 1):
            drawn = random_places(t, count, 0)
            assert len(set(drawn)) == count and max(drawn) < len(t.steps) - 1
    assert all(r["steps"] <= 3 for r in played.values())


def test_a_difference_that_is_there_has_an_interval_above_0(recipe, finished):
    trajectories = read_trajectories(finished / "trajectories" / "expert.jsonl")
    wanted = {t.id: (1,) for t in trajectories if len(t.steps) > 2}
    drawn = {name: (0,) for name in wanted}
    rows = {(name, p): {"success": p == 1} for name in wanted for p in (-1, 0, 1)}
    found = _compared("value", trajectories, wanted, drawn, rows)
    assert (found["success"], found["random"]["success"], found["ci95"]) == (1.0, 0.0, (1.0, 1.0))
    assert found["place"] > found["random"]["place"] > found["beginning"]["place"] == 0.0
    name = next(iter(wanted))
    del rows[name, 0]
    assert _compared("value", trajectories, wanted, drawn, rows)["trajectories"] == len(wanted) - 1, "pairs only"


@pytest.mark.parametrize("broken", [3, 12])
def test_episodes_from_a_file_are_replayed_and_those_that_cannot_be_are_said_and_not_scored(
    recipe, finished, tmp_path, capsys, broken
):
    theirs = read_trajectories(finished / "trajectories" / "expert.jsonl")
    wrong = [t.model_copy(update={"seed": t.seed + 1}) for t in theirs[:broken]]
    write_trajectories(tmp_path / "theirs.jsonl", wrong + theirs[broken:])
    file = {"collect": {"file": str(tmp_path / "theirs.jsonl")}}
    small = {"model": recipe.select.model, "start_after_steps": 3}
    select = {"select": {"selectors": ["last"], "start_after": ["last"], **small}}
    own, run_dir = Recipe.model_validate(recipe.model_dump() | file | select), tmp_path / "run"
    if broken == len(theirs):
        with pytest.raises(AtlasError, match="observation"):
            pipeline.run(own, run_dir, ("collect", "select"))
    else:
        pipeline.run(own, run_dir, ("collect", "select"))
        (found,) = read_json(run_dir / "annotations" / "scores" / "start-after.json")
        assert 0 < found["trajectories"] < len(theirs)
        assert "left out" in capsys.readouterr().out
    left_out = {e["trajectory"] for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "left out"}
    assert left_out and left_out <= {t.id for t in wrong}


def test_two_selectors_are_compared_from_the_command_line(recipe, finished, tmp_path, capsys):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select]\n')
    assert main(["select", str(path), "--out", str(finished), "--compare", "value", "last"]) == 0
    assert "kappa" in capsys.readouterr().out.lower()
    assert main(["select", str(path), "--out", str(finished), "--compare", "value", "lst"]) == 2
    said = capsys.readouterr().err
    assert "'lst'" in said and "all, deviation, intersection_random_uniform" in said


def test_annotations_of_the_users_own_are_checked(recipe, finished, small, tmp_path, collected):
    lines = (small / "mine.jsonl").read_text().splitlines()
    run_dir = tmp_path / "run"
    collected(recipe, run_dir)
    bad = tmp_path / "bad.jsonl"
    chosen = recipe.select.model_copy(update={"files": {"mine": str(bad)}, "selectors": ["mine"], "start_after": []})
    own = recipe.model_copy(update={"select": chosen})
    for text, says in (
        (lines[0] + "\n" + lines[0], "has two annotations"),
        (lines[0].replace("[0]", "[77]"), "bad.jsonl:1: critical: step 77"),
        ("", "holds no annotation"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=says):
            stage.select(own, run_dir)
    assert not (run_dir / "annotations").exists() or not list((run_dir / "annotations").glob("*.jsonl"))


def test_an_intersection_of_nothing_is_an_error(recipe, finished, tmp_path, collected):
    run_dir = tmp_path / "run"
    trajectories = collected(recipe, run_dir)
    for name, other in (("first", 0), ("second", 1)):
        own = [
            Annotation(trajectory_id=t.id, selector=name, fraction=1.0, critical=(i % 2,) if i % 2 == other else ())
            for i, t in enumerate(t for t in trajectories if len(t.steps) > 1)
        ]
        write_annotations(tmp_path / f"{name}.jsonl", own)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("first", "second")}
    select = {"selectors": ["first", "second", "intersection_first_second"], "files": files}
    own = Recipe.model_validate(recipe.model_dump() | {"select": select})
    with pytest.raises(AtlasError, match="intersection_first_second .*12"):
        stage.select(own, run_dir)
