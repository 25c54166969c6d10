"""Policies of a run that is there, by name: ``runs/demo/switch-cost0.05-seed0``. Imports neither torch nor Ray."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..errors import InputError
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from .schema import Recipe
from .switch import EXPERT, Switch, SwitchModel


@dataclass(frozen=True)
class RunPolicy:
    """A switch of a run, or one of the models of its ``[switch]`` table throughout.

    Attributes:
        run_dir: the run directory.
        recipe: of that run, with a ``[switch]`` table.
        name: ``switch-cost0.05-seed0``, ``switch-classifier0.25``, ``always-quick`` and the like.
        number: of the model that acts throughout; None for a switch.
        fitted: whether it is a rule that was fitted, and no switch that was learned.
    """

    run_dir: Path
    recipe: Recipe
    name: str
    number: int | None = None
    fitted: bool = False

    @property
    def settings(self) -> Switch:
        """The ``[switch]`` table of its run."""
        assert self.recipe.switch is not None
        return self.recipe.switch

    @property
    def directory(self) -> Path | None:
        """Where the switch lies; None for one model throughout."""
        return RunLayout(self.run_dir).checkpoints / self.name if self.number is None else None

    @property
    def models(self) -> list[SwitchModel]:
        """The models that it lets act."""
        return self.settings.models if self.number is None else [self.settings.models[self.number]]

    @property
    def local(self) -> list[str]:
        """Those of them that run in engines of ours, each once."""
        return [name for name in self.settings.local if name in {model.model for model in self.models}]

    @property
    def asks_expert(self) -> bool:
        """Whether an environment's own expert is one of its models."""
        return EXPERT in [model.model for model in self.models]

    @property
    def encoder(self) -> str | None:
        """What a learned switch reads texts with; a fitted one reads hashed words."""
        return self.settings.encoder if self.number is None and not self.fitted else None

    @property
    def names(self) -> set[str]:
        """Names of what it runs: its models, and its encoder."""
        return {model.model for model in self.models} | ({self.encoder} if self.encoder else set())


def recipe_of(run_dir: Path, field: str | None = None) -> Recipe:
    """The resolved recipe of a run directory.

    Args:
        run_dir: the directory.
        field: that errors name.

    Raises:
        InputError: it is no run directory of this version.
    """
    resolved = RunLayout(run_dir).recipe
    if not resolved.is_file():
        raise InputError("is not a run directory: it has no recipe.resolved.json", run_dir, None, field)
    try:
        return Recipe.model_validate(read_json(resolved))
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError("the run was made by a version with other fields", resolved, None, field or wrong) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}", resolved, None, field) from None


def switch_policies(recipe: Recipe, run_dir: Path) -> dict[str, RunPolicy]:
    """The policies of a run's switch stage by name: its learned switches, fitted ones, then its models throughout."""
    if recipe.switch is None:
        return {}
    layout = RunLayout(run_dir)
    found = {path.name: RunPolicy(run_dir, recipe, path.name) for path in layout.switch_checkpoints}
    found |= {path.name: RunPolicy(run_dir, recipe, path.name, fitted=True) for path in layout.switch_rules}
    return found | {name: RunPolicy(run_dir, recipe, name, n) for name, n in recipe.switch.single_models.items()}


def only_switch(policies: Iterable[RunPolicy]) -> str | None:
    """The name of the only learned switch, or of the only fitted one where none is learned; None if there are more."""
    switches = [policy for policy in policies if policy.number is None]
    choice = [policy.name for policy in switches if not policy.fitted] or [policy.name for policy in switches]
    return choice[0] if len(choice) == 1 else None


def policy_of(given: str, field: str) -> RunPolicy:
    """A policy of the switch stage of a run that is here.

    Args:
        given: ``RUN/POLICY`` or ``RUN/checkpoints/POLICY``; a relative one counts from the working directory.
        field: of the recipe, for errors.

    Raises:
        InputError: there is no such run or policy; names those that there are.
    """
    path = Path(given).expanduser()
    run_dir = path.parent
    if run_dir == RunLayout(run_dir.parent).checkpoints and not RunLayout(run_dir).recipe.is_file():
        run_dir = run_dir.parent
    if not RunLayout(run_dir).recipe.is_file():
        raise InputError(
            f"is no policy of a run, RUN/switch-cost0.05-seed0 or RUN/always-deepthink: {run_dir.absolute()} is no run "
            "directory",
            given,
            None,
            field,
        )
    recipe = recipe_of(run_dir, field)
    known = switch_policies(recipe, run_dir)
    if path.name not in known:
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
        raise InputError(f"the run has no switch or single model {path.name!r}; {hint}", given, None, field)
    return known[path.name]
