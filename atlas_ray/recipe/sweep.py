"""The fields of `[sweep]`, and the trials that they ask for. Imports neither torch nor Ray."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from .base import Positive, Section

if TYPE_CHECKING:
    from .schema import Recipe

TERMS = ("switch.costs", "switch.budgets", "switch.averages")
"""What a switch is trained under. It is one of them, so in a sweep they are alternatives."""
MUTABLE = ("switch.learning_rate", "switch.batch_size", "switch.updates_per_step", "switch.gamma")
"""What may change in the middle of a training."""
METRICS = {"switch": ("success", "return", "objective", "calls"), "atlas": ("held_in", "held_out")}

Listed = Annotated[list[Any], Field(min_length=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
Values = dict[str, Any]
"""Values of swept fields, by field."""


class Draw(Section):
    """Where the values of a field come from: one of these."""

    grid: Listed | None = None
    """Each of these."""
    choice: Listed | None = None
    """One of these at random."""
    uniform: Ends | None = None
    """A number between two."""
    loguniform: Ends | None = None
    """A number between two above 0, each order of magnitude as likely as the others."""
    randint: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """A whole number between two, both included."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)} (got {', '.join(given) or 'none'})")
        values = self.listed
        if values and any(a == b for a, b in itertools.combinations(values, 2)):
            raise ValueError(f"{given[0]}: one value stands twice")
        if ends := self.ends:
            if ends[0] >= ends[1]:
                raise ValueError(f"{given[0]}: the first must be below the second (got {ends[0]:g} and {ends[1]:g})")
            if self.loguniform and ends[0] <= 0:
                raise ValueError(f"loguniform: must be above 0 (got {ends[0]:g})")
        return self

    @property
    def listed(self) -> list[Any]:
        """The values of `grid` or `choice`."""
        return self.grid or self.choice or []

    @property
    def ends(self) -> list[Any]:
        """The ends of a range."""
        return self.uniform or self.loguniform or self.randint or []

    def draw(self, rng: random.Random) -> Any:
        """One value."""
        if self.listed:
            return rng.choice(self.listed)
        low, high = self.ends
        if self.randint:
            return rng.randint(low, high)
        return rng.uniform(low, high) if self.uniform else math.exp(rng.uniform(math.log(low), math.log(high)))


class Sweep(Section):
    """Trials of the recipe with other values, by Ray Tune."""

    metric: Literal["success", "return", "objective", "calls", "held_in", "held_out"] | None = None
    """What a trial is judged by. Of a switch `success` (without this), `return`, `objective` (return less what calls
    cost) or `calls`; of a tuned model success `held_in` (without this) or `held_out`."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    samples: Positive = 1
    """Draws for each point of the grid."""
    concurrent: Positive | None = None
    """Most trials side by side; without it, and at most, as many as there are CPUs and GPUs for."""
    workers: int | None = Field(default=None, ge=0)
    """Of ATLaS: `workers` of a trial. Without it 0, so that a trial plays in its own process, or the recipe's own where
    engine actors serve them; what trials share is always done by the recipe's own."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """Of a switch: `asha` stops trials that lag behind, `pbt` goes on from better ones with other values."""
    space: dict[str, Draw] = Field(min_length=1)
    """A field of the recipe and its values: `switch.learning_rate = { loguniform = [1e-4, 1e-2] }`."""

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("space"), dict):
            return {**given, "space": dict(_flat(given["space"]))}
        return given

    @property
    def kind(self) -> Literal["switch", "atlas"]:
        """What is swept: the trainings of the switch, or the stages of ATLaS."""
        return "switch" if any(field.startswith("switch.") for field in self.space) else "atlas"

    @property
    def judged_by(self) -> str:
        """The metric."""
        return self.metric or METRICS[self.kind][0]


