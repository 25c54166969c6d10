"""Files and archives of a run directory that storage holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..rundir.layout import is_commit_marker, is_of_this_machine, is_replaced_whole

Fingerprint = list[int]


class SnapshotEntry(NamedTuple):
    """A file, or a directory that travels as one archive; ``fingerprint`` changes whenever it does."""

    name: str
    path: Path
    fingerprint: Fingerprint

    @property
    def is_directory(self) -> bool:
        """Whether it is an archive on the storage."""
        return self.name.endswith(".tar")

    @property
    def is_commit_marker(self) -> bool:
        """Whether it says that something else is complete."""
        return not self.is_directory and is_commit_marker(self.name)


def is_archive(name: str) -> bool:
    """Whether what is on the storage is a directory here."""
    return name.endswith(".tar") and is_replaced_whole(name.removesuffix(".tar"))


def snapshot(run_dir: Path) -> Iterator[SnapshotEntry]:
    """What of a run directory travels, as it is now."""

    def walk(folder: Path, name: str) -> Iterator[SnapshotEntry]:
        with suppress(FileNotFoundError):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                path, below = Path(entry.path), f"{name}{entry.name}"
                if is_of_this_machine(entry.name) or entry.is_symlink():
                    continue
                if not entry.is_dir():
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        yield SnapshotEntry(below, path, [about.st_ino, about.st_mtime_ns, about.st_size])
                elif is_replaced_whole(below):
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        yield SnapshotEntry(f"{below}.tar", path, [about.st_ino, about.st_mtime_ns])
                else:
                    yield from walk(path, f"{below}/")

    yield from walk(run_dir, "")


def whole_lines(file: Any, size: int) -> int:
    """Bytes of the whole lines among the first ``size``."""
    end = size
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        end = start
    return 0
