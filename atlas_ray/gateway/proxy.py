"""What stands in Ray Serve's HTTP proxies, before any replica: limits of clients, and errors as OpenAI's.

Serve calls :func:`layers` in each proxy whose environment has :data:`VARIABLE`, which must be there when Ray starts.
"""

from __future__ import annotations

import asyncio
import os

from starlette.middleware import Middleware

from .. import ray_private
from ..errors import InputError
from ..serving.bodies import App, BodyLimits, Message, Receive, Scope, Send
from .limits import LARGEST_BODY, SEND_SECONDS, refuse, say
from .replies import ApiError

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
LAYERS = "atlas_ray.gateway.proxy.layers"
_HEALTH = "/-/healthz"
_NOTHING = ApiError(404, "there is nothing at this path")
_BUSY = ApiError(503, "no replica can take this request now: ask again", "busy")
_LOST = ApiError(503, "the replica that was answering has died: ask again", "replica_lost")


def layers() -> list[Middleware]:
    """The layers around a proxy, the innermost first."""
    ray_private.speak_http_with("atlas_ray.gateway.limits:PatientProtocol")
    return [Middleware(Front), Middleware(BodyLimits, largest=LARGEST_BODY, answer=refuse)]


def require_layers() -> None:
    """Refuse to be deployed where clients would have no limits.

    Raises:
        InputError: says what to set.
    """
    if os.environ.get(VARIABLE) != LAYERS:
        raise InputError(f"must be {LAYERS} in the environment in which Ray starts, on every machine", field=VARIABLE)


class Front:
    """An ASGI layer that gives what Ray Serve says itself as OpenAI's error object, and waits for no client for ever.

    Args:
        app: Serve's own.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith("/-/") and scope["path"] != _HEALTH:
            await say(send, _NOTHING)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.send)
        await answer.end()


class _Answer:
    """What goes to a client. ``_own``: the status of an answer that no replica gave, which is held back."""

    def __init__(self, send: Send) -> None:
        self._send, self._own = send, 0
        self._started = self._streams = self._over = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers") or ()).get(b"content-type", b"")
            if message["status"] >= 400 and not kind.startswith(b"application/json"):
                self._own = message["status"]
                return
            self._started, self._streams = True, kind.startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            self._over = True
        if not self._own:
            await self._pass_on(message)

    async def end(self) -> None:
        """Finish what was left without an end: its replica has died."""
        if self._own == 404:
            await say(self._pass_on, _NOTHING)
        elif self._own:
            await say(self._pass_on, _BUSY)
        elif not self._started:
            await say(self._pass_on, _LOST)
        elif not self._over and self._streams:
            body = b"data: " + _LOST.body + b"\n\n"
            await self._pass_on({"type": "http.response.body", "body": body, "more_body": False})

    async def _pass_on(self, message: Message) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)
