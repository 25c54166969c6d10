"""What of a run is pushed when, so that the storage always holds a run that can go on."""

import shutil
import threading
import time

import pytest
from storage_runs import content, sync_of, write

from atlas_ray.errors import StorageError
from atlas_ray.rundir.files import recover_jsonl, write_json
from atlas_ray.storage import sync as syncing
from atlas_ray.storage.object_store import Storage
from atlas_ray.storage.snapshot import is_archive, snapshot
from atlas_ray.storage.sync import RunSync


def test_what_is_pushed_comes_back_whole_and_without_what_is_half_written(tmp_path, place):
    here, there = tmp_path / "a" / "run", tmp_path / "b" / "run"
    write(here, "recipe.resolved.json", "{}")
    write(here, "metrics.jsonl", '{"a": 1}\n{"b": 2}\n{"cut')
    write(here, "annotations/all.jsonl", '{"id": 1}\n')
    write(here, "checkpoints/.all-s0.state/00000004/state.json", "{}")
    write(here, "checkpoints/.all-s0.state/00000004/0-of-1.safetensors", "w" * 100_000)
    write(here, "checkpoints/.all-s0.state/.00000008.tmp/0-of-1.safetensors", "half")
    write(here, "checkpoints/switch-cost0.05-seed0.train/state/deep/er/weights.pkl", "w")
    write(here, "checkpoints/.training/tokens/ids.npy", "made again where it is needed")
    write(here, ".report.html.1234.tmp", "half")
    write(here, ".ray/finetune/x", "of this machine")
    (here / "link").symlink_to(here / "metrics.jsonl")
    first = sync_of(place, here)
    first.fetch()
    first.begin()
    first.finish()
    first.release()
    names = first.storage.listing()
    assert "checkpoints/.all-s0.state/00000004.tar" in names, "a state is one object"
    assert not [name for name in names if "tmp" in name or ".ray" in name or ".training" in name or "link" in name]

    second = sync_of(place, there)
    second.fetch()
    second.release()
    assert (there / "metrics.jsonl").read_text() == '{"a": 1}\n{"b": 2}\n', "a line that is not whole stays behind"
    write(here, "metrics.jsonl", '{"a": 1}\n{"b": 2}\n')
    found = content(there)
    assert found.pop("events.jsonl").startswith(b'{"stage": "storage", "event": "fetched"')
    assert found == content(here)


def test_what_is_removed_here_is_removed_there_and_what_is_the_same_is_not_pushed_again(tmp_path, place, monkeypatch):
    run = tmp_path / "run"
    write(run, "recipe.resolved.json", "{}")
    write(run, "checkpoints/.a.state/00000004/state.json", "{}")
    write(run, "metrics.jsonl", "1\n")
    one = sync_of(place, run)
    one.fetch()
    one.push()
    pushed = []
    monkeypatch.setattr(
        Storage, "_put", lambda self, name, fill, real=Storage._put: (pushed.append(name), real(self, name, fill))
    )
    shutil.rmtree(run / "checkpoints" / ".a.state" / "00000004")
    write(run, "checkpoints/.a.state/00000008/state.json", "{}")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    one.push()
    assert sorted(pushed) == ["checkpoints/.a.state/00000008.tar", "metrics.jsonl"]
    assert "checkpoints/.a.state/00000004.tar" not in one.storage.listing()
    one.release()


def test_a_push_that_breaks_off_anywhere_leaves_nothing_that_is_called_done_without_being_there(tmp_path, monkeypatch):
    run = tmp_path / "run"
    weights = [f"checkpoints/all-s{n}/model-{part}.safetensors" for n in range(2) for part in range(3)]
    for name in ("recipe.resolved.json", "trajectories/expert.part.jsonl", "trajectories/expert.jsonl", *weights):
        write(run, name, "1\n")
    write(run, "checkpoints/all-s0/run.json")
    write(run, "checkpoints/all-s1/run.json")
    write(run, "evaluation/episodes.jsonl", "1\n")
    write(run, "evaluation/atlas.json")
    real, puts = Storage._put, []
    for broken in range(14):
        puts.clear()

        def fails(self, name, fill, broken=broken):
            puts.append(name)
            if len(puts) > broken:
                raise StorageError("the network is gone")
            real(self, name, fill)

        one = RunSync(str(tmp_path / f"shared{broken}"), run)
        one._pushed = {}
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "_put", fails)
            if broken < 13:
                with pytest.raises(StorageError):
                    one.push()
            else:
                one.push()
        found = set(one.storage.listing())
        assert "recipe.resolved.json" in found or "trajectories/expert.jsonl" not in found
        for n in range(2):
            if f"checkpoints/all-s{n}/run.json" in found:
                assert {w for w in weights if f"s{n}" in w} <= found
        if "evaluation/atlas.json" in found:
            assert {"checkpoints/all-s0/run.json", "checkpoints/all-s1/run.json", "evaluation/episodes.jsonl"} <= found
        one.push()
        assert len(one.storage.listing()) == 13, "another push goes on"


