"""Who may ask, and for how long he may take: keys, hosts, and clients that stall. Needs ``uvicorn``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from ..serving.bodies import App, Message, Receive, Scope, Send
from .replies import ApiError

LARGEST_BODY = 16 * 2**20
"""Bytes of a request's body."""
HEADER_SECONDS = 30.0
"""Seconds in which the head of a request must have come, counted from its connection or from its first byte."""
SEND_SECONDS = 60.0
"""Seconds in which a client must take the next piece of an answer."""
LOCAL_KEY = "local"
"""The key of all clients of a gateway that wants none."""
OPEN_PATHS = ("/healthz",)
_TOKEN = re.compile(r"[\x21-\x2b\x2d-\x7e]{16,}")


def tokens_of(variable: str | None) -> tuple[str, ...]:
    """The bearer tokens in an environment variable, with commas between.

    Raises:
        InputError: it is not set, or holds what is no token.
    """
    if variable is None:
        return ()
    found = tuple(token.strip() for token in os.environ.get(variable, "").split(",") if token.strip())
    if not found or not all(map(_TOKEN.fullmatch, found)):
        holds = "must hold tokens of at least 16 printable characters" if found else "is not set"
        raise InputError(f"the environment variable {variable} {holds}", field="gateway.token_variable")
    return found


def key_of(token: str) -> str:
    """The name by which a token's spending is kept: not the token."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI layer that lets in whoever may ask, and ends what takes too long to take its answer.

    Args:
        app: what is behind it.
        tokens: of clients; none lets everybody in.
        hosts: by which names the server may be asked, and then only from this machine; empty: any. A page in a browser
            may lead its own name here.
    """

    def __init__(self, app: App, tokens: Sequence[str], hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}
        self._tokens = [(token.encode(), key_of(token)) for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        headers = dict(scope["headers"])
        key = self._key(headers)
        host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
        name = f"{host[0]}{host[1]}" if host[1] else host[2].partition(":")[0]
        if self._hosts and not is_loopback((scope.get("server") or [""])[0]):
            await refuse(sending, 401, "without bearer tokens this gateway answers its own machine only")
        elif self._hosts and name.lower() not in self._hosts:
            await refuse(sending, 400, "this gateway is not asked by that name")
        elif key is None and scope["path"] not in OPEN_PATHS:
            await refuse(sending, 401, "a bearer token of this gateway is needed: Authorization: Bearer TOKEN")
        else:
            scope["atlas_key"] = key
            await self._app(scope, receive, sending)

    def _key(self, headers: dict[bytes, bytes]) -> str | None:
        if not self._tokens:
            return LOCAL_KEY
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # all are compared, so that time tells nothing
        same = [key for token, key in self._tokens if hmac.compare_digest(token, given.strip())]
        return same[0] if same and kind.lower() == b"bearer" else None


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer with OpenAI's error object."""
    reasons = {400: "invalid_host", 401: "invalid_api_key", 408: "too_slow", 413: "body_too_large", 503: "ending"}
    await say(send, ApiError(status, why, reasons.get(status)))


async def say(send: Send, error: ApiError) -> None:
    """Answer with an error, and end the connection."""
    status, body = error.status, error.body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


class PatientProtocol(H11Protocol):
    """Uvicorn's HTTP that waits :data:`HEADER_SECONDS` for the head of a request, and refuses as the gateway does."""

    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._stalled is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: of a request that is no HTTP, or whose head is too large."""
        body = ApiError(400, msg, "invalid_http").body
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        self._stalled = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
