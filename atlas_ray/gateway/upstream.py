"""A model behind an OpenAI-compatible server: a request goes there as the client wrote it, and back comes what it says.

What is changed: the model's name, the limit of the answer, what the recipe adds, and that a stream tells its usage.
Nothing of the client's headers goes there, nothing of the server's comes back.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import httpx

from ..engines.chat_refusals import shown
from ..engines.http_transport import LARGEST_ANSWER, LARGEST_REFUSAL, Destination, first_cause, left_over
from ..engines.request_headers import RequestHeaders
from ..engines.retry import RateLimiter, retry_after
from ..errors import InputError
from ..recipe.gateway import GatewayModel
from ..switching.spending import Usage
from .budget import read_usage
from .clients import Clients
from .replies import ApiError, dumped
from .requests import LIMIT_FIELDS, ChatRequest, finite
from .sse import BadStreamError, StreamedAnswer, events
from .turns import taking_turns

_BUSY = (408, 409, 425, 429)
"""Statuses below 500 after which another attempt may do."""
_END_SECONDS = 0.1


class UpstreamError(Exception):
    """An attempt that gave no answer.

    Args:
        told: what a client hears of it.
        retryable: whether another attempt may do.
        free: whether the server has said that it took nothing for it; else what was reserved stays spent.
        wait: seconds that the server wants to be left alone.
    """

    def __init__(self, told: ApiError, retryable: bool, free: bool = False, wait: float = 0.0) -> None:
        super().__init__(told, retryable, free, wait)
        self.told, self.retryable, self.free, self.wait = told, retryable, free, wait


class Upstream(Protocol):
    """A model that answers."""

    name: str

    async def complete(self, request: ChatRequest) -> tuple[bytes, dict[str, Any], Usage | None]:
        """The body of an answer, the assistant's message, and what it took.

        Raises:
            UpstreamError: there is none.
        """
        ...

    def stream(self, request: ChatRequest, answer: StreamedAnswer) -> AsyncIterator[bytes]:
        """The events of an answer as they come, which ``answer`` has read.

        Raises:
            UpstreamError: it does not come, or breaks off.
        """
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class HttpUpstream:
    """A model behind ``POST {base_url}/chat/completions``.

    Args:
        model: of the recipe, with a ``base_url``.
        where: dotted name of its table.

    Raises:
        InputError: a field cannot be used.
    """

    def __init__(self, model: GatewayModel, where: str) -> None:
        assert model.base_url is not None
        self._model, self.name = model, model.model
        try:
            destination = Destination.of(model.base_url)
            self._headers = RequestHeaders(destination, model.key_variable, model.headers)
            self._url = httpx.URL(f"{destination.base}/chat/completions")
            self._clients = Clients(destination, model.timeout)
        except InputError as error:
            raise InputError(error.message, field=f"{where}.{error.field}" if error.field else where) from None
        except httpx.InvalidURL:
            raise InputError("cannot be read as a URL", field=f"{where}.base_url") from None
        self._rate = RateLimiter(model.rate)

    def body(self, request: ChatRequest) -> bytes:
        """What is sent."""
        made, model = dict(request.body), self._model
        for name in LIMIT_FIELDS:
            made.pop(name, None)
        if model.temperature == "unset":
            made.pop("temperature", None)
        elif model.warmth is not None and made.get("temperature") is None:
            made["temperature"] = model.warmth
        limit = model.max_tokens if request.limit is None else min(request.limit, model.max_tokens)
        if not model.send_system:
            made["messages"] = taking_turns(request.messages)
        made |= {**model.extra, "model": model.model, model.limit_field: limit}
        if request.stream:
            made["stream_options"] = {**(made.get("stream_options") or {}), "include_usage": True}
        return dumped(made)

    async def complete(self, request: ChatRequest) -> tuple[bytes, dict[str, Any], Usage | None]:
        """See :class:`Upstream`."""
        async with self._asked(request) as response:
            data = await self._read(response, LARGEST_ANSWER)
            try:
                said = json.loads(data, parse_constant=_no_number, parse_float=finite)
                message = said["choices"][0]["message"]
                wrong = said.get("error") is not None or len(said["choices"]) < request.choices
                if wrong or not isinstance(message, dict):
                    raise ValueError
            except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
                raise _broken(f"{self.name} gave an answer that is no chat completion") from None
        return data, message, read_usage(said.get("usage"))

    async def stream(self, request: ChatRequest, answer: StreamedAnswer) -> AsyncIterator[bytes]:
        """See :class:`Upstream`."""
        size = 0
        async with self._asked(request) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise _broken(f"{self.name} does not stream")
            parts = response.aiter_raw()
            try:
                async for event in events(parts):
                    told = answer.take(event)
                    size += len(event)
                    if size > LARGEST_ANSWER:
                        raise BadStreamError(f"the answer is longer than {LARGEST_ANSWER} bytes")
                    if answer.done:
                        await _end(parts)
                    if told is not None:
                        yield told
                    if answer.done:
                        return
            except BadStreamError as error:
                raise _broken(f"{self.name}: {shown(str(error), self._headers.sent()[1])}") from None
        if not answer.finished:
            raise _broken(f"the answer of {self.name} broke off")

    async def close(self) -> None:
        """See :class:`Upstream`."""
        await self._clients.close()

    @asynccontextmanager
    async def _asked(self, request: ChatRequest) -> AsyncIterator[httpx.Response]:
        """The response to a request, if it has a status that says so, within the time that it may take."""
        sent = False
        try:
            headers, secrets = self._headers.sent()
        except InputError as error:
            told = ApiError(502, f"{self.name} cannot be asked: {error.message}", "upstream_key")
            raise UpstreamError(told, retryable=False, free=True) from None
        if request.stream:
            headers["Accept"] = "text/event-stream"
        try:
            async with asyncio.timeout(self._model.timeout):
                await asyncio.sleep(self._rate.reserve())
                sending: dict[str, Any] = {"content": self.body(request), "headers": headers}
                async with self._clients.lease() as client, client.stream("POST", self._url, **sending) as got:
                    sent = True
                    if not 200 <= got.status_code < 300:
                        raise self._refusal(got, await self._read(got, LARGEST_REFUSAL, cut=True), secrets)
                    try:
                        yield got
                    finally:
                        if left_over(got):
                            await client.aclose()
        except (TimeoutError, httpx.TimeoutException) as error:
            unsent = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
            told = ApiError(504, f"{self.name} gave no answer in time", "upstream_timeout")
            raise UpstreamError(told, retryable=True, free=unsent) from None
        except httpx.HTTPError as error:
            cause = first_cause(error)
            unsent = not sent and isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol)
            told = ApiError(502, f"{self.name} cannot be reached: {type(cause).__name__}", "upstream_unreachable")
            lasting = isinstance(cause, ssl.SSLCertVerificationError)
            raise UpstreamError(told, retryable=not lasting, free=unsent) from None

    async def _read(self, response: httpx.Response, most: int, cut: bool = False) -> bytes:
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > most:
                if cut:
                    break
                raise _broken(f"the answer of {self.name} is longer than {most} bytes", retryable=False)
        return bytes(data[:most])

    def _refusal(self, response: httpx.Response, data: bytes, secrets: list[str]) -> UpstreamError:
        status = response.status_code
        wait = retry_after({name.lower(): value for name, value in response.headers.items()})
        free, retryable = 300 <= status < 500, status in _BUSY or status >= 500
        said = _error_in(data)
        if status in (401, 403) or not 400 <= status < 500:  # not their text: it may repeat a part of the key
            told = ApiError(502, f"{self.name} answered with HTTP {status}", "upstream_error")
        else:
            reason = said.get("code") if isinstance(said.get("code"), str) else None
            text = shown(str(said.get("message") or ""), secrets) or f"{self.name} answered with HTTP {status}"
            kind = said.get("type") if isinstance(said.get("type"), str) else "invalid_request_error"
            param = said.get("param") if isinstance(said.get("param"), str) else None
            words = {"message": text, "type": kind, "param": param, "code": reason}
            words = {n: shown(v, secrets) if isinstance(v, str) else v for n, v in words.items()}
            # the one status of those that a gateway may give for another's reasons
            status = status if status in (400, 404, 413, 422, 429) else 400
            headers = {"retry-after": f"{wait:.0f}"} if wait else {}
            told = ApiError(status, text, reason, headers=headers, said=words)
        return UpstreamError(told, retryable, free, wait)


async def _end(parts: AsyncIterator[bytes]) -> None:
    """Wait a moment for the end of a response that has said all, without which its connection is closed."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in parts:
                pass


def _broken(why: str, retryable: bool = True) -> UpstreamError:
    return UpstreamError(ApiError(502, why, "upstream_broken"), retryable)


def _error_in(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
        said = found.get("error", found) if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        said = {}
    return said if isinstance(said, dict) else {"message": str(said)}


def _no_number(_: str) -> None:
    raise ValueError
