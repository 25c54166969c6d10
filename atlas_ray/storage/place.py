"""Whether a place can be storage at all: looked at without pyarrow and without a network."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError

_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs", "abfs", "abfss", "viewfs")


def check_place(place: str) -> None:
    """Refuse what no run can be kept at.

    Raises:
        InputError: an unknown kind of address, one without a bucket, or a directory that cannot be written to.
    """
    if "://" not in place:
        directory(place)
        return
    parts = urlsplit(place)
    if parts.scheme not in _SCHEMES:
        raise _wrong(place, f"{parts.scheme}:// is no storage: give a directory, s3://BUCKET/PATH or gs://BUCKET/PATH")
    if parts.scheme in ("s3", "gs", "gcs") and not parts.netloc:
        raise _wrong(place, "names no bucket")


def directory(place: str) -> Path:
    """The directory that is meant, which need not be there yet.

    Raises:
        InputError: it cannot be made, or cannot be written to.
    """
    path = Path(place).expanduser().resolve()
    try:
        if not path.parent.is_dir():
            raise _wrong(place, f"there is no directory {path.parent}")
        if path.exists() and not path.is_dir():
            raise _wrong(place, "is a file, and storage is a directory")
    except OSError as error:
        raise _wrong(place, str(error.strerror)) from None
    if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
        raise _wrong(place, "you may not write there")
    return path


def _wrong(place: str, why: str) -> InputError:
    return InputError(f"{place}: {why}", field="storage", code="storage_unusable")
