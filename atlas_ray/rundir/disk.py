"""What cannot be written: one error for every writer, with the file and the way out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import StorageError

_AGAIN = "and run the same command again"
_ROOM = {
    errno.ENOSPC: f"make room {_AGAIN}",
    errno.EDQUOT: f"free some of your quota {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) {_AGAIN}",
}
_PLACE = {
    errno.EACCES: "make it yours to write to, or name another place",
    errno.EPERM: "make it yours to write to, or name another place",
    errno.EROFS: "name a place that is not read-only",
    errno.ENOENT: "it is gone, or cannot be made there; name another place",
    errno.ENAMETOOLONG: "give it a shorter name, or a shorter path",
    errno.ENOTDIR: "a file stands where a directory has to be; name another place",
    errno.EEXIST: "a file stands where a directory has to be; name another place",
    errno.EISDIR: "a directory stands where the file has to be; name another place",
    errno.ELOOP: "its links lead in a circle; name another place",
    errno.EINVAL: "the file system takes no such name; name another place",
}
_FILES = {
    errno.EMFILE: f"raise the limit of open files (ulimit -n) {_AGAIN}",
    errno.ENFILE: f"too many files are open on this machine; close some {_AGAIN}",
}
# nobody who only reads is told these
_OF_WRITERS = {*_ROOM, errno.EROFS}


@contextmanager
def writing(path: str | Path, within: Path | None = None) -> Iterator[None]:
    """A disk that is full, or a place that cannot be written to, is one clear error.

    Args:
        path: the file or directory that is written.
        within: the block does other things too, and writes only here: what must come from a writer, or names a file
            of this place, is taken for it.

    Raises:
        StorageError: instead of whatever the writer raised.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:
        if within and _number(error) not in _OF_WRITERS and not _names(error, within):
            raise
        raise unwritten(path, error) from error


def unwritten(path: str | Path, error: BaseException) -> StorageError:
    """What a user has to know of an error of the writer of ``path``; without a number where it is none of the known."""
    number = _number(error)
    number = number if number in {*_ROOM, *_PLACE, *_FILES} else None
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    why = os.strerror(number) if number else " ".join(said.split())
    if number in _PLACE:
        return StorageError(f"{path}: could not be written ({why}): {_PLACE[number]}", number)
    room = _free(Path(path)) if number in (None, errno.ENOSPC) else ""
    way_out = {**_ROOM, **_FILES}.get(number or 0, f"see to the disk {_AGAIN}")
    return StorageError(
        f"{path}: could not be written ({why}{room}). What was saved before is whole: {way_out}", number
    )


def _names(error: BaseException, place: Path) -> bool:
    """Whether an error is about a file of this place that could not be made or changed."""
    name = error.filename if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
    return isinstance(name, str) and Path(name).is_relative_to(place)


def is_full(error: BaseException) -> bool:
    """Whether it is a writer's own error that there is no room, which nobody has made ours of."""
    return isinstance(error, OSError) and not isinstance(error, StorageError) and error.errno in _ROOM


def refuse_device(path: Path) -> None:
    """What takes the place of a device or a pipe would remove it.

    Raises:
        StorageError: it is one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise StorageError(f"{path}: is a device or a pipe, which no file may replace: name a file", errno.EINVAL)


def _number(error: BaseException) -> int | None:
    """``errno`` of a writer's error; safetensors has it in its text, and numpy only says how much it wrote."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    return errno.ENOSPC if re.search(r"\d+ requested and \d+ written", str(error)) else None


def _free(path: Path) -> str:
    try:
        free = shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
    except OSError:
        return ""
    return f"; {free / 2**20:,.0f} MiB free"
