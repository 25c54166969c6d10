"""The trials that a sweep asks for: their values, the recipe of each, and which sweeps are refused."""

from __future__ import annotations

import copy
import difflib
import itertools
import random
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from .base import ConfigModel, among, current_name, first_name, table_of
from .schema import Recipe
from .sweep import METRICS, Sweep

TERMS = ("switch.costs", "switch.budgets", "switch.averages")
"""What a switch is trained under. It is one of them, so in a sweep they are alternatives."""
MUTABLE = ("switch.learning_rate", "switch.batch_size", "switch.updates_per_step", "switch.gamma")
"""What may change in the middle of a training."""

Values = dict[str, Any]
"""Values of swept fields, by field."""


def plan(sweep: Sweep, seed: int) -> list[Values]:
    """The values of every trial, always the same for one seed.

    Costs, budgets and averages of a switch are alternatives. In each of them every point of the grid gets ``samples``
    draws of the fields that are drawn, or one trial where none is.
    """
    terms = [field for field in sweep.space if field in TERMS]
    others = [field for field in sweep.space if field not in TERMS]
    found: list[Values] = []
    for alternative in [[term] for term in terms] or [[]]:
        fields = [*alternative, *others]
        grid = [field for field in fields if sweep.space[field].grid]
        drawn = [field for field in fields if not sweep.space[field].grid]
        for point in itertools.product(*(sweep.space[field].choices for field in grid)):
            for _ in range(sweep.samples if drawn else 1):
                # a field's draws depend neither on what else is swept nor on what it is called today
                rngs = {f: random.Random(f"sweep {seed} {first_name(Recipe, f)} {len(found)}") for f in drawn}
                values = dict(zip(grid, point, strict=True)) | {f: sweep.space[f].draw(r) for f, r in rngs.items()}
                found.append({field: values[field] for field in fields})
    return found


