"""OpenAI messages, one conversation a line, with a flag on every message that is trained: in and out.

A line is ``{"messages": [{"role": "system"|"user"|"assistant", "content": str, FLAG: bool}, ...]}``: the instruction
as the system message, then observation and action in turn. Whoever reads the file decides which FLAG counts;
docs/formats.md lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError
from ..files import write_parts
from ..records import Annotation, OnError, Trajectory
from .items import META, meta_row, read_items
from .marks import Unmarked, marked
from .turns import compose

Flag = Literal["trainable", "train", "loss", "weight"]


def import_messages(
    path: str | Path,
    source: str = "messages",
    success: bool = True,
    on_error: OnError = "stop",
    dropped: list[InputError] | None = None,
) -> list[Trajectory]:
    """Read trajectories from OpenAI messages.

    A system (or developer) message is the instruction; without one it is empty. Then users and assistants alternate,
    and every assistant's message must hold an action as in :func:`import_agenttraj`. A last user message is left out.
    Ours, for lines that :func:`export_messages` did not write: as in :func:`import_agenttraj`, with ``id`` of the line
    or ``messages_N``, the env ``unknown`` where no id names it, and the line's number among the records as the seed.

    Args:
        path: a file with one conversation a line, or with one JSON array of them.
        source: who acted, for lines that do not say.
        success: the outcome of episodes that do not say.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every line that was left out.

    Raises:
        InputError: names file, line and field (``messages[4].content``).
    """
    return [item for _, item in read_items(path, "messages", source, success, on_error, dropped)]


def _line(item: Trajectory, note: Annotation | None, critical: frozenset[int], flag: Flag) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []

    def add(role: str, content: str, trained: bool) -> None:
        mark: dict[str, Any] = {flag: trained}
        if flag == "weight":  # OpenAI's schema has it on assistants only, as a number
            mark = {flag: int(trained)} if role == "assistant" else {}
        messages.append({"role": role, "content": content, **mark})

    add("system", item.instruction, False)
    acts = [compose(s.thought, s.action) for s in item.steps]
    for index, (step, act) in enumerate(zip(item.steps, acts, strict=True)):
        add("user", step.observation, False)
        add("assistant", act, index in critical)
    return {"messages": messages} if flag == "weight" else {"messages": messages, META: meta_row(item, note, acts)}


def export_messages(
    path: str | Path,
    items: Iterable[Trajectory],
    annotations: Iterable[Annotation] | None = None,
    flag: Flag = "trainable",
    unmarked: Unmarked = "refuse",
) -> int:
    """Write trajectories as OpenAI messages, one a line, with ``flag`` on every message.

    It is true on the turns of critical steps and false on all others, the system and user messages among them.
    ``weight`` alone is 0 or 1 and on assistants only, and such a file holds nothing beside the messages, because
    OpenAI checks it; ids, outcomes and rewards are lost there.

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
    if flag not in get_args(Flag):
        raise InputError(f"must be one of {', '.join(get_args(Flag))}, is {flag!r}", None, None, "flag")
    chosen = marked(items, annotations, unmarked)
    write_parts(path, (json.dumps(_line(*m, flag), ensure_ascii=False, allow_nan=False) + "\n" for m in chosen))
    return len(chosen)
