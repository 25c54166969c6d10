"""Selections that the critical one must beat: all steps, random ones, and those that are not critical."""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..trajectory import Annotation, Trajectory, cap


def select_all(trajectories: Iterable[Trajectory]) -> list[Annotation]:
    """Every step: plain behaviour cloning."""
    return [
        Annotation(trajectory_id=t.id, selector="all", fraction=1.0, critical=tuple(range(len(t.steps))))
        for t in trajectories
    ]


def select_random(trajectories: Iterable[Trajectory], fraction: float, seed: int) -> list[Annotation]:
    """``cap(fraction, T)`` steps drawn without replacement; depends on seed and trajectory id only."""
    return [_drawn("random", t, range(len(t.steps)), fraction, seed) for t in trajectories]


def select_non_critical(
    trajectories: Iterable[Trajectory], critical: Iterable[Annotation], fraction: float, seed: int
) -> list[Annotation]:
    """At most ``cap(fraction, T)`` steps drawn from those that ``critical`` left.

    A trajectory whose every step is critical gets an empty selection.
    """
    marked = {a.trajectory_id: set(a.critical) for a in critical}
    return [
        _drawn("non-critical", t, [i for i in range(len(t.steps)) if i not in marked[t.id]], fraction, seed)
        for t in trajectories
        if t.id in marked
    ]


def _drawn(selector: str, t: Trajectory, pool: Iterable[int], fraction: float, seed: int) -> Annotation:
    pool = list(pool)
    count = min(cap(fraction, len(t.steps)), len(pool))
    picked = random.Random(f"{selector}/{seed}/{t.id}").sample(pool, count)
    return Annotation(trajectory_id=t.id, selector=selector, fraction=fraction, critical=tuple(sorted(picked)))
