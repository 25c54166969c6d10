"""A run on storage that machines share: a directory, S3 or GCS. Every object is there whole or not at all."""

from __future__ import annotations

import shutil
import tarfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from ..errors import InputError, StorageError
from ..rundir.disk import unwritten, writing
from ..rundir.files import atomic_directory, replacing
from .place import directory

_BLOCK = 8 << 20
_WHOLE = ".whole"  # the last member of an archive


class Storage:
    """The directory of one run on a file system of pyarrow.

    Args:
        place: a directory, or a URI that pyarrow knows: ``s3://``, ``gs://``.
        name: of the run, a directory below.

    Raises:
        InputError: it is no such place.
    """

    def __init__(self, place: str, name: str) -> None:
        from pyarrow import fs

        shown = urlsplit(place)._replace(query="").geturl() if "://" in place else place
        self.where = f"{shown.rstrip('/')}/{name}"
        uri = _uri(place)
        try:
            system, root = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError) as error:
            raise InputError(f"{place}: {_why(error)}", field="storage", code="storage_unusable") from None
        if not root.strip("/"):
            raise InputError(f"{place}: names no bucket", field="storage", code="storage_unusable")
        self.local = Path(root).resolve() / name if system.type_name == "local" else None
        self._fs: Any = fs.SubTreeFileSystem(f"{root.rstrip('/')}/{name}", system)

    def listing(self) -> list[str]:
        """Names of all files."""
        from pyarrow import fs

        with _named(self.where):
            found = self._fs.get_file_info(fs.FileSelector("", allow_not_found=True, recursive=True))
        return sorted(info.path for info in found if info.is_file and not info.path.endswith(".tmp"))

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None when there is none."""
        with _named(self.where):
            if not self._fs.get_file_info(name).is_file:
                return None
            with self._fs.open_input_file(name) as file:
                return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file."""
        self._put(name, lambda out: out.write(content))

    def put(self, name: str, file: IO[bytes], size: int) -> None:
        """Replace a file by the first ``size`` bytes of an open one."""

        def copy(out: Any) -> None:
            left = size
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise StorageError(f"{name} became shorter while it was read")
                out.write(block)
                left -= len(block)

        self._put(name, copy)

    def put_directory(self, name: str, path: Path) -> bool:
        """Replace an archive by what is in a directory; False, and nothing done, if that is replaced meanwhile."""
        with ExitStack() as opened:
            try:
                before = path.stat().st_ino
                files = [
                    (child.relative_to(path).as_posix(), opened.enter_context(child.open("rb")))
                    for child in sorted(path.rglob("*"))
                    if child.is_file()
                ]
                if path.stat().st_ino != before:
                    return False
            except FileNotFoundError:
                return False

            def pack(out: Any) -> None:
                with tarfile.open(fileobj=out, mode="w|") as archive:
                    for member, file in files:
                        archive.addfile(archive.gettarinfo(arcname=member, fileobj=file), file)
                    archive.addfile(tarfile.TarInfo(_WHOLE))

            self._put(name, pack)
        return True

    def _put(self, name: str, fill: Callable[[Any], object]) -> None:
        """An object appears when it is closed. A file of a directory is there from its first byte, so it is renamed."""
        with _named(self.where, writes=True):
            at = name
            if self.local:
                self._fs.create_dir(str(PurePosixPath(name).parent), recursive=True)
                at = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
            with self._fs.open_output_stream(at) as out:
                fill(out)
            if at != name:
                self._fs.move(at, name)

    def get(self, name: str, path: Path) -> None:
        """Bring a file here."""
        with replacing(path) as temporary, _named(self.where), self._fs.open_input_file(name) as file:
            with writing(path, temporary), temporary.open("wb") as out:
                while block := file.read(_BLOCK):
                    out.write(block)

    def get_directory(self, name: str, path: Path) -> bool:
        """Bring an archive here as a directory; False where it is not whole, and then nothing is written."""
        with ExitStack() as made:
            made.enter_context(_named(self.where))
            file = made.enter_context(self._fs.open_input_stream(name, buffer_size=_BLOCK))
            try:
                with atomic_directory(path) as directory:
                    with tarfile.open(fileobj=file, mode="r|") as archive:
                        _unpack(archive, directory)
                    (directory / _WHOLE).unlink()
            except (tarfile.TarError, FileNotFoundError):
                return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file, if it is there, and the directories that are empty without it."""
        with _named(self.where, writes=True):
            if self._fs.get_file_info(name).is_file:
                self._fs.delete_file(name)
        if self.local:
            with suppress(OSError):
                for parent in PurePosixPath(name).parents[:-1]:
                    (self.local / parent).rmdir()


def _unpack(archive: tarfile.TarFile, directory: Path) -> None:
    """The files of an archive, and nothing else (``extractall`` knows no filter before Python 3.11.4).

    Raises:
        tarfile.TarError: it is cut, or holds what we never put into one.
    """
    for member in archive:
        source, target = archive.extractfile(member), directory / member.name
        if not member.isfile() or source is None or not target.resolve().is_relative_to(directory.resolve()):
            raise tarfile.TarError(f"{member.name}: no file of ours")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(source, out, _BLOCK)


def _uri(place: str) -> str:
    """What pyarrow takes.

    Raises:
        InputError: a directory that cannot be made or written to.
    """
    if "://" not in place:
        return str(directory(place))
    parts = urlsplit(place)
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parse_qs(parts.query):
        # by default an endpoint that is not there is waited for for a quarter of an hour
        return f"{place}{'&' if parts.query else '?'}retry_limit_seconds=60"
    return place


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def _named(where: str, writes: bool = False) -> Any:
    """What went wrong, and where; of a disk that machines share also what to do, where it ``writes``.

    Raises:
        StorageError: instead of whatever pyarrow raised.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        known = unwritten(where, error) if writes else None
        raise (known if known and known.number else StorageError(f"{where}: {_why(error)}")) from error
