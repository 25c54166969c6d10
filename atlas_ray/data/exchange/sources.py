"""Where an import reads: a file or folder here, or of a dataset on the hub; its commit and hashes are recorded.

A run that was killed while it read goes on with the same bytes, or refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...rundir.files import read_json, write_json
from ...rundir.layout import RunLayout
from ..hub import HubPath, download, find, hub_path, is_on_hub
from .raw_files import NOTHING_TO_READ, SUFFIXES, files_of


@dataclass(frozen=True)
class Source:
    """What is read: where it lies on this machine, and what whoever asked for it called it.

    ``revision`` is the commit of a dataset on the hub, None for what lies here anyway.
    """

    name: str
    path: Path
    revision: str | None = None

    def record(self) -> dict[str, Any]:
        """What names these very bytes: revision, and size and SHA-256 of every file."""
        return {
            "file": self.name,
            "revision": self.revision,
            "files": {
                self._called(path): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in files_of(self.path)
            },
        }

    def _called(self, path: Path) -> str:
        return path.name if path == self.path else path.relative_to(self.path).as_posix()

    def renamed(self, error: InputError) -> InputError:
        """An error on a copy of a dataset's file, as one on the dataset."""
        if self.revision is None:
            return error
        message, path = error.message.replace(str(self.path), self.name), error.path
        if path is not None:
            path = str(path).replace(str(self.path), self.name)
        return InputError(message, path, error.line, error.field, error.code)


def check_there(name: str | Path) -> None:
    """Look whether a file or folder can be found, on the hub too, where nothing is copied.

    Raises:
        InputError: it cannot.
    """
    if is_on_hub(name):
        _found(hub_path(str(name)))
    else:
        files_of(Path(name))


@contextmanager
def reading(name: str | Path, revision: str | None = None) -> Iterator[Source]:
    """What a name means, brought to this machine; errors raised inside name it as it was named.

    Args:
        name: a file or folder, or ``hf://datasets/ORG/NAME@REVISION/PATH``.
        revision: a commit to read a dataset at, in place of what its name says.

    Raises:
        InputError: it is not there, or cannot be had.
    """
    if not is_on_hub(name):
        yield Source(str(name), Path(name))
        return
    place = hub_path(str(name))
    source = _copied(replace(place, revision=revision or place.revision), str(place))
    try:
        yield source
    except InputError as error:
        raise source.renamed(error) from None


def _copied(place: HubPath, name: str) -> Source:
    commit, names = _found(place)
    return Source(name, download(place, commit, names), commit)


def _found(place: HubPath) -> tuple[str, list[str]]:
    commit, names = find(place, lambda name: name.endswith(SUFFIXES))
    if not names:
        raise InputError(NOTHING_TO_READ, str(place))
    return commit, names


def begun_with(run_dir: str | Path) -> dict[str, Any] | None:
    """What a run has begun to read, or has read; None where it has not, or is of a version that did not record it."""
    path = RunLayout(run_dir).source
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return found


@contextmanager
def recorded(name: str | Path, run_dir: str | Path) -> Iterator[Source]:
    """:func:`reading` for a run, which records what it reads and goes on with nothing else after a kill.

    An input that is refused is not held on to, since it is to be mended.

    Raises:
        InputError: what the run began to read is not there any more, or holds other bytes.
    """
    before, path = begun_with(run_dir), RunLayout(run_dir).source
    if before is not None and before["file"] != str(name):
        before = None
    try:
        with reading(name, before["revision"] if before else None) as source:
            now = source.record()
            if before is not None:
                _refuse_others(before, now, str(name))
            else:
                write_json(path, now)
            yield source
    except InputError as error:
        if error.code not in ("other_data", "hub_failed"):
            path.unlink(missing_ok=True)
        raise


def _refuse_others(before: dict[str, Any], now: dict[str, Any], name: str) -> None:
    for file in dict.fromkeys([*before["files"], *now["files"]]):
        was, found = before["files"].get(file), now["files"].get(file)
        if was != found:
            what = "is new" if was is None else "is gone" if found is None else "holds other bytes"
            raise InputError(
                f"{file} {what} since this run began to read it: bring it back, or name another --out",
                name,
                code="other_data",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
