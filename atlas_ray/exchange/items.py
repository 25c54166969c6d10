"""Records as trajectories: what a format does not say is filled in, what we wrote ourselves returns exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..records import Annotation, OnError, Step, Trajectory, first_problem
from .turns import Record, Talk, compose, parse, read_records, read_talk, refuse

META = "atlas_ray"
_ITEM = re.compile(r"(.+)_([0-9]{1,18})")


class _Exact(BaseModel):
    model_config = ConfigDict(extra="ignore")
    index: int
    thought: str | None = None
    action: str


class Meta(BaseModel):
    """The object under ``atlas_ray`` in a record that we wrote: what the neighbours' formats have no place for."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    id: str = Field(min_length=1)
    env: str
    task: str
    seed: int
    score: float
    success: bool
    source: str
    rewards: list[float]
    exact_steps: list[_Exact] = []
    selector: str | None = Field(default=None, min_length=1)
    fraction: float | None = Field(default=None, gt=0, le=1)


class ImportedTrajectory(Trajectory):
    """A trajectory that remembers the conversation it was read from, so that it can be exported as it was.

    ``conversation`` holds the texts of all turns. It is no part of the trajectory's line, nor of a comparison.
    """

    conversation: tuple[str, ...] = Field(exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.row() == other.row()

    __hash__ = Trajectory.__hash__


def meta_of(talk: Talk) -> Meta | None:
    """The object that our own export added, or None."""
    record = talk.record
    if META not in record.value:
        return None
    try:
        meta = Meta.model_validate_json(json.dumps(record.value[META]), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, f"{META}.{field}".rstrip(".")) from None
    if len(meta.rewards) != len(talk.acts):
        message = f"{len(meta.rewards)} rewards for {len(talk.acts)} steps: were turns added or removed?"
        raise record.error(message, f"{META}.rewards")
    return meta


def meta_row(item: Trajectory, note: Annotation | None, texts: Iterable[str]) -> dict[str, Any]:
    """The object under ``atlas_ray`` for a trajectory whose turns were written as ``texts``."""
    meta = {k: getattr(item, k) for k in ("id", "env", "task", "seed", "score", "success", "source")}
    meta["rewards"] = [s.reward for s in item.steps]
    meta["exact_steps"] = [
        {"index": i, "thought": s.thought, "action": s.action}
        for i, (s, text) in enumerate(zip(item.steps, texts, strict=True))
        if parse(text) != (s.thought, s.action)
    ]
    return meta | ({"selector": note.selector, "fraction": note.fraction} if note else {})


def steps_of(talk: Talk, meta: Meta | None, last_reward: float) -> tuple[Step, ...]:
    """The steps of a record; without our own object every reward is 0 but the last.

    Raises:
        InputError: a turn has no action; names record and turn.
    """
    exact = {e.index: e for e in meta.exact_steps} if meta else {}
    steps = []
    for number, turn in enumerate(talk.acts):
        text = talk.texts[turn]
        told = exact.get(number)
        found = (told.thought, told.action) if told and compose(told.thought, told.action) == text else parse(text)
        if found is None:
            text_key = "value" if "value" in talk.turns[turn] else "content"
            raise talk.record.error('has no "Action:"', f"{talk.key}[{turn}].{text_key}")
        reward = meta.rewards[number] if meta else last_reward if turn == talk.acts[-1] else 0.0
        steps.append(Step(observation=talk.texts[turn - 1], thought=found[0], action=found[1], reward=reward))
    return tuple(steps)


def read_items(
    path: str | Path,
    key: str,
    source: str,
    success: bool,
    on_error: OnError,
    dropped: list[InputError] | None,
    seen: set[str] | None = None,
) -> Iterator[tuple[Talk, Trajectory]]:
    """Every usable record of a file whose turns stand under ``key``, with a trajectory whose id is unique.

    ``seen`` holds the ids of other files that are read together with this one, and gets those of this one.

    Raises:
        InputError: names file, line or record, and field; also when nothing usable is there.
    """
    seen, found = set() if seen is None else seen, False
    for record in read_records(path, on_error, dropped):
        try:
            talk, item = _item(record, key, source, success)
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        found = True
        yield talk, item.model_copy(update={"id": unique(item.id, seen)})
    if not found:
        raise InputError(f"holds no record with {key} that can be read", path)


def _item(record: Record, key: str, source: str, success: bool) -> tuple[Talk, Trajectory]:
    talk = read_talk(record)
    if talk.key != key:
        raise record.error(f"this record has {talk.key}, not {key}: it is of the other format", talk.key)
    meta = meta_of(talk)
    known: dict[str, Any] = {"instruction": talk.texts[0] if talk.start else ""}
    if meta:
        known |= meta.model_dump(include={"id", "env", "task", "seed", "score", "success", "source"})
    else:
        known |= {**_named(record, key), "score": float(success), "success": success, "source": source}
    try:
        known["steps"] = steps_of(talk, meta, float(success))
        if key == "messages":
            return talk, Trajectory(**known)
        return talk, ImportedTrajectory(**known, conversation=talk.texts)
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, field) from None


def _named(record: Record, key: str) -> dict[str, Any]:
    """Id, env, task and seed by the record's id."""
    field = "item_id" if "item_id" in record.value else "id"
    if key == "messages" and field not in record.value:
        return {"id": f"messages_{record.index}", "env": "unknown", "task": "unknown", "seed": record.index}
    name = record.value.get(field)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise record.error(f"must be a name like webshop_6, is {name!r}", field)
    match = _ITEM.fullmatch(str(name))
    task = match[1] if match else "alfworld" if "game_file" in record.value else "unknown"
    seed = int(match[2]) if match else name if isinstance(name, int) else record.index
    return {"id": str(name), "env": f"AgentGym/{task}-v0", "task": task, "seed": seed}


def unique(name: str, seen: set[str]) -> str:
    """``name``, or ``name#2`` and so on when it was there before."""
    new, number = name, 1
    while new in seen:
        number += 1
        new = f"{name}#{number}"
    seen.add(new)
    return new