@pytest.mark.parametrize("moment", ["metrics.jsonl", "checkpoints/.a.state/00000008.tar"])
def test_there_is_a_state_on_the_storage_whenever_there_was_one_here(tmp_path, monkeypatch, moment):
    run, real = tmp_path / "run", Storage._put
    states = run / "checkpoints" / ".a.state"
    one = RunSync(str(tmp_path / "shared"), run)

    def save(step, before):
        write(states, f"{step}/state.json", "{}")
        if before:
            shutil.rmtree(states / before)

    def meanwhile(self, name, fill):
        if name == moment:
            save("00000012", "00000008" if (states / "00000008").exists() else "00000004")
        real(self, name, fill)

    save("00000004", None)
    write(run, "metrics.jsonl", "1\n")
    one.push()
    write(run, "metrics.jsonl", "1\n2\n")
    if moment != "metrics.jsonl":
        save("00000008", "00000004")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "_put", meanwhile)
        one.push()
    assert [name for name in one.storage.listing() if ".state/" in name], "the training begins anew without one"
    one.push()
    assert [name for name in one.storage.listing() if ".state/" in name] == ["checkpoints/.a.state/00000012.tar"]


def test_the_states_of_a_sweep_travel_whole_too(tmp_path):
    run = tmp_path / "run"
    names = (
        "trials/0003/state/weights",
        "trials/0003/checkpoints/.all-s0.state/00000004/state.json",
        "trials/0003/checkpoints/all-s0/state/model.safetensors",
        "shared/finetune-1/checkpoints/.all-s0.state/00000004/state.json",
        "trials/0003/trial.json",
    )
    for name in names:
        write(run, name, "x")
    found = {piece.name: piece for piece in snapshot(run)}
    assert found.keys() == {
        "trials/0003/state.tar",
        "trials/0003/checkpoints/.all-s0.state/00000004.tar",
        "trials/0003/checkpoints/all-s0/state/model.safetensors",
        "shared/finetune-1/checkpoints/.all-s0.state/00000004.tar",
        "trials/0003/trial.json",
    }
    assert all(is_archive(name) == piece.is_directory for name, piece in found.items())
    assert [name for name, piece in found.items() if piece.is_commit_marker] == ["trials/0003/trial.json"]


def test_a_large_file_that_grows_is_pushed_when_it_is_an_eighth_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(syncing, "_LARGE_BYTES", 1_000)
    run = tmp_path / "run"
    write(run, "evaluation/episodes.jsonl", ("x" * 99 + "\n") * 20)
    one = RunSync(str(tmp_path / "shared"), run)
    one.push(everything=False)

    def there():
        return (tmp_path / "shared" / "run" / "evaluation" / "episodes.jsonl").stat().st_size

    def grow(lines):
        with (run / "evaluation" / "episodes.jsonl").open("a") as file:
            file.write(("y" * 99 + "\n") * lines)
        one.push(everything=False)

    grow(2)
    assert there() == 2_000
    grow(1)
    assert there() == 2_300
    grow(1)
    one.push()
    assert there() == 2_400, "at the end of a stage all of it"


def test_a_push_beside_a_writer_only_ever_shows_whole_lines(tmp_path):
    run, stop = tmp_path / "run", threading.Event()
    one = RunSync(str(tmp_path / "shared"), run)
    write(run, "evaluation/episodes.jsonl", "")

    def writer():
        with (run / "evaluation" / "episodes.jsonl").open("a", buffering=1) as file:
            while not stop.is_set():
                for piece in ('{"a": "', "x" * 5_000, '"}\n'):
                    file.write(piece)
                    file.flush()
                time.sleep(0.001)

    thread = threading.Thread(target=writer)
    thread.start()
    for _ in range(20):
        one.push()
        there = tmp_path / "shared" / "run" / "evaluation" / "episodes.jsonl"
        size = there.stat().st_size
        assert all(row["a"] for row in recover_jsonl(there)) and there.stat().st_size == size
    stop.set()
    thread.join()
    write_json(run / "evaluation" / "atlas.json", {})
    one.push()
    assert size > 0
