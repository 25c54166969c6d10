"""What every table of a recipe is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

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


class Section(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
