"""What is sent to a chat server, with and without what not every server knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import EndpointError
from . import retry

Part = Literal["schema", "system", "seed"]
"""Of a request, what a server may not know and what can be left out: a JSON schema, system messages and neighbours of
one role, a seed."""


class Batch:
    """What the conversations of one call share: ``stop`` ends them all, ``error`` says why.

    ``fail_fast``: one failure ends them all.
    """

    def __init__(self, fail_fast: bool) -> None:
        self.fail_fast, self.stop = fail_fast, threading.Event()
        self.error: EndpointError | None = None

    def sleep(self, seconds: float) -> None:
        """Wait, unless the others already failed."""
        if retry.sleep(self.stop, seconds):
            raise self.error or EndpointError("stopped")


@dataclass(frozen=True)
class Request:
    """A conversation on its way. What is optional of it is left out where the server does not know it."""

    shared: Mapping[str, Any]
    talk: Sequence[Mapping[str, str]]
    limit: int
    seed: int | None
    schema: Mapping[str, Any] | None

    def parts(self) -> set[Part]:
        """What of it is optional."""
        turns = taking_turns(self.talk) != [dict(message) for message in self.talk]
        found: dict[Part, bool] = {"schema": self.schema is not None, "system": turns, "seed": self.seed is not None}
        return {part for part, there in found.items() if there}

    def body(self, parts: Set[Part]) -> bytes:
        """What is sent, with these of its parts."""
        talk = list(self.talk) if "system" in parts else taking_turns(self.talk)
        made: dict[str, Any] = {**self.shared, "messages": talk}
        if "seed" in parts and self.seed is not None:
            made["seed"] = self.seed & 0x7FFFFFFF
        if "schema" in parts:
            named = {"name": "answer", "schema": self.schema, "strict": True}
            made["response_format"] = {"type": "json_schema", "json_schema": named}
        # half of a surrogate pair is no character: it goes out as "?"
        return json.dumps(made, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def taking_turns(talk: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A conversation without a system message, in which no two neighbours have one role."""
    made: list[dict[str, str]] = []
    for message in talk:
        role = "user" if message["role"] == "system" else message["role"]
        if made and made[-1]["role"] == role:
            made[-1]["content"] += f"\n\n{message['content']}"
        else:
            made.append({"role": role, "content": message["content"]})
    return made
