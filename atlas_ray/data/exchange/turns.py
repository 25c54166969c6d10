"""A turn of a conversation: whose it is, its text, what was thought beside it, its flag; and how we write one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import json_kind
from ..parsing import LONGEST_REPLY, parse
from ..thinking import THINKING
from .reading import JsonRecord

Role = Literal["human", "gpt", "system"]
FLAGS = ("loss", "trainable", "train", "weight")
"""Keys on a turn that say whether it is trained."""
_ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "observation": "human",
    "environment": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "agent": "gpt",
    "system": "system",
    "developer": "system",
}
_TOOLS = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "ipython")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_TOLD = 'a tool call, which is read in OpenAI messages only: write it so, or as text, "Action: NAME ARGUMENTS"'
REASONING_KEYS = ("reasoning_content", "reasoning")
_BESIDE = ("system", "system_prompt")
_OBSERVATION = re.compile(
    r"\s*(?:[-*>]\s+|#{1,6}\s+)?(?P<b>\*\*|__)?(?:observation|obs)\s*\d*\s*"
    r"(?(b)(?:(?P=b)\s*[:\uff1a]|[:\uff1a]\s*(?P=b))|[:\uff1a])\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Turn:
    """A turn. ``text`` is its content, ``reasoning`` what was thought beside it, ``raw`` what the file holds."""

    role: Role
    text: str
    reasoning: str
    raw: dict[str, Any] = field(repr=False)

    @property
    def flag(self) -> bool | None:
        """Whether its flag is true; None where it has none, or one that is neither true nor false."""
        return flag_of(self.raw)

    @property
    def text_key(self) -> str:
        """The key of its text."""
        return _keys(self.raw)[1]


@dataclass(frozen=True)
class AgentTurn:
    """What an agent's turn says: ``action`` is None where it has none, ``problem`` then says why in words.

    ``reasoning``: it also has a block of reasoning, or reasoning beside the text. ``invented``: it went on to write an
    observation of its own, which is cut. ``behind``: other text behind the action is cut.
    """

    thought: str | None
    action: str | None
    problem: str = ""
    reasoning: bool = False
    invented: bool = False
    behind: bool = False


def flag_of(raw: dict[str, Any]) -> bool | None:
    """Whether a turn's flag is true; None where it has none, or one that is neither true nor false."""
    value = next((raw[f] for f in FLAGS if raw.get(f) is not None), None)
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def is_answer(raw: dict[str, Any]) -> bool:
    """Whether a turn, as it stands in a file, is the agent's."""
    return _ROLES.get(str(raw.get(_keys(raw)[0])).strip().casefold()) == "gpt"


def compose(thought: str | None, action: str) -> str:
    """The text of a turn, as the AgentGym repository writes it; without a thought there is no heading for it."""
    return f"Action:\n{action}" if thought is None else f"Thought:\n{thought}\n\nAction:\n{action}"


_WORDS = {
    "no action": 'has no "Action:", or nothing behind it',
    "empty": "is empty, so it names no action",
    "too long": f"is longer than {LONGEST_REPLY:,} characters",
}


def read_agent_turn(
    text: str, beside: str = "", thinking: Sequence[str] = THINKING, as_thought: bool = False
) -> AgentTurn:
    """Thought and action of an agent's turn, by the reader of all model replies (:func:`atlas_ray.data.parsing.parse`).

    Args:
        text: its content.
        beside: what was thought, where the file has it beside the content.
        thinking: tags around what was thought, as the reader takes them.
        as_thought: what was thought stands in front of the thought; else it is left out.
    """
    found = parse(text, "react", longest=LONGEST_REPLY, thinking=thinking)
    thinks = [part.strip() for part in (beside, found.reasoning or "") if part.strip()]
    thought = found.thought
    if as_thought and thinks:
        thought = "\n\n".join([*thinks, *([thought] if thought else [])])
    if found.action is None:
        return AgentTurn(thought, None, _WORDS.get(found.problem, found.problem), bool(thinks))
    return AgentTurn(thought, found.action, "", bool(thinks), found.invented, found.behind)


def read_observation(text: str) -> str:
    """What the agent saw, without a heading ``Observation:``, which our renderers write themselves."""
    while heading := _OBSERVATION.match(text):
        text = text[heading.end() :]
    return text


def read_turn(record: JsonRecord, raw: object, where: str) -> Turn:
    """A turn at ``where``, checked.

    Raises:
        InputError: it is none, holds a tool call or something else than text; names record and field.
    """
    if not isinstance(raw, dict):
        raise record.error(f"a turn must be a JSON object, this is {json_kind(raw)}", where)
    role_key, text_key = _keys(raw)
    called = next((k for k in _CALLS if raw.get(k)), None)
    if called:
        raise record.error(f"holds {_TOLD}", f"{where}.{called}")
    name = raw.get(role_key)
    if isinstance(name, str) and name.casefold() in _TOOLS:
        raise record.error(f"is {name!r}: {_TOLD}", f"{where}.{role_key}")
    role = _ROLES.get(name.strip().casefold()) if isinstance(name, str) else None
    if role is None:
        raise record.error(f"must be one of {', '.join(_ROLES)}, is {name!r}", f"{where}.{role_key}")
    content = raw.get(text_key)
    if content is None and role == "system":
        content = ""
    if content is None and text_key in raw:
        raise record.error("is null, so this turn says nothing: leave the turn out, or give it text", _at(where, raw))
    text, reasoning = content_of(record, content, _at(where, raw))
    for key in REASONING_KEYS:
        if isinstance(beside := raw.get(key), str) and role == "gpt" and beside not in reasoning:
            reasoning.append(beside)
    return Turn(role, text, "\n\n".join(filter(str.strip, reasoning)), raw)


def _keys(raw: dict[str, Any]) -> tuple[str, str]:
    role_key = "from" if raw.get("from") is not None else "role"
    return role_key, "value" if raw.get("value") is not None or ("content" not in raw and "value" in raw) else "content"


def _at(where: str, raw: dict[str, Any]) -> str:
    return f"{where}.{_keys(raw)[1]}"


def content_of(record: JsonRecord, content: object, where: str) -> tuple[str, list[str]]:
    """(text, reasoning) of a content: a string, or parts of text, which are joined.

    Raises:
        InputError: it is neither.
    """
    if isinstance(content, str):
        return content, []
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise record.error(f"must be a string, is {json_kind(content)}", where)
    texts: list[str] = []
    reasoning: list[str] = []
    for number, part in enumerate(content):
        at = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("tool_use", "tool_call", "tool_result", "function_call"):
            raise record.error(f"holds {_TOLD}", at)
        elif kind in ("thinking", "reasoning") and isinstance(told := part.get(kind, part.get("text")), str):
            reasoning.append(told)
        elif kind in ("text", "input_text", "output_text", None) and isinstance(part, dict):
            if not isinstance(part.get("text"), str):
                raise record.error("must be a string", f"{at}.text")
            texts.append(part["text"])
        else:
            raise record.error(f"is {repr(kind) if kind else json_kind(part)}, and only parts of text can be read", at)
    return "".join(texts), reasoning


def beside(record: JsonRecord) -> str:
    """The system prompt that stands beside the turns, or nothing.

    Raises:
        InputError: it is no text.
    """
    key = next((k for k in _BESIDE if record.value.get(k) is not None), None)
    if key is None:
        return ""
    if not isinstance(record.value[key], str):
        raise record.error(f"must be a string, is {json_kind(record.value[key])}", key)
    return str(record.value[key])
