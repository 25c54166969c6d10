"""Tool calls as the action of a step: one JSON text, and the same for people to read.

An action that calls tools is ``[{"name": "bash", "arguments": {"command": "ls"}, "id": "call_1"}]``, parallel calls in
one list: keys in this order, ``id`` only where there is one, the arguments' keys as the model wrote them, no escapes
but JSON's own. So equal calls are equal texts (the form is ours).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import json_kind

_BEGINS = '[{"name": '


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. ``arguments`` are a JSON object, ``id`` names the call where something answers to it."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None

    def row(self) -> dict[str, Any]:
        """The call as it stands in an action."""
        return {"name": self.name, "arguments": self.arguments} | ({"id": self.id} if self.id is not None else {})


def write_calls(calls: Sequence[ToolCall]) -> str:
    """The action that makes these calls, at least one."""
    return as_text([call.row() for call in calls])


def as_text(value: Any) -> str:
    """A JSON text, with no escapes but JSON's own."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def calls_of(action: str) -> tuple[ToolCall, ...] | None:
    """The calls that an action makes; None where it is another text."""
    if not action.startswith(_BEGINS):
        return None
    try:
        calls = tuple(ToolCall(row["name"], row["arguments"], row.get("id")) for row in json.loads(action))
        return calls if _sound(calls) and write_calls(calls) == action else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sound(calls: Sequence[ToolCall]) -> bool:
    return all(
        isinstance(c.name, str) and isinstance(c.arguments, dict) and isinstance(c.id, str | None) for c in calls
    )


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments in the JSON text that a model wrote; an empty text is no arguments.

    Raises:
        ValueError: it is no JSON object; says why in words.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON at column {error.colno}: {error.msg}") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise ValueError("is JSON that is too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, is {json_kind(value)}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has the key {next(n for n in names if names.count(n) > 1)!r} twice in one object")
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is no number of JSON")


def readable(action: str) -> str:
    """An action for people: of calls the name of each and its arguments, a line each, text as it is; others as is.

    Parallel calls have their ids behind their names, by which results name them.
    """
    calls = calls_of(action)
    return action if calls is None else "\n".join(_readable(call, len(calls) > 1) for call in calls)


def _readable(call: ToolCall, named: bool) -> str:
    name = f" [{call.id}]" if named and call.id is not None else ""
    lines = [f"call {call.name}{name}" + ("" if call.arguments else " without arguments")]
    for key, value in call.arguments.items():
        text = value if isinstance(value, str) else as_text(value)
        if isinstance(value, str) and "\n" in text:
            lines += [f"  {key}:", *(f"    {line}" for line in text.split("\n"))]
        else:
            lines.append(f"  {key}: {text}")
    return "\n".join(lines)
