"""One driver at a time, and which copy of a run is the newer one."""

import json
import os
import time
from dataclasses import replace

import pytest
from storage_runs import sync_of, write

from atlas_ray import pipeline
from atlas_ray.errors import AtlasError, InputError, StorageError
from atlas_ray.recipe.loading import load
from atlas_ray.stages.table import STAGE
from atlas_ray.storage import sync as syncing
from atlas_ray.storage.object_store import Storage
from atlas_ray.storage.sync import LEASE


def test_a_second_driver_is_refused_while_the_first_one_lives(tmp_path, place, monkeypatch):
    monkeypatch.setattr(syncing, "HEARTBEAT_SECONDS", 0.4)
    write(tmp_path / "a" / "run", "recipe.resolved.json", "{}")
    first = sync_of(place, tmp_path / "a" / "run")
    with pytest.raises(InputError, match=rf"storage: .*run: process {os.getpid()} on .* is at work on this run"):
        sync_of(place, tmp_path / "b" / "run")
    assert not (tmp_path / "b").exists()
    first.release()
    sync_of(place, tmp_path / "b" / "run").release()


def test_a_driver_whose_run_was_taken_over_ends_and_pushes_nothing_more(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(syncing, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(syncing, "_MISSED_HEARTBEATS", 0.0)  # a second driver that takes the first one for dead
    place, others = str(tmp_path / "shared"), []

    def collect(recipe, run_dir):
        others.append(sync_of(place, tmp_path / "b" / "run"))
        write(run_dir, "trajectories/expert.jsonl", "late\n")
        time.sleep(20)

    monkeypatch.setitem(STAGE, "collect", replace(STAGE["collect"], run=collect))
    with pytest.raises(AtlasError, match=r"process \d+ on .* has taken the run on .*/run over; this one has ended"):
        pipeline.run(load(recipe, {"storage": place}), tmp_path / "a" / "run")
    assert "trajectories/expert.jsonl" not in others[0].storage.listing()
    lease = json.loads(others[0].storage.read(LEASE))
    assert (lease["holder"], lease["ended"]) == (others[0].id, False), "and it does not say that the other ended"
    others[0].release()


def test_a_directory_that_fell_behind_is_brought_up_to_date_and_one_with_work_of_its_own_is_refused(tmp_path, place):
    a, b = tmp_path / "a" / "run", tmp_path / "b" / "run"
    write(a, "recipe.resolved.json", "{}")
    write(a, "metrics.jsonl", "1\n")

    def session(run, **files):
        one = sync_of(place, run)
        try:
            one.fetch()
            one.begin()
            for name, text in files.items():
                write(run, f"{name}.jsonl", text)
            one.finish()
        finally:
            one.release()

    session(a)
    session(b, metrics="1\n2\n")
    session(a)
    assert (a / "metrics.jsonl").read_text() == "1\n2\n"
    session(b, metrics="1\n2\n3\n")
    write(a, "metrics.jsonl", "1\n2\nmine\n")
    with pytest.raises(InputError, match="went on elsewhere, and this directory holds work of its own"):
        session(a)
    assert (a / "metrics.jsonl").read_text() == "1\n2\nmine\n"
    session(b)
    write(b, "metrics.jsonl", "1\n2\n3\nunpushed\n")
    session(b)
    assert Storage(place, "run").read("metrics.jsonl") == b"1\n2\n3\nunpushed\n", "its own machine just goes on"


def test_a_fetch_that_is_killed_is_begun_again(tmp_path, monkeypatch):
    place, a, b = str(tmp_path / "shared"), tmp_path / "a" / "run", tmp_path / "b" / "run"
    for name in ("recipe.resolved.json", "one.jsonl", "two.jsonl"):
        write(a, name, "{}\n")
    one = sync_of(place, a)
    one.fetch()
    one.begin()
    one.finish()
    one.release()
    real = Storage.get
    monkeypatch.setattr(Storage, "get", lambda self, name, path: real(self, name, path) if "two" not in name else 1 / 0)
    two = sync_of(place, b)
    with pytest.raises(ZeroDivisionError):
        two.fetch()
    two.release()
    monkeypatch.undo()
    assert (b / "one.jsonl").exists()
    again = sync_of(place, b)
    again.fetch()
    again.release()
    assert (b / "two.jsonl").exists()


def test_a_lease_that_comes_cut_is_read_again(tmp_path, monkeypatch):
    one = sync_of(str(tmp_path / "shared"), tmp_path / "run")
    one.release()
    whole, times = one.storage.read(LEASE), [2]

    def cut(self, name):
        times[0] -= 1
        return whole[:-5] if times[0] >= 0 else whole

    monkeypatch.setattr(Storage, "read", cut)
    assert one._read_lease() == json.loads(whole)
    times[0] = 9
    with pytest.raises(StorageError, match="JSON"):
        one._read_lease()
