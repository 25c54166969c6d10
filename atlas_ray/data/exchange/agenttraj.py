"""AgentTraj-L, the trajectory set of AgentGym: in and out.

A record is ``{"item_id": "webshop_6", "conversations": [{"from": "human"|"gpt", "loss": null|false|true, "value"}]}``
(AgentGym repository). Turn 0 holds the instructions, 1 an acknowledgement, 2 the first observation with the task in
it, 3 the first thought and action; step t, counted from 1, is turn 2t+1. A last observation may follow. ShareGPT's
records are read too: without an acknowledgement, with a system prompt as a turn or beside the turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...rundir.files import write_parts
from ..records import Annotation, OnError, Trajectory
from .conversations import Examples, Options, Reasoning
from .flags import Unmarked, marked
from .sources import reading
from .survey import META
from .trajectories import meta_row, read_items
from .verbatim import written

_OURS = re.compile(r"(.+_\d+)(?:#\d+)?")


def import_agenttraj(
    path: str | Path,
    source: str = "AgentTraj-L",
    success: bool | None = None,
    on_error: OnError = "stop",
    dropped: list[InputError] | None = None,
    *,
    success_field: str | None = None,
    reasoning: Reasoning = "drop",
    examples: Examples = "refuse",
) -> list[Trajectory]:
    """Read trajectories in the format of AgentTraj-L, or in that of ShareGPT.

    docs/formats.md has the shapes of files and turns that are read. The instruction is the text of turn 0, where an
    acknowledgement follows, with the system prompts before it; the task stands in the first observation. Equal ids
    become ``webshop_6``, ``webshop_6#2``. Ours: seed is the index in ``item_id``, env ``AgentGym/NAME-v0``; the reward
    of the last step is the score, all others are 0. Records that :func:`export_agenttraj` wrote carry the true values
    and return exactly.

    Args:
        path: a file; of any shape in docs/formats.md.
        source: who acted, for records that do not say.
        success: the outcome of episodes that do not say, with score 1 or 0; None leaves it unknown. AgentTraj-L is said
            to hold successful episodes only, which ``success=True`` states.
        on_error: ``"stop"`` raises at the first bad record, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every record that was left out.
        success_field: dotted name of the record's field that says whether it was a success; else the usual names count.
        reasoning: ``"drop"`` leaves out what was thought before or beside an answer, ``"thought"`` makes it thought.
        examples: ``"drop"``, ``"steps"`` or ``"refuse"`` turns flagged false in front, where they may be an example.

    Raises:
        InputError: names file, field (``conversations[5].value``) and line; in an array ``[3].conversations[5].value``.
    """
    options = Options(success, success_field, reasoning, examples)
    with reading(path) as place:
        return [item for _, item in read_items(place.path, "conversations", source, options, on_error, dropped)]


def _record(item: Trajectory, annotation: Annotation | None, critical: frozenset[int]) -> dict[str, Any]:
    if item.tools is not None:
        raise InputError(f"trajectory {item.id!r} calls tools, for which AgentTraj-L has no form: export messages")
    told = written(item, "conversations")
    turns: list[dict[str, Any]] = []
    steps = {number: step for step, number in enumerate(told.action_turns)}
    for number, turn in enumerate(told.turns):
        loss = steps.get(number) in critical if turn["from"] == "gpt" else None
        turns.append({"from": turn["from"], "loss": loss, **turn})
    match = _OURS.fullmatch(item.id)
    beside = {"system": told.beside} if told.beside else {}
    return {
        "conversations": turns,
        "item_id": match[1] if match else f"{item.task}_{item.seed}",
        **beside,
        META: meta_row(item, annotation, told),
    }


def export_agenttraj(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None = None,
    unmarked: Unmarked = "refuse",
) -> int:
    """Write trajectories in the format of AgentTraj-L, with ``loss`` true on the critical steps only.

    ``loss`` is null on what the environment says and false on the acknowledgement and on every other step. **AgentGym's
    own cloning and AgentEvol trainers ignore it**: docs/formats.md says who reads it. What the format has no place for
    goes into an object ``atlas_ray`` beside the conversation, which those readers leave alone. A trajectory that was
    imported in this process keeps its turns word by word.

    Args:
        path: the file; ``.jsonl`` gets one record per line, every other name one JSON array.
        items: the trajectories.
        annotations: one for each trajectory; None marks every step.
        unmarked: a trajectory without an annotation, or with an empty one, is refused, or left out with ``"drop"``.

    Returns:
        How many records were written.

    Raises:
        InputError: see ``unmarked``; an annotation that fits no trajectory; an id twice; nothing to write.
        EmptySelectionError: everything would be left out.
    """
    return write_agenttraj(path, items, annotations, unmarked, lambda item: item)


def write_agenttraj(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None,
    unmarked: Unmarked,
    told: Callable[[Trajectory], Trajectory],
) -> int:
    """:func:`export_agenttraj` of what ``told`` makes of a trajectory when its turn to be written comes."""
    chosen = marked(items, annotations, unmarked)
    first, between, last = ("", "\n", "\n") if Path(path).suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")

    def parts() -> Iterator[str]:
        for number, (item, annotation, critical) in enumerate(chosen):
            yield between if number else first
            yield json.dumps(_record(told(item), annotation, critical), ensure_ascii=False, allow_nan=False)
        yield last

    write_parts(path, parts())
    return len(chosen)