def with_current_fields(values: Mapping[str, Any]) -> Values:
    """Values that an older version noted, by the names that their fields have today."""
    return {current_name(Recipe, field): value for field, value in values.items()}


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe of a trial. What is to be a list may be given as its only element.

    Raises:
        ValueError: a field does not exist, or the recipe refuses a value; pydantic's own error then.
    """
    # what was not given stays so: some fields are refused beside others
    data = recipe.model_dump(exclude_unset=True, exclude={"sweep"})
    if any(field in TERMS for field in values):
        data["switch"] |= {term.split(".")[1]: [] for term in TERMS}
    for field, value in with_current_fields(values).items():
        put_value(data, field, value)
    return Recipe.model_validate(data)


def shown(value: Any) -> str:
    """A value as people read it: an arm by its name, a list of one by its element."""
    if isinstance(value, list) and len(value) == 1:
        return shown(value[0])
    if isinstance(value, dict) and "selector" in value:
        if value.get("pairs"):
            return f"{value['selector']}+pairs"
        return value["selector"] + (f"+anchor{value['anchor']:g}" if value.get("anchor") else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def put_value(data: Any, field: str, value: Any) -> None:
    """Set a dotted field of a dumped recipe; a number in it is a place in a list.

    Raises:
        ValueError: there is no such field, or the table that it belongs to is missing.
    """
    parts = field.split(".")
    annotation: Any = Recipe
    for depth, part in enumerate(parts):
        last, where, table = depth == len(parts) - 1, ".".join(parts[:depth]), None
        if isinstance(data, list):
            if not part.isdigit() or int(part) >= len(data):
                raise ValueError(f"{where} has no element {part!r}; it has {len(data)}")
            key: Any = int(part)
            annotation = get_args(among(annotation, list))[0]
        elif isinstance(data, dict) and (table := table_of(annotation)) is not None:
            if part not in table.model_fields:
                near = difflib.get_close_matches(part, table.model_fields, n=1, cutoff=0.3)
                raise ValueError("unknown field" + (f"; did you mean {near[0]!r}?" if near else ""))
            key, annotation = part, table.model_fields[part].annotation
        elif isinstance(data, dict):
            key = part
            annotation = get_args(among(annotation, dict))[1]
        else:
            raise ValueError(f"the recipe has no [{where}] table" if data is None else f"{where} is no table")
        if not last:
            if table is not None and key not in data:
                data[key] = _default(table, key)
            data = data.get(key) if isinstance(data, dict) else data[key]
    wrapped = get_origin(annotation) is list and not isinstance(value, list)
    data[key] = copy.deepcopy([value] if wrapped else value)


def _default(table: type[ConfigModel], key: str) -> Any:
    """What a field that is not given has, as data."""
    value = table.model_fields[key].get_default(call_default_factory=True)
    return {} if isinstance(value, ConfigModel) else copy.deepcopy(value)


def check_sweep(recipe: Recipe) -> None:
    """Refuse a sweep whose trials would be refused, or could not be compared. Builds the recipe of every trial.

    Raises:
        ValidationError: at the field of `[sweep]`.
    """
    sweep = recipe.sweep
    assert sweep is not None
    for field in sweep.space:
        if field.split(".")[0] in ("sweep", "rounds", "name"):
            raise _refusal("cannot be swept", "space", field)
        _check_values(recipe, sweep, field)
    _check_kind(recipe, sweep)
    for number, values in enumerate(plan(sweep, recipe.seed)):
        try:
            trial = with_values(recipe, values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            message = f"trial {number} would be refused: {': '.join(p for p in (where, _words(problem)) if p)}"
            raise _refusal(message, "space", next(iter(values))) from None
        _check_trial(sweep, trial)


def _check_values(recipe: Recipe, sweep: Sweep, field: str) -> None:
    """Every value that is listed, and the ends of a range, each by itself."""
    space = sweep.space[field]
    for value in space.choices or space.bounds:
        try:
            with_values(recipe, {field: value})
        except ValidationError as error:
            # what only does not go with the other fields may go with their swept values
            here = [p for p in error.errors() if ".".join(str(part) for part in p["loc"]).startswith(field)]
            if here:
                got = "" if "(got" in (words := _words(here[0])) else f" (got {value!r})"
                raise _refusal(words + got, "space", field) from None
        except ValueError as error:
            raise _refusal(str(error), "space", field) from None


def _check_kind(recipe: Recipe, sweep: Sweep) -> None:
    kind = sweep.kind
    if kind == "switch":
        stages = ("collect.", "select.", "finetune.", "evaluate.")
        if other := next((field for field in sweep.space if field.startswith(stages)), None):
            raise _refusal("a sweep is of the switch, or of the other stages, not of both", "space", other)
        if recipe.engine.actors:
            raise _refusal("a trial of the switch holds its models itself, and engine.actors is not 0", "space")
    elif not recipe.evaluate:
        raise _refusal("needs a [switch] field to sweep, or an [evaluate] table by which trials are scored", "space")
    if sweep.workers is not None and (kind == "switch" or (recipe.engine.actors and not sweep.workers)):
        raise _refusal(
            "a trial of the switch has none" if kind == "switch" else "engine.actors serve workers", "workers"
        )
    if sweep.judged_by not in METRICS[kind]:
        raise _refusal(f"must be one of {', '.join(METRICS[kind])} here (got {sweep.metric!r})", "metric")
    if sweep.judged_by == "held_out" and recipe.evaluate and not recipe.evaluate.held_out:
        raise _refusal("evaluate.held_out is empty", "metric")
    if sweep.samples > 1 and all(draw.grid for draw in sweep.space.values()):
        raise _refusal("all of the space is a grid, so nothing is drawn", "samples")
    if sweep.scheduler != "none":
        if kind != "switch":
            raise _refusal(f"{sweep.scheduler} is for the switch; other trials report once, at their end", "scheduler")
        if sweep.scheduler == "pbt":
            if field := next((f for f in sweep.space if f not in MUTABLE), None):
                raise _refusal(
                    f"pbt changes values in mid-training, which only {', '.join(MUTABLE)} allow", "space", field
                )
            if len(plan(sweep, recipe.seed)) < 2:
                raise _refusal("pbt needs two trials at least", "samples")


def _check_trial(sweep: Sweep, trial: Recipe) -> None:
    """A trial is one model or one switch, or its row would be of several."""
    if sweep.kind == "atlas":
        if trial.finetune and len(trial.finetune.arms) > 1:
            raise _refusal("a trial trains one arm: name one, or sweep finetune.arms", "space")
        return
    switch = trial.switch
    assert switch is not None
    terms = [*switch.costs, *switch.budgets, *switch.averages]
    if len(terms) != 1:
        hint = "name one cost, budget or average, or sweep switch.costs, switch.budgets or switch.averages"
        raise _refusal(f"a trial trains one switch: {hint}", "space")
    if isinstance(terms[0], str):
        why = (
            "a sweep has budgets of calls only"
            if "=" in terms[0]
            else "measured with other policies than a trial's own"
        )
        raise _refusal(f"{terms[0]!r}: {why}", "space")
    if len(switch.seeds) > 1:
        raise _refusal("a trial trains one switch: name one of switch.seeds, or sweep them", "space")
    for name in ("boundary_episodes", "playoff_episodes"):
        if getattr(switch, name):
            raise _refusal(f"a trial trains without switch.{name}", "space")


def _words(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def _refusal(message: str, *loc: str) -> ValidationError:
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "Recipe", [InitErrorDetails(type=error, loc=("sweep", *loc), input=None)]
    )
