"""TOML as people write it: on which line a key stands, and single values from the command line."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from ..errors import InputError


def line_of(text: str, loc: list[str]) -> int | None:
    """1-based line where the key at ``loc`` is set, or the table it belongs to, as near as the text tells."""
    table: list[str] = []
    best, depth, wanted = None, 0, ".".join(loc) + "."
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[\[?)([^\[\]]+)\]", line):
            here = table = _parts(header[2])
            if header[1] == "[[":
                name = ".".join(table)
                counts[name] = counts.get(name, -1) + 1
                here = table = [*table, str(counts[name])]
        elif key := re.match(r"""\s*((?:"[^"]*"|'[^']*'|[\w.\s-])+?)\s*=""", line):
            here = [*table, *_parts(key[1])]
        else:
            continue
        # a dotted key is the same key with quotes around it, which is how a field of a sweep may be written
        if len(dotted := ".".join(here) + ".") > depth and wanted.startswith(dotted):
            best, depth = number, len(dotted)
    return best


def _parts(dotted: str) -> list[str]:
    return [a or b or c for a, b, c in re.findall(r"""\"([^"]*)\"|'([^']*)'|([\w-]+)""", dotted)]


def put(data: dict[str, Any], keys: list[str], value: Any, shown: str) -> None:
    """Set a nested key; ``shown`` is the option it came from, for the message.

    Raises:
        InputError: what lies on the way is no table.
    """
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise InputError(f"{key!r} is not a table", None, None, f"--{shown}")
    data[keys[-1]] = value


def value_of(text: str) -> Any:
    """``text`` as a TOML value, or itself when it is none."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
