"""Recipes: what a run does, in TOML. Unknown keys are refused, and every field says what it means.

This module imports neither torch nor Ray, so ``--help`` and ``--dry-run`` are quick.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import InputError
from .base import Section
from .finetune import Arm, Finetune, Scratch
from .schema import Act, Collect, Engine, Evaluate, Recipe
from .select import Oracle, Select, Selector
from .sweep import Draw, Sweep
from .switch import Switch, SwitchModel
from .toml_text import line_of, put, value_of

__all__ = [
    "Act",
    "Arm",
    "Collect",
    "Draw",
    "Engine",
    "Evaluate",
    "Finetune",
    "Oracle",
    "Recipe",
    "Scratch",
    "Section",
    "Select",
    "Selector",
    "Sweep",
    "Switch",
    "SwitchModel",
    "load",
    "shipped",
]


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in _recipes().iterdir() if f.name.endswith(".toml"))


def _recipes() -> Any:
    return resources.files("atlas_ray") / "recipes"


def load(name: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read a recipe by shipped name or by path, with dotted overrides (``{"select.fraction": "0.2"}``).

    Raises:
        InputError: names the file, the line and the field, and the nearest valid name of an unknown one.
    """
    path = Path(name)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 at byte {error.start}", path) from None
    elif str(name) in shipped():
        text, path = (_recipes() / f"{name}.toml").read_text(encoding="utf-8"), Path(f"{name}.toml")
    else:
        near = difflib.get_close_matches(str(name), shipped(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; shipped are {', '.join(shipped())}"
        raise InputError(f"no recipe of that name and no such file{hint}", name)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise InputError(f"not TOML: {error}", path, int(at[1]) if at else None) from None
    overrides = overrides or {}
    for key, value in overrides.items():
        put(data, key.split("."), value_of(value), key)
    as_text: set[str] = set()
    while True:
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            problems = error.errors()
        # a misspelt key that is required is both unknown and missing: its name says more
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        # pydantic marks a bad key of a mapping by a last part "[key]"
        loc = [str(p) for p in problem["loc"] if p != "[key]"]
        field, kind = ".".join(loc), problem["type"]
        if kind == "string_type" and field in overrides and field not in as_text:
            as_text.add(field)  # `--name 2024` means the text
            put(data, loc, overrides[field], field)
            continue
        message = problem["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            message = _unknown(loc)
        elif kind not in ("missing", "value_error") and not isinstance(problem["input"], dict | list | BaseModel):
            message = f"{message} (got {problem['input']!r})"
        for key in overrides:
            if kind == "value_error" and message.startswith(f"{key.removeprefix(f'{field}.')}: "):
                raise InputError(message.partition(": ")[2], None, None, f"--{key}")
            if field.startswith(f"{key}."):  # within a table or a list that was given in one piece
                raise InputError(f"{field.removeprefix(f'{key}.')}: {message}", None, None, f"--{key}")
            if field == key or (kind == "extra_forbidden" and key.startswith(f"{field}.")):
                raise InputError(message, None, None, f"--{key}")
        raise InputError(message, path, line_of(text, loc), field or None)


def _unknown(loc: list[str]) -> str:
    section: Any = Recipe
    keyed = False  # a mapping's own key comes next
    for part in loc[:-1]:
        if part.isdigit() or keyed:
            keyed = False
            continue
        fields = getattr(section, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
        section, keyed = _section_of(annotation), get_origin(annotation) is dict
    names = list(getattr(section, "model_fields", {}))
    near = difflib.get_close_matches(loc[-1], names, n=1, cutoff=0.3)
    return "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}")


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _section_of(inner)) is not None:
            return found
    return None
