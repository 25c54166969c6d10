"""Makes trajectories of records: fills in what a format does not say, and returns exactly what we wrote ourselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import InputError
from ..records import Annotation, OnError, Step, Trajectory, first_problem
from .conversations import Conversation, Options, raw_turns, read_conversation
from .meta import ANNOTATED, ITSELF, Meta, digest, meta_of
from .outcomes import EpisodeOutcome, of_fields, of_texts
from .reading import JsonRecord, read_records, refuse
from .survey import META, Survey
from .tool_records import tool_item
from .tool_turns import is_tool_record, read_tool_conversation
from .turns import compose, read_agent_turn, read_observation
from .verbatim import ImportedTrajectory, WrittenTurns, origin_of

_ITEM = re.compile(r"(.+)_([0-9]{1,18})")


def meta_row(item: Trajectory, annotation: Annotation | None, turns: WrittenTurns) -> dict[str, Any]:
    """The object under ``atlas_ray`` for a trajectory and the turns that were written for it."""
    meta = {k: getattr(item, k) for k in ITSELF}
    meta["rewards"] = [s.reward for s in item.steps]
    for name, values in (
        ("actors", [s.actor for s in item.steps]),
        ("probabilities", [s.probability for s in item.steps]),
    ):
        if any(value is not None for value in values):
            meta[name] = values
    meta["exact_steps"] = [
        exact
        for index, (step, act) in enumerate(zip(item.steps, turns.action_turns, strict=True))
        if (exact := _exact(index, step, *(_text(turns.turns[n]) for n in (act - 1, act))))
    ]
    systems = int(turns.turns[0].get("role") == "system")
    if turns.head != (systems if "role" in turns.turns[0] else 2):
        meta["head"] = turns.head
    if turns.tail > 1:
        meta["tail"] = turns.tail
    told = annotation.row() if annotation else {}
    return meta | {k: told[k] for k in ANNOTATED if k in told}


def _text(turn: dict[str, Any]) -> str:
    content = turn.get("value", turn.get("content"))
    return (
        content if isinstance(content, str) else "".join(p if isinstance(p, str) else p["text"] for p in content or [])
    )


def _exact(index: int, step: Step, seen: str, text: str) -> dict[str, Any] | None:
    found: dict[str, Any] = {"index": index, "thought": step.thought, "action": step.action}
    other = read_observation(seen) != step.observation
    if other or (_ours(text) or _said(text)) != (step.thought, step.action):
        found |= {"observation": step.observation} if other else {}
        return found if compose(step.thought, step.action) == text else found | {"turn": digest(text)}
    return None


def _ours(text: str) -> tuple[str | None, str] | None:
    """Thought and action of a turn in our own form, where every line behind the heading counts; None in another."""
    before, heading, action = text.rpartition("Action:\n")
    if not heading or not action.strip():
        return None
    if not before:
        return None, action
    return (
        (before[9:-2], action) if before.startswith("Thought:\n") and before.endswith("\n\n") and before[11:] else None
    )


def _said(text: str) -> tuple[str | None, str | None]:
    said = read_agent_turn(text)
    return said.thought, said.action


def _steps(conversation: Conversation, meta: Meta | None, last_reward: float) -> tuple[Step, ...]:
    """The steps of a record; without our own object every reward is 0 but the last.

    Raises:
        InputError: a turn has no action; names record and turn.
    """
    exact = {e.index: e for e in meta.exact_steps} if meta else {}
    steps = []
    for number, turn in enumerate(conversation.action_turns):
        text, seen, said = (
            conversation.turns[turn].text,
            conversation.turns[turn - 1].text,
            conversation.agent_turns[turn],
        )
        thought, action = (meta and _ours(text)) or (said.thought, said.action)
        told = exact.get(number)
        if told and told.holds(text):
            thought, action = told.thought, told.action
        if action is None:
            raise conversation.record.error(said.problem, conversation.where(turn))
        observation = seen if told and told.observation == seen else read_observation(seen)
        about = _about(number, len(conversation.action_turns), meta, last_reward)
        steps.append(Step(observation=observation, thought=thought, action=action, **about))
    return tuple(steps)


def _about(number: int, count: int, meta: Meta | None, last_reward: float) -> dict[str, Any]:
    if meta is None:
        return {"reward": last_reward if number == count - 1 else 0.0}
    named = (("actor", meta.actors), ("probability", meta.probabilities))
    return {"reward": meta.rewards[number]} | {k: values[number] for k, values in named if values}


def _check_lengths(conversation: Conversation, meta: Meta) -> None:
    for name in ("rewards", "actors", "probabilities"):
        values = getattr(meta, name)
        if values is not None and len(values) != len(conversation.action_turns):
            message = f"{len(values)} {name} for {len(conversation.action_turns)} steps: were turns added or removed?"
            raise conversation.record.error(message, f"{META}.{name}")


def read_items(
    path: str | Path,
    key: str,
    source: str,
    options: Options,
    on_error: OnError,
    dropped: list[InputError] | None,
    seen: set[str] | None = None,
    survey: Survey | None = None,
) -> Iterator[tuple[Conversation, Trajectory]]:
    """Every usable record of a file whose turns stand under ``key``, with a trajectory whose id is unique.

    ``seen`` holds the ids of other files that are read together with this one, and gets those of this one; ``survey``
    looks through all of them.

    Raises:
        InputError: names file, line or record, and field; also when nothing usable is there.
    """
    seen, found, first = set() if seen is None else seen, False, list[InputError]()
    survey = survey or Survey([Path(path)])
    dropped = first if dropped is None else dropped
    before = len(dropped)
    for record in read_records(path, on_error, dropped):
        try:
            conversation, item = _item(record, key, source, options, survey)
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        found = True
        yield conversation, item.model_copy(update={"id": unique(item.id, seen)})
    if not found:
        why = f"; the first of {len(dropped) - before}: {dropped[before]}" if len(dropped) > before else ""
        raise InputError(f"holds no record with {key} that can be read{why}", path)


def own_trajectory(record: JsonRecord) -> Trajectory:
    """A record of our own format.

    Raises:
        InputError: names file, line or record, and field.
    """
    try:
        return Trajectory.model_validate_json(json.dumps(record.value), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, field) from None


def own_trajectories(path: Path, on_error: OnError, dropped: list[InputError]) -> Iterator[Trajectory]:
    """Every usable record of a file of our own format, of any shape; an id twice is an error.

    Raises:
        InputError: names file, line or record, and field; also when nothing usable is there.
    """
    seen: dict[str, JsonRecord] = {}
    for record in read_records(path, on_error, dropped):
        try:
            item = own_trajectory(record)
            if item.id in seen:
                first = seen[item.id]
                where = f"on line {first.line}" if first.line else f"in {first.place}"
                raise record.error(f"id {item.id!r} stands already {where}", "id")
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        seen[item.id] = JsonRecord({}, path, record.index, record.line, record.place)
        yield item
    if not seen:
        raise InputError("holds no trajectory that can be read", path)


def read_record(record: JsonRecord, options: Options, masked: Callable[[], bool]) -> Conversation:
    """The turns of a record, of an agent that calls tools or of another; arguments as of :func:`read_conversation`.

    Raises:
        InputError: names record and field.
    """
    meta, (key, raws) = meta_of(record), raw_turns(record)
    if is_tool_record(record, key, raws):
        return read_tool_conversation(record, key, raws, options, meta)
    return read_conversation(record, options, masked, (meta.head, meta.tail) if meta else None)


def _item(
    record: JsonRecord, key: str, source: str, options: Options, survey: Survey
) -> tuple[Conversation, Trajectory]:
    meta = meta_of(record)
    conversation = read_record(record, options, survey.masked)
    if conversation.key != key:
        raise record.error(
            f"this record has {conversation.key}, not {key}: it is of the other format", conversation.key
        )
    if meta:
        _check_lengths(conversation, meta)
    if conversation.tools is not None:
        return conversation, _valid(record, lambda: tool_item(conversation, meta, source, options, survey))
    if meta:
        known, score = meta.model_dump(include=set(ITSELF)), meta.score
    else:
        outcome = _outcome(conversation, options, survey)
        score = outcome.score
        known = {**_named(record, key), "score": score, "success": outcome.success, "source": source}

    def made() -> Trajectory:
        steps = _steps(conversation, meta, score or 0.0)
        origin = origin_of(conversation, options)
        return ImportedTrajectory(**known, instruction=conversation.instruction, steps=steps, origin=origin)

    return conversation, _valid(record, made)


def _valid(record: JsonRecord, make: Callable[[], Trajectory]) -> Trajectory:
    try:
        return make()
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, field) from None


def _outcome(conversation: Conversation, options: Options, survey: Survey) -> EpisodeOutcome:
    """The outcome by the record's fields, else by what the environment said last, else as the options state it."""
    found = of_fields(conversation.record, options.success_field)
    if options.success_field is None and found.score == 1:
        found = of_fields(conversation.record, None, survey.other_scale())
    told = of_texts(conversation.last_words)
    success = told.success if found.success is None else found.success
    return EpisodeOutcome(success, told.score if found.score is None else found.score).filled(options.success)