def _flat(space: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Quoted or not, a dotted key is one field."""
    for key, value in space.items():
        if isinstance(value, dict) and value and not value.keys() & Draw.model_fields.keys() and _nested(value):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _nested(value: dict[str, Any]) -> bool:
    return all(isinstance(inner, dict) for inner in value.values())


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
        for point in itertools.product(*(sweep.space[field].listed for field in grid)):
            for _ in range(sweep.samples if drawn else 1):
                # a field's draws do not depend on what else is swept
                rngs = {f: random.Random(f"sweep {seed} {f} {len(found)}") for f in drawn}
                values = dict(zip(grid, point, strict=True)) | {f: sweep.space[f].draw(r) for f, r in rngs.items()}
                found.append({field: values[field] for field in fields})
    return found


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe of a trial. What is to be a list may be given as its only element.

    Raises:
        ValueError: a field does not exist, or the recipe refuses a value; pydantic's own error then.
    """
    # what was not given stays so: some fields are refused beside others
    data = recipe.model_dump(exclude_unset=True, exclude={"sweep"})
    if any(field in TERMS for field in values):
        data["switch"] |= {term.split(".")[1]: [] for term in TERMS}
    for field, value in values.items():
        put_value(type(recipe), data, field, value)
    return type(recipe).model_validate(data)


def shown(value: Any) -> str:
    """A value as people read it: an arm by its name, a list of one by its element."""
    if isinstance(value, list) and len(value) == 1:
        return shown(value[0])
    if isinstance(value, dict) and "selector" in value:
        return value["selector"] + (f"+anchor{value['anchor']:g}" if value.get("anchor") else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def put_value(model: type[Section], data: Any, field: str, value: Any) -> None:
    """Set a dotted field of a dumped recipe; a number in it is a place in a list.

    Raises:
        ValueError: there is no such field, or the table that it belongs to is missing.
    """
    kind, parts = model, field.split(".")
    annotation: Any = None
    for depth, part in enumerate(parts):
        last, where, table = depth == len(parts) - 1, ".".join(parts[:depth]), None
        if isinstance(data, list):
            if not part.isdigit() or int(part) >= len(data):
                raise ValueError(f"{where} has no element {part!r}; it has {len(data)}")
            key: Any = int(part)
            annotation = get_args(_among(annotation, list))[0]
        elif isinstance(data, dict) and (table := _section(kind if depth == 0 else annotation)) is not None:
            if part not in table.model_fields:
                near = difflib.get_close_matches(part, table.model_fields, n=1, cutoff=0.3)
                raise ValueError("unknown field" + (f"; did you mean {near[0]!r}?" if near else ""))
            key, annotation = part, table.model_fields[part].annotation
        elif isinstance(data, dict):
            key = part
            annotation = get_args(_among(annotation, dict))[1]
        else:
            raise ValueError(f"the recipe has no [{where}] table" if data is None else f"{where} is no table")
        if not last:
            if table is not None and key not in data:
                data[key] = _default(table, key)
            data = data.get(key) if isinstance(data, dict) else data[key]
    wrapped = get_origin(annotation) is list and not isinstance(value, list)
    data[key] = copy.deepcopy([value] if wrapped else value)


def _default(table: type[Section], key: str) -> Any:
    """What a field that is not given has, as data."""
    value = table.model_fields[key].get_default(call_default_factory=True)
    return {} if isinstance(value, Section) else copy.deepcopy(value)


def _among(annotation: Any, kind: type) -> Any:
    """The ``kind[...]`` that an annotation is or allows."""
    if get_origin(annotation) is kind:
        return annotation
    found = (_among(inner, kind) for inner in get_args(annotation) if get_origin(annotation) is not kind)
    return next((inner for inner in found if inner is not None), None)


def _section(annotation: Any) -> type[Section] | None:
    """The table that an annotation is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (list, dict):
        return None
    return next((found for inner in get_args(annotation) if (found := _section(inner)) is not None), None)


def check_sweep(recipe: Recipe) -> None:
    """Refuse a sweep whose trials would be refused, or could not be compared.

    Raises:
        ValidationError: at the field of `[sweep]`.
    """
    sweep = recipe.sweep
    assert sweep is not None
    for field in sweep.space:
        if field.split(".")[0] in ("sweep", "name"):
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
    draw = sweep.space[field]
    for value in draw.listed or draw.ends:
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
        raise _refusal(f"{terms[0]!r} is measured with other policies than a trial's own", "space")
    if len(switch.seeds) > 1:
        raise _refusal("a trial trains one switch: name one of switch.seeds, or sweep them", "space")


def _words(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def _refusal(message: str, *loc: str) -> ValidationError:
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "Recipe", [InitErrorDetails(type=error, loc=("sweep", *loc), input=None)]
    )
