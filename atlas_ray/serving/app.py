"""The server of sessions over HTTP, on 127.0.0.1 only."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..rundir.progress import say
from .batching import RequestBatcher
from .opening import open_sessions
from .sessions import SessionManager

HOST = "127.0.0.1"
GRACE = 3.0
"""Seconds that requests on their way have to be done when a signal ends the server."""


def make_app(sessions: SessionManager, batcher: RequestBatcher | None = None) -> Any:
    """A FastAPI application: see docs/serving.md for its routes.

    Args:
        sessions: what answers.
        batcher: hands it the requests; by default one of its own.
    """
    from .routes import build

    return build(sessions, batcher or RequestBatcher(sessions), [HOST, "localhost"])


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1, where whoever comes waits until there is a server; port 0 takes a free one.

    Raises:
        InputError: the port is taken, or none.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        sock.close()
        raise InputError(f"{port}: {error}", None, None, "--port") from None
    return sock


def serve(run_dir: Path, name: str | None = None, port: int = 8008, max_sessions: int | None = None) -> None:
    """Serve a policy of a run until a signal ends it.

    Requests on their way then have :data:`GRACE` seconds. If a model is still at work, the process ends without it.

    Raises:
        InputError: see :func:`open_sessions` and :func:`listen`, or the extra is missing.
    """
    try:
        import uvicorn
        from fastapi import FastAPI  # noqa: F401
    except ImportError:
        raise InputError("serving needs the extra 'serve': pip install 'atlas-ray[serve]'") from None
    with listen(port) as sock, open_sessions(run_dir, name, max_sessions) as sessions:
        budget = sessions.budget if sessions.calls is None else f"{sessions.calls} calls"
        limit = "" if budget is None else f", at most {budget} per episode"
        say(f"serving {sessions.name} ({', '.join(sessions.models)}{limit}) on http://{HOST}:{sock.getsockname()[1]}")
        batcher = RequestBatcher(sessions)
        config = uvicorn.Config(
            make_app(sessions, batcher),
            http="h11",  # bounds the headers
            ws="none",
            log_config=None,  # the default closes the handlers of everybody else in the process
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=round(GRACE),
        )
        try:
            uvicorn.Server(config).run(sockets=[sock])
        except (KeyboardInterrupt, SystemExit) as end:
            if not batcher.stop(1.0):
                # a thread inside a model can be neither stopped nor waited for
                print("atlas-ray: a model was still at work; its answer is lost", file=sys.stderr, flush=True)
                sys.stdout.flush()
                os._exit(0 if isinstance(end, KeyboardInterrupt) else 128 + signal.SIGTERM)
            raise
