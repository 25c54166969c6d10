"""Selections that the critical one must beat, from all steps to those that are not critical.

All, random and non-critical are ATLaS's controls. Successes only, evenly spaced and last ones are ours, and so are
controls that draw as many steps of each trajectory as another selector marked.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..data.records import Annotation, Trajectory, max_critical_steps
from ..errors import InputError


def by_trajectory(annotations: Iterable[Annotation]) -> dict[str, Annotation]:
    """One selector's annotations by trajectory id.

    Raises:
        InputError: two of them are of one trajectory.
    """
    found: dict[str, Annotation] = {}
    for annotation in annotations:
        if annotation.trajectory_id in found:
            raise InputError(f"trajectory {annotation.trajectory_id!r} has two annotations: give one selector's")
        found[annotation.trajectory_id] = annotation
    return found


def select_all(trajectories: Iterable[Trajectory]) -> list[Annotation]:
    """Every step: plain behaviour cloning."""
    return [
        Annotation(trajectory_id=t.id, selector="all", fraction=1.0, critical=tuple(range(len(t.steps))))
        for t in trajectories
    ]


def select_successes(trajectories: Iterable[Trajectory]) -> list[Annotation]:
    """Every step of the episodes that are known to be successes: rejection sampling. The others have no annotation."""
    return [a.model_copy(update={"selector": "successes"}) for a in select_all(t for t in trajectories if t.success)]


def select_random(trajectories: Iterable[Trajectory], fraction: float, seed: int) -> list[Annotation]:
    """``max_critical_steps(fraction, T)`` steps drawn without replacement; depends on seed and trajectory id only."""
    return [_drawn("random", t, range(len(t.steps)), fraction, seed) for t in trajectories]


def select_uniform(trajectories: Iterable[Trajectory], fraction: float) -> list[Annotation]:
    """``n = max_critical_steps(fraction, T)`` evenly spaced steps: the middle ones of n equal parts.

    These are ``(2 k + 1) T // (2 n)``; of ten steps at 0.3 the steps 1, 5 and 8.
    """
    found = []
    for t in trajectories:
        steps, count = len(t.steps), max_critical_steps(fraction, len(t.steps))
        middles = tuple((2 * k + 1) * steps // (2 * count) for k in range(count))
        found.append(Annotation(trajectory_id=t.id, selector="uniform", fraction=fraction, critical=middles))
    return found


def select_last(trajectories: Iterable[Trajectory], fraction: float) -> list[Annotation]:
    """The last ``max_critical_steps(fraction, T)`` steps."""
    found = []
    for t in trajectories:
        steps = len(t.steps)
        ends = tuple(range(steps - max_critical_steps(fraction, steps), steps))
        found.append(Annotation(trajectory_id=t.id, selector="last", fraction=fraction, critical=ends))
    return found


def select_non_critical(
    trajectories: Iterable[Trajectory], critical: Iterable[Annotation], fraction: float, seed: int
) -> list[Annotation]:
    """At most ``max_critical_steps(fraction, T)`` steps drawn from those that another selector's ``critical`` left.

    A trajectory whose every step is critical gets an empty selection, one without an annotation gets none. The draw
    depends on seed, trajectory id and the steps that are left only.

    Raises:
        InputError: ``critical`` holds two annotations of one trajectory.
    """
    marked = {name: set(annotation.critical) for name, annotation in by_trajectory(critical).items()}
    return [
        _drawn("non-critical", t, [i for i in range(len(t.steps)) if i not in marked[t.id]], fraction, seed)
        for t in trajectories
        if t.id in marked
    ]


def select_matched(
    kind: str, trajectories: Iterable[Trajectory], member: str, critical: Iterable[Annotation], seed: int
) -> list[Annotation]:
    """As many steps of each trajectory as another selector marked in it (ours): ``random_value``.

    A trajectory without an annotation gets none. ``fraction`` is the other selector's. The draw depends on seed,
    trajectory id, the number and the steps that are drawn from only, and not on the other selector's name.

    Args:
        kind: ``random`` draws from all steps, ``non-critical`` from those that are left, all of them where the other
            selector marked more than half.
        trajectories: to draw from.
        member: name of the other selector.
        critical: its annotations.
        seed: of the draw.

    Raises:
        InputError: ``critical`` holds two annotations of one trajectory.
    """
    found, by_id = [], by_trajectory(critical)
    for t in trajectories:
        if (marked := by_id.get(t.id)) is None:
            continue
        left = [i for i in range(len(t.steps)) if kind == "random" or i not in marked.critical]
        picked = _picked(kind, t, left, len(marked.critical), seed)
        name = f"{kind}_{member}"
        found.append(Annotation(trajectory_id=t.id, selector=name, fraction=marked.fraction, critical=picked))
    return found


def _drawn(selector: str, t: Trajectory, pool: Iterable[int], fraction: float, seed: int) -> Annotation:
    picked = _picked(selector, t, list(pool), max_critical_steps(fraction, len(t.steps)), seed)
    return Annotation(trajectory_id=t.id, selector=selector, fraction=fraction, critical=picked)


def _picked(kind: str, t: Trajectory, pool: list[int], count: int, seed: int) -> tuple[int, ...]:
    """``count`` steps of a pool, or all of a smaller one, in order."""
    return tuple(sorted(random.Random(f"{kind}/{seed}/{t.id}").sample(pool, min(count, len(pool)))))
