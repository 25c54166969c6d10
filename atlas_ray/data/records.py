"""Trajectories and annotations, and the JSONL files that hold them.

A trajectory line: ``{"id", "env", "task", "seed", "instruction", "steps": [{"observation", "thought"?, "action",
"reward", "actor"?, "probability"?, "parts"?}], "score", "success", "source", "tools"?}``; ``score`` and ``success`` are
null where nobody knows the outcome. An annotation line: ``{"trajectory_id", "selector", "fraction",
"critical": [0-based step indices], "categories"?, "reasons"?, "prompt_sha256"?, "model"?}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError, json_kind
from ..rundir.files import write_parts

LineT = TypeVar("LineT", bound=BaseModel)
OnError = Literal["stop", "skip"]
FIRST_ACTOR = "quick"
"""The ``actor`` of steps that the first of several models took."""


def actor(number: int, models: int) -> str:
    """``quick``, ``deepthink``, or for one between them its number."""
    return FIRST_ACTOR if not number else "deepthink" if number == models - 1 else f"model {number}"


def actor_number(name: str, models: int) -> int | None:
    """The number of the model that :func:`actor` calls so; None where none of so many has this name."""
    return next((n for n in range(models) if actor(n, models) == name), None)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


PART_GAP = "\n\n"
"""What stands between the messages of an observation."""


class Part(_Strict):
    """A message of an observation: who wrote it, and how many characters (code points) of the text are its own.

    ``id`` is the tool call that it answers and ``name`` the tool, where a message of the role ``tool`` says so.
    """

    role: Literal["user", "tool", "system"]
    id: str | None = None
    name: str | None = None
    length: int = Field(ge=0)


class Step(_Strict):
    """What the agent saw, thought and did, and the reward for it.

    ``actor`` names who took the step where several may act, ``probability`` the probability with which it was chosen
    to act. Both are None where nobody knows. ``parts`` are the messages of the observation, in order and with
    :data:`PART_GAP` between them; None where it is one message of a user.
    """

    observation: str
    thought: str | None = None
    action: str
    reward: float = 0.0
    actor: str | None = None
    probability: float | None = Field(default=None, ge=0, le=1)
    parts: tuple[Part, ...] | None = None

    @model_validator(mode="after")
    def _parts_add_up(self) -> Self:
        if self.parts is not None:
            told = sum(part.length for part in self.parts) + len(PART_GAP) * max(0, len(self.parts) - 1)
            if told != len(self.observation):
                raise ValueError(f"parts say {told} characters, and the observation has {len(self.observation)}")
        return self

    def seen(self) -> tuple[tuple[Part, str], ...]:
        """The messages of the observation, each with its text."""
        found, at = [], 0
        for part in self.parts if self.parts is not None else (Part(role="user", length=len(self.observation)),):
            found.append((part, self.observation[at : at + part.length]))
            at += part.length + len(PART_GAP)
        return tuple(found)


class Trajectory(_Strict):
    """One finished episode. ``score`` is in 0..1; ``source`` names who acted (``expert``, a model).

    ``score`` and ``success`` are None where the outcome is unknown, which is never counted as a success. ``tools``
    makes it a conversation of an agent that calls tools: their JSON schemas in OpenAI's form, none where nobody said
    them; its actions are calls (:mod:`atlas_ray.data.tool_calls`) or texts word by word. None: an episode of ours.
    """

    id: str = Field(min_length=1)
    env: str
    task: str
    seed: int
    instruction: str
    steps: tuple[Step, ...] = Field(min_length=1)
    score: float | None = Field(ge=0, le=1)
    success: bool | None
    source: str
    tools: tuple[dict[str, Any], ...] | None = None

    def row(self) -> dict[str, Any]:
        """The JSON object of one line; an unknown outcome stands there as null."""
        known = self.model_dump(exclude_none=True, exclude={"tools"})
        # a null inside a schema is a value of its own
        tools = {} if self.tools is None else {"tools": list(self.tools)}
        return {name: known.get(name) for name in Trajectory.model_fields if name != "tools"} | tools


class Annotation(_Strict):
    """Which steps of a trajectory are critical, by one selector.

    ``fraction`` is the cap m that was asked for (ATLaS: at most ceil(m * T) steps; the rounding is ours).
    """

    trajectory_id: str = Field(min_length=1)
    selector: str = Field(min_length=1)
    fraction: float = Field(gt=0, le=1)
    critical: tuple[Annotated[int, Field(ge=0)], ...]
    categories: dict[int, str] | None = None
    reasons: dict[int, str] | None = None
    prompt_sha256: str | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _unique_and_sorted(self) -> Self:
        if list(self.critical) != sorted(set(self.critical)):
            raise ValueError("critical must be ascending and without repeats")
        return self

    def row(self) -> dict[str, Any]:
        """The JSON object of one line."""
        return self.model_dump(exclude_none=True)


def max_critical_steps(fraction: float, steps: int) -> int:
    """Most steps that may be critical: ``ceil(fraction * steps)``, at least one (rounding is ours)."""
    return max(1, math.ceil(round(fraction * steps, 9)))


def first_problem(error: ValidationError) -> tuple[str, str]:
    """(dotted field, message) of the first problem pydantic found."""
    problem = error.errors()[0]
    return ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")


def load_json(kind: type[LineT], path: str | Path) -> LineT:
    """Read a file that holds one JSON object.

    Raises:
        InputError: names the file and the dotted field.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path)
    try:
        return kind.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None


