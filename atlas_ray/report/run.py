"""What a report reads of a run directory, once for all its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from ..data.records import first_problem
from ..data.results import Arm, Policy, Results, load_results
from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.layout import RunLayout
from .outcomes import Outcomes, read_outcomes
from .selection import Marks, annotated, read_marks


@dataclass(frozen=True)
class Run:
    """A run directory and what was read of it.

    Attributes:
        root: the directory.
        recipe: the resolved recipe; None where there is none.
        results: the scores; None where nothing was scored.
        parts: directories that keep the episodes of its arms, where it does not do so itself.
    """

    root: Path
    recipe: Recipe | None
    results: Results | None
    parts: tuple[Path, ...] = ()

    @property
    def layout(self) -> RunLayout:
        """Where its files lie."""
        return RunLayout(self.root)

    @property
    def title(self) -> str:
        """Its name, or that of its directory."""
        return self.recipe.name if self.recipe else self.root.resolve().name

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The scored arms of ATLaS."""
        return self.results.atlas.arms if self.results and self.results.atlas else ()

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The scored policies of LONDI."""
        return self.results.londi.policies if self.results and self.results.londi else ()

    @cached_property
    def outcomes(self) -> Outcomes:
        """How single episodes ended."""
        return read_outcomes(*(RunLayout(part) for part in self.parts or (self.root,)))

    @property
    def selects(self) -> bool:
        """Whether steps were selected, or were to be."""
        return bool((self.recipe and self.recipe.select) or annotated(self.root))

    @cached_property
    def marks(self) -> Marks | None:
        """What the selectors marked; None where none did, or the trajectories are not there."""
        return read_marks(self.root, self.recipe) if self.selects and self.layout.expert.is_file() else None


def read_run(run_dir: Path) -> Run:
    """Read recipe and results; the rest is read when a part asks for it.

    Raises:
        InputError: a file is not what it should be, or there are neither results, annotations nor a sweep.
    """
    return Run(run_dir, read_recipe(RunLayout(run_dir).recipe), _results(run_dir))


def read_recipe(path: Path) -> Recipe | None:
    """A run's recipe; None where there is none.

    Raises:
        InputError: it is not what it should be.
    """
    if not path.is_file():
        return None
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None


def _results(run_dir: Path) -> Results | None:
    """The scores; None where nothing was scored and there is something else to report on."""
    path = RunLayout(run_dir).results
    try:
        empty = json.loads(path.read_bytes()) in ({}, {"atlas": None}, {"londi": None}, {"atlas": None, "londi": None})
    except FileNotFoundError:
        empty = True
    except ValueError:
        empty = False  # and not JSON, as the reader says better
    layout = RunLayout(run_dir)
    others = annotated(run_dir) or layout.sweep_json.is_file() or layout.switch_estimates.is_file()
    return None if empty and others else load_results(path)
