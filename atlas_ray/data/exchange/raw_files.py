"""The bytes of a user's file: text, plain or packed, by line or as a whole, and parquet; what else it is, is said."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import InputError

_TEXTS, _PACKED = ("json", "jsonl", "ndjson"), ("", ".gz", ".zst")
SUFFIXES = (*(f".{text}{packed}" for packed in _PACKED for text in _TEXTS), ".parquet")
"""How the names of files end that are read of a folder."""
_OTHERS = (
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it, or compress it by gzip"),
    (b"BZh", "is compressed by bzip2: unpack it, or compress it by gzip"),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"ARROW1", "is an Arrow file: save it as parquet or as JSON, one record per line"),
    (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
    (b"version https://git-lfs", "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull"),
)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ROWS = 64
NOTHING_TO_READ = "is a folder without a .json, .jsonl or .parquet file, or a .gz or .zst of a text"
"""What is wrong with such a folder."""
_RUN_FILES = "*/*.traj.json"
"""How mini-swe-agent lays out the trajectories of a benchmark, in a folder for each."""


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder whose names say that they can be read, in order.

    Of a folder in which folders hold files ``.traj.json`` those alone are read, as mini-swe-agent writes them.

    Raises:
        InputError: nothing is there, or a folder holds none.
    """
    if path.is_dir():
        if runs := sorted(f for f in path.glob(_RUN_FILES) if not f.is_dir()):
            return runs
        found = sorted(f for f in path.glob("[!.]*") if f.name.endswith(SUFFIXES) and not f.is_dir())
        if not found:
            raise InputError(NOTHING_TO_READ, path)
        return found
    if not path.is_file():
        raise InputError("no such file", path)
    return [path]


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet, by its first bytes.

    Raises:
        InputError: it is neither that nor text; names what it is and what to do.
    """
    with _reading(path), path.open("rb") as file:
        head = file.read(24)
    for mark, what in _OTHERS:
        if head.startswith(mark):
            raise InputError(what, path)
    return head.startswith(b"PAR1")


def parquet_rows(path: Path) -> Iterator[Any]:
    """Every row of a parquet file as the dict that JSON would give, some rows in memory at a time.

    Raises:
        InputError: it is broken, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("is a parquet file, which takes pyarrow to read: pip install pyarrow", path) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                yield from map(as_json, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"is a parquet file that cannot be read: {str(error).splitlines()[0]}", path) from None


def as_json(value: Any) -> Any:
    """A value with what JSON does not know made into it: dates and bytes are texts, NaN and infinity are null."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line that is not blank, with its 1-based number.

    Raises:
        InputError: a line is not UTF-8.
    """
    offset = 0
    # binary, because U+2028 and its like stand unescaped inside a JSON string
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"not UTF-8 at byte {offset + error.start}", path, number) from None
            offset += len(raw)
            line = (line.removeprefix("\ufeff") if number == 1 else line).removesuffix("\n")
            if line.strip():
                yield number, line


def whole_text(path: Path) -> str:
    """All of a file that :func:`text_lines` has found to be UTF-8."""
    with _opened(path) as file:
        return file.read().decode("utf-8-sig")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _reading(path), path.open("rb") as plain:
        head = plain.read(4)
        plain.seek(0)
        if head.startswith(_GZIP):
            with gzip.open(plain) as file:
                yield cast(BinaryIO, file)
        elif head == _ZSTD:
            with _unpacking(plain, path) as file:
                yield file
        else:
            yield plain


@contextmanager
def _unpacking(packed: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """What zstd has packed, some of it in memory at a time."""
    try:
        import pyarrow
    except ImportError:
        raise InputError("is a zstd file, which takes pyarrow to unpack: pip install pyarrow", path) from None
    try:
        with pyarrow.CompressedInputStream(packed, "zstd") as stream:
            yield cast(BinaryIO, io.BufferedReader(stream))
    except OSError as error:
        raise InputError(f"is a zstd file that cannot be unpacked: {error}", path) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"is a gzip file that cannot be unpacked: {error}", path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", path) from None
