"""Where Ray is found, and where it puts its files: what is wrong with either is told before Ray waits for it.

Only :func:`connect` and :func:`start` import Ray, so that a recipe can be checked in a second.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from .. import ray_private
from ..errors import InputError
from ..rundir.progress import say

_ANSWER = 3.0  # seconds
# HTTP/2's first words and an empty frame of settings; who speaks it, as Ray's head does, answers with settings
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_SOCKETS = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_LONGEST = 107
"""Bytes of the path of a socket that the kernel takes."""


def host_of(address: str) -> tuple[str, int | None]:
    """Host and port of a Ray address; ``("", None)`` of one that names none."""
    found = re.fullmatch(r"(?:\w+://)?(\[[\da-fA-F:]+\]|[^:/\[\]]+)(?::(\d+))?/?", address.strip())
    if not found or found.group(1) in ("auto", "local"):
        return "", None
    return found.group(1).strip("[]"), int(found.group(2)) if found.group(2) else None


def address() -> str | None:
    """``RAY_ADDRESS``, as a cluster's; None where Ray is to be started on this machine."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    return None if given in ("", "local") else given


def trouble(given: str) -> str:
    """Why a run cannot go to a cluster of this address, and the way out; nothing where it can.

    Takes seconds at most: Ray itself waits for minutes.
    """
    if given == "auto":
        return ""
    if "://" in given:
        scheme = given.partition("://")[0]
        if scheme in ("http", "https"):
            return (
                "is that of a dashboard, which `ray job submit` takes: submit the command as a job (docs/jobs.md), or "
                "give the head's own HOST:6379"
            )
        if scheme == "ray":
            return (
                "is that of a Ray client, which a run cannot be driven through: submit the command as a job "
                "(docs/jobs.md), or give HOST:6379 on a machine of the cluster"
            )
        return f"begins with {scheme}://: give HOST:6379"
    host, port = host_of(given)
    if port is None:
        return "is no address: give HOST:6379"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER) as line:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") or _speaks(line):
                return ""
    except (OSError, UnicodeError, OverflowError) as error:
        why = "it is silent" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        return f"nothing answers there ({why}): start that cluster, or unset RAY_ADDRESS to run on this machine"
    return "what answers there is no Ray head: give its HOST:6379, or unset RAY_ADDRESS to run on this machine"


def _speaks(line: socket.socket) -> bool:
    """Whether the other end speaks as the head of a cluster does."""
    line.settimeout(_ANSWER)
    line.sendall(_HELLO)
    said = b""
    while len(said) < 4 and (more := line.recv(9)):
        said += more
    return len(said) >= 4 and said[3] == _SETTINGS


def check_address() -> None:
    """Refuse a cluster that is not there.

    Raises:
        InputError: says what is wrong with ``RAY_ADDRESS``.
    """
    given = address()
    if given and (why := trouble(given)):
        raise InputError(f"{given} {why}" if why.startswith("is ") else f"{given}: {why}", None, None, "RAY_ADDRESS")


def usual_folder() -> Path:
    """Where Ray puts its files by itself, but for their folder ``ray``."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108


def folder_trouble(folder: Path) -> str:
    """Why a Ray that is started here cannot put its files below ``folder``; nothing where it can."""
    if len(os.fsencode(folder)) + _SOCKETS > _LONGEST:
        most = _LONGEST - _SOCKETS
        return f"{folder} is too long for Ray's sockets, by {len(os.fsencode(folder)) - most} bytes"
    for path in (folder / "ray", folder):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if not stat.S_ISDIR(about.st_mode):
            return f"{path} is no directory"
        if not os.access(path, os.W_OK | os.X_OK):
            return f"{path} belongs to {_owner(about.st_uid)}, and you may not write to it"
        return ""
    return f"there is no directory {folder}"


def _owner(user: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"


def other_folder() -> Path | None:
    """A folder for Ray's files where the usual one will not do: one of this user's own, and short.

    Raises:
        InputError: there is none.
    """
    usual = usual_folder()
    why = folder_trouble(usual)
    if not why:
        return None
    for place in dict.fromkeys((Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))):  # noqa: S108
        mine = place / f"ray-{os.getuid()}"
        try:
            mine.mkdir(mode=0o700, exist_ok=True)
            about = mine.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():  # somebody was here before us
                mine = Path(tempfile.mkdtemp(prefix="ray-", dir=place))
        except OSError:
            continue
        if not folder_trouble(mine):
            return mine
    field = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    raise InputError(f"{why}: set RAY_TMPDIR to a short folder of your own", None, None, field)


def connect(given: str, **options: Any) -> None:
    """Make this process a driver of the cluster at an address, with the token of this machine if there is one.

    Raises:
        InputError: there is no such cluster, or it does not let this process in.
    """
    import ray

    check_address()
    ray_private.use_token()
    try:
        ray.init(address=given, **options)
    except ray.exceptions.AuthenticationError as error:
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        raise InputError(
            f"{given}: the cluster wants a token that was not given (RAY_AUTH_MODE is {mode}): copy its head's "
            "~/.ray/auth_token here, mode 600, and set RAY_AUTH_MODE=token",
            None,
            None,
            "RAY_ADDRESS",
        ) from error
    except ConnectionError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{given}: {why}", None, None, "RAY_ADDRESS") from error


def start(**options: Any) -> None:
    """Start a Ray on this machine, with its files in a folder that will do.

    Raises:
        InputError: there is none.
    """
    import ray

    folder = other_folder()
    if folder:
        say(f"  {folder_trouble(usual_folder())}: Ray's files go to {folder}")
        options |= ray_private.files_in(folder)
    ray_private.start_no_spare_workers()
    ray.init(address="local", include_dashboard=False, **options)


def environment(**more: str) -> dict[str, str]:
    """What every process finds in its environment, ``more`` too.

    What a job names itself is left out: Ray takes no name twice.
    """
    said = ray_private.environment_of_job()
    # one thread a process: two processes with two threads each starve each other on two cores
    ours = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}
    # or an actor that asks for no GPU would see all of them, and its model would lie on the first
    ours["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    return {name: value for name, value in ours.items() if name not in said}
