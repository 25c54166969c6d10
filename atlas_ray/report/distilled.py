"""How well a head predicts its teacher's marks, and what both cost: ``annotations/distilled/head.json``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.records import first_problem
from ..errors import InputError
from ..rundir.files import jsonl_rows
from ..rundir.layout import RunLayout
from .page import Html, el, table
from .reading import span
from .selection import number

_Share = Annotated[float, Field(ge=0, le=1)]
_COSTS = {
    "seconds": "s in all",
    "read_seconds": "s to read",
    "flops": "FLOPs",
    "rollout_steps": "environment steps",
    "replayed_steps": "steps to replay",
    "requests": "requests",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "written tokens",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Quality(_Record):
    trajectories: int
    steps: int
    auc: _Share
    brier: _Share
    brier_of_share: _Share
    calibration_error: _Share
    share: _Share
    teacher_share: _Share
    precision: _Share | None
    recall: _Share | None
    kappa: float | None
    kappa_ci95: tuple[float, float] | None


class _Teacher(_Record):
    given: str
    trajectories: int = Field(ge=1)
    cost: dict[str, float]


class _About(_Record):
    encoder: str
    teacher: _Teacher
    held_out: _Quality
    left_out: _Quality | None


def distilled_part(layout: RunLayout) -> list[Html]:
    """A row for each set of trajectories that tested the head, and costs; nothing where no head was fitted.

    Raises:
        InputError: the file is not what it should be; names the field.
    """
    if not layout.head.is_file():
        return []
    try:
        about = _About.model_validate_json(layout.head.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, layout.head, None, field or None) from None
    heads = ["tested on", "trajectories", "AUC", "Brier score (of the mere share)", "calibration error"]
    heads += ["share marked", "share of the teacher", "precision", "recall", "Cohen's kappa"]
    tested = {"other trajectories": about.held_out, "environments left out": about.left_out}
    rows = [_row(name, quality) for name, quality in tested.items() if quality is not None]
    told = (
        f"A head on what {about.encoder} reads of each step learnt the marks of {about.teacher.given} "
        f"({about.teacher.trajectories:,} trajectories). Other trajectories are those that neither fitted nor tuned "
        "it. Environments left out are all in turn, each scored by a head that saw nothing of it: what to expect in an "
        "environment that the teacher did not mark. The mere share is a constant for all steps."
    )
    return [
        el("h3", "How well marks are predicted"),
        table(heads, rows),
        el("p", told, cls="note"),
        *_costs(layout, about),
    ]


def _row(name: str, quality: _Quality) -> list[str | Html]:
    kappa: str | Html = number(quality.kappa)
    if quality.kappa_ci95:
        kappa = Html(f"{kappa} " + el("span", span(*quality.kappa_ci95), cls="ci"))
    return [
        name,
        f"{quality.trajectories:,}",
        f"{quality.auc:.2f}",
        f"{quality.brier:.3f} ({quality.brier_of_share:.3f})",
        f"{quality.calibration_error:.3f}",
        f"{quality.share:.1%}",
        f"{quality.teacher_share:.1%}",
        number(quality.precision),
        number(quality.recall),
        kappa,
    ]


def _amount(value: float) -> str:
    if value < 100:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}".replace("e+", "e")


def _costs(layout: RunLayout, about: _About) -> list[Html]:
    """What 1,000 trajectories take, of the teacher and of the head, as far as their runs say so."""
    rows: list[list[str | Html]] = []
    read = [r for r in jsonl_rows(layout.metrics) if r.get("stage") == "select" and r.get("selector") == "distilled"]
    own: dict[str, Any] = {name: sum(row.get(name, 0) for row in read) for name in ("read_seconds", "flops")}
    count = sum(row.get("read", 0) for row in read)
    for name, spent, trajectories in (
        (about.teacher.given, about.teacher.cost, about.teacher.trajectories),
        ("distilled", own, count),
    ):
        said = [f"{_amount(1000 * spent[k] / trajectories)} {unit}" for k, unit in _COSTS.items() if spent.get(k)]
        if said:
            rows.append([name, f"{trajectories:,}", ", ".join(said)])
    return [table(["marks", "trajectories", "cost of 1,000 trajectories"], rows, wrap_last=True)] if rows else []
