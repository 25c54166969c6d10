"""A run on storage: what is pushed when, what comes back on another machine, and what if the storage fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.errors import AtlasError, InputError, StorageError
from atlas_ray.recipe.loading import load
from atlas_ray.rundir.files import jsonl_rows, read_json, recover_jsonl, write_json
from atlas_ray.storage import sync as syncing
from atlas_ray.storage.object_store import Storage
from atlas_ray.storage.snapshot import is_archive, snapshot
from atlas_ray.storage.sync import LEASE, RunSync

RECIPE = """
name = "kept"
workers = 0
num_envs = 8
[collect]
levels = { GoToLocalS5N2 = 12 }
max_steps = 20
[select]
selectors = ["all"]
[finetune]
arms = [{ selector = "all" }]
epochs = 10
batch_size = 4
save_every = 3
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
max_steps = 12
episodes = 10
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "kept.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and episodes of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "kept.toml").write_text(RECIPE)
    pipeline.run(load(folder / "kept.toml"), folder / "run")
    return outcome(folder / "run")


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback with the bucket ``there``: a function from a path in it to a URI."""
    import logging

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    secrets = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()

        def uri(path):
            return f"s3://{path}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"

        from pyarrow import fs

        fs.FileSystem.from_uri(f"{uri('there')}&allow_bucket_creation=true")[0].create_dir("there")
        yield uri
        server.stop()


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    """Storage of either kind, empty."""
    if request.param == "directory":
        return str(tmp_path / "shared")
    return request.getfixturevalue("s3")(f"there/{tmp_path.name}")


def anyone(found, where):
    """Refuses no run."""


def sync_of(place, run_dir):
    made = RunSync(place, run_dir)
    made.acquire(anyone)
    return made


def write(run_dir, name, content="x"):
    path = run_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def content(run_dir):
    """Every file that travels."""
    names = [p.name for p in snapshot(run_dir)]
    found = {}
    for name in names:
        path = run_dir / name.removesuffix(".tar")
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                found[file.relative_to(run_dir).as_posix()] = file.read_bytes()
    return found


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


def test_a_state_that_is_replaced_while_it_is_read_is_not_pushed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    state = run / "checkpoints" / "switch-a.train" / "state"
    write(state, "history.json", "old")
    write(state, "weights", "old")
    storage = Storage(str(tmp_path / "shared"), "run")
    real, once = Path.open, ["weights"]

    def replaced(self, *args, **kwargs):
        if [self.name] == once:
            once.clear()
            shutil.rmtree(state)
            write(state, "history.json", "new")
            write(state, "weights", "new")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", replaced)
    assert not storage.put_directory("state.tar", state)
    assert storage.listing() == []
    assert storage.put_directory("state.tar", state)
    assert storage.get_directory("state.tar", tmp_path / "back")
    assert {p.name: p.read_text() for p in (tmp_path / "back").iterdir()} == {"history.json": "new", "weights": "new"}


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
    assert all(is_archive(name) == piece.directory for name, piece in found.items())
    assert [name for name, piece in found.items() if piece.is_commit_marker] == ["trials/0003/trial.json"]


def test_half_an_archive_is_not_taken_for_a_state(tmp_path):
    write(tmp_path, "state/weights", "w" * 50_000)
    write(tmp_path, "state/state.json", "{}")
    storage = Storage(str(tmp_path / "shared"), "run")
    storage.put_directory("a.tar", tmp_path / "state")
    whole = (tmp_path / "shared" / "run" / "a.tar").read_bytes()
    for size in (0, 512, 1024, 30_000, 51_712, 52_224, 52_736):
        (tmp_path / "shared" / "run" / "b.tar").write_bytes(whole[:size])
        assert not storage.get_directory("b.tar", tmp_path / "back"), size
        assert not (tmp_path / "back").exists()
    assert storage.get_directory("a.tar", tmp_path / "back")


def test_a_large_file_that_grows_is_pushed_when_it_is_an_eighth_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(syncing, "_LARGE_BYTES", 1_000)
    run = tmp_path / "run"
    write(run, "evaluation/episodes.jsonl", ("x" * 99 + "\n") * 20)
    one = RunSync(str(tmp_path / "shared"), run)
    one.push(all_of_it=False)

    def there():
        return (tmp_path / "shared" / "run" / "evaluation" / "episodes.jsonl").stat().st_size

    def grow(lines):
        with (run / "evaluation" / "episodes.jsonl").open("a") as file:
            file.write(("y" * 99 + "\n") * lines)
        one.push(all_of_it=False)

    grow(2)
    assert there() == 2_000
    grow(1)
    assert there() == 2_300
    grow(1)
    one.push()
    assert there() == 2_400, "at the end of a stage all of it"


_DRIVER = """
import sys
from atlas_ray.storage import sync as syncing
from atlas_ray.cli import main

