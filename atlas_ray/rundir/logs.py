"""``RUN/logs``: a file for this process and for each of its actors, without secrets and of limited size.

The driver's records go to ``driver.log``, those of an actor to a file of its own (``worker-0.log``), with whatever else
its process prints. An actor on a node that does not have the run directory keeps Ray's files; Ray tells the driver what
they say, as of all processes that are not ours, and that is ``ray.log``.

An actor's output is redirected, not linked from Ray's own files: those hold secrets as they were printed, are named by
process, lie on the actor's node and go with the session.

Ordinary output stays free of all this: of what frameworks say a user sees errors, or everything with ``--verbose``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from ..ray_private import LOG_MARKERS
from .disk import writing
from .following import Tail, polling
from .layout import RunLayout

FOLDER, DRIVER, RAY = RunLayout().logs.name, "driver", "ray"
BYTES = 20_000_000
"""Size at which a file becomes ``NAME.log.1``, in place of the one before it."""

# these say at DEBUG, httpx at INFO, whatever they do
_CHATTY = (
    "asyncio",
    "filelock",
    "fontTools",
    "h5py",
    "httpcore",
    "httpx",
    "matplotlib",
    "numba",
    "PIL",
    "py4j",
    "urllib3",
)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL")
_SHORTEST = 8
_NOTE = "traceback: "
_POLL_SECONDS = 0.3

_failures = logging.getLogger("atlas_ray.failed")
_ray_output = logging.getLogger("atlas_ray.ray")
_told_user = logging.getLogger("atlas_ray.said")
_folder: Path | None = None
_attached = False  # whether what this process says goes to a run's logs
_captured: dict[str, tuple[list[logging.Handler], bool, int]] = {}


def folder() -> str | None:
    """The folder for :func:`attach_process` of actors that are started now; None while no run keeps logs."""
    return None if _folder is None else str(_folder)


def redact(text: str) -> str:
    """``text`` with the names of environment variables that hold secrets in place of their values."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET.search(name.upper()):
            text = text.replace(value, f"({name})")
    return text


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _OneLine(logging.Formatter):
    """One line for the user; the traceback is in the file."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(f"atlas-ray: {record.name}: {' '.join(record.getMessage().split())}")


class _File(RotatingFileHandler):
    def __init__(self, path: Path, form: str = _FORMAT) -> None:
        super().__init__(path, maxBytes=BYTES, backupCount=1, encoding="utf-8", errors="replace")
        self.setFormatter(_Formatter(form))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk loses the line, not the run."""


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is now: a progress bar puts something of its own there."""

    def __init__(self, formatter: logging.Formatter, level: int) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
        self.setFormatter(formatter)
        self.addFilter(lambda record: record.name != _told_user.name)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextlib.contextmanager
def run_logging(run_dir: Path, verbose: bool = False) -> Iterator[None]:
    """Keep the logs of a run while the block lasts, and the traceback of what ends it.

    Args:
        run_dir: the run directory.
        verbose: show all of it on stderr too, not errors alone.
    """
    place = run_dir.resolve() / FOLDER
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [_File(place / f"{DRIVER}.log")]
    shown = _Formatter(f"{DRIVER} | {_FORMAT}") if verbose else _OneLine()
    stderr = _Stderr(shown, logging.INFO if verbose else logging.ERROR)
    if (
        not verbose
    ):  # what ends the run is told by whoever started it; RLlib tells of each exception before it raises it
        stderr.addFilter(lambda record: record.name != _failures.name and not record.name.startswith("ray.rllib."))
    if not _attached:  # else this is a run within a run, whose errors are shown already
        handlers.append(stderr)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_root_handlers(handlers, place))
        stack.enter_context(_ray_output_to(_File(place / f"{RAY}.log", "%(asctime)s %(message)s")))
        if verbose:
            stack.enter_context(_echoed(place))
        _told_user.info("atlas-ray %s, process %d", " ".join(sys.argv[1:]), os.getpid())
        try:
            yield
        except BaseException as error:
            _failures.error("the run ended", exc_info=error)
            error.add_note(f"{_NOTE}{run_dir / FOLDER / f'{DRIVER}.log'}")
            raise


def where(error: BaseException) -> str:
    """`` (traceback: FILE)`` of an error that ended a run with logs, else nothing."""
    return next((f" ({note})" for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)), "")


@contextlib.contextmanager
def log_exceptions(what: str) -> Iterator[None]:
    """Write the traceback of an exception that leaves the block to this process's log."""
    try:
        yield
    except Exception:
        _failures.exception("%s", what)
        raise


def is_attached() -> bool:
    """Whether this process writes to the logs of a run."""
    return _attached


def record(message: str) -> None:
    """Write a message that the user was shown to the log."""
    _told_user.info("%s", message.strip())


