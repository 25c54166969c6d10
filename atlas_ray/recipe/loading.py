"""Reads a recipe and says where it is wrong: by file, line and field, with the nearest name that exists.

Imports neither torch nor Ray, so ``--help`` and ``--dry-run`` are quick.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import InputError
from .base import ConfigModel, GivenTwiceError, Renamed, below, table_of
from .collect import Collect, CollectingAgent, ExpertBias
from .finetune import Arm, Finetune, NewModel, Pairs
from .gateway import Gateway, GatewayModel
from .rounds import Rounds
from .schema import Act, Engine, Evaluate, Recipe
from .select import Oracle, Select, Selector
from .sweep import SearchSpace, Sweep
from .sweep_space import check_sweep
from .switch import Switch, SwitchModel
from .toml_text import line_of, put, value_of

__all__ = [
    "Act",
    "Arm",
    "Collect",
    "CollectingAgent",
    "ConfigModel",
    "Engine",
    "Evaluate",
    "ExpertBias",
    "Finetune",
    "Gateway",
    "GatewayModel",
    "NewModel",
    "Oracle",
    "Pairs",
    "Recipe",
    "RenamedKeyWarning",
    "Rounds",
    "SearchSpace",
    "Select",
    "Selector",
    "Sweep",
    "Switch",
    "SwitchModel",
    "load",
    "shipped",
]


QUICK = "quick"
"""A recipe's table of values that make it small, for a first look and for tests."""


class RenamedKeyWarning(FutureWarning):
    """A recipe or an override has a key that was renamed; the next release will not know it."""


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in _recipes().iterdir() if f.name.endswith(".toml"))


def _recipes() -> Any:
    return resources.files("atlas_ray") / "recipes"


def load(name: str | Path, overrides: dict[str, str] | None = None, quick: bool = False) -> Recipe:
    """Read a recipe by shipped name or by path, with dotted overrides (``{"select.fraction": "0.2"}``).

    Warns (:class:`RenamedKeyWarning`) of every key that was renamed.

    Args:
        name: of the recipe, or its path.
        overrides: values by field, as on the command line.
        quick: take its small form, with the values of its ``[quick]`` table.

    Raises:
        InputError: names the file, the line and the field, and the nearest valid name of an unknown one.
    """
    path, text = _read(name)
    source = _Source(path, text, _parsed(path, text))
    small = source.data.pop(QUICK, None)
    source.take_current_keys()
    if quick:
        source.shrink(small)
    for key, value in (overrides or {}).items():
        source.override(key, value)
    return source.validated()


