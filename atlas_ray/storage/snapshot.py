"""What of a run directory travels, in which pieces, and what may be said of one only after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..rundir.layout import is_commit_marker, is_of_this_machine, is_replaced_whole

Sign = list[int]


class Piece(NamedTuple):
    """A file, or a directory that travels as one archive; ``sign`` changes whenever it does."""

    name: str
    path: Path
    sign: Sign

    @property
    def directory(self) -> bool:
        """Whether it is an archive on the storage."""
        return self.name.endswith(".tar")

    @property
    def decides(self) -> bool:
        """Whether it says that something else is there."""
        return not self.directory and is_commit_marker(self.name)


def is_archive(name: str) -> bool:
    """Whether what is on the storage is a directory here."""
    return name.endswith(".tar") and is_replaced_whole(name.removesuffix(".tar"))


def pieces(run_dir: Path) -> Iterator[Piece]:
    """What a run directory consists of now."""

    def walk(folder: Path, name: str) -> Iterator[Piece]:
        with suppress(FileNotFoundError):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                path, below = Path(entry.path), f"{name}{entry.name}"
                if is_of_this_machine(entry.name) or entry.is_symlink():
                    continue
                if not entry.is_dir():
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        yield Piece(below, path, [about.st_ino, about.st_mtime_ns, about.st_size])
                elif is_replaced_whole(below):
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        yield Piece(f"{below}.tar", path, [about.st_ino, about.st_mtime_ns])
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
