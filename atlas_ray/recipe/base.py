"""What every table of a recipe is made of, and how keys that were renamed are still read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, NamedTuple, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .. import envs


def _environment(name: str) -> str:
    try:
        envs.full_id(name)
    except envs.UnknownEnvironmentError as error:
        raise ValueError(str(error)) from None
    return name


def distinct(names: Iterable[str], field: str) -> None:
    """Refuse two names of one environment.

    Raises:
        ValueError: names both.
    """
    seen: dict[str, str] = {}
    for name in names:
        full = envs.full_id(name)
        if full in seen:
            raise ValueError(f"{field}: {seen[full]!r} and {name!r} are the same environment")
        seen[full] = name


Environment = Annotated[str, AfterValidator(_environment)]
Positive = Annotated[int, Field(ge=1)]


class ConfigModel(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, defer_build=True, allow_inf_nan=False
    )
    renamed: ClassVar[dict[str, str]] = {}
    """Keys of the release before, each with its name of today. Recipes and runs that have them are still read."""


class Renamed(NamedTuple):
    """A dotted key of the release before, and its name of today."""

    old: str
    new: str


class GivenTwiceError(ValueError):
    """A key stands under its old name and under its name of today."""

    def __init__(self, key: Renamed) -> None:
        self.key = key
        super().__init__(f"{key.old}: is the old name of {key.new}, which is given too: remove one")


def with_current_keys(annotation: Any, data: Any, before: str = "") -> tuple[Any, list[Renamed]]:
    """Data of a table, of a list of tables or the like with all keys under their names of today, and what was renamed.

    Raises:
        GivenTwiceError: a key is given under both names.
    """
    found: list[Renamed] = []
    if isinstance(data, list):
        made = [with_current_keys(below(annotation, str(n)), v, f"{before}{n}.") for n, v in enumerate(data)]
        return [value for value, _ in made], [key for _, keys in made for key in keys]
    if not isinstance(data, dict):
        return data, found
    renamed, values = _renamed(annotation), {}
    for key, value in data.items():
        new = renamed.get(key) or key
        if new != key:
            found.append(Renamed(f"{before}{key}", f"{before}{new}"))
            if new in data:
                raise GivenTwiceError(found[-1])
        values[new], keys = with_current_keys(below(annotation, new), value, f"{before}{new}.")
        found += keys
    return values, found


def _renamed(annotation: Any) -> dict[str, str]:
    table = table_of(annotation)
    return table.renamed if table else {}


def current_name(model: type[ConfigModel], field: str) -> str:
    """A dotted field of a recipe by its name of today."""
    return _named(model, field, lambda table: table.renamed)


def first_name(model: type[ConfigModel], field: str) -> str:
    """A dotted field of a recipe by the oldest name that is known of it."""
    return _named(model, current_name(model, field), lambda table: {new: old for old, new in table.renamed.items()})


def _named(model: type[ConfigModel], field: str, names: Callable[[type[ConfigModel]], dict[str, str]]) -> str:
    parts: list[str] = []
    annotation: Any = model
    for part in field.split("."):
        table = table_of(annotation)
        parts.append(names(table).get(part, part) if table else part)
        annotation = below(annotation, _renamed(annotation).get(part) or part)
    return ".".join(parts)


def table_of(annotation: Any) -> type[ConfigModel] | None:
    """The table that an annotation is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return annotation
    if get_origin(annotation) in (list, dict):
        return None
    return next((found for inner in get_args(annotation) if (found := table_of(inner)) is not None), None)


def among(annotation: Any, kind: type) -> Any:
    """The ``kind[...]`` that an annotation is or allows; None where it allows none."""
    if get_origin(annotation) is kind:
        return annotation
    found = (among(inner, kind) for inner in get_args(annotation) if get_origin(annotation) is not kind)
    return next((inner for inner in found if inner is not None), None)


def below(annotation: Any, part: str) -> Any:
    """The annotation of one part of a dotted field; None where there is no such part."""
    if (table := table_of(annotation)) is not None:
        field = table.model_fields.get(part)
        return field.annotation if field else None
    if part.isdigit() and (found := among(annotation, list)) is not None:
        return get_args(found)[0]
    return get_args(found)[1] if (found := among(annotation, dict)) is not None else None
