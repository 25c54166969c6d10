"""Conversations for models that take no system message, or that want user and assistant to take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BESIDE = ("role", "content")


def taking_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with what the system says in the user's, and neighbours of one role as one message.

    Messages that hold more than text and content parts, such as tool calls and names, stay as they are.
    """
    made: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message["role"] in ("system", "developer") else message["role"]
        turned = {**message, "role": role}
        if made and made[-1]["role"] == role and _plain(made[-1]) and _plain(turned):
            made[-1] = {"role": role, "content": _joined(made[-1]["content"], turned["content"])}
        else:
            made.append(turned)
    return made


def _plain(message: Mapping[str, Any]) -> bool:
    more = any(value is not None for name, value in message.items() if name not in _BESIDE)
    return not more and message["role"] in ("user", "assistant") and isinstance(message.get("content"), str | list)


def _joined(one: str | list[Any], two: str | list[Any]) -> str | list[Any]:
    if isinstance(one, str) and isinstance(two, str):
        return f"{one}\n\n{two}"
    return [*_parts(one), *_parts(two)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
