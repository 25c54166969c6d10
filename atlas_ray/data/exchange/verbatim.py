"""The conversation an imported trajectory was read from, in memory and beside the trajectories of a run.

A line of ``imported-words.jsonl``: ``{"id", "key", "steps", "head"?, "seen"?, "said"?, "tail"?, "beside"?}``, the turns
that we would write otherwise. ``seen`` and ``said`` have them by step; in ``head`` (before the first step) a null is
the turn that we would write. A turn is its text, or an object where there is more to it. ``steps`` is their number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from ...errors import InputError
from ...rundir.files import jsonl_rows, write_parts
from ...rundir.layout import RunLayout
from ..records import Trajectory
from .conversations import Conversation, Options, read_conversation
from .raw_files import as_json
from .reading import JsonRecord
from .turns import FLAGS, compose, read_observation, read_turn

ACKNOWLEDGEMENT = "OK."
Raw = dict[str, Any]
_NAMES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Origin:
    """A conversation as the file has it: the turns before the first step, of each step, and behind the last.

    ``options`` are those by which it was read.
    """

    key: str
    head: tuple[Raw, ...]
    rounds: tuple[tuple[Raw, Raw], ...]
    tail: tuple[Raw, ...]
    beside: str = ""
    options: Options = field(default=Options())

    @property
    def turns(self) -> list[Raw]:
        """All of them in order."""
        return [*self.head, *(turn for both in self.rounds for turn in both), *self.tail]


class ImportedTrajectory(Trajectory):
    """A trajectory that remembers the conversation it was read from, so that it can be exported as it was.

    ``origin`` is no part of the trajectory's line, nor of a comparison.
    """

    origin: Origin = Field(exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.row() == other.row()

    __hash__ = Trajectory.__hash__


def origin_of(conversation: Conversation, options: Options) -> Origin:
    """The conversation of a record."""
    raws = tuple(turn.raw for turn in conversation.turns)
    rounds = tuple((raws[n - 1], raws[n]) for n in conversation.action_turns)
    return Origin(
        conversation.key, raws[: conversation.head], rounds, raws[conversation.tail :], conversation.beside, options
    )


@dataclass(frozen=True)
class WrittenTurns:
    """The turns of a trajectory as they are written in a format, without flags, and which of them act.

    ``tail`` is the number of turns behind the last step, ``beside`` the system prompt that stands beside the turns.
    """

    turns: list[Raw]
    head: int
    action_turns: range
    tail: int
    beside: str


def written(item: Trajectory, key: str) -> WrittenTurns:
    """The turns of a trajectory in the format of ``key``: as they were read where they still say the same."""
    origin = item.origin if isinstance(item, ImportedTrajectory) and _still(item) else _plain(item, key)
    head = [_spelled(raw, key) for raw in (origin if origin.key == key else _plain(item, key)).head]
    turns = [*head, *(_spelled(raw, key) for raw in origin.turns[len(origin.head) :])]
    action_turns = range(len(head) + 1, len(head) + 2 * len(origin.rounds), 2)
    return WrittenTurns(turns, len(head), action_turns, len(origin.tail), origin.beside if origin.key == key else "")


def _plain(item: Trajectory, key: str) -> Origin:
    """The conversation that we write for a trajectory."""
    said = [(s.observation, compose(s.thought, s.action)) for s in item.steps]
    if key == "messages":
        head = [_turn(key, "system", item.instruction)] if item.instruction else []
    else:
        head = [_turn(key, "human", item.instruction), _turn(key, "gpt", ACKNOWLEDGEMENT)]
    rounds = tuple((_turn(key, "human", seen), _turn(key, "gpt", text)) for seen, text in said)
    return Origin(key, tuple(head), rounds, ())


def _turn(key: str, role: str, text: str) -> Raw:
    if key == "messages":
        return {"role": _NAMES[role], "content": text}
    return {"from": role, "value": text}


def _spelled(raw: Raw, key: str) -> Raw:
    """A turn in the format of ``key`` without its flags; what else it holds is kept."""
    more = {k: v for k, v in raw.items() if k not in ("from", "value", "role", "content", *FLAGS)}
    more = as_json(more) if more else more
    if key == "messages" and raw.get("role") is not None and raw.get("value") is None:
        return {"role": raw["role"], "content": raw.get("content"), **more}
    if key != "messages" and raw.get("from") in _NAMES and isinstance(raw.get("value"), str):
        return {"from": raw["from"], "value": raw["value"], **more}
    turn = read_turn(JsonRecord({}, Path(), 0, None), raw, key)
    return _turn(key, turn.role, turn.text) | more


def _still(item: ImportedTrajectory) -> bool:
    """Whether the conversation still says what the trajectory does."""
    origin = item.origin
    record = JsonRecord(
        {origin.key: origin.turns} | ({"system": origin.beside} if origin.beside else {}), Path(), 0, None
    )
    try:
        conversation = read_conversation(record, origin.options, lambda: True, (len(origin.head), len(origin.tail)))
    except InputError:
        return False
    read = [
        (
            read_observation(conversation.turns[n - 1].text),
            conversation.agent_turns[n].thought,
            conversation.agent_turns[n].action,
        )
        for n in conversation.action_turns
    ]
    same = read == [(s.observation, s.thought, s.action) for s in item.steps]
    return same and conversation.instruction == item.instruction


# --- beside the trajectories of a run ---

Verbatim = dict[str, Any]


def verbatim_of(item: Trajectory) -> Verbatim:
    """The turns of the conversation it was read from that :func:`_plain` would write otherwise; nothing without any."""
    if not isinstance(item, ImportedTrajectory):
        return {}
    origin, plain = item.origin, _plain(item, item.origin.key)
    key, found = origin.key, dict[str, Any]()
    usual = [*plain.head, *[None] * len(origin.head)]
    head = [
        None if _spelled(raw, key) == usual[n] else _coded(raw, key, _due(key, n)) for n, raw in enumerate(origin.head)
    ]
    if len(head) != len(plain.head) or any(turn is not None for turn in head):
        found["head"] = head
    for which, name, role in ((0, "seen", "human"), (1, "said", "gpt")):
        both = enumerate(zip(origin.rounds, plain.rounds, strict=True))
        changed = {str(n): _coded(r[which], key, role) for n, (r, p) in both if _spelled(r[which], key) != p[which]}
        found |= {name: changed} if changed else {}
    if origin.tail:
        found["tail"] = [_coded(raw, key, "human") for raw in origin.tail]
    found |= {"beside": origin.beside} if origin.beside else {}
    found |= {"reasoning": origin.options.reasoning} if origin.options.reasoning != Options().reasoning else {}
    found |= {"thinking": origin.options.thinking} if origin.options.thinking != Options().thinking else {}
    return {"key": key, "steps": len(item.steps), **found} if found else {}


def _due(key: str, number: int) -> str:
    """Whose turn stands at a place of the head."""
    if key == "messages":
        return "system" if number == 0 else ("gpt", "human")[number % 2]
    return ("human", "gpt")[number % 2]


def _coded(raw: Raw, key: str, role: str) -> str | Raw:
    turn = _spelled(raw, key)
    text = turn.get("content", turn.get("value"))
    return text if isinstance(text, str) and turn == _turn(key, role, text) else turn


def with_verbatim(item: Trajectory, verbatim: Verbatim) -> Trajectory:
    """The trajectory with the conversation it was read from; as it is when that has other steps."""
    if "turns" in verbatim:
        verbatim = _of_turns(verbatim["turns"], len(item.steps))
    if not verbatim or verbatim["steps"] != len(item.steps):
        return item
    key = verbatim["key"]
    plain = _plain(item, key)

    def turn(coded: str | Raw, role: str) -> Raw:
        return _turn(key, role, coded) if isinstance(coded, str) else coded

    head = [
        plain.head[n] if coded is None else turn(coded, _due(key, n))
        for n, coded in enumerate(verbatim.get("head", [None] * len(plain.head)))
    ]
    seen, said = verbatim.get("seen", {}), verbatim.get("said", {})
    rounds = tuple(
        (
            turn(seen[str(n)], "human") if str(n) in seen else usual[0],
            turn(said[str(n)], "gpt") if str(n) in said else usual[1],
        )
        for n, usual in enumerate(plain.rounds)
    )
    tail = tuple(turn(coded, "human") for coded in verbatim.get("tail", []))
    how = {k: verbatim[k] for k in ("reasoning", "thinking") if k in verbatim}
    how |= {"thinking": tuple(how["thinking"])} if "thinking" in how else {}
    origin = Origin(key, tuple(head), rounds, tail, verbatim.get("beside", ""), Options(**how))
    return ImportedTrajectory(**dict(item), origin=origin)


def _of_turns(turns: Mapping[str, str], steps: int) -> Verbatim:
    """The turns as the first runs kept them: the texts of AgentTraj-L by the numbers of all turns."""
    found: dict[str, Any] = {"head": [turns.get("0"), turns.get("1")], "seen": {}, "said": {}, "tail": []}
    for number, text in sorted((int(n), text) for n, text in turns.items() if int(n) > 1):
        step, which = divmod(number - 2, 2)
        if step < steps:
            found["said" if which else "seen"][str(step)] = text
        elif number == 2 + 2 * steps:
            found["tail"] = [text]
        else:
            return {}
    return {"key": "conversations", "steps": steps, **found}


def _path(run_dir: Path) -> Path:
    return RunLayout(run_dir).verbatim


def write_verbatim(run_dir: Path, verbatim: Mapping[str, Verbatim]) -> None:
    """Keep the conversations of a run's trajectories, by their ids."""
    rows = ({"id": name, **told} for name, told in verbatim.items())
    write_parts(_path(run_dir), (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_verbatim(run_dir: Path) -> dict[str, Verbatim]:
    """The conversations of a run's trajectories, by their ids; nothing for a run that keeps none."""
    return {row["id"]: row for row in jsonl_rows(_path(run_dir))}
