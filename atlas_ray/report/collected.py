"""The part of the report on what it took to collect the episodes of a switch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.records import first_problem
from ..errors import InputError
from ..rundir.layout import RunLayout
from .page import Html, el, short, table

_Count = Annotated[int, Field(ge=0)]


class CollectingUsage(BaseModel):
    """``trajectories/usage.json``: what all episodes took that were played for those that are kept."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # (it may say more)

    policy: str
    models: tuple[str, ...] = Field(min_length=1)
    episodes: _Count
    kept: _Count
    successes: _Count
    lost: _Count
    steps: _Count
    calls: _Count
    calls_by_model: tuple[_Count, ...]
    tokens: tuple[_Count, ...]
    flops: Annotated[float, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    money: Annotated[float, Field(ge=0)]


def read_collecting_usage(layout: RunLayout) -> CollectingUsage | None:
    """What collecting took; None where no switch collected.

    Raises:
        InputError: the file is not what it should be; names the field.
    """
    path = layout.collecting_usage
    if not path.is_file():
        return None
    try:
        return CollectingUsage.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None


def collected_part(layout: RunLayout) -> list[Html]:
    """How many episodes and calls it took to collect with a switch, and who acted; nothing of other runs."""
    usage = read_collecting_usage(layout)
    if usage is None:
        return []
    by_model = ", ".join(f"{short(m, 60)} {n:,}" for m, n in zip(usage.models, usage.calls_by_model, strict=False))
    cells: dict[str, str] = {
        "collected by": short(usage.policy, 120),
        "kept": f"{usage.kept:,}",
        "played": f"{usage.episodes:,}",
        "successes": f"{usage.successes:,}",
        "lost": f"{usage.lost:,}",
        "steps": f"{usage.steps:,}",
        "calls": f"{usage.calls:,}",
        "tokens": f"{sum(usage.tokens):,}",
        "GFLOPs": f"{usage.flops / 1e9:,.1f}",
        "money": f"{usage.money:.2f}",
    }
    shown = {k: v for k, v in cells.items() if k not in ("lost", "money") or getattr(usage, k)}
    return [
        el("h3", "What it took to collect the episodes"),
        table(list(shown), [list(shown.values())]),
        el(
            "p",
            f"Over all episodes that were played, not only those that are kept. Steps of each model: {by_model}. Calls "
            "are the steps of any model but the first.",
            cls="note",
        ),
    ]
