"""Whole runs on storage: lost machines, faults of the network, and what is refused before anything is computed."""

import json
import shutil
import signal

import pytest
from storage_runs import content, driver, outcome, unpacked, until

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.errors import AtlasError, InputError, StorageError
from atlas_ray.recipe.loading import load
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.storage import sync as syncing
from atlas_ray.storage.object_store import Storage
from atlas_ray.storage.sync import LEASE


@pytest.mark.slow  # (tests/stages/test_rounds.py loses a machine too, and ends more quickly)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_and_whose_machine_is_lost_goes_on_from_s3_and_ends_as_one_that_was_not(
    recipe, tmp_path, s3, end, whole, monkeypatch, capsys
):
    place = s3(f"there/{end.name}")
    process = driver("run", recipe, "--out", tmp_path / "one" / "run", "--storage", place)
    storage = Storage(place, "run")
    until(lambda: any(".state/" in name for name in storage.listing()), process)
    process.send_signal(end)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == (-9 if end == signal.SIGKILL else 143), output
    if end == signal.SIGTERM:
        assert output.endswith("atlas-ray: terminated; the same command goes on from here\n")
        assert content(tmp_path / "one" / "run").keys() <= {*unpacked(storage), LEASE}, "all that was there was pushed"
    shutil.rmtree(tmp_path / "one")
    assert not any("run.json" in name for name in storage.listing()), "it was in the middle of a training"

    monkeypatch.setattr(syncing, "HEARTBEAT_SECONDS", 0.4)
    assert main(["run", str(recipe), "--out", str(tmp_path / "two" / "run"), "--storage", place]) == 0
    assert "collect: episodes to learn from · already done" in capsys.readouterr().out
    steps = [row["step"] for row in jsonl_rows(tmp_path / "two" / "run" / "metrics.jsonl") if "trained_tokens" in row]
    assert steps[-1] == 30 and steps.count(1) == 1
    (weights, rows), (expected, episodes) = outcome(tmp_path / "two" / "run"), whole
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert rows == episodes
    assert unpacked(storage) == {*content(tmp_path / "two" / "run"), LEASE}


@pytest.mark.parametrize(
    "case", ["closed port", "no bucket", "no directory", "a file", "no such kind", "no bucket named"]
)
def test_storage_that_cannot_be_used_is_one_line_before_anything_is_computed(case, recipe, tmp_path, request, capsys):
    if case == "closed port":
        pytest.importorskip("pyarrow.fs").S3FileSystem
        place = "s3://there/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    elif case == "no bucket":
        place = request.getfixturevalue("s3")("elsewhere/x")
    else:
        place = {
            "no directory": "/no/such/directory",
            "a file": str(recipe / "x"),
            "no such kind": "floppy://x",
            "no bucket named": "s3:///x",
        }[case]
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--storage", place]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1 and said.err.startswith("atlas-ray: storage: "), said.err
    assert not (tmp_path / "run").exists()


def test_a_key_in_the_address_is_refused_and_not_repeated(recipe, tmp_path, capsys):
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--storage", "s3://me:hush@there/x"]) == 2
    said = capsys.readouterr().err
    assert "--storage: holds a key" in said and "hush" not in said


def test_the_run_of_another_recipe_is_not_touched(recipe, tmp_path):
    place = str(tmp_path / "shared")
    pipeline.run(load(recipe, {"storage": place}), tmp_path / "run", ("collect",))
    before = content(tmp_path / "shared" / "run")
    with pytest.raises(InputError, match=r"shared/run: seed: this run was made with 0, the recipe now says 3"):
        pipeline.run(load(recipe, {"storage": place, "seed": "3"}), tmp_path / "other" / "run", ("collect",))
    before.pop(LEASE)
    after = content(tmp_path / "shared" / "run")
    assert json.loads(after.pop(LEASE))["ended"]
    assert before == after
    assert not (tmp_path / "other").exists()
    pipeline.run(
        load(recipe, {"placement.workers": "elsewhere"}), tmp_path / "run", ("collect",)
    )  # same run, no storage


def test_faults_of_the_network_are_counted_and_do_not_end_the_run_unless_the_last_push_fails(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(syncing, "_RETRY_SECONDS", (0.01, 0.01))
    place, faults = str(tmp_path / "shared"), [4]
    real = Storage._put

    def shaky(self, name, fill):
        if name != LEASE and faults[0]:
            faults[0] -= 1
            raise StorageError("the network is gone")
        real(self, name, fill)

    monkeypatch.setattr(Storage, "_put", shaky)
    few = {"storage": place, "finetune.epochs": "1", "evaluate.episodes": "1"}
    run = tmp_path / "run"
    pipeline.run(load(recipe, few), run)
    failed = [row for row in jsonl_rows(run / "events.jsonl") if row["event"] == "push failed"]
    assert [row["failures"] for row in failed] == [1, 2, 3, 4]
    assert (tmp_path / "shared" / "run" / "report.html").exists()

    shutil.rmtree(run / "evaluation")
    faults[0] = 10**9
    with pytest.raises(AtlasError, match=rf"{run} is complete, but the last push failed: the network is gone"):
        pipeline.run(load(recipe, few), run)
    assert (run / "evaluation" / "atlas.json").exists()
    faults[0] = 0
    pipeline.run(load(recipe, few), run)
    assert read_json(tmp_path / "shared" / "run" / "evaluation" / "atlas.json")


def test_a_run_directory_in_the_throw_away_copy_of_a_job_needs_storage(recipe, tmp_path):
    run = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs" / "kept"
    with pytest.raises(InputError, match="which Ray removes at its end: give --out a directory that stays"):
        pipeline.run(load(recipe), run, ("collect",))
    assert not run.exists()
    pipeline.run(load(recipe, {"storage": str(tmp_path / "shared")}), run, ("collect",))
    assert (tmp_path / "shared" / "kept" / "trajectories" / "expert.jsonl").exists()
