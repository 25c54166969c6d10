"""The routes of an OpenEnv server: ``/ws``, where a connection is a session, and what describes it. Needs `openenv`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .openenv_sessions import ACTION_SCHEMA, OBSERVATION_SCHEMA, STATE_SCHEMA, MessageError, Session, error, read

IDLE = 600.0
"""Seconds without a message after which a session ends."""
_PATHS = ("/health", "/metadata", "/schema", "/mcp", "/ws")


def build(
    new: Callable[[], Session], about: dict[str, str], max_sessions: int, hosts: list[str], idle: float = IDLE
) -> Starlette:
    """The application.

    One thread plays all sessions, a message after the other: environments need not know of threads.

    Args:
        new: makes a session.
        about: name, description and version of the environment.
        max_sessions: at a time.
        hosts: by which names the server may be asked; ``*`` is any.
        idle: seconds without a message after which a session ends.
    """
    sessions = _Sessions(new, max_sessions, hosts, idle)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def metadata(_: Request) -> Response:
        return JSONResponse({"readme_content": None, "author": None, "documentation_url": None, **about})

    async def schema(_: Request) -> Response:
        return JSONResponse(
            {
                "action": ACTION_SCHEMA,
                "observation": OBSERVATION_SCHEMA,
                "reset_observation": OBSERVATION_SCHEMA,
                "state": STATE_SCHEMA,
            }
        )

    async def no_tools(_: Request) -> Response:
        problem = {"code": -32601, "message": "Environment does not support MCP"}
        return JSONResponse({"jsonrpc": "2.0", "id": None, "error": problem})

    async def openapi(_: Request) -> Response:
        info = {"title": about["name"], "version": "1.0.0"}
        return JSONResponse({"openapi": "3.1.0", "info": info, "paths": {path: {} for path in _PATHS}})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metadata", metadata),
            Route("/schema", schema),
            Route("/openapi.json", openapi),
            Route("/mcp", no_tools, methods=["POST"]),
            WebSocketRoute("/ws", sessions.play),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


class _Sessions:
    """Those that go on, and the one thread that plays them."""

    def __init__(self, new: Callable[[], Session], most: int, hosts: list[str], idle: float) -> None:
        self._new, self._most, self._hosts, self._idle = new, most, hosts, idle
        self._count = 0
        self._thread = ThreadPoolExecutor(1, "openenv")

    async def _run(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    def _from_elsewhere(self, socket: WebSocket) -> bool:
        """Whether a page of another site, which a browser shows, asks; browsers let it ask this machine."""
        origin = socket.headers.get("origin")
        return origin is not None and "*" not in self._hosts and urlsplit(origin).hostname not in self._hosts

    async def play(self, socket: WebSocket) -> None:
        """A connection, from its first message to its last."""
        if self._from_elsewhere(socket):
            await socket.close(1008)
            return
        await socket.accept()
        if self._count >= self._most:
            message = f"Server at capacity: {self._count}/{self._most} sessions active."
            more = {"active_sessions": self._count, "max_sessions": self._most}
            await _send(socket, error(message, "CAPACITY_REACHED", **more))
            await socket.close(1013)
            return
        self._count += 1
        session: Session | None = None
        try:
            session = await self._run(self._new)
            await self._answer(socket, session)
        except WebSocketDisconnect:
            pass
        except Exception as problem:
            code = "SESSION_ERROR" if session else "FACTORY_ERROR"
            await _end(socket, error(f"{type(problem).__name__}: {problem}", code), 1011)
        finally:
            try:
                if session is not None:
                    await asyncio.shield(self._run(session.close))
            finally:
                self._count -= 1

    async def _answer(self, socket: WebSocket, session: Session) -> None:
        while True:
            try:
                text = await asyncio.wait_for(socket.receive_text(), self._idle)
            except TimeoutError:
                return await _end(socket, error(f"no message for {self._idle:g} seconds", "SESSION_ERROR"), 1000)
            except KeyError:  # bytes
                return await _end(socket, error("a message is text", "INVALID_JSON"), 1003)
            try:
                message = read(text)
                if message["type"] == "close":
                    return await socket.close()
                answer = await self._run(session.answer, message)
            except MessageError as problem:
                answer = error(str(problem), problem.code)
            await _send(socket, answer)


async def _send(socket: WebSocket, answer: dict[str, Any]) -> None:
    await socket.send_text(json.dumps(answer, allow_nan=False))


async def _end(socket: WebSocket, last: dict[str, Any], code: int) -> None:
    """Say why, where the client still hears, and hang up."""
    try:
        await _send(socket, last)
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect):
        pass  # it is gone
