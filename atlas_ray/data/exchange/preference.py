"""Pairs of turns in the formats of others: TRL's preference records and LLaMA-Factory's ranking records.

TRL's (conversational, with an explicit prompt): ``{"prompt": [messages], "chosen": [message], "rejected": [message]}``.
LLaMA-Factory's (sharegpt, ranking): ``{"conversations": [turns], "system", "chosen": turn, "rejected": turn}``. Both
end their history with what the agent saw. What they have no place for stands as JSON text under ``atlas_ray``: a text,
since ``datasets`` wants columns of one type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import InputError, json_kind
from ...rundir.files import write_parts
from ..pairs import Pair, Side, Turn, iter_pairs
from ..records import Step, first_problem
from .reading import JsonRecord, read_records
from .sources import reading
from .survey import META
from .turns import beside, compose, read_agent_turn, read_observation, read_turn

_KEYS = ("prompt", "conversations", "messages")
_SIDES: tuple[Side, Side] = ("chosen", "rejected")
_TOLD = ("instruction", "observation", "history", *_SIDES)


def _trl(pair: Pair) -> dict[str, Any]:
    def said(turn: Step | Turn) -> dict[str, str]:
        return {"role": "assistant", "content": compose(turn.thought, turn.action)}

    prompt = [{"role": "system", "content": pair.instruction}] if pair.instruction else []
    for step in pair.history:
        prompt += [{"role": "user", "content": step.observation}, said(step)]
    prompt.append({"role": "user", "content": pair.observation})
    return {"prompt": prompt, "chosen": [said(pair.chosen)], "rejected": [said(pair.rejected)]}


def _llamafactory(pair: Pair) -> dict[str, Any]:
    def said(turn: Step | Turn) -> dict[str, str]:
        return {"from": "gpt", "value": compose(turn.thought, turn.action)}

    turns = []
    for step in pair.history:
        turns += [{"from": "human", "value": step.observation}, said(step)]
    turns.append({"from": "human", "value": pair.observation})
    told = {"conversations": turns, "system": pair.instruction}
    return {**told, "chosen": said(pair.chosen), "rejected": said(pair.rejected)}


_WRITERS: dict[str, Callable[[Pair], dict[str, Any]]] = {"trl-pairs": _trl, "llamafactory-pairs": _llamafactory}
PAIR_FORMATS = tuple(_WRITERS)


def export_pairs(path: str | Path, pairs: Iterable[Pair], fmt: str) -> Path:
    """Write pairs in a format of :data:`PAIR_FORMATS`, one record a line, atomically.

    :func:`import_pairs` gives back exactly what was written.

    Raises:
        InputError: there is no such format.
    """
    if fmt not in _WRITERS:
        raise InputError(f"must be one of {', '.join(PAIR_FORMATS)}, is {fmt!r}", None, None, "format")
    write_parts(path, (json.dumps(_record(pair, fmt), ensure_ascii=False) + "\n" for pair in pairs))
    return Path(path)


def _record(pair: Pair, fmt: str) -> dict[str, Any]:
    written = _WRITERS[fmt](pair)
    row = pair.row()
    meta = {name: value for name, value in row.items() if name not in _TOLD}
    meta["history"] = [
        {name: value for name, value in step.items() if name not in ("observation", "thought", "action")}
        for step in row["history"]
    ]
    meta["actors"] = [pair.chosen.actor, pair.rejected.actor]
    made = {**written, META: json.dumps(meta, ensure_ascii=False)}
    try:
        exact = _pair(JsonRecord(made, Path(), 0, None)) == pair
    except InputError:
        exact = False
    # what a turn's text does not say exactly is kept whole
    return made if exact else {**written, META: json.dumps({"exact": row}, ensure_ascii=False)}


def import_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from our own JSONL, or from records of TRL or LLaMA-Factory, in any shape of docs/formats.md.

    Of records that we did not write, every turn must hold an action as in :func:`import_agenttraj`; ``id`` is theirs or
    ``pairs_N``, and is the episode's too; ``env`` and ``task`` are ``unknown``, ``seed`` is the record's number.

    Raises:
        InputError: names file, line or record, and field; also when nothing is there, or an id stands twice.
    """
    with reading(path) as source:
        return _pairs(source.path)


