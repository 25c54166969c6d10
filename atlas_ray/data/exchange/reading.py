"""Records of a user's file, whatever shape it has: docs/formats.md has the table of shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import InputError, json_kind
from ..records import OnError
from .raw_files import is_parquet, parquet_rows, text_lines, whole_text

KEYS = ("conversations", "messages", "steps", "traj")
"""Under which a record has its turns: AgentTraj-L and ShareGPT, OpenAI messages, our own JSONL, tau-bench."""
_GAP = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class JsonRecord:
    """One JSON object of a file and where it stands: a 1-based ``line``, or a ``place`` such as ``rows[3]``."""

    value: dict[str, Any]
    path: Path
    index: int
    line: int | None
    place: str = ""

    def error(self, message: str, field: str = "") -> InputError:
        """An error that names file, line or record, and field."""
        return InputError(message, self.path, self.line, f"{self.place}.{field}".strip("."))


@dataclass(frozen=True)
class _RawRecord:
    """A record that is not looked at yet: ``text`` that may hold several, or a ``value`` with its ``flaw``."""

    line: int | None = None
    place: str = ""
    text: str | None = None
    value: Any = None
    flaw: str = ""


def read_records(
    path: str | Path, on_error: OnError, dropped: list[InputError] | None, peek: bool = False
) -> Iterator[JsonRecord]:
    """Every record of a file.

    Of lines and of parquet few are in memory at a time, of objects that span lines the text and one value. An array is
    in memory as a whole, and shrinks as its records are taken.

    Args:
        path: the file.
        on_error: ``"stop"`` raises at the first bad record, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every record that was left out.
        peek: only the first record is wanted, so the rest of the file is not looked at.

    Raises:
        InputError: names file, line or record, and field; always where the file as a whole cannot be read.
    """
    path, index = Path(path), -1
    if not path.is_file():
        raise InputError("no such file", path)
    for row in _parquet(path) if is_parquet(path) else _text(path, peek):
        try:
            found = [row] if row.text is None else _values(row.text, path, row.line or 1)
        except InputError as error:
            index += 1
            refuse(error, on_error, dropped)
            continue
        for one in found:
            index += 1
            try:
                yield _record(one, path, index)
            except InputError as error:
                refuse(error, on_error, dropped)


def refuse(error: InputError, on_error: OnError, dropped: list[InputError] | None) -> None:
    """Raise ``error``, or note it in ``dropped`` when the reader is to go on."""
    if on_error == "stop":
        raise error
    if dropped is not None:
        dropped.append(error)


def turns_key(value: object) -> str | None:
    """Under which key a record has its turns, the first of two that are not empty; None where there is none."""
    there = [k for k in KEYS if value.get(k) is not None] if isinstance(value, dict) else []
    return next((k for k in there if value[k]), there[0] if there else None)  # type: ignore[index]


def _record(row: _RawRecord, path: Path, index: int) -> JsonRecord:
    value, place = row.value, row.place
    if isinstance(value, list) and value and is_turn(value[0]):
        value = {"messages" if "role" in value[0] else "conversations": value}
    elif not turns_key(value) and isinstance(value, dict) and turns_key(value.get("row")):
        value, place = value["row"], f"{place}.row".strip(".")
    record = JsonRecord(value, path, index, row.line, place)
    if row.flaw:
        raise record.error(row.flaw)
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise record.error("holds half of a surrogate pair, which is no character") from None
    if not isinstance(value, dict):
        raise record.error(f"a record must be a JSON object, this is {json_kind(value)}")
    return record


def is_turn(value: object) -> bool:
    """Whether this looks like a turn of a conversation and not like a record."""
    if not isinstance(value, dict) or turns_key(value):
        return False
    return ("role" in value or "from" in value) and ("content" in value or "value" in value)


# --- shapes ---


def _parquet(path: Path) -> Iterator[_RawRecord]:
    return (_RawRecord(place=f"[{number}]", value=row) for number, row in enumerate(parquet_rows(path)))


def _text(path: Path, peek: bool) -> Iterator[_RawRecord]:
    """The rows of a text; unless ``peek``, one that is not UTF-8 somewhere gives none."""
    start, first, alone = _glance(path, peek)
    value = _loaded(first)
    if start == "[" and (alone or value is None):
        yield from _array(path, peek)
        return
    if start == "{" and value is None and _goes_on(first):
        text = whole_text(path)
        if starts := _stream(text, peek):
            yield from _objects(text, starts, path)
            return
    if alone and isinstance(value, dict) and not turns_key(value):
        yield from _unwrapped(value, path, _RawRecord(line=1, text=first))
        return
    yield from (_RawRecord(line=number, text=line) for number, line in text_lines(path))


def _glance(path: Path, peek: bool) -> tuple[str, str, bool]:
    """(first character, first line, whether it is the only one) of a text; the line of an array alone is left out."""
    first, lines = "", 0
    for _, line in islice(text_lines(path), 2 if peek else None):
        first, lines = first or line, lines + 1
    start = first.lstrip()[:1]
    return start, "" if start == "[" and lines == 1 else first, lines == 1


def _array(path: Path, peek: bool) -> Iterator[_RawRecord]:
    """The values of a file's only array; the array itself where it holds turns."""
    decoder = _Decoder()
    values = _array_values(decoder, whole_text(path), path, peek)
    if values and is_turn(values[0]):
        yield _RawRecord(value=values, flaw=decoder.flaw(values))
        return
    for number, value in enumerate(values):
        values[number] = None  # the reader may keep little of each, and all of them are large
        yield _RawRecord(place=f"[{number}]", value=value, flaw=decoder.flaw(value))


