"""Reads and writes OpenAI messages: one conversation per line, with a flag on every message that is trained.

A line is ``{"messages": [{"role": "system"|"user"|"assistant", "content": str, FLAG: bool}, ...]}``: the instruction
as the system message, then observation and action in turn. Whoever reads the file decides which FLAG counts;
docs/formats.md lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import InputError
from ...rundir.files import write_parts
from ..records import Annotation, OnError, Trajectory
from .conversations import Examples, Options, Reasoning
from .flags import Unmarked, key_of, marked
from .sources import reading
from .survey import META
from .tool_records import original, tool_line
from .trajectories import meta_row, read_items
from .turns import is_answer
from .verbatim import written

Flag = Literal["trainable", "train", "loss", "weight"]


def import_messages(
    path: str | Path,
    source: str = "messages",
    success: bool | None = None,
    on_error: OnError = "stop",
    dropped: list[InputError] | None = None,
    *,
    success_field: str | None = None,
    reasoning: Reasoning = "drop",
    examples: Examples = "refuse",
    tools: Sequence[dict[str, Any]] = (),
) -> list[Trajectory]:
    """Read trajectories from OpenAI messages, also of agents that call tools, and from tau-bench's histories.

    A system (or developer) message is the instruction; without one it is empty. Then users and assistants alternate,
    and every assistant's message must hold an action as in :func:`import_agenttraj`; an acknowledgement may come first.
    What users say behind the last one is no step. Ours, for lines that :func:`export_messages` did not write: as in
    :func:`import_agenttraj`, with ``id`` of the line or ``messages_N``, the env ``unknown`` where no id names it, and
    the line's number among the records as the seed. Of agents that call tools every message is a step; docs/formats.md
    has the rules, and those for mini-swe-agent, SWE-smith and tau-bench.

    Args:
        path: a file with one conversation per line, or of any other shape in docs/formats.md.
        source: who acted, for lines that do not say.
        success: the outcome of episodes that do not say; None leaves it unknown.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every line that was left out.
        success_field: as in :func:`import_agenttraj`.
        reasoning: as in :func:`import_agenttraj`.
        examples: as in :func:`import_agenttraj`.
        tools: JSON schemas of the tools that agents could call, for records that do not say.

    Raises:
        InputError: names file, line and field (``messages[4].content``).
    """
    options = Options(success, success_field, reasoning, examples, tools=tuple(tools))
    with reading(path) as place:
        key = "traj" if key_of(place.path) == "traj" else "messages"
        return [item for _, item in read_items(place.path, key, source, options, on_error, dropped)]


def _line(item: Trajectory, annotation: Annotation | None, critical: frozenset[int], flag: Flag) -> dict[str, Any]:
    if item.tools is not None:
        return tool_line(item, annotation, critical, flag, bare=flag == "weight")
    told = written(item, "messages")
    steps = {number: step for step, number in enumerate(told.action_turns)}
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(told.turns):
        trained = steps.get(number) in critical
        if flag == "weight":  # OpenAI's schema has it on assistants only, as a number, and knows no keys of others
            mark = {"weight": int(trained)} if is_answer(turn) else {}
            messages.append({"role": turn["role"], "content": turn["content"]} | mark)
        else:
            messages.append({**turn, flag: trained})
    if flag == "weight":
        return {"messages": messages}
    beside = {"system": told.beside} if told.beside else {}
    return {"messages": messages, **beside, META: meta_row(item, annotation, told)}


def export_messages(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None = None,
    flag: Flag = "trainable",
    unmarked: Unmarked = "refuse",
) -> int:
    """Write trajectories as OpenAI messages, one conversation per line, with ``flag`` on every message.

    It is true on the turns of critical steps and false on all others, the system and user messages among them.
    ``weight`` alone is 0 or 1 and on assistants only, and such a file holds nothing beside the messages, because
    OpenAI checks it; ids, outcomes and rewards are lost there. There is no system message where the instruction is
    empty. A trajectory that :func:`import_messages` read in this process keeps its messages word by word.

    Args:
        path: the file.
        items: the trajectories.
        annotations: one for each trajectory; None marks every step.
        flag: ``trainable`` for tinker-cookbook, ``train`` for axolotl, ``loss`` for ms-swift, ``weight`` for OpenAI.
        unmarked: a trajectory without an annotation, or with an empty one, is refused, or left out with ``"drop"``.

    Returns:
        How many lines were written.

    Raises:
        InputError: see ``unmarked``; an annotation that fits no trajectory; an id twice; nothing to write; a flag
            that is none of the four.
        EmptySelectionError: everything would be left out.
    """
    return write_messages(path, items, annotations, flag, unmarked, lambda item: item)


def write_messages(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None,
    flag: Flag,
    unmarked: Unmarked,
    told: Callable[[Trajectory], Trajectory],
) -> int:
    """:func:`export_messages` of what ``told`` makes of a trajectory when its turn to be written comes."""
    _check_flag(flag)
    chosen = marked(items, annotations, unmarked)
    lines = (_line(told(item), annotation, critical, flag) for item, annotation, critical in chosen)
    write_parts(path, (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))
    return len(chosen)


def _check_flag(flag: str) -> None:
    if flag not in get_args(Flag):
        raise InputError(f"must be one of {', '.join(get_args(Flag))}, is {flag!r}", None, None, "flag")


def write_originals(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None,
    flag: Flag | None,
    unmarked: Unmarked,
    told: Callable[[Trajectory], Trajectory],
) -> int:
    """Write the records of tool-calling agents as they were imported, with all their keys.

    With annotations or a flag, every message carries the flag too, ``trainable`` where none is named. The file is one
    array of records, as JSON, or one a line where its name ends in ``.jsonl``.

    Raises:
        InputError: a trajectory was not read from such a record; else as :func:`export_messages`.
    """
    _check_flag(flag or "trainable")
    chosen = marked(items, annotations, unmarked)
    flags = annotations is not None or flag is not None
    first, between, last = ("", "\n", "\n") if Path(path).suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")

    def parts() -> Iterator[str]:
        for number, (item, _, critical) in enumerate(chosen):
            record = original(told(item), critical if flags else None, flag or "trainable")
            yield between if number else first
            yield json.dumps(record, ensure_ascii=False)
        yield last

    write_parts(path, parts())
    return len(chosen)
