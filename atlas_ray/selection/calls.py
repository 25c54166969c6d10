"""Steps at which a switch called another model than its first (ours): those where the first one was not trusted."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.records import FIRST_ACTOR, Annotation, Trajectory
from ..errors import InputError


def select_calls(trajectories: Iterable[Trajectory]) -> list[Annotation]:
    """Every step that another than the first model took, however many: ``fraction`` is 1, no cap.

    A trajectory of one model alone gets an empty selection, or all steps if that was not the first. One with a step of
    which nobody knows who took it (``actor`` is None) gets no annotation: the step may have been a call, or none.

    Raises:
        InputError: that is so of every trajectory.
    """
    found, unknown = [], 0
    for t in trajectories:
        if any(step.actor is None for step in t.steps):
            unknown += 1
            continue
        called = tuple(i for i, step in enumerate(t.steps) if step.actor != FIRST_ACTOR)
        found.append(Annotation(trajectory_id=t.id, selector="calls", fraction=1.0, critical=called))
    if not found:
        raise InputError(
            f"calls marks steps by who took them, and none of {unknown} trajectories says that of all its steps "
            "(`actor`): collect with a switch (collect.switch), or from a file that names actors",
            field="select.selectors",
        )
    return found
