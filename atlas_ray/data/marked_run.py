"""Trajectories of a run that is there, with one selector's marks: ``runs/demo/value``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..rundir.layout import RunLayout
from .hub import is_on_hub
from .records import Annotation, Trajectory, read_annotations, read_trajectories


@dataclass(frozen=True)
class MarkedRun:
    """What a selector of a run marked.

    Attributes:
        run_dir: the run directory.
        selector: its name there.
        trajectories: that it annotated, in the order of their file.
        marks: its annotations by trajectory id.
    """

    run_dir: Path
    selector: str
    trajectories: tuple[Trajectory, ...]
    marks: Mapping[str, Annotation]


def read_marked_run(given: str, field: str) -> MarkedRun:
    """Trajectories and marks of ``RUN/SELECTOR``.

    Args:
        given: a run directory, relative ones from the working directory, and the name of a selector in it.
        field: of the recipe, for errors.

    Raises:
        InputError: there is no such run or selector, or a file cannot be read; names field, file and line.
    """
    if is_on_hub(given):
        raise InputError("must be RUN/SELECTOR on this machine: a dataset on the hub is no run", given, None, field)
    path = Path(given).expanduser()
    layout, selector = RunLayout(path.parent), path.name
    if not layout.expert.is_file():
        raise InputError(
            f"must be RUN/SELECTOR, and {layout.root.absolute()} is no run with trajectories: it has no "
            f"{layout.expert.relative_to(layout.root)}",
            given,
            None,
            field,
        )
    if not layout.annotations(selector).is_file():
        near = difflib.get_close_matches(selector, layout.selectors, n=1)
        there = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(layout.selectors) or 'none'}"
        raise InputError(f"the run has no annotations by {selector!r}; {there}", given, None, field)
    try:
        trajectories = read_trajectories(layout.expert)
        found = read_annotations(layout.annotations(selector), trajectories)
    except InputError as error:
        inner = f" ({error.field})" if error.field else ""
        raise InputError(f"{error.message}{inner}", error.path, error.line, field) from None
    marks = {annotation.trajectory_id: annotation for annotation in found}
    if len(marks) < len(found):
        raise InputError("a trajectory has two annotations", layout.annotations(selector), None, field)
    return MarkedRun(layout.root, selector, tuple(t for t in trajectories if t.id in marks), marks)