def _pairs(path: Path) -> list[Pair]:
    first = next(iter(read_records(path, "stop", None, peek=True)), None)
    if first is not None and "history" in first.value:
        return list(iter_pairs(path))
    found: dict[str, Pair] = {}
    for record in read_records(path, "stop", None):
        pair = _pair(record)
        if pair.id in found:
            raise record.error(f"id {pair.id!r} stands already before", "id")
        found[pair.id] = pair
    if not found:
        raise InputError("holds no pair that can be read", path)
    return list(found.values())


def _pair(record: JsonRecord) -> Pair:
    """A record as a pair.

    Raises:
        InputError: names record and field.
    """
    value = record.value
    key = next((name for name in _KEYS if value.get(name) is not None), None)
    if key is None:
        raise record.error(f"has none of {', '.join(_KEYS)}, which holds what both turns answer", "prompt")
    meta = _meta(record)
    if "exact" in meta:
        exact = _made(record, meta["exact"])
        if any(_same(record, writer(exact)) for writer in _WRITERS.values()):
            return exact
        raise record.error("tells of other turns than the record's: remove it where turns were changed", META)
    instruction, steps, observation = _history(record, key)
    told: dict[str, Any] = {"instruction": instruction, "observation": observation}
    for side in _SIDES:
        told[side] = _last(record, side)
    if meta:
        about, actors = meta.pop("history"), meta.pop("actors")
        if len(about) != len(steps):
            raise record.error(f"tells of {len(about)} steps, and the record has {len(steps)}", META)
        history = [{**step, **more} for step, more in zip(steps, about, strict=True)]
        for side, actor in zip(_SIDES, actors, strict=True):
            told[side] |= {"actor": actor}
        return _made(record, {**meta, **told, "history": history})
    name = value.get("id")
    name = str(name) if isinstance(name, str | int) and name != "" else f"pairs_{record.index}"
    here = {"id": name, "episode": name, "step": len(steps), "env": "unknown", "task": "unknown"}
    return _made(record, {**here, **told, "seed": record.index, "source": "pairs", "history": steps})


def _same(record: JsonRecord, written: dict[str, Any]) -> bool:
    return all(record.value.get(name) == value for name, value in written.items())


def _meta(record: JsonRecord) -> dict[str, Any]:
    text = record.value.get(META)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict) or not ("exact" in found or {"history", "actors"} <= found.keys()):
        raise record.error("is not what an export of pairs writes there", META)
    return found


def _made(record: JsonRecord, row: dict[str, Any]) -> Pair:
    try:
        return Pair.model_validate_json(json.dumps(row), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, field) from None


def _history(record: JsonRecord, key: str) -> tuple[str, list[dict[str, Any]], str]:
    """Instruction, steps and the last observation of what both turns answer.

    Raises:
        InputError: it is no list of turns that alternate and end with what the agent saw.
    """
    raws = record.value[key]
    if not isinstance(raws, list):
        raise record.error(f"must be a list of turns, is {json_kind(raws)}: pairs of plain texts cannot be read", key)
    turns = [read_turn(record, raw, f"{key}[{number}]") for number, raw in enumerate(raws)]
    head = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    instruction = "\n\n".join(filter(None, (beside(record), *(turn.text for turn in turns[:head]))))
    for number, turn in enumerate(turns[head:]):
        wanted = ("human", "gpt")[number % 2]
        if turn.role != wanted:
            raise record.error(f"is {turn.role}'s, and must be {wanted}'s", f"{key}[{head + number}]")
    if (len(turns) - head) % 2 == 0:
        raise record.error("must end with what the agent saw, on which both turns act", key)
    seen, said = turns[head::2], turns[head + 1 :: 2]
    steps = [
        {"observation": read_observation(there.text), **_agent(record, turn.text, f"{key}[{head + 2 * number + 1}]")}
        for number, (there, turn) in enumerate(zip(seen, said, strict=False))
    ]
    return instruction, steps, read_observation(seen[-1].text)


def _last(record: JsonRecord, side: Side) -> dict[str, Any]:
    """The chosen or the rejected turn: a message, or a list of one.

    Raises:
        InputError: it is something else, or has no action.
    """
    raw = record.value.get(side)
    if isinstance(raw, list):
        if len(raw) != 1:
            raise record.error(f"must be one turn, is {len(raw)}: give what they share as the prompt", side)
        raw = raw[0]
    if raw is None:
        raise record.error("is missing", side)
    return _agent(record, read_turn(record, raw, side).text, side)


def _agent(record: JsonRecord, text: str, where: str) -> dict[str, Any]:
    said = read_agent_turn(text)
    if said.action is None:
        raise record.error(said.problem, where)
    return {"thought": said.thought, "action": said.action}
