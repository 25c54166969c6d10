"""The run directory on nodes that do not have it: files are copied there through Ray, and results are sent back.

The directory lies on the driver's node. A process elsewhere that finds it under the same path (a shared file system)
uses it as it is. Any other process works on a copy, and sends everything that is final to the driver's node at once.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..rundir.disk import writing
from ..rundir.files import RunLog, append_jsonl, read_json, write_json, write_text
from ..rundir.layout import RunLayout

_BLOCK = 32 << 20
_TOKEN_FILE, _COPIES = RunLayout().here.name, "atlas-ray"


@dataclass(frozen=True)
class RunDirHandle:
    """Where to find a run directory: its path, a token that stands in it, and the driver's node."""

    run_dir: str
    token: str
    node: str

    @property
    def copies(self) -> Path:
        """Where a node that does not have the directory keeps its copy."""
        return Path(tempfile.gettempdir()) / f"{_COPIES}-{self.token}"

    def is_here(self) -> bool:
        """Whether this process finds the directory under its path."""
        try:
            return (Path(self.run_dir) / _TOKEN_FILE).read_text(encoding="utf-8") == self.token
        except OSError:
            return False


# Of this process: as a driver, its run directory and the token; as a worker, the handle that it was given.
_opened: tuple[str, str] | None = None
_handle: RunDirHandle | None = None


@contextmanager
def serve_run_dir(run_dir: Path) -> Iterator[None]:
    """Let processes of other nodes work on this directory while the block lasts."""
    global _opened
    root = run_dir.resolve()
    _opened = str(root), uuid.uuid4().hex
    write_text(root / _TOKEN_FILE, _opened[1])
    try:
        yield
    finally:
        _clean(_opened[1])
        _opened = None
        (root / _TOKEN_FILE).unlink(missing_ok=True)


def run_dir_handle() -> RunDirHandle | None:
    """The handle to give to a worker, if a run is going on here. Ray has to run."""
    if _opened is None:
        return _handle
    import ray

    return RunDirHandle(*_opened, ray.get_runtime_context().get_node_id())


def set_run_dir_handle(handle: RunDirHandle | None) -> None:
    """Say to this process where its run directory is."""
    global _handle
    _handle = handle


def open_run_dir(run_dir: str | Path) -> LocalRunDir:
    """A run directory, or one within it, as this process can reach it."""
    if _handle is None or not Path(run_dir).is_relative_to(_handle.run_dir) or _handle.is_here():
        return LocalRunDir(Path(run_dir))
    return RemoteRunDir(_handle, Path(run_dir).relative_to(_handle.run_dir))


def localize(path: str) -> str:
    """The path of a directory on this node; one that lies in the run directory is copied here if need be."""
    if _handle is None or not Path(path).is_relative_to(_handle.run_dir):
        return path
    name = str(Path(path).relative_to(_handle.run_dir))
    found = open_run_dir(_handle.run_dir)
    found.fetch(name)
    return str(found.root / name)


def driver_path(path: Path) -> Path:
    """The path on the driver's node of something in this node's copy; any other path as it is."""
    if _handle is None or not path.is_relative_to(_handle.copies):
        return path
    return Path(_handle.run_dir) / path.relative_to(_handle.copies)


