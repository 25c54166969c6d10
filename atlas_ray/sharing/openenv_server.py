"""An environment behind OpenEnv's protocol: ``atlas-ray env serve openenv ID``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from .. import __version__, envs
from ..errors import InputError
from ..rundir.progress import say

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE = 3
"""Seconds that messages on their way have to be answered when a signal ends the server."""


def require_extra() -> None:
    """Say which extra brings what serves a WebSocket.

    Raises:
        InputError: it is not installed.
    """
    if any(find_spec(name) is None for name in ("uvicorn", "starlette", "websockets")):
        raise InputError("OpenEnv's protocol needs the extra 'openenv': pip install 'atlas-ray[openenv]'")


def make_app(name: str, settings: Mapping[str, Any], max_sessions: int, hosts: list[str]) -> Any:
    """The application that serves an environment. Makes one first, so that what is wrong with it is said now.

    Raises:
        envs.UnknownEnvironmentError: no such environment.
        envs.MissingExtraError: it cannot run here.
        ValueError: it refuses a setting.
    """
    from .openenv_routes import build
    from .openenv_sessions import Session

    first = Session(name, settings)
    first.close()
    full = envs.full_id(name)
    about = {"name": full, "description": f"{full} of atlas-ray, a text environment", "version": __version__}
    return build(lambda: Session(name, settings), about, max_sessions, hosts)


def serve(name: str, settings: Mapping[str, Any], host: str, port: int, max_sessions: int) -> None:
    """Serve an environment until a signal ends it.

    Raises:
        InputError: the extra is missing, or the port cannot be had.
        ValueError: see :func:`make_app`.
    """
    require_extra()
    import uvicorn

    from .openenv_sessions import LONGEST_MESSAGE

    loopback = host in LOOPBACK
    app = make_app(name, settings, max_sessions, [*LOOPBACK, "[::1]"] if loopback else ["*"])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(128)
        except (OSError, OverflowError) as problem:
            raise InputError(f"{host}:{port}: {problem}", None, None, "--port") from None
        if not loopback:
            print("atlas-ray: warning: whoever reaches this port can play; it asks for no password", file=sys.stderr)
        shown = f"[{host}]" if ":" in host else host
        say(
            f"serving {envs.full_id(name)} on http://{shown}:{sock.getsockname()[1]} (OpenEnv, {max_sessions} sessions)"
        )
        config = uvicorn.Config(
            app,
            http="h11",  # bounds the headers
            ws="websockets-sansio",
            ws_max_size=LONGEST_MESSAGE,
            ws_max_queue=4,
            limit_concurrency=max_sessions + 64,
            log_config=None,  # the default closes the handlers of everybody else in the process
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE,
        )
        try:
            uvicorn.Server(config).run(sockets=[sock])
        finally:
            envs.drain()
