"""Episodes, step by step. What environments and models wrote is hostile: it only ever passes through ``el``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.records import Annotation, Step, Trajectory, first_problem
from ..data.tool_calls import readable
from ..errors import InputError
from ..rundir.layout import RunLayout
from .page import NOTHING, Html, el, missing, short

_SEEN, _LONG, _CATEGORY = 600, 2000, 200  # characters of an observation, of any other text, of a category
_STEPS = 100  # of one episode


class SwitchStep(Step):
    """A step and which model took it; one between the two is ``model 1`` and so on.

    ``values``: what the switch expected of a step by each model, from QUICK to DEEPTHINK, null where the budget had no
    call left; missing in older files, and where a rule decided.
    """

    actor: str = Field(pattern=r"^(quick|deepthink|model [1-9]\d*)$")
    values: tuple[float | None, ...] | None = Field(default=None, min_length=2)


class RecordedEpisode(BaseModel):
    """``switch/replay.json``: one episode under a switch policy, and others.

    ``budget``: of calls, or ``tokens=2000`` and the like; null is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    policy: str
    budget: int | str | None = None
    env: str
    seed: int
    instruction: str
    success: bool
    steps: tuple[SwitchStep, ...] = Field(min_length=1)
    others: tuple[RecordedEpisode, ...] = ()


@dataclass(frozen=True)
class _Mark:
    """Who marked a step, or did not, and why."""

    text: str
    marked: bool
    why: str = ""


def _cell(mark: _Mark) -> Html:
    if not mark.marked:
        return el("div", el("p", mark.text, cls="none"), cls="marks")
    why = [el("p", f"Why critical: {short(mark.why, _LONG)}", cls="note")] if mark.why else []
    return el("div", el("p", el("span", mark.text, cls="badge")), why, cls="marks")


def _step(number: int, step: Step, marks: Sequence[_Mark]) -> Html:
    by = f" · {short(step.actor, _CATEGORY)}" if step.actor else ""
    head = f"step {number}{by}" + (f" · reward {step.reward:+.3g}" if step.reward else "")
    told = [el("p", head, cls="head"), el("p", short(step.observation, _SEEN), cls="seen")]
    if step.thought:
        told.append(el("p", short(step.thought, _LONG), cls="thought"))
    told.append(el("p", short(readable(step.action), _LONG), cls="action"))
    cells = [_cell(mark) for mark in marks]
    return el("li", el("div", told, cls="told"), cells, cls="marked" if any(m.marked for m in marks) else "step")


def _episode(note: str, instruction: str, steps: Sequence[Step], marks: Sequence[Sequence[_Mark]]) -> list[Html]:
    rows = [_step(i, *both) for i, both in enumerate(zip(steps, marks, strict=True), start=1)]
    parts = [
        el("p", note, cls="note"),
        el("p", el("strong", "Instruction: "), short(instruction, _LONG), cls="goal"),
        el("ol", rows[:_STEPS], cls="steps"),
    ]
    if len(rows) > _STEPS:
        parts.append(el("p", f"… and {len(rows) - _STEPS:,} more steps.", cls="note"))
    return parts


def marked_episode(trajectory: Trajectory, annotations: Mapping[str, Annotation]) -> list[Html]:
    """An episode with the critical steps of each selector in a column of its own."""
    steps = len(trajectory.steps)
    marks = [[_mark(name, annotation, i) for name, annotation in annotations.items()] for i in range(steps)]
    counts = [
        f"{name}: {len(annotation.critical)} of {steps} steps are critical (at most {annotation.fraction:.0%})"
        for name, annotation in annotations.items()
    ]
    if len(annotations) > 1:
        counts.append(f"{len(set.intersection(*(set(a.critical) for a in annotations.values())))} by both")
    note = f"{trajectory.env}, seed {trajectory.seed}, {trajectory.source}: {_outcome(trajectory.success)}; "
    return _episode(note + f"{'; '.join(counts)}.", trajectory.instruction, trajectory.steps, marks)


def _mark(selector: str, annotation: Annotation, step: int) -> _Mark:
    category = (annotation.categories or {}).get(step)
    if step not in annotation.critical:
        said = short(category, _CATEGORY) if category else NOTHING
        return _Mark(f"{selector}: {said}", False, (annotation.reasons or {}).get(step, ""))
    category = category or "critical"
    return _Mark(f"{selector}: {short(category, _CATEGORY)}", True, (annotation.reasons or {}).get(step, ""))


def _outcome(success: bool | None) -> str:
    return "outcome unknown" if success is None else "success" if success else "no success"


def recorded_episodes(run_dir: Path) -> list[RecordedEpisode]:
    """The episodes under a switch that the run recorded step by step.

    Raises:
        InputError: ``switch/replay.json`` is not what it should be; names the field.
    """
    path = RunLayout(run_dir).switch_replay
    if not path.is_file():
        return []
    try:
        recorded = RecordedEpisode.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None
    return [recorded, *recorded.others]


def switch_episode_view(run_dir: Path) -> list[Html]:
    """An episode under a switch policy with the DEEPTHINK calls marked.

    Raises:
        InputError: ``switch/replay.json`` is not what it should be; names the field.
    """
    found = recorded_episodes(run_dir)
    if not found:
        return [missing(f"{RunLayout(run_dir).switch_replay.relative_to(run_dir)} is missing")]
    recorded = found[0]
    called = [step.actor != "quick" for step in recorded.steps]
    marks = [
        [_Mark(step.actor.upper() if call else "quick", call)]
        for step, call in zip(recorded.steps, called, strict=True)
    ]
    budget = "without a budget" if recorded.budget is None else f"budget {recorded.budget}"
    whose = "by DEEPTHINK" if all(s.actor in ("quick", "deepthink") for s in recorded.steps) else "not by QUICK"
    count = f"{sum(called)} of {len(called)} steps {whose}"
    note = f"{recorded.env}, seed {recorded.seed}, {recorded.policy}, {budget}: {_outcome(recorded.success)}; {count}."
    return _episode(note, recorded.instruction, recorded.steps, marks)
