"""Writes the reference of a recipe's fields from the schema, so that none is typed: name, type, default, meaning.

python docs/site/recipe_reference.py   # prints it as Markdown
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from atlas_ray.recipe.base import ConfigModel
from atlas_ray.recipe.schema import Recipe

NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "nothing"}
BOUNDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
    "min_length": "at least",
    "max_length": "most",
}


def tables() -> Iterator[tuple[str, type[ConfigModel]]]:
    """Every table of a recipe with its heading in TOML, in the order of the schema; the first has none."""
    yield from _below("", Recipe, ())


def _below(path: str, table: type[ConfigModel], above: tuple[type, ...]) -> Iterator[tuple[str, type[ConfigModel]]]:
    yield path, table
    for name, field in table.model_fields.items():
        for before, after, inner in _inner(field.annotation):
            if inner not in above:
                place = f"{path.strip('[]')}.{name}".lstrip(".") + after
                yield from _below(f"{before}[{place}]{']' if before else ''}", inner, (*above, table))


def _inner(annotation: Any, before: str = "", after: str = "") -> list[tuple[str, str, type[ConfigModel]]]:
    """The tables in an annotation, each with what stands around its name in TOML."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return [(before, after, annotation)]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list:
        return _inner(inner[0], "[", after)
    if origin is dict:
        return _inner(inner[1], before, f"{after}.NAME")
    if origin in (Union, types.UnionType, Annotated):
        found = [table for part in inner for table in _inner(part, before, after)]
        return list(dict.fromkeys(found))
    return []


def type_of(annotation: Any) -> str:
    """An annotation in plain words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(type_of(inner[0]), inner[1:])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_of(part) for part in inner if part is not type(None)))
    if origin in (list, tuple):
        return f"list of {type_of(inner[0])}"
    if origin is dict:
        return f"table of {type_of(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return "table"
    return NAMES.get(annotation, "any value")


def _bounded(name: str, metadata: tuple[Any, ...] | list[Any]) -> str:
    limits = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    told = []
    for limit in limits:
        for key, word in BOUNDS.items():
            value = getattr(limit, key, None)
            if value is not None and not (key == "min_length" and name == "text"):
                told.append(f"{word} {value:g}{' of them' if key.endswith('length') else ''}")
    return ", ".join([name, *told])


def default_of(field: FieldInfo) -> str:
    """What a field is without being given, as TOML would have it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, ConfigModel):
        given = value.model_dump(exclude_unset=True)
        return f"`{_toml(given)}`" if given else "its own"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, ConfigModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(v)}' for key, v in value.items())} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def markdown() -> str:
    """The reference: a section per table, a row per field."""
    parts = []
    for heading, table in tables():
        title = f"## `{heading}`" if heading else "## The top of the file"
        said = " ".join((table.__doc__ or "").split())
        rows = [
            f"| `{name}` | {_cell(_bounded(type_of(field.annotation), field.metadata))} | {_cell(default_of(field))} "
            f"| {_cell(field.description or '')} |"
            for name, field in table.model_fields.items()
        ]
        parts.append(
            "\n".join([title, "", said, "", "| field | value | default | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
