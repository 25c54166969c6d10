"""The desk behind HTTP, on 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .. import __version__
from ..errors import InputError
from ..progress import say
from .desk import Answer, Asked, Desk, Refused, open_desk

T = TypeVar("T")
HOST = "127.0.0.1"
Text = Annotated[str, StringConstraints(max_length=100_000)]


class NewEpisode(BaseModel):
    """The task in words, and how many steps it may take at most."""

    model_config = ConfigDict(extra="forbid")
    instruction: Text
    max_steps: int = Field(default=100, ge=1, le=10_000)


class Now(BaseModel):
    """What is seen now, and what may be done; without actions the model writes its own, if it is one that writes."""

    model_config = ConfigDict(extra="forbid")
    observation: Text
    actions: Annotated[list[Text], Field(max_length=10_000)] = []


class _Line:
    """One thread that owns the desk. Whoever comes while it works is answered together with the others that came."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._thread = desk, ThreadPoolExecutor(1, "desk")
        self._waiting: dict[str, tuple[Asked, asyncio.Future[Answer]]] = {}
        self._served: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    async def do(self, what: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, *arguments)

    async def act(self, key: str, asked: Asked) -> Answer:
        if key in self._waiting or key in self._served:
            raise Refused("this episode's step before is being answered", 409)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[key] = (asked, future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            self._served = frozenset(batch)
            try:
                found = await self.do(self._desk.act, {key: asked for key, (asked, _) in batch.items()})
            except Exception as error:
                found = dict.fromkeys(batch, Refused(f"{type(error).__name__}: {error}", 500))
            self._served = frozenset()
            for key, (_, future) in batch.items():
                if future.done():  # who asked has gone
                    continue
                answer = found[key]
                if isinstance(answer, Refused):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def make_app(desk: Desk) -> Any:
    """A FastAPI application: see docs/serving.md for its routes."""
    from fastapi import FastAPI, Request
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import JSONResponse

    app = FastAPI(title="atlas-ray", version=__version__, docs_url=None, redoc_url=None)
    # a page in a browser may lead its own name here
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    line = _Line(desk)

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return JSONResponse({"detail": str(error)}, error.status)

    app.add_exception_handler(Refused, refused)

    async def about() -> dict[str, Any]:
        return {"policy": desk.name, "models": desk.models, "budget": desk.budget, "places": desk.rows}

    async def begin(body: NewEpisode) -> dict[str, Any]:
        key = await line.do(desk.open, body.instruction, body.max_steps)
        return {"id": key, "max_steps": body.max_steps, "calls_left": desk.budget}

    async def act(key: str, body: Now) -> dict[str, Any]:
        return asdict(await line.act(key, Asked(body.observation, body.actions)))

    async def look(key: str) -> dict[str, Any]:
        return await line.do(desk.about, key)

    async def end(key: str) -> None:
        await line.do(desk.close, key)

    app.add_api_route("/", about, methods=["GET"])
    app.add_api_route("/episodes", begin, methods=["POST"], status_code=201)
    app.add_api_route("/episodes/{key}/act", act, methods=["POST"])
    app.add_api_route("/episodes/{key}", look, methods=["GET"])
    app.add_api_route("/episodes/{key}", end, methods=["DELETE"], status_code=204)
    return app


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1, where whoever comes waits until there is a server; port 0 takes a free one.

    Raises:
        InputError: the port is taken, or none.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        sock.close()
        raise InputError(f"{port}: {error}", None, None, "--port") from None
    return sock


def serve(run_dir: Path, name: str | None = None, port: int = 8008, places: int | None = None) -> None:
    """Serve a policy of a run until a signal ends it.

    Raises:
        InputError: see :func:`open_desk` and :func:`listen`, or the extra is missing.
    """
    try:
        import uvicorn
        from fastapi import FastAPI  # noqa: F401
    except ImportError:
        raise InputError("serving needs the extra 'serve': pip install 'atlas-ray[serve]'") from None
    with listen(port) as sock, open_desk(run_dir, name, places) as desk:
        limit = "" if desk.budget is None else f", at most {desk.budget} calls an episode"
        say(f"serving {desk.name} ({', '.join(desk.models)}{limit}) on http://{HOST}:{sock.getsockname()[1]}")
        config = uvicorn.Config(make_app(desk), log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[sock])
