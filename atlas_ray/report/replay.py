"""Two episodes, step by step. What environments and models wrote is hostile: it only ever passes through ``el``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..trajectory import Annotation, Step, Trajectory, first_problem, iter_trajectories, read_annotations
from .page import Html, el, missing

_SHOWN = 2000  # characters of one text


class SwitchStep(Step):
    """A step and which model took it."""

    actor: Literal["quick", "deepthink"]


class SwitchReplay(BaseModel):
    """``switch/replay.json``: one episode under a switch policy; ``budget`` null is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    policy: str
    budget: int | None = None
    env: str
    seed: int
    instruction: str
    success: bool
    steps: tuple[SwitchStep, ...] = Field(min_length=1)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"


def _step(number: int, step: Step, badge: str | None, why: str | None) -> Html:
    head: list[Html] = [el("span", f"step {number}")]
    if badge:
        head.append(el("span", " · ", el("span", badge, cls="badge")))
    if step.reward:
        head.append(el("span", f" · reward {step.reward:+.3g}"))
    parts = [el("p", head, cls="head"), el("p", _short(step.observation), cls="seen")]
    if step.thought:
        parts.append(el("p", _short(step.thought), cls="thought"))
    parts.append(el("p", _short(step.action), cls="action"))
    if why:
        parts.append(el("p", f"Why critical: {_short(why)}", cls="note"))
    return el("li", parts, cls="marked" if badge else "step")


def _find(trajectories: Path, annotations: Path) -> tuple[Trajectory, Annotation] | None:
    """The first successful episode of 5 to 20 steps with a critical one, else the first with a critical one."""
    marked = {a.trajectory_id: a for a in read_annotations(annotations) if a.critical}
    other = None
    for trajectory in iter_trajectories(trajectories):
        annotation = marked.get(trajectory.id)
        if annotation is None or annotation.critical[-1] >= len(trajectory.steps):
            continue
        if trajectory.success and 5 <= len(trajectory.steps) <= 20:
            return trajectory, annotation
        other = other or (trajectory, annotation)
    return other


def atlas_replay(run_dir: Path, selector: str = "value") -> list[Html]:
    """An expert episode with the critical steps of ``selector`` marked."""
    trajectories = run_dir / "trajectories" / "expert.jsonl"
    annotations = run_dir / "annotations" / f"{selector}.jsonl"
    for path in (trajectories, annotations):
        if not path.is_file():
            return [missing(f"{path.relative_to(run_dir)} is missing")]
    found = _find(trajectories, annotations)
    if found is None:
        return [missing(f"no episode has a critical step by the selector {selector}")]
    trajectory, annotation = found
    steps = []
    for i, step in enumerate(trajectory.steps):
        critical = i in annotation.critical
        category = (annotation.categories or {}).get(i)
        badge = f"critical: {category}" if category else "critical"
        why = (annotation.reasons or {}).get(i)
        steps.append(_step(i + 1, step, badge if critical else None, why if critical else None))
    count = (
        f"{len(annotation.critical)} of {len(trajectory.steps)} steps are critical (at most {annotation.fraction:.0%})"
    )
    outcome = "success" if trajectory.success else "no success"
    return [
        el("p", f"{trajectory.env}, seed {trajectory.seed}, {trajectory.source}: {outcome}; {count}.", cls="note"),
        el("p", el("strong", "Instruction: "), _short(trajectory.instruction), cls="goal"),
        el("ol", steps, cls="steps"),
    ]


def londi_replay(run_dir: Path) -> list[Html]:
    """An episode under a switch policy with the DEEPTHINK calls marked.

    Raises:
        InputError: ``switch/replay.json`` is not what it should be; names the field.
    """
    path = run_dir / "switch" / "replay.json"
    if not path.is_file():
        return [missing(f"{path.relative_to(run_dir)} is missing")]
    try:
        replay = SwitchReplay.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None
    called = [s.actor == "deepthink" for s in replay.steps]
    steps = [
        _step(i, step, "DEEPTHINK" if call else None, None)
        for i, (step, call) in enumerate(zip(replay.steps, called, strict=True), start=1)
    ]
    budget = "without a budget" if replay.budget is None else f"budget {replay.budget}"
    outcome = "success" if replay.success else "no success"
    count = f"{sum(called)} of {len(called)} steps by DEEPTHINK"
    return [
        el("p", f"{replay.env}, seed {replay.seed}, {replay.policy}, {budget}: {outcome}; {count}.", cls="note"),
        el("p", el("strong", "Instruction: "), _short(replay.instruction), cls="goal"),
        el("ol", steps, cls="steps"),
    ]