def _array_values(decoder: _Decoder, text: str, path: Path, peek: bool) -> list[Any]:
    """The values of an array; with ``peek`` the first alone, unless it is a turn.

    Raises:
        InputError: it is not JSON; names the line and the column.
    """
    if peek:
        with suppress(ValueError, RecursionError):
            first, _ = decoder.decode_at(text, _after_gap(text, _after_gap(text, 0) + 1))
            if not is_turn(first):
                return [first]
    try:
        values: list[Any] = decoder.decode(text)
        return values
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON at column {error.colno}: {error.msg}", path, error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON that can be read: {error}", path) from None


def _stream(text: str, peek: bool) -> list[int]:
    """Where the values of a text begin that stand one after another; nothing where it holds anything else."""
    decoder, starts, at = json.JSONDecoder(), list[int](), _after_gap(text, 0)
    try:
        while at < len(text) and not (peek and starts):
            end = decoder.raw_decode(text, at)[1]
            starts.append(at)
            at = _after_gap(text, end)
    except (ValueError, RecursionError):
        return []
    return starts


def _objects(text: str, starts: list[int], path: Path) -> Iterator[_RawRecord]:
    decoder, line, before = _Decoder(), 1, 0
    for start in starts:
        line, before = line + text.count("\n", before, start), start
        value, _ = decoder.decode_at(text, start)
        row = _RawRecord(line=line, value=value, flaw=decoder.flaw(value))
        if len(starts) == 1 and isinstance(value, dict) and not turns_key(value):
            yield from _unwrapped(value, path, row)
        else:
            yield row


def _unwrapped(value: dict[str, Any], path: Path, row: _RawRecord) -> Iterator[_RawRecord]:
    """The records of a file that is one object with a list of them under a key; ``row`` where it is none.

    Raises:
        InputError: there is more than one such list.
    """
    lists = [k for k, v in value.items() if isinstance(v, list) and v and _holds_turns(v[0])]
    if len(lists) > 1:
        message = f"is one JSON object with records under {' and '.join(lists)}: keep one of these lists"
        raise InputError(message, path)
    if not lists:
        yield row
        return
    for number, one in enumerate(value[lists[0]]):
        yield _RawRecord(place=f"{lists[0]}[{number}]", value=one, flaw=row.flaw)


def _holds_turns(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and is_turn(value[0])
    return bool(turns_key(value) or (isinstance(value, dict) and turns_key(value.get("row"))))


# --- JSON ---


class _Decoder(json.JSONDecoder):
    """A decoder that notes what Python's own lets pass: a key twice in an object."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._flaws = dict[int, tuple[object, str]]()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            # held by its flaw, or another object would get its id
            self._flaws[id(made)] = made, f"has the key {twice!r} twice in one object: which one counts?"
        return made

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """(value, where it ends) of the value at ``start``; its flaws and no others are known from now on."""
        self._flaws.clear()
        return self.raw_decode(text, start)

    def flaw(self, value: object) -> str:
        """What is wrong with a value that was decoded, or nothing."""
        parts = [value] if self._flaws else []
        while parts:
            part = parts.pop()
            if id(part) in self._flaws:
                return self._flaws[id(part)][1]
            if isinstance(part, dict | list):
                parts += part.values() if isinstance(part, dict) else part
        return ""


def _loaded(text: str) -> Any:
    """The one value of a text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _goes_on(line: str) -> bool:
    """Whether a line is the beginning of a value that ends on another one."""
    try:
        json.JSONDecoder().raw_decode(line, _after_gap(line, 0))
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip()) - 1
    except (ValueError, RecursionError):
        pass
    return False


def _after_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def _values(text: str, path: Path, line: int) -> list[_RawRecord]:
    """The values of a line; several where they stand one after another, as in a file whose lines end in CR alone."""
    decoder, rows, at = _Decoder(), list[_RawRecord](), _after_gap(text, 0)
    try:
        while at < len(text) and (not rows or text[at] in "{["):
            here = line + text.count("\r", 0, at)
            value, end = decoder.decode_at(text, at)
            rows.append(_RawRecord(line=here, value=value, flaw=decoder.flaw(value)))
            at = _after_gap(text, end)
        if at < len(text):
            json.loads(text)  # which names the place
    except json.JSONDecodeError as error:
        here = line + text.count("\r", 0, error.pos)
        column = error.pos - max(text.rfind("\r", 0, error.pos), text.rfind("\n", 0, error.pos))
        raise InputError(f"not JSON at column {column}: {error.msg}", path, here) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise InputError(f"not JSON that can be read: {error}", path, line) from None
    return rows