def numbered_rows(
    kind: type[LineT], path: str | Path, on_error: OnError, dropped: list[InputError] | None
) -> Iterator[tuple[int, LineT]]:
    """Every row of a file with its 1-based line.

    Args:
        kind: of the rows.
        path: the file.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every line that was left out.

    Raises:
        InputError: names file, line and field; also when the file is missing or holds nothing usable.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path)
    found = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = _parse(kind, raw, path, number)
            except InputError as error:
                refuse_row(error, on_error, dropped)
                continue
            found += 1
            yield number, row
    if not found:
        raise InputError(f"holds no {kind.__name__.lower()} that can be read", path)


def rows_by_id(
    kind: type[LineT], path: str | Path, on_error: OnError, dropped: list[InputError] | None
) -> Iterator[tuple[int, LineT]]:
    """:func:`numbered_rows` of which no two may have one ``id``."""
    seen: dict[str, int] = {}
    for number, item in numbered_rows(kind, path, on_error, dropped):
        name: str = item.id  # type: ignore[attr-defined]
        if name in seen:
            error = InputError(f"id {name!r} stands already on line {seen[name]}", path, number, "id")
            refuse_row(error, on_error, dropped)
            continue
        seen[name] = number
        yield number, item


def refuse_row(error: InputError, on_error: OnError, dropped: list[InputError] | None) -> None:
    """Raise the error of a row, or note it and go on."""
    if on_error == "stop":
        raise error
    if dropped is not None:
        dropped.append(error)


class _TwiceError(ValueError):
    """A key stands twice in an object, of which Python's reader would take the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return made


def _parse(kind: type[LineT], raw: bytes, path: Path, number: int) -> LineT:
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_object)
    except _TwiceError as error:
        raise InputError(f"has the key {error.args[0]!r} twice in one object", path, number) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", path, number) from None
    except json.JSONDecodeError as error:
        cut = " (the line is cut short)" if not raw.endswith(b"\n") or error.pos >= len(raw.rstrip()) - 1 else ""
        raise InputError(f"not JSON at column {error.colno}: {error.msg}{cut}", path, number) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise InputError(f"not JSON that can be read: {error}", path, number) from None
    if not isinstance(value, dict):
        raise InputError(f"a line must be a JSON object, this is {json_kind(value)}", path, number)
    try:
        # JSON mode, strict: no number is taken for a string, lists become tuples
        return kind.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, number, field) from None


def iter_trajectories(
    path: str | Path, on_error: OnError = "stop", dropped: list[InputError] | None = None
) -> Iterator[Trajectory]:
    """Stream trajectories from a JSONL file.

    Args:
        path: the file.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every line that was left out.

    Raises:
        InputError: names file, line and field; also when the file is missing or holds nothing usable.
    """
    return (item for _, item in iter_numbered(path, on_error, dropped))


def iter_numbered(
    path: str | Path, on_error: OnError = "stop", dropped: list[InputError] | None = None
) -> Iterator[tuple[int, Trajectory]]:
    """:func:`iter_trajectories` with the 1-based line of each."""
    return rows_by_id(Trajectory, path, on_error, dropped)


def read_trajectories(
    path: str | Path, on_error: OnError = "stop", dropped: list[InputError] | None = None
) -> list[Trajectory]:
    """:func:`iter_trajectories` as a list."""
    return list(iter_trajectories(path, on_error, dropped))


def write_trajectories(path: str | Path, items: Iterable[Trajectory]) -> None:
    """Write trajectories to a JSONL file, atomically."""
    write_parts(path, (json.dumps(t.row(), ensure_ascii=False) + "\n" for t in items))


def read_annotations(
    path: str | Path,
    trajectories: Iterable[Trajectory] | None = None,
    on_error: OnError = "stop",
    dropped: list[InputError] | None = None,
) -> list[Annotation]:
    """Read annotations; with ``trajectories`` also check that ids and step indices exist.

    Raises:
        InputError: names file, line and field.
    """
    lengths = None if trajectories is None else {t.id: len(t.steps) for t in trajectories}
    items = []
    for number, item in numbered_rows(Annotation, path, on_error, dropped):
        error = None
        if lengths is not None and item.trajectory_id not in lengths:
            error = InputError(f"no trajectory has the id {item.trajectory_id!r}", path, number, "trajectory_id")
        elif lengths is not None and item.critical and item.critical[-1] >= lengths[item.trajectory_id]:
            message = (
                f"step {item.critical[-1]} of {item.trajectory_id!r} does not exist, "
                f"it has steps 0 to {lengths[item.trajectory_id] - 1}"
            )
            error = InputError(message, path, number, "critical")
        if error:
            refuse_row(error, on_error, dropped)
        else:
            items.append(item)
    return items


def write_annotations(path: str | Path, items: Iterable[Annotation]) -> None:
    """Write annotations to a JSONL file, atomically."""
    write_parts(path, (json.dumps(a.row(), ensure_ascii=False) + "\n" for a in items))
