"""Files of a run directory: what a kill, a full disk or a half-written line leaves."""

import os
import signal
import subprocess
import sys

import pytest

from atlas_ray.rundir.files import (
    RunLog,
    append_jsonl,
    atomic_directory,
    read_json,
    recover_jsonl,
    write_json,
    write_parts,
    write_text,
)


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.jsonl"
    write_text(path, "old")

    def breaks():
        yield "new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_parts(path, breaks())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.jsonl"]


def killed(code, *arguments):
    """Run ``code`` in a process of its own, in which ``die()`` kills it at once."""
    head = "import os, signal, sys, shutil, pathlib\nfrom atlas_ray.rundir import files\n"
    head += "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", head + code, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("where", ["files.os.fsync", "pathlib.Path.replace"])
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, where):
    path = tmp_path / "t.json"
    write_json(path, [1])
    killed(f"{where} = die\nfiles.write_json(sys.argv[1], list(range(10000)))", path)
    assert read_json(path) == [1]
    write_json(path, [2])
    assert read_json(path) == [2]


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atlas_ray.rundir.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.json"]


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"a": float("inf")}])
    assert os.listdir(tmp_path) == []


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "state"
    with pytest.raises(RuntimeError), atomic_directory(path) as directory:  # noqa: PT012
        (directory / "a").write_text("1")
        raise RuntimeError("stop")
    assert os.listdir(tmp_path / "deep") == []
    for content in ("1", "2"):
        with atomic_directory(path) as directory:
            (directory / content).write_text(content)
            assert not (path / content).exists()
        assert os.listdir(path) == [content], "nothing of the old one is left"
    with pytest.raises(RuntimeError), atomic_directory(path) as directory:
        raise RuntimeError("stop")
    assert os.listdir(path) == ["2"]
    assert os.listdir(tmp_path / "deep") == ["state"]


def test_a_kill_while_the_old_directory_is_removed_leaves_a_whole_one(tmp_path):
    """Half of an old training state under the good name would break every restart."""
    path = tmp_path / "state"
    with atomic_directory(path) as directory:
        (directory / "a").write_text("1")
        (directory / "b").write_text("1")
    code = """
def half(path, **kwargs):
    next(iter(sorted(pathlib.Path(path).iterdir()))).unlink()
    die()
shutil.rmtree = half
with files.atomic_directory(sys.argv[1]) as directory:
    (directory / "a").write_text("2")
    (directory / "b").write_text("2")
"""
    killed(code, path)
    assert {f.name: f.read_text() for f in path.iterdir()} == {"a": "2", "b": "2"}


@pytest.mark.parametrize("cut", [1, 5, 12, 13])
def test_a_half_written_last_line_is_removed_and_appending_goes_on(tmp_path, cut):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, [{"a": "é\u2028\x85"}, {"a": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + '{"a": "üüü"}\n'.encode()[:cut])
    assert recover_jsonl(path) == [{"a": "é\u2028\x85"}, {"a": 2}]
    assert path.read_bytes() == whole
    append_jsonl(path, [{"a": 3}])
    assert recover_jsonl(path) == [{"a": "é\u2028\x85"}, {"a": 2}, {"a": 3}]


def test_recovering_nothing_and_only_half_a_line(tmp_path):
    assert recover_jsonl(tmp_path / "none.jsonl") == []
    path = tmp_path / "m.jsonl"
    path.write_text('{"a"')
    assert recover_jsonl(path) == []
    assert path.read_bytes() == b""


def test_the_run_log_appends(tmp_path):
    log = RunLog(tmp_path / "run")
    log.metric("finetune", step=1, loss=0.5)
    log.event("collect", "dropped", why="crash")
    RunLog(tmp_path / "run").metric("finetune", step=2, loss=0.25)
    assert [r["step"] for r in recover_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert recover_jsonl(tmp_path / "run" / "events.jsonl") == [
        {"stage": "collect", "event": "dropped", "why": "crash"}
    ]
