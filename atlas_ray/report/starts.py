"""How the untuned model does behind marked steps: the table of ``annotations/scores/start-after.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..data.records import first_problem
from ..errors import InputError
from ..rundir.layout import RunLayout
from .page import Html, el, missing, table
from .reading import judge, signed, span

_Share = Annotated[float, Field(ge=0, le=1)]
_TOO_FEW = "too few trajectories to tell"


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    success: _Share
    place: _Share


class StartAfter(_Kind):
    """A selector's row. ``success`` and ``place`` are those behind its own steps, ``difference`` is to ``random``."""

    selector: str
    trajectories: int = Field(ge=0)
    starts: int = Field(ge=0)
    random: _Kind
    beginning: _Kind
    difference: float
    ci95: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Whether the model does better behind marked steps than behind random ones."""
        # one trajectory, resampled, is always itself: its interval has no width and says nothing
        return judge(*self.ci95) if self.trajectories > 1 else _TOO_FEW


def read_starts(run_dir: Path) -> tuple[StartAfter, ...]:
    """The rows; none when there is no such file.

    Raises:
        InputError: the file is not what it should be; names the field.
    """
    path = RunLayout(run_dir).start_after
    if not path.is_file():
        return ()
    try:
        return TypeAdapter(tuple[StartAfter, ...]).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None


def starts_part(found: Sequence[StartAfter]) -> list[Html]:
    """A row a selector, and what a later start has to do with it."""
    if not found:
        return [missing("annotations/scores/start-after.json is missing")]
    heads = ["selector", "starts", "behind marked steps", "behind random steps", "from the beginning", "difference"]
    heads += ["marked steps are", "mean place, marked", "mean place, random"]
    rows: list[list[str | Html]] = [
        [
            row.selector,
            f"{row.starts:,}",
            f"{row.success:.2f}",
            f"{row.random.success:.2f}",
            f"{row.beginning.success:.2f}",
            Html(f"{signed(row.difference)} " + el("span", span(*row.ci95), cls="ci")),
            row.verdict,
            f"{row.place:.2f}",
            f"{row.random.place:.2f}",
        ]
        for row in found
    ]
    later = [row.selector for row in found if round(row.place, 2) > round(row.random.place, 2)]
    here = f"Here they lie later for {', '.join(later) or 'no selector'}."
    return [
        table(heads, rows),
        el(
            "p",
            "Success of the untuned model that goes on behind marked steps, behind as many random steps of the same "
            "trajectories, and from their beginnings; marked minus random with a 95 % interval (trajectories "
            "resampled). Place 0 is the beginning of the episode and 1 its end.",
            cls="note",
        ),
        el(
            "p",
            "A later start is easier whoever chose it, since less is left to do: a difference in favour of marked "
            "steps speaks for them only as far as they do not lie later than the random ones. " + here,
        ),
    ]
