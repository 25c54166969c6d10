"""A disk that is full, or a place that cannot be written to: one clear line, and nothing half-written."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from atlas_ray.cli import main
from atlas_ray.errors import AtlasError, StorageError
from atlas_ray.rundir import files, logs
from atlas_ray.rundir.disk import writing
from atlas_ray.storage.object_store import Storage

AGAIN = "and run the same command again"


@contextmanager
def small_files(most):
    """No file may be larger than this: what a full disk says, without one."""
    on_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, on_signal)


@pytest.mark.parametrize(
    ("error", "why", "way_out"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "(No space left on device; ", f"make room {AGAIN}"),
        (OSError(errno.EDQUOT, "x"), "(Disk quota exceeded)", f"free some of your quota {AGAIN}"),
        (OSError(errno.EFBIG, "x"), "(File too large)", "ulimit -f"),
        (OSError("12 requested and 3 written"), "(No space left on device; ", f"make room {AGAIN}"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "on device; ", f"make room {AGAIN}"),
        (SafetensorError("I/O error"), "(I/O error; ", AGAIN),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; ", f"see to the disk {AGAIN}"),
        (PermissionError(errno.EACCES, "x", "y"), "(Permission denied)", "name another place"),
        (OSError(errno.EROFS, "x"), "(Read-only file system)", "not read-only"),
        (OSError(errno.ENAMETOOLONG, "x"), "(File name too long)", "a shorter name"),
        (NotADirectoryError(errno.ENOTDIR, "x"), "(Not a directory)", "a file stands where a directory has to be"),
        (OSError(errno.EMFILE, "x"), "(Too many open files)", "ulimit -n"),
    ],
)
def test_what_a_writer_raises_becomes_one_clear_line(tmp_path, error, why, way_out):
    path = tmp_path / "not" / "there"
    with pytest.raises(StorageError) as caught, writing(path):
        raise error
    text = str(caught.value)
    assert text.startswith(f"{path}: could not be written (")
    assert why in text and way_out in text and "\n" not in text
    assert isinstance(caught.value, AtlasError) and isinstance(caught.value, OSError)
    whole = "What was saved before is whole" in text
    assert caught.value.exit_code == pickle.loads(pickle.dumps(caught.value)).exit_code == (1 if whole else 2)
    assert whole == ("another place" not in text and "not read-only" not in text and "a shorter name" not in text)
    assert ("MiB free" in text) == ("; " in why)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="^mine$"), writing(tmp_path):
        raise ValueError("mine")


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "x", "data.jsonl"), PermissionError(errno.EACCES, "x", "/etc/shadow")],
    ids=["missing", "forbidden"],
)
def test_a_file_that_is_read_in_between_is_not_taken_for_one_that_is_written(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.atomic_directory(tmp_path / "made"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_the_error_crosses_a_pickle():
    with pytest.raises(StorageError) as caught, writing("/"):
        raise OSError(errno.ENOSPC, "No space left on device")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.number) == (StorageError, str(caught.value), errno.ENOSPC)


def large(path):
    files.write_text(path, "x" * 100_000)


def large_parts(path):
    files.write_parts(path, (f"{n}\n" for n in range(100_000)))


def large_rows(path):
    files.append_jsonl(path, [{"text": "x" * 90} for _ in range(1000)])


def large_directory(path):
    with files.atomic_directory(path) as directory:
        np.save(directory / "ids.npy", np.zeros(100_000))


def large_weights(path):
    with files.atomic_directory(path) as directory:
        save_file({"w": np.zeros(100_000)}, directory / "model.safetensors")


WRITERS = [large, large_parts, large_rows, large_directory, large_weights]


@pytest.mark.parametrize("write", WRITERS)
def test_every_writer_names_file_and_way_out_and_leaves_nothing_half_written(tmp_path, write):
    path = tmp_path / "runs" / "expert.jsonl"
    with small_files(50_000), pytest.raises(StorageError) as caught:
        write(path)
    assert str(caught.value).startswith(f"{path}: could not be written (")
    assert AGAIN in str(caught.value)
    left = list(path.parent.iterdir())
    assert left in ([], [path])
    assert not left or path.read_bytes() == b"", "only a file that is appended to may be there, with nothing in it"
    write(path)
    assert path.exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("made", "way_out"), [("file", "a file stands where"), ("long", "shorter name")])
def test_every_writer_says_what_is_wrong_with_the_place(tmp_path, write, made, way_out):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / ("file/x" if made == "file" else "x" * 300)
    with pytest.raises(StorageError, match=way_out) as caught:
        write(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="name a file") as caught:
        files.write_text(pipe, "x")
    assert caught.value.exit_code == 2
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_what_was_there_stays_where_its_successor_does_not_fit(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"old": 1})
    with small_files(1000), pytest.raises(StorageError):
        files.write_json(path, {"new": "x" * 10_000})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_rows_that_do_not_fit_whole_are_not_there_at_all(tmp_path):
    path = tmp_path / "episodes.jsonl"
    rows = [{"number": n, "text": "x" * 90} for n in range(5)]
    files.append_jsonl(path, rows)
    size = path.stat().st_size
    with small_files(size + 250), pytest.raises(StorageError):
        files.append_jsonl(path, rows)
    assert path.stat().st_size == size
    files.append_jsonl(path, rows)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [*range(5), *range(5)]


def test_half_a_character_of_a_model_or_a_server_comes_back_as_it_was(tmp_path):
    row = {"text": "a \ud83d half, \U0001f600 whole, \\ud83d spelt out"}
    files.append_jsonl(tmp_path / "rows.jsonl", [row])
    files.write_json(tmp_path / "row.json", row)
    assert list(files.jsonl_rows(tmp_path / "rows.jsonl")) == [row]
    assert files.read_json(tmp_path / "row.json") == row
    (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_an_event_that_cannot_be_kept_does_not_end_the_run_and_is_said(tmp_path, caplog):
    log = files.RunLog(tmp_path)
    log.event("collect", "retried", task=1)
    with small_files(10):
        log.event("collect", "retried", task=2)
        with pytest.raises(StorageError, match=r"metrics\.jsonl: could not be written"):
            log.metric("collect", seconds=1.0)
    assert [row["task"] for row in files.jsonl_rows(tmp_path / "events.jsonl")] == [1]
    assert "an event (collect: retried) is lost" in caplog.text


def test_the_logs_of_a_run_outlive_a_full_disk(tmp_path, capsys):
    import logging

    with logs.run_logging(tmp_path):
        logging.getLogger("framework").info("first")
        with small_files(1):
            logging.getLogger("framework").info("second")
        logging.getLogger("framework").info("third")
    text = (tmp_path / "logs" / "driver.log").read_text()
    assert "first" in text and "third" in text
    assert capsys.readouterr().err == ""


def test_storage_that_is_full_or_closed_says_so_with_the_way_out(tmp_path):
    store = Storage(str(tmp_path), "run")
    with small_files(1000), pytest.raises(StorageError, match="ulimit -f") as caught:
        store.write("results.json", b"x" * 10_000)
    assert str(caught.value).startswith(f"{tmp_path}/run: could not be written (File too large)")
    store.write("results.json", b"x" * 10_000)
    with small_files(1000), pytest.raises(StorageError) as caught:
        store.get("results.json", tmp_path / "here" / "results.json")
    assert str(caught.value).startswith(f"{tmp_path / 'here' / 'results.json'}: could not be written")
    assert not list((tmp_path / "here").iterdir())
    (tmp_path / "run" / "file").write_text("x")
    with pytest.raises(StorageError, match="a file stands where a directory has to be"):
        store.write("file/x.json", b"x")


RECIPE = 'name = "full"\nworkers = 0\nnum_envs = 4\n[collect]\nlevels = { GoToLocalS5N2 = 40 }\n'


def test_a_disk_that_is_full_while_trajectories_are_written_is_one_line_and_the_run_goes_on_afterwards(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    with small_files(12_000):
        assert main(["collect", "r.toml", "--out", "run"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("atlas-ray: run/trajectories/") and "could not be written (File too large)" in last, last
    assert AGAIN in last
    for path in (tmp_path / "run").rglob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines()), path
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert main(["collect", "r.toml", "--out", "run"]) == 0
    assert len((tmp_path / "run" / "trajectories" / "expert.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("from atlas_ray.rundir.progress import say; [say('x' * 999) for _ in range(99)]; from atlas_ray import cli; "
         "cli._report = lambda *_: 0; sys.exit(cli.main(['report', 'run']))", 0, ""),
        ("from atlas_ray.cli import main; sys.exit(main(['demo', '--dry-run']))", 1, "atlas-ray: stdout: could not be"),
    ],
    ids=["told on the way", "asked for"],
)  # fmt: skip
def test_a_full_disk_behind_stdout_loses_the_lines_and_not_the_run(code, exit_code, said):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == exit_code


def test_one_line_of_a_place_that_is_none(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(RECIPE.replace("40", "4"))
    (tmp_path / "file").write_text("mine")
    recipe, out = str(tmp_path / "r.toml"), str(tmp_path / "run")
    assert main(["collect", recipe, "--out", out]) == 0
    capsys.readouterr()
    export = ["export", out, "--format", "messages", "--selector", "every-step", "--out"]
    long = "x" * 300
    for command, said in (
        (["collect", recipe, "--out", str(tmp_path / "file")], "--out: is a file: name a directory"),
        (["collect", recipe, "--out", str(tmp_path / "file" / "x")], "a file stands where a directory has to be"),
        (["collect", recipe, "--out", str(tmp_path / long)], "File name too long"),
        (["collect", recipe, "--out", "/proc/run"], "cannot be made there"),
        (["report", str(tmp_path / "none")], "is not a run directory"),
        (["report", str(tmp_path / long)], "File name too long"),
        (["report", out], "holds neither scores nor annotations"),
        ([*export, str(tmp_path / "file" / "x")], "a file stands where a directory has to be"),
        ([*export, str(tmp_path)], "a directory stands where the file has to be"),
        ([*export, str(tmp_path / long)], "File name too long"),
        ([*export, "/proc/x.jsonl"], "cannot be made there"),
        (["select", recipe, "--out", str(tmp_path / "none"), "--compare", "a", "b"], "no [select] table"),
    ):
        assert main(command) == 2, command
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line, line
    assert (tmp_path / "file").read_text() == "mine"


def test_odd_names_of_recipe_run_and_storage_are_names_like_others(tmp_path, monkeypatch, capsys):
    """Whatever a path holds, nothing takes it for a pattern, an address or an escape."""
    place = tmp_path / "a b#c[d]%20é;x"
    place.mkdir()
    monkeypatch.chdir(place)
    text = RECIPE.replace("40", "4").replace("[collect]", 'trackers = ["tensorboard"]\n[collect]')
    Path("r #[1]%41.toml").write_text(text + '[select]\nselectors = ["all", "random"]\n')
    out = "runs/ö [a]#b%41"
    command = ["run", "r #[1]%41.toml", "--out", out, "--storage", "st #[x]%20ü?"]
    assert main(command) == 0
    for name in ("trajectories/expert.jsonl", "annotations/random.jsonl", "report.html"):
        assert (Path("st #[x]%20ü?", "ö [a]#b%41") / name).read_bytes() == (Path(out) / name).read_bytes()
    assert list(Path(out, "tensorboard").iterdir())
    shutil.rmtree("runs")
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("already done") == 3 and "fetched" in said
    assert main(["export", out, "--format", "messages", "--selector", "all", "--out", "out #[1]/x.jsonl"]) == 0
    assert main(["report", out]) == 0
    assert Path("out #[1]/x.jsonl").is_file()
