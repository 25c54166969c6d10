"""Server-sent events of a chat completion: pieces of bytes to events, and what an answer says in all of them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ..switching.spending import Usage
from .budget import read_usage
from .replies import dumped

DONE = b"data: [DONE]\n\n"
LARGEST_EVENT = 4 * 2**20
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class BadStreamError(Exception):
    """What came is no stream of a chat completion."""


async def events(parts: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Whole events, each with the blank line behind it; half of one at the end is dropped.

    Raises:
        BadStreamError: an event has no end within :data:`LARGEST_EVENT` bytes.
    """
    rest = b""
    async for part in parts:
        rest += part
        start = 0
        for end in _END.finditer(rest):
            yield rest[start : end.end()]
            start = end.end()
        rest = rest[start:]
        if len(rest) > LARGEST_EVENT:
            raise BadStreamError("an event has no end")


def data_of(event: bytes) -> bytes | None:
    """The data of an event; None of a comment."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines) if lines else None


@dataclass
class StreamedAnswer:
    """What a stream has said so far.

    ``show_usage``: whether the client wants to hear of the usage, which the gateway asks for anyway. ``choices``: how
    many answers there are; the gateway reads the first.
    """

    show_usage: bool
    choices: int = 1
    usage: Usage | None = None
    done: bool = False
    _finished: set[int] = field(default_factory=set)
    _text: list[str] = field(default_factory=list)
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, event: bytes) -> bytes | None:
        """Read an event. What a client gets of it; None where that is nothing.

        Raises:
            BadStreamError: its data is no chunk of a chat completion, or an error.
        """
        data = data_of(event)
        if data is None:
            return event
        if data.strip() == b"[DONE]":
            self.done = True
            return event
        try:
            chunk = json.loads(data, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise BadStreamError("an event holds no JSON") from None
        if not isinstance(chunk, dict) or chunk.get("error") is not None or not isinstance(chunk.get("choices"), list):
            said = chunk.get("error") if isinstance(chunk, dict) else None
            raise BadStreamError(f"the server says {json.dumps(said)}" if said else "an event is no chunk of an answer")
        self.usage = read_usage(chunk.get("usage")) or self.usage
        for choice in chunk["choices"]:
            if isinstance(choice, dict):
                self._add(choice)
        if self.show_usage or "usage" not in chunk:
            return event
        if not chunk["choices"]:
            return None
        del chunk["usage"]
        return b"data: " + dumped(chunk) + b"\n\n"

    @property
    def finished(self) -> bool:
        """Whether all answers have come to their end."""
        return len(self._finished) >= self.choices

    def _add(self, choice: dict[str, Any]) -> None:
        index, delta = choice.get("index", 0), choice.get("delta")
        if choice.get("finish_reason") and isinstance(index, int):
            self._finished.add(index)
        if index != 0 or not isinstance(delta, dict):
            return
        if isinstance(delta.get("content"), str):
            self._text.append(delta["content"])
        for call in delta.get("tool_calls") or ():
            if not isinstance(call, dict) or not isinstance(call.get("index", 0), int):
                continue
            made = self._calls.setdefault(call.get("index", 0), {"id": None, "function": {"name": "", "arguments": ""}})
            made["id"] = call.get("id") or made["id"]
            function = call.get("function")
            for name in ("name", "arguments"):
                if isinstance(function, dict) and isinstance(function.get(name), str):
                    made["function"][name] += function[name]

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as far as the gateway reads it."""
        made: dict[str, Any] = {"role": "assistant", "content": "".join(self._text)}
        if self._calls:
            made["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return made


def _no_number(_: str) -> None:
    raise ValueError
