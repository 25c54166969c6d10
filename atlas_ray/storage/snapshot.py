"""What of a run directory travels, in which pieces, and what may be said of one only after another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

RECIPE, MEMORY = "recipe.resolved.json", ".storage.json"
_DECIDING = (
    *(RECIPE, "run.json", "config.json", "atlas.json", "policies.json"),
    *("trial.json", "report.html", ".tracked.json"),
)
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
        file, parent = self.path.name, self.path.parent.name
        return not self.directory and (
            file
            in (
                RECIPE,
                "run.json",
                "config.json",
                "atlas.json",
                "policies.json",
                "report.html",
                "trial.json",
                ".tracked.json",
            )
            or (parent == "trajectories" and file == "expert.jsonl")
            or parent == "annotations"
            or (parent == "scores" and file.endswith(".json"))
        )


# directories that are replaced as a whole, again and again: of a run, of one within a sweep, of a trial of the switch
_STATES = re.compile(r"((trials|shared)/[^/]+/)?checkpoints/[^/]+\.(state|train)/[^/]+|trials/[^/]+/state")


def is_archive(name: str) -> bool:
    """Whether what is on the storage is a directory here."""
    return name.endswith(".tar") and bool(_STATES.fullmatch(name.removesuffix(".tar")))


def _passing(name: str) -> bool:
    """Whether an entry is of no use elsewhere: half-written, of this machine, or made again where it is needed."""
    return name in (MEMORY, ".here", ".ray", ".training") or (name.startswith(".") and name.endswith((".tmp", ".old")))


def pieces(run_dir: Path) -> Iterator[Piece]:
    """What a run directory consists of now."""

    def walk(folder: Path, name: str) -> Iterator[Piece]:
        with suppress(FileNotFoundError):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                path, below = Path(entry.path), f"{name}{entry.name}"
                if _passing(entry.name) or entry.is_symlink():
                    continue
                if not entry.is_dir():
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        yield Piece(below, path, [about.st_ino, about.st_mtime_ns, about.st_size])
                elif _STATES.fullmatch(below):
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
