"""Bodies of requests: how long they may be, what they must hold, and which field is wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..data.parsing import LONGEST_ACTION
from .messages import HALF, LONGEST_TEXT, MOST_ACTIONS, Refused

LARGEST = 2 * 2**20
"""Bytes of a body."""
READ_ON = 64 * 2**20
"""Bytes of a body that are read, and dropped, so that its sender comes to hear that it is too large."""
BODY_SECONDS = 30.0
"""Seconds in which a body must have come."""
_MOST_PROBLEMS, _LONGEST_NAME = 10, 60

Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]
Action = Annotated[str, StringConstraints(max_length=LONGEST_ACTION)]
M = TypeVar("M", bound=BaseModel)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[Send, int, str], Awaitable[None]]


class NewEpisode(BaseModel):
    """The task in words, and how many steps it may take at most."""

    model_config = ConfigDict(extra="forbid", strict=True)
    instruction: Text
    max_steps: int = Field(default=100, ge=1, le=10_000)


class ActBody(BaseModel):
    """What is seen now, and what may be done; without actions the model writes its own, if it is one that writes.

    ``step`` is the number of the step, from 0, by which a request that is sent again is known.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    observation: Text
    actions: Annotated[list[Action], Field(max_length=MOST_ACTIONS)] = []
    step: int | None = Field(default=None, ge=0, le=10_000)


class BadBody(Refused):
    """A body that is not what it should be. ``problems`` names fields, and holds nothing else of it."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(problems[0]["msg"], 422)
        self.problems = problems

    def __reduce__(self) -> tuple[type[BadBody], tuple[list[dict[str, Any]]]]:
        return type(self), (self.problems,)


def read(body: bytes, kind: str, model: type[M]) -> M:
    """The body of a request.

    Args:
        body: as it came.
        kind: its content type.
        model: what it must be.

    Raises:
        BadBody: it is something else.
    """
    media = kind.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise BadBody([_problem("content_type", (), "the content type must be application/json")])
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise BadBody([_problem("json_invalid", (), "is nested too deeply")]) from None
    except UnicodeDecodeError:
        raise BadBody([_problem("json_invalid", (), "is no JSON: it is not UTF-8")]) from None
    except json.JSONDecodeError as error:
        raise BadBody([_problem("json_invalid", (), f"is no JSON: {error.msg}, character {error.pos}")]) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [_problem(e["type"], e["loc"], e["msg"]) for e in found[:_MOST_PROBLEMS]]
    if len(found) > len(problems):
        problems.append(_problem("more", (), f"and {len(found) - len(problems)} more"))
    raise BadBody(problems)


def _problem(kind: str, where: tuple[str | int, ...], message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", *map(_short, where)], "msg": message}


def _short(name: str | int) -> str | int:
    """A name as it can be told: an unknown field's is the client's own."""
    if isinstance(name, int):
        return name
    said = name.encode("utf-8", "replace").decode()
    return said if len(said) <= _LONGEST_NAME else f"{said[:_LONGEST_NAME]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if HALF.search(name):
            raise BadBody([_problem("string_unicode", (name,), "holds half of a surrogate pair")])
        if name in found:
            raise BadBody([_problem("duplicate", (name,), "is there twice")])
        found[name] = value
    return found


def _integer(digits: str) -> int | float:
    # Python refuses to read one of thousands of digits; no field takes a float
    return int(digits) if len(digits) < 20 else float(digits[:20])


class BodyLimits:
    """An ASGI layer that lets requests through whole, or answers 413 to one that is too large and 408 to a slow one.

    What is still on its way when the server ends is answered 503.

    Args:
        app: what is behind it.
        largest: bytes of a body.
        answer: says why a request is refused; by default ``{"detail": ...}``.
    """

    def __init__(self, app: App, largest: int = LARGEST, answer: Refuse | None = None) -> None:
        self._app, self._largest, self._answer = app, largest, answer or _answer
        self._too_large = f"the body is larger than {largest} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._let_through(scope, receive, sending)
        except asyncio.CancelledError:  # by the server, which ends
            if not begun:
                await self._answer(send, 503, "the server is ending")

    async def _let_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"")
        announced = int(told) if told.isdigit() and len(told) < 20 else 0
        if announced > READ_ON or (announced > self._largest and b"expect" in headers):
            await self._answer(send, 413, self._too_large)
            return
        body, size, until = bytearray(), 0, time.monotonic() + BODY_SECONDS
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                await self._answer(send, 408, f"the body did not come within {BODY_SECONDS:g} s")
                return
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            size += len(part)
            if size <= self._largest:
                body += part
            else:
                body.clear()
            more = message.get("more_body", False) and size <= READ_ON
        if size > self._largest:
            await self._answer(send, 413, self._too_large)
            return
        unread = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, send)


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
