"""The trials of a sweep: where each lies, what it runs, and what became of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cluster.causes import culprit, described
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.sweep_space import Values, plan, shown, with_current_fields, with_values
from ..rundir import files
from ..rundir.layout import RunLayout
from ..rundir.logs import redact

_VALUES_FILE = "values.json"


@dataclass(frozen=True)
class Trial:
    """One set of values. Its directory is an ordinary run directory."""

    number: int
    values: Values
    recipe: Recipe
    directory: Path

    @property
    def name(self) -> str:
        """Of its directory, and in Tune."""
        return self.directory.name

    @property
    def layout(self) -> RunLayout:
        """Paths in its directory."""
        return RunLayout(self.directory)

    @property
    def state_values(self) -> Path:
        """Its values, beside the state that its training goes on from."""
        return self.layout.trial_state / _VALUES_FILE

    @property
    def about(self) -> str:
        """``trial 3 (switch.costs = 0.02)``, for messages."""
        return f"trial {self.number} ({', '.join(f'{k} = {shown(v)}' for k, v in self.values.items())})"

    def outcome(self) -> dict[str, Any]:
        """What became of it; nothing while it is unfinished.

        ``status`` (``done``, ``stopped`` early or ``failed``), ``why`` it failed, ``seconds`` and its ``values``, which
        a scheduler may have changed.
        """
        path = self.layout.trial_result
        found: dict[str, Any] = files.read_json(path) if path.is_file() else {}
        return found | {"values": with_current_fields(found["values"])} if "values" in found else found

    def reached(self) -> Values:
        """Its values when it was killed, which population based training may have changed; else those of the plan."""
        path = self.state_values
        return with_current_fields(files.read_json(path)) if path.is_file() else self.values

    def end(self, status: str, seconds: float, **more: Any) -> None:
        """Note what became of it. What it could have gone on from is of no more use."""
        if status != "failed":
            shutil.rmtree(self.layout.trial_state, ignore_errors=True)
        row = {"status": status, "seconds": round(seconds, 2), "values": self.values, **more}
        files.write_json(self.layout.trial_result, row)

    def fail(self, error: BaseException, seconds: float) -> None:
        """Note that it failed, why, and whether the input is at fault."""
        found = culprit(error)
        about = {"code": getattr(found, "code", "failed"), "bad_input": isinstance(found, InputError)}
        self.end("failed", seconds, why=redact(described(found)), **about)


def trials_of(recipe: Recipe, run_dir: Path) -> list[Trial]:
    """The trials of a recipe with a ``[sweep]`` table, in their order."""
    assert recipe.sweep is not None
    return [trial_of(recipe, run_dir, number, values) for number, values in enumerate(plan(recipe.sweep, recipe.seed))]


def trial_of(recipe: Recipe, run_dir: Path, number: int, values: Values) -> Trial:
    """The trial of this number with these values.

    Trials run side by side, so a trial plays in its own process and trains its models one after the other, where the
    recipe leaves that open.
    """
    own = with_values(recipe, values).model_copy(update={"storage": None, "trackers": []})
    assert recipe.sweep is not None
    if recipe.sweep.kind == "atlas" and "workers" not in values:
        workers = recipe.workers if recipe.engine.actors else 0
        own = own.model_copy(update={"workers": workers if recipe.sweep.workers is None else recipe.sweep.workers})
    if own.finetune and own.finetune.parallel == "auto":
        own = own.model_copy(update={"finetune": own.finetune.model_copy(update={"parallel": 1})})
    return Trial(number, values, own, RunLayout(run_dir).trial(number).root)