def capture_loggers(*names: str, level: int = logging.INFO) -> None:
    """Send what loggers of imported frameworks say to the run's logs, and nowhere else.

    Args:
        names: of the loggers.
        level: what is below is not worth its place. Where no logs are kept, all below ERROR is held back.
    """
    for name in names:
        logger = logging.getLogger(name)
        if not _attached:
            logger.setLevel(logging.ERROR)
            continue
        _captured.setdefault(name, (logger.handlers, logger.propagate, logger.level))
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)


def capture_transformers() -> None:
    """:func:`capture_loggers` transformers, without its progress bars."""
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    capture_loggers("transformers", level=logging.WARNING)  # below it shows every configuration that it reads


def on_ray_output(who: str, pid: str, ip: str, lines: Iterable[str]) -> None:
    """Write lines of a process that is not attached, which Ray brings, to ``ray.log``."""
    for line in lines:
        _ray_output.info("%s pid=%s ip=%s: %s", who, pid, ip, line)


def attach_process(place: str | None, name: str) -> None:
    """Send all output and log records of this actor's process to ``PLACE/NAME.log`` from now on.

    Args:
        place: what :func:`folder` was where the actor was started; None: leave everything as it is.
        name: who the actor is, also for one that takes its place.
    """
    global _folder, _attached
    if place is None or _attached:
        return
    _folder, _attached = Path(place), True
    handler: logging.StreamHandler[TextIO] = logging.StreamHandler(sys.stderr)
    # a node that does not share the run directory has no such folder, and none is made: nobody would look there
    with contextlib.suppress(OSError):
        if Path(place).is_dir():
            _redirect_output(Path(place) / f"{_file_name(name)}.log")
            handler.setStream(sys.stderr)
    handler.setFormatter(_Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers = [handler]  # Ray Train's writes to stderr too
    root.setLevel(logging.DEBUG)
    for logger in _CHATTY:
        logging.getLogger(logger).setLevel(logging.INFO)
    logging.captureWarnings(True)
    capture_loggers("ray")
    _told_user.info("%s: process %d on %s", name, os.getpid(), platform.node())


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", name)


@contextlib.contextmanager
def _root_handlers(handlers: list[logging.Handler], place: Path) -> Iterator[None]:
    """The handlers on the root logger: frameworks speak from INFO on, ours from DEBUG on."""
    global _folder, _attached
    root, before = logging.getLogger(), (_folder, _attached)
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, _CHATTY))}
    _folder, _attached = place, True
    for handler in handlers:
        root.addHandler(handler)
    for logger in levels:
        logger.setLevel(logging.DEBUG if logger is root else logging.INFO)
    logging.captureWarnings(True)
    if "ray" in sys.modules:
        capture_loggers("ray")
    try:
        yield
    finally:
        _folder, _attached = before
        logging.captureWarnings(_attached)
        for logger, level in levels.items():
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        while _captured and not _attached:
            name, (theirs, propagate, level) = _captured.popitem()
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate, logger.level = theirs, propagate, level


@contextlib.contextmanager
def _ray_output_to(file: logging.Handler) -> Iterator[None]:
    _ray_output.propagate = False
    _ray_output.addHandler(file)
    try:
        yield
    finally:
        _ray_output.removeHandler(file)
        file.close()


class _Output(io.TextIOWrapper):
    """The text of a process on its way to descriptors 1 and 2: without secrets, and in two files of limited size."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(1, "w", closefd=False), "utf-8", "replace", write_through=True)
        self._path, self._rolling = path, threading.Lock()

    def write(self, text: str) -> int:
        if text.startswith(LOG_MARKERS):
            return len(text)
        with contextlib.suppress(OSError):  # a full disk loses the text, not the run
            super().write(redact(text))
            with self._rolling:
                if os.fstat(1).st_size > BYTES:
                    self._path.replace(f"{self._path}.1")
                    _redirect(self._path)
        return len(text)


def _redirect(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _redirect_output(path: Path) -> None:
    """Let all that this process writes, C code and processes that it starts included, end up in ``path``."""
    sys.stdout.flush()
    sys.stderr.flush()
    _redirect(path)
    sys.stdout = sys.stderr = _Output(path)


@contextlib.contextmanager
def _echoed(place: Path) -> Iterator[None]:
    """Show on stderr what other processes add to their files while the block lasts."""
    tails = {path: Tail(path) for path in place.glob("*.log")}

    def show() -> None:
        for path in sorted(place.glob("*.log")):
            if path.stem != DRIVER:
                added = b"".join(tails.setdefault(path, Tail(path, 0)).lines())
                for line in added.decode("utf-8", "replace").splitlines():
                    print(f"{path.stem} | {line}", file=sys.stderr, flush=True)

    with polling(show, _POLL_SECONDS):
        yield
