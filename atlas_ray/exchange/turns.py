"""Files of records, the turns of a record, and the thought and action in a turn: what the formats have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..records import OnError

_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
    "developer": "system",
}
_HEADING = re.compile(r"^[ \t]*action[ \t]*:", re.IGNORECASE | re.MULTILINE)
_INLINE = re.compile(r"\bAction[ \t]*:")
_HALF = re.compile("[\ud800-\udfff]")
_THOUGHT = re.compile(r"\s*thought[ \t]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """One JSON object of a file and where it stands: a 1-based ``line``, or the ``index`` in the file's only array."""

    value: dict[str, Any]
    path: Path
    index: int
    line: int | None

    def error(self, message: str, field: str = "") -> InputError:
        """An error that names file, line or record, and field."""
        if self.line is None:
            field = f"[{self.index}].{field}".rstrip(".")
        return InputError(message, self.path, self.line, field)


@dataclass(frozen=True)
class Talk:
    """A record whose turns are in order: ``turns`` as they are, their ``texts``, and which turns are steps."""

    record: Record
    key: str
    turns: list[dict[str, Any]]
    texts: tuple[str, ...]
    start: int

    @property
    def acts(self) -> range:
        """Indices of the turns in which the agent acts; the turn before each is what it saw."""
        return range(self.start + 1, len(self.texts), 2)


def compose(thought: str | None, action: str) -> str:
    """The text of a turn, as the AgentGym repository writes it; without a thought there is no heading for it."""
    return f"Action:\n{action}" if thought is None else f"Thought:\n{thought}\n\nAction:\n{action}"


def parse(text: str) -> tuple[str | None, str] | None:
    """Thought and action of a turn, stripped; None when no action can be found.

    The last line that begins with ``Action:`` counts, in any case; where no line does, the last ``Action:`` inside
    one (the AgentGym repository takes the last ``Action:`` anywhere). Text before it that has no ``Thought:`` is the
    thought all the same, as in AgentGym's reader; no text at all is no thought.
    """
    headings = list(_HEADING.finditer(text)) or list(_INLINE.finditer(text))
    if not headings:
        return None
    before, action = text[: headings[-1].start()], text[headings[-1].end() :].strip()
    heading = _THOUGHT.match(before)
    if heading:
        return before[heading.end() :].strip(), action
    return before.strip() or None, action


def read_records(path: str | Path, on_error: OnError, dropped: list[InputError] | None) -> Iterator[Record]:
    """Every object of a file that holds either one JSON array or one object a line; which of the two is seen."""
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", path, data.count(b"\n", 0, error.start) + 1) from None
    if text.lstrip().startswith("["):
        rows: Iterable[tuple[int | None, Any]] = ((None, row) for row in _json(text, path))
    else:
        # not splitlines(): U+2028 and its like stand unescaped inside a JSON string
        rows = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    for index, (number, row) in enumerate(rows):
        try:
            value = row if number is None else _json(row, path, number)
            record = Record(value, path, index, number)
            if _HALF.search(json.dumps(value, ensure_ascii=False)):
                raise record.error("holds half of a surrogate pair, which is no character")
            if not isinstance(value, dict):
                raise record.error(f"a record must be a JSON object, this is a {type(value).__name__}")
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        yield record


def _json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"not JSON at column {error.colno}: {error.msg}"
        raise InputError(message, path, error.lineno if line is None else line) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise InputError(f"not JSON that can be read: {error}", path, line) from None


def refuse(error: InputError, on_error: OnError, dropped: list[InputError] | None) -> None:
    """Raise ``error``, or note it in ``dropped`` when the reader is to go on."""
    if on_error == "stop":
        raise error
    if dropped is not None:
        dropped.append(error)


def read_talk(record: Record) -> Talk:
    """The turns of a record, checked.

    ``conversations``: instructions, acknowledgement, then observations and actions in turn. ``messages``: a system
    message or none, then observations and actions in turn. A last observation without an action may follow.

    Raises:
        InputError: names record and field.
    """
    key = next((k for k in ("conversations", "messages") if k in record.value), "")
    turns = record.value.get(key)
    if not isinstance(turns, list):
        raise record.error("must be a list of turns", key or "conversations")
    roles: list[str] = []
    texts: list[str] = []
    for number, turn in enumerate(turns):
        field = f"{key}[{number}]"
        if not isinstance(turn, dict):
            raise record.error(f"a turn must be a JSON object, this is a {type(turn).__name__}", field)
        role_key = "from" if "from" in turn else "role"
        text_key = "value" if "value" in turn else "content"
        role, text = turn.get(role_key), turn.get(text_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise record.error(f"must be one of {', '.join(_ROLES)}, is {role!r}", f"{field}.{role_key}")
        if not isinstance(text, str):
            raise record.error(f"must be a string, is a {type(text).__name__}", f"{field}.{text_key}")
        due = ("human", "gpt")[(number - (roles[:1] == ["system"])) % 2]
        opening = number == 0 and key == "messages" and _ROLES[role] == "system"
        if _ROLES[role] != due and not opening:
            raise record.error(f"this turn must be the {due}'s, is the {role}'s", f"{field}.{role_key}")
        roles.append(_ROLES[role])
        texts.append(text)
    start = 2 if key == "conversations" else int(roles[:1] == ["system"])
    if len(texts) < start + 2:
        raise record.error(f"has {len(texts)} turns, which is no step yet", key)
    return Talk(record, key, turns, tuple(texts), start)
