"""Steps that the environment's expert would take, too: on bridges where it keeps right, and where none advises."""

import pytest
from bridges_env import LIMIT, Bridges

from atlas_ray import envs
from atlas_ray.cluster import result_file
from atlas_ray.cluster.resources import resource_requests
from atlas_ray.errors import InputError
from atlas_ray.preflight import check
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.stage import select
from atlas_ray.trajectory import read_annotations, write_trajectories
from tests.selection.test_verified import BRIDGES, failed

WAYS = [("right", "left", "right", "right"), ("left",) * LIMIT, ("right", "left", "left"), ("wait", "right")]


def recipe(**more):
    own = {"levels": {BRIDGES: 4}, "agent": "tiny-quick"}
    return Recipe.model_validate(
        {"name": "x", "workers": 0, "collect": own, "select": {"selectors": ["advised"]}, **more}
    )


def begun(run_dir, count=len(WAYS)):
    made = [failed(v, way, v == 0) for v, way in enumerate(WAYS[:count])]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", made)
    return made


def marks(run_dir, trajectories):
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / "advised.jsonl", trajectories)}


def test_marked_is_what_the_expert_would_do_and_the_rest_says_what_that_is(tmp_path):
    made = begun(tmp_path)
    select(recipe(), tmp_path)
    found = marks(tmp_path, made)
    for t in made:
        assert found[t.id].critical == tuple(n for n, s in enumerate(t.steps) if s.action == "right")
        assert found[t.id].reasons == {n: "expert would right" for n, s in enumerate(t.steps) if s.action != "right"}
    assert found["b0"].model == "expert" and found["b1"].critical == ()


def test_a_killed_run_asks_about_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("atlas_ray.selection.advised._CHUNK", 1)
    made, real = begun(tmp_path), result_file.append_jsonl
    with monkeypatch.context() as patch:

        def dying(path, rows):
            real(path, rows)
            raise KeyboardInterrupt

        patch.setattr(result_file, "append_jsonl", dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                select(recipe(), tmp_path)
    select(recipe(), tmp_path)
    rows = [row["id"] for row in recover_jsonl(tmp_path / "annotations" / "scores" / "advised.jsonl")]
    assert rows == [t.id for t in made] and len(marks(tmp_path, made)) == 4


def test_where_no_expert_advises_it_is_said_and_an_environment_without_one_is_refused(tmp_path, monkeypatch, capsys):
    begun(tmp_path)
    monkeypatch.setattr(Bridges, "expert", envs.TextEnv.expert)
    with pytest.raises(InputError, match="advised marked no step in any of 4"):
        select(recipe(), tmp_path)
    assert "at 4 of 4 trajectories no expert advises at any step" in capsys.readouterr().out
    with pytest.raises(InputError, match="has no expert") as raised:
        check(recipe())
    assert raised.value.field == "select.selectors"
    asked = resource_requests(recipe(workers=2))
    assert [(r.part, r.count) for r in asked if r.stage == "select"] == [("advised", 2)]
