"""The fields of `[sweep]`."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import ConfigModel, Positive

METRICS = {"switch": ("success", "return", "objective", "calls"), "atlas": ("held_in", "held_out")}
"""What a trial can be judged by; the first is the default."""

Choices = Annotated[list[Any], Field(min_length=1)]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]


class SearchSpace(ConfigModel):
    """Where the values of a field come from: one of these."""

    grid: Choices | None = None
    """Each of these."""
    choice: Choices | None = None
    """One of these at random."""
    uniform: Bounds | None = None
    """A number between two."""
    loguniform: Bounds | None = None
    """A number between two above 0, each order of magnitude as likely as the others."""
    randint: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """A whole number between two, both included."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)} (got {', '.join(given) or 'none'})")
        values = self.choices
        if values and any(a == b for a, b in itertools.combinations(values, 2)):
            raise ValueError(f"{given[0]}: one value stands twice")
        if bounds := self.bounds:
            if bounds[0] >= bounds[1]:
                raise ValueError(
                    f"{given[0]}: the first must be below the second (got {bounds[0]:g} and {bounds[1]:g})"
                )
            if self.loguniform and bounds[0] <= 0:
                raise ValueError(f"loguniform: must be above 0 (got {bounds[0]:g})")
        return self

    @property
    def choices(self) -> list[Any]:
        """The values of `grid` or `choice`."""
        return self.grid or self.choice or []

    @property
    def bounds(self) -> list[Any]:
        """Both ends of a range."""
        return self.uniform or self.loguniform or self.randint or []

    def draw(self, rng: random.Random) -> Any:
        """One value."""
        if self.choices:
            return rng.choice(self.choices)
        low, high = self.bounds
        if self.randint:
            return rng.randint(low, high)
        return rng.uniform(low, high) if self.uniform else math.exp(rng.uniform(math.log(low), math.log(high)))


class Sweep(ConfigModel):
    """Trials of the recipe with other values, by Ray Tune."""

    metric: Literal["success", "return", "objective", "calls", "held_in", "held_out"] | None = None
    """What a trial is judged by. Of a switch `success` (without this), `return`, `objective` (return less what calls
    cost) or `calls`; of a tuned model success `held_in` (without this) or `held_out`."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    samples: Positive = 1
    """Draws for each point of the grid."""
    concurrent: Positive | None = None
    """Most trials side by side; without it, and at most, as many as there are CPUs and GPUs for."""
    workers: int | None = Field(default=None, ge=0)
    """Of ATLaS: `workers` of a trial. Without it 0, so that a trial plays in its own process, or the recipe's own where
    engine actors serve them; what trials share is always done by the recipe's own."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """Of a switch: `asha` stops trials that lag behind, `pbt` goes on from better ones with other values."""
    space: dict[str, SearchSpace] = Field(min_length=1)
    """A field of the recipe and its values: `switch.learning_rate = { loguniform = [1e-4, 1e-2] }`."""

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("space"), dict):
            return {**given, "space": dict(flat_space(given["space"]))}
        return given

    @property
    def kind(self) -> Literal["switch", "atlas"]:
        """What is swept: the trainings of the switch, or the stages of ATLaS."""
        return "switch" if any(field.startswith("switch.") for field in self.space) else "atlas"

    @property
    def judged_by(self) -> str:
        """The metric."""
        return self.metric or METRICS[self.kind][0]


def flat_space(space: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Fields and values of a space as TOML has it, where a dotted key is one field with and without quotes."""
    for key, value in space.items():
        if isinstance(value, dict) and value and not value.keys() & SearchSpace.model_fields.keys() and _nested(value):
            yield from flat_space(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _nested(value: dict[str, Any]) -> bool:
    return all(isinstance(inner, dict) for inner in value.values())


Draw = SearchSpace
"""The name of the release before, which pickles may hold."""
