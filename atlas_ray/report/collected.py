"""The parts of the report on what it took to collect the episodes of models, and on how collected episodes ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.kept import Outcomes, outcome, outcomes_of
from ..data.records import first_problem
from ..errors import InputError
from ..rundir.layout import RunLayout
from .page import NOTHING, Html, el, short, table
from .selection import Marks

_Count = Annotated[int, Field(ge=0)]
_SELECTORS = 8  # in a table


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
    """What collecting took; None where no model collected.

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
    """How many episodes and calls it took to collect with models, and who acted; nothing of other runs."""
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
    note = "Over all episodes that were played, not only those that are kept."
    if len(usage.models) > 1:
        note += f" Steps of each model: {by_model}. Calls are the steps of any model but the first."
    else:
        del shown["calls"]
    return [
        el("h3", "What it took to collect the episodes"),
        table(list(shown), [list(shown.values())]),
        el("p", note, cls="note"),
    ]


def outcomes_part(marks: Marks) -> list[Html]:
    """How the collected episodes ended, and how much of each kind the selectors marked; nothing if all succeeded."""
    ended = outcomes_of(marks.trajectories)
    if not ended.mixed:
        return []
    names = list(marks.found)[:_SELECTORS]
    rows: list[list[str | Html]] = []
    for kind in (kind for kind in Outcomes._fields if getattr(ended, kind)):
        of_kind = [t for t in marks.trajectories if outcome(t.success) == kind]
        shares = []
        for name in names:
            found = marks.found[name]
            there = [(len(found[t.id].critical), len(t.steps)) for t in of_kind if t.id in found]
            marked, steps = (sum(column) for column in zip(*there, strict=True)) if there else (0, 0)
            shares.append(f"{marked / steps:.1%}" if steps else NOTHING)
        steps = sum(len(t.steps) for t in of_kind)
        rows.append(["unknown outcome" if kind == "unknown" else kind, f"{len(of_kind):,}", f"{steps:,}", *shares])
    return [
        el("h3", "How the collected episodes ended"),
        table(["", "episodes", "steps", *names], rows),
        el(
            "p", "Of each selector the share of these steps that it marked, where it annotated the episode.", cls="note"
        ),
    ]
