"""Objects are there whole or not at all."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from storage_runs import write

from atlas_ray.storage.object_store import Storage


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
