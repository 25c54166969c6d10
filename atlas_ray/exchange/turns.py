"""Files of records, the turns of a record, and the thought and action in a turn: what the formats have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
_OPEN = re.compile(r"[ \t\n\r]*(\[)[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
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
    """Every object of a file that holds either one JSON array or one object a line; which of the two is seen.

    Of lines one is held at a time; of an array the text is, and one value.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path)
    rows = _values(path) if _is_array(path) else _lines(path)
    for index, (number, row) in enumerate(rows):
        try:
            value = row if number is None else _json(row, path, number)
            record = Record(value, path, index, number)
            _check_characters(record)
            if not isinstance(value, dict):
                raise record.error(f"a record must be a JSON object, this is a {type(value).__name__}")
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        yield record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line that is not blank, with its 1-based number.

    Raises:
        InputError: a line is not UTF-8.
    """
    offset = 0
    # binary, because U+2028 and its like stand unescaped inside a JSON string
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"not UTF-8 at byte {offset + error.start}", path, number) from None
            offset += len(raw)
            line = (line.removeprefix("\ufeff") if number == 1 else line).removesuffix("\n")
            if line.strip():
                yield number, line


def _is_array(path: Path) -> bool:
    """Whether a file holds one array; all of it is looked at, so that one that is not UTF-8 gives no record."""
    first = [line.lstrip().startswith("[") for index, (_, line) in enumerate(_lines(path)) if index == 0]
    return first == [True]


def _values(path: Path) -> Iterator[tuple[None, Any]]:
    """The values of a file's only array, one at a time; an array that is broken gives none.

    Raises:
        InputError: it is not JSON.
    """
    text = path.read_bytes().decode("utf-8-sig")
    decoder = json.JSONDecoder()
    try:
        starts = list(_starts(text, decoder))
    except (ValueError, RecursionError):
        yield from ((None, value) for value in _json(text, path))  # which names the place
        return
    for start in starts:
        yield None, decoder.raw_decode(text, start)[0]


def _starts(text: str, decoder: json.JSONDecoder) -> Iterator[int]:
    """Where the values of an array begin.

    Raises:
        ValueError: it is not an array with something in it.
        RecursionError: it is too deep.
    """
    mark = _OPEN.match(text)
    while mark and mark[1] != "]":
        yield mark.end()
        mark = _NEXT.match(text, decoder.raw_decode(text, mark.end())[1])
    if not mark or mark.end() < len(text):
        raise ValueError


def _check_characters(record: Record) -> None:
    try:
        json.dumps(record.value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise record.error("holds half of a surrogate pair, which is no character") from None


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