def _named(record: JsonRecord, key: str) -> dict[str, Any]:
    """Id, env, task and seed by the record's id."""
    field = "item_id" if record.value.get("item_id") is not None else "id"
    name = record.value.get(field)
    game = _alfworld_game(record)
    if name is None:
        where = game or {"env": "unknown", "task": "unknown", "seed": record.index}
        return {"id": f"{key}_{record.index}"} | where
    name = int(name) if isinstance(name, float) and name.is_integer() else name
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise record.error(f"must be a name like webshop_6, or a number, is {name!r}", field)
    if game:
        return {"id": str(name)} | game
    match = _ITEM.fullmatch(str(name))
    task = match[1] if match else "alfworld" if "game_file" in record.value else "unknown"
    seed = int(match[2]) if match else name if isinstance(name, int) else record.index
    return {"id": str(name), "env": task if task == "unknown" else f"AgentGym/{task}-v0", "task": task, "seed": seed}


def _alfworld_game(record: JsonRecord) -> dict[str, Any] | None:
    """Env, task and seed of the ALFWorld game that a record names by its path."""
    path = next((record.value[key] for key in ("game_file", "gamefile") if key in record.value), None)
    if not isinstance(path, str):
        return None
    from ...envs.alfworld import game_of

    game = game_of(path)
    return {"env": f"ALFWorld/{game[0]}-v0", "task": f"{game[0]}-v0", "seed": game[1]} if game else None


def unique(name: str, seen: set[str]) -> str:
    """``name``, or ``name#2`` and so on when it was there before."""
    new, number = name, 1
    while new in seen:
        number += 1
        new = f"{name}#{number}"
    seen.add(new)
    return new