def _read(name: str | Path) -> tuple[Path, str]:
    """The path of a recipe, as messages name it, and its text.

    Raises:
        InputError: there is none of that name, or it is no text.
    """
    path = Path(name)
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 at byte {error.start}", path, code="not_toml") from None
    if str(name) in shipped():
        return Path(f"{name}.toml"), (_recipes() / f"{name}.toml").read_text(encoding="utf-8")
    near = difflib.get_close_matches(str(name), shipped(), n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; shipped are {', '.join(shipped())}"
    raise InputError(f"no recipe of that name and no such file{hint}", name, code="unknown_recipe")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise InputError(f"not TOML: {error}", path, int(at[1]) if at else None, code="not_toml") from None


@dataclass
class _Source:
    """A recipe's data with its overrides, and where each key of it comes from."""

    path: Path
    text: str
    data: dict[str, Any]
    given: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Overrides by the name that the key has today: the option as it was written, and its value."""
    renamed: list[Renamed] = field(default_factory=list)
    """Keys of the file that have other names today."""
    small: list[str] = field(default_factory=list)
    """Fields whose values are those of the small form."""

    def take_current_keys(self) -> None:
        """Give the file's renamed keys their names of today.

        Raises:
            InputError: a key is given under both names.
        """
        try:
            self.data, self.renamed = Recipe.with_current_keys(self.data)
        except GivenTwiceError as error:
            raise InputError(
                str(error).partition(": ")[2], self.path, self._line(error.key.old), error.key.old, "given_twice"
            ) from None
        for key in self.renamed:
            line = self._line(key.old)
            _warn(f"{self.path}{f':{line}' if line else ''}: {key.old}", key.new)

    def shrink(self, table: Any) -> None:
        """Take the small form's values.

        Raises:
            InputError: the recipe has none, or names a field within one that is no table.
        """
        if not isinstance(table, dict) or not table:
            raise InputError(f"the recipe has no [{QUICK}] table", self.path, field="--quick", code="missing_table")
        for key, value in _fields(Recipe, table):
            self.small.append(key)
            put(self.data, key.split("."), value, f"{QUICK}.{key}")

    def override(self, key: str, value: str) -> None:
        """Set a field from the command line.

        Raises:
            InputError: what lies on the way is no table, or the field was set under its other name.
        """
        current = Recipe.current_field(key)
        if current in self.given:
            raise InputError(
                f"is the same field as --{self.given[current][0]}: remove one", field=f"--{key}", code="given_twice"
            )
        if current != key:
            _warn(f"--{key}", f"--{current}")
        self.given[current] = key, value
        put(self.data, current.split("."), value_of(value), key)
        try:
            self.data, renamed = Recipe.with_current_keys(self.data)
        except GivenTwiceError as error:
            raise InputError(str(error), field=f"--{key}", code="given_twice") from None
        for within in renamed:
            _warn(f"--{key}: {within.old}", within.new)

    def validated(self) -> Recipe:
        """The recipe.

        Raises:
            InputError: the first field that is wrong.
        """
        as_text: set[str] = set()
        while True:
            try:
                recipe = Recipe.model_validate(self.data)
                if recipe.sweep:
                    check_sweep(recipe)
                return recipe
            except ValidationError as error:
                problem = _first(error)
            where = ".".join(_parts(problem))
            if problem["type"] != "string_type" or where not in self.given or where in as_text:
                raise self._error(problem)
            as_text.add(where)  # `--name 2024` means the text
            put(self.data, where.split("."), self.given[where][1], self.given[where][0])

    def _error(self, problem: Any) -> InputError:
        """What is wrong, and where it was written."""
        loc, kind, message = _parts(problem), problem["type"], problem["msg"].removeprefix("Value error, ")
        where, code = ".".join(loc), "unknown_key" if kind == "extra_forbidden" else "invalid_value"
        if kind == "extra_forbidden":
            message = _unknown(loc)
        elif kind not in ("missing", "value_error") and not isinstance(problem["input"], dict | list | BaseModel):
            message = f"{message} (got {problem['input']!r})"
        for current, (key, _) in self.given.items():
            option = f"--{key}"
            if kind == "value_error" and message.startswith(f"{current.removeprefix(f'{where}.')}: "):
                return InputError(message.partition(": ")[2], field=option, code=code)
            if where.startswith(f"{current}."):  # within a table or a list that was given in one piece
                return InputError(f"{where.removeprefix(f'{current}.')}: {message}", field=option, code=code)
            if where == current or (kind == "extra_forbidden" and current.startswith(f"{where}.")):
                return InputError(message, field=option, code=code)
        return InputError(message, self.path, self._line(where), where or None, code)

    def _line(self, where: str) -> int | None:
        """The line of a field, under whatever name it stands there."""
        if any(f"{where}.".startswith(f"{field}.") for field in self.small):
            return line_of(self.text, [QUICK, *where.split(".")])
        for key in self.renamed:
            if f"{where}.".startswith(f"{key.new}."):
                where = key.old + where.removeprefix(key.new)
        return line_of(self.text, where.split("."))


def _fields(table: Any, given: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Fields and values, however far the fields are written as tables within tables."""
    for key, value in given.items():
        inner = below(table, key) if "." not in key else None
        if isinstance(value, dict) and inner is not None and table_of(inner):
            yield from _fields(inner, value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is now called {new}; the next release will not know the old name", RenamedKeyWarning, stacklevel=4
    )


def _first(error: ValidationError) -> Any:
    """The problem to speak of. A misspelt key that is required is both unknown and missing: its name says more."""
    problems = error.errors()
    return next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])


def _parts(problem: Any) -> list[str]:
    """Where a problem is; pydantic marks a bad key of a mapping by a last part "[key]"."""
    return [str(part) for part in problem["loc"] if part != "[key]"]


def _unknown(loc: list[str]) -> str:
    annotation: Any = Recipe
    for part in loc[:-1]:
        annotation = below(annotation, part)
    table = table_of(annotation)
    names = list(table.model_fields) if table else []
    near = difflib.get_close_matches(loc[-1], names, n=1, cutoff=0.3)
    return "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}")
