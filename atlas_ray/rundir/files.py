"""Atomic files and append-only JSONL that survive a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import StorageError
from .disk import refuse_device, writing
from .layout import RunLayout

_log = logging.getLogger(__name__)
_METRICS, _EVENTS = str(RunLayout().metrics), str(RunLayout().events)
_HALVES = "backslashreplace"
"""Half a character, which UTF-8 has no bytes for, is written as JSON escapes it, and so comes back as it was."""


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: a reader sees the old file or the new, never half of one."""
    write_parts(path, [text])


def write_parts(path: str | Path, parts: Iterable[str]) -> None:
    """:func:`write_text` of parts one after another, without holding them all at once.

    Raises:
        StorageError: it could not be written; what was there before stays.
    """
    with replacing(path) as temporary:
        with writing(path):
            file = temporary.open("w", encoding="utf-8", errors=_HALVES)
        with file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside ``path`` for a file that takes its place when the block ends well.

    Raises:
        StorageError: it cannot be written there, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_device(path)
        with writing(path, temporary):
            yield temporary
        with writing(path):
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """:func:`write_text` of ``value`` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON in ``path``."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        StorageError: it cannot be written there, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with writing(path, temporary):
            yield temporary
        with writing(path):
            open_up(temporary)
            if path.exists():
                # a kill in the middle of rmtree would leave half of the old one under the good name
                old = path.with_name(f"{temporary.name}.old")
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_up(directory: Path) -> None:
    """Let whoever may read the directory read its files: safetensors makes its own for nobody else."""
    allowed = directory.stat().st_mode & 0o666
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | allowed)


def append_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, each a line. Call :func:`recover_jsonl` first when an earlier run may have been killed.

    Raises:
        StorageError: they could not be written; nothing of them stays.
    """
    path = Path(path)
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            _append(file, memoryview(text.encode("utf-8", _HALVES)))


def _append(file: FileIO, data: memoryview) -> None:
    """All of it or nothing, unless another process has written behind it."""
    done = 0
    try:
        while done < len(data):
            done += file.write(data[done:])
    except OSError:
        if done and file.tell() == os.fstat(file.fileno()).st_size:
            file.truncate(file.tell() - done)
        raise


def recover_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of one of *our own* append-only files; a last line cut by a kill is removed from the file.

    For files of a user use the readers of :mod:`atlas_ray.trajectory`, which refuse such a line.
    """
    mend_jsonl(path)
    return list(jsonl_rows(path))


def mend_jsonl(path: str | Path) -> None:
    """Remove a last line that a kill cut. Nobody else may be appending."""
    path = Path(path)
    if path.exists():
        with writing(path), path.open("r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                end -= 1
            if end != size:
                file.truncate(end)


def jsonl_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of one of our own files, which may be being written to: a last line without its end is left out."""
    path = Path(path)
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and line.strip():
                    yield json.loads(line)


class RunLog:
    """``metrics.jsonl`` and ``events.jsonl`` of a run directory.

    Metrics are numbers over time; events say what was retried, dropped or recovered, and why.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)

    def metric(self, stage: str, **values: Any) -> None:
        """One row of numbers."""
        self._append(_METRICS, {"stage": stage, **values})

    def event(self, stage: str, kind: str, **values: Any) -> None:
        """One thing that happened. Where it cannot be written, the run goes on, and its log says so."""
        try:
            self._append(_EVENTS, {"stage": stage, "event": kind, **values})
        except StorageError as error:
            _log.error("an event (%s: %s) is lost: %s", stage, kind, error)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        append_jsonl(self.run_dir / name, [row])