class LocalRunDir:
    """A run directory that this process sees. ``name`` is always of a file or directory in it."""

    away = False

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def log(self) -> RunLog:
        """The logs of the run."""
        return RunLog(self.root)

    def exists(self, name: str) -> bool:
        """Whether it is on the driver's node."""
        return (self.root / name).exists()

    def fetch(self, name: str) -> None:
        """Have it here as on the driver's node; not at all where it is not there."""

    def send(self, name: str) -> None:
        """Have it on the driver's node as it is here, in one step."""

    def drop(self, name: str) -> None:
        """Remove it, here and on the driver's node."""
        shutil.rmtree(self.root / name, ignore_errors=True)

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows to a JSONL file on the driver's node."""
        append_jsonl(self.root / name, rows)

    def write_json(self, name: str, value: Any) -> None:
        """Write a small file on the driver's node."""
        write_json(self.root / name, value)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this node from a copy that they share."""
        yield


class RemoteRunDir(LocalRunDir):
    """A run directory on another node, and this node's copy of what is needed of it."""

    away = True

    def __init__(self, handle: RunDirHandle, within: Path = Path()) -> None:
        super().__init__(handle.copies / within)
        self._handle, self._home = handle, Path(handle.run_dir) / within

    def _call(self, what: Callable[..., Any], *arguments: Any) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # what was done once must not be done again
        options = {"num_cpus": 0, "max_retries": 0}
        node = NodeAffinitySchedulingStrategy(self._handle.node, soft=False)
        try:
            answer = _remote(what).options(**options, scheduling_strategy=node).remote(*arguments)
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def _path(self, name: str) -> str:
        return str(self._home / name)

    @property
    def log(self) -> RunLog:
        """The logs of the run, on the driver's node."""
        return _RemoteRunLog(self)

    def exists(self, name: str) -> bool:
        """See :meth:`LocalRunDir.exists`."""
        return self._call(_files, self._path(name)) is not None

    def fetch(self, name: str) -> None:
        """See :meth:`LocalRunDir.fetch`; what has not changed is not brought again."""
        with self.alone():
            while True:
                files = self._call(_files, self._path(name))
                if files is None or self._fetched(name, files):
                    return

    def _fetched(self, name: str, files: list[list[Any]]) -> bool:
        target, memory = self.root / name, self.root / ".fetched" / f"{name}.json"
        if memory.exists() and read_json(memory) == files and target.exists():
            return True
        memory.unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            for below, size, *_ in files:
                path = temporary / below
                with writing(target, temporary):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        for offset in range(0, size, _BLOCK):
                            file.write(self._call(_read, str(Path(self._path(name)) / below), offset, _BLOCK))
            if self._call(_files, self._path(name)) != files:
                return False  # replaced meanwhile
            _remove(target)
            temporary.replace(target)
            write_json(memory, files)
            return True
        except FileNotFoundError:
            return False
        finally:
            _remove(temporary)

    def send(self, name: str) -> None:
        """See :meth:`LocalRunDir.send`."""
        source = self.root / name
        temporary = self._path(str(Path(name).with_name(f".{source.name}.{uuid.uuid4().hex[:8]}.tmp")))
        for below, size, *_ in _files(str(source)) or []:
            for offset in range(0, max(1, size), _BLOCK):
                block = _read(str(source / below), offset, _BLOCK)
                self._call(_write, str(Path(temporary) / below), offset, block)
        self._call(_finish, temporary, self._path(name))

    def drop(self, name: str) -> None:
        """See :meth:`LocalRunDir.drop`."""
        super().drop(name)
        self._call(_remove_path, self._path(name))

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """See :meth:`LocalRunDir.append`."""
        self._call(append_jsonl, self._path(name), rows)

    def write_json(self, name: str, value: Any) -> None:
        """See :meth:`LocalRunDir.write_json`."""
        self._call(write_json, self._path(name), value)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See :meth:`LocalRunDir.alone`. May be entered again within."""
        self.root.mkdir(parents=True, exist_ok=True)
        if getattr(self, "_locked", False):
            yield
            return
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._locked = True
            try:
                yield
            finally:
                self._locked = False


class _RemoteRunLog(RunLog):
    def __init__(self, copy: RemoteRunDir) -> None:
        super().__init__(copy.root)
        self._copy = copy

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._copy.append(name, [row])


# -- what is done on the driver's node


@cache
def _remote(what: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(what)


def _files(path: str) -> list[list[Any]] | None:
    """Names, sizes and stamps of what is in a directory, or of a file under the name "."."""
    root = Path(path)
    if root.is_file():
        found = [root]
    elif root.is_dir():
        found = sorted(p for p in root.rglob("*") if p.is_file())
    else:
        return None
    rows = []
    for each in found:
        with suppress(FileNotFoundError):
            about = each.stat()
            rows.append([str(each.relative_to(root)), about.st_size, about.st_mtime_ns, about.st_ino])
    return rows


def _read(path: str, offset: int, most: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(most)


def _write(path: str, offset: int, block: bytes) -> None:
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(block)


def _finish(temporary: str, target: str) -> None:
    """What was sent takes the place of what was there."""
    old = Path(f"{temporary}.old")
    with writing(target):
        if Path(target).is_dir():
            Path(target).replace(old)
        Path(temporary).replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_path(path: str) -> None:
    _remove(Path(path))


def _clean(token: str) -> None:
    """Remove the copies on other nodes."""
    import sys

    if "ray" not in sys.modules:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return
    mine = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != mine]
    gone = [
        _remote(_remove_copies)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(token)
        for node in others
    ]
    if gone:
        ray.wait(gone, num_returns=len(gone), timeout=10.0)


def _remove_copies(token: str) -> None:
    shutil.rmtree(Path(tempfile.gettempdir()) / f"{_COPIES}-{token}", ignore_errors=True)