syncing.PUSH_SECONDS, syncing.HEARTBEAT_SECONDS = 0.2, 0.2
sys.exit(main(sys.argv[1:]))
"""


def driver(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(true, process):
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def outcome(run):
    rows = [
        {k: v for k, v in row.items() if k != "seconds"} for row in jsonl_rows(run / "evaluation" / "episodes.jsonl")
    ]
    return load_file(run / "checkpoints" / "all-s0" / "model.safetensors"), sorted(rows, key=json.dumps)


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
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
        assert content(tmp_path / "one" / "run").keys() <= {*_unpacked(storage), LEASE}, "all that was there was pushed"
    shutil.rmtree(tmp_path / "one")
    assert not any("run.json" in name for name in storage.listing()), "it was in the middle of a training"

    monkeypatch.setattr(syncing, "HEARTBEAT_SECONDS", 0.4)
    assert main(["run", str(recipe), "--out", str(tmp_path / "two" / "run"), "--storage", place]) == 0
    assert "collect: expert episodes · already done" in capsys.readouterr().out
    steps = [row["step"] for row in jsonl_rows(tmp_path / "two" / "run" / "metrics.jsonl") if "trained_tokens" in row]
    assert steps[-1] == 30 and steps.count(1) == 1
    (weights, rows), (expected, episodes) = outcome(tmp_path / "two" / "run"), whole
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert rows == episodes
    assert _unpacked(storage) == {*content(tmp_path / "two" / "run"), LEASE}


def _unpacked(storage):
    """Names of the files on the storage, those within archives too."""
    import io
    import tarfile

    found = set()
    for name in storage.listing():
        if not name.endswith(".tar"):
            found.add(name)
            continue
        with tarfile.open(fileobj=io.BytesIO(storage.read(name))) as archive:
            found |= {f"{name.removesuffix('.tar')}/{m}" for m in archive.getnames() if m != ".whole"}
    return found


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
    monkeypatch.setattr(pipeline, "_collect", None)
    place, others = str(tmp_path / "shared"), []

    def collect(recipe, run_dir):
        others.append(sync_of(place, tmp_path / "b" / "run"))
        write(run_dir, "trajectories/expert.jsonl", "late\n")
        time.sleep(20)

    monkeypatch.setitem(pipeline._RUN, "collect", collect)
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


@pytest.mark.parametrize("name", ["../escaped", "link", "/tmp/escaped"])
def test_an_archive_that_leads_elsewhere_is_no_state(tmp_path, name):
    storage = Storage(str(tmp_path), "run")
    storage.write("x", b"")
    entry = tarfile.TarInfo(name)
    if name == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "run" / "state.tar", "w") as archive:
        archive.addfile(entry)
        archive.addfile(tarfile.TarInfo(".whole"))
    assert not storage.get_directory("state.tar", tmp_path / "back" / "state")
    assert not list((tmp_path / "back").glob("*"))
    assert not (tmp_path / "back" / "escaped").exists() and not os.path.exists("/tmp/escaped")


def test_of_what_is_deleted_no_empty_directories_are_left(tmp_path):
    storage = Storage(str(tmp_path), "run")
    for name in ("a/b/one", "a/b/two", "a/three", "four"):
        storage.write(name, b"x")
    storage.delete("a/b/one")
    assert (tmp_path / "run" / "a" / "b").is_dir()
    storage.delete("a/b/two")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == ["a", "four", "three"]
    storage.delete("four")
    storage.delete("a/three")
    assert (tmp_path / "run").is_dir() and not list((tmp_path / "run").iterdir())
