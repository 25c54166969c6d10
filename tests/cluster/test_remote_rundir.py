"""A run directory and the nodes that have not got it: copies are brought, and what is final goes back."""

import pytest

from atlas_ray.cluster.remote_rundir import RunDirHandle, localize, open_run_dir, set_run_dir_handle
from atlas_ray.rundir.files import jsonl_rows, read_json


@pytest.fixture
def far(ray_session, tmp_path, monkeypatch):
    """A run directory at home, and this process as one of a node that has not got it."""
    import ray

    (tmp_path / "run").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))
    set_run_dir_handle(RunDirHandle(str(tmp_path / "run"), "word", ray.get_runtime_context().get_node_id()))
    yield tmp_path / "run"
    set_run_dir_handle(None)


def test_a_copy_has_what_is_at_home_and_brings_back_what_was_made(far, monkeypatch):
    monkeypatch.setattr("atlas_ray.cluster.remote_rundir._BLOCK", 1_000)
    (far / "checkpoints" / "a-s0").mkdir(parents=True)
    weights = bytes(range(256)) * 20
    (far / "checkpoints" / "a-s0" / "model.safetensors").write_bytes(weights)
    (far / "checkpoints" / "a-s0" / "empty").touch()
    here = localize(str(far / "checkpoints" / "a-s0"))
    assert not here.startswith(str(far))
    assert localize("tiny-quick") == "tiny-quick"
    at = open_run_dir(str(far))
    assert at.away and at.root in type(far)(here).parents
    assert (type(far)(here) / "model.safetensors").read_bytes() == weights
    (at.root / "marker").touch()

    (far / "checkpoints" / "a-s0" / "model.safetensors").write_bytes(weights[::-1])
    localize(str(far / "checkpoints" / "a-s0"))
    assert (type(far)(here) / "model.safetensors").read_bytes() == weights[::-1], "it changed at home"
    before = (type(far)(here)).stat().st_ino
    localize(str(far / "checkpoints" / "a-s0"))
    assert (type(far)(here)).stat().st_ino == before, "it did not"

    state = at.root / "checkpoints" / ".b-s0.state"
    for step in ("00000004", "00000008"):
        (state / step / "deep").mkdir(parents=True)
        (state / step / "deep" / "w").write_bytes(weights)
        (state / step / "state.json").write_text(step)
        at.send("checkpoints/.b-s0.state")
        for other in state.iterdir():
            if other.name < step:
                (other / "state.json").unlink()
                (other / "deep" / "w").unlink()
    at.send("checkpoints/.b-s0.state")
    assert at.exists("checkpoints/.b-s0.state/00000008/state.json")
    found = [p.relative_to(far / "checkpoints" / ".b-s0.state") for p in (far / "checkpoints").rglob("w")]
    assert [str(p) for p in found] == ["00000008/deep/w"]
    at.drop("checkpoints/.b-s0.state")
    assert not state.exists() and not (far / "checkpoints" / ".b-s0.state").exists()
    at.fetch("checkpoints/.b-s0.state")
    assert not state.exists()
    assert [p.name for p in (far / "checkpoints").iterdir()] == ["a-s0"], "nothing half-sent lies about"

    at.log.metric("finetune", step=1)
    at.append("metrics.jsonl", [{"step": 2}])
    at.log.event("switch", "x", n=1)
    at.write_json("checkpoints/.training/progress-0.json", {"step": 3})
    assert list(jsonl_rows(far / "metrics.jsonl")) == [{"stage": "finetune", "step": 1}, {"step": 2}]
    assert list(jsonl_rows(far / "events.jsonl")) == [{"stage": "switch", "event": "x", "n": 1}]
    assert read_json(far / "checkpoints" / ".training" / "progress-0.json") == {"step": 3}


def test_a_process_that_sees_the_run_directory_uses_it_as_it_is(far):
    (far / ".here").write_text("word")
    at = open_run_dir(str(far))
    assert not at.away and at.root == far and localize(str(far / "checkpoints")) == str(far / "checkpoints")
    (far / ".here").write_text("another driver's run in a directory of the same name")
    assert open_run_dir(str(far)).away


def test_a_run_within_the_run_is_brought_and_sent_like_the_run_itself(far):
    inner = far / "rounds" / "1" / "seed0" / "switch"
    (inner / "checkpoints" / "a.train").mkdir(parents=True)
    (inner / "checkpoints" / "a.train" / "w").write_text("state")
    at = open_run_dir(str(inner))
    assert at.away and at.root.is_relative_to(open_run_dir(str(far)).root)
    at.fetch("checkpoints/a.train")
    assert (at.root / "checkpoints" / "a.train" / "w").read_text() == "state"
    assert at.exists("checkpoints/a.train") and not at.exists("rounds")
    (at.root / "checkpoints" / "a").mkdir()
    (at.root / "checkpoints" / "a" / "w").write_text("policy")
    at.send("checkpoints/a")
    at.log.metric("switch", step=1)
    assert (inner / "checkpoints" / "a" / "w").read_text() == "policy"
    assert list(jsonl_rows(inner / "metrics.jsonl")) == [{"stage": "switch", "step": 1}]
    # a model that another part of the run made is found under the same path
    assert localize(str(inner / "checkpoints" / "a")) == str(at.root / "checkpoints" / "a")
    assert not open_run_dir(str(far.parent / "elsewhere")).away
