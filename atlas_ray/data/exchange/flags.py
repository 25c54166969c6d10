"""Flags on turns: read as annotations, and written from annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ...errors import EmptySelectionError, InputError
from ..records import Annotation, OnError, Trajectory
from .conversations import Conversation, Examples, Options
from .meta import meta_of
from .reading import KEYS, read_records, refuse, turns_key
from .sources import reading
from .trajectories import read_items
from .turns import FLAGS

Unmarked = Literal["refuse", "drop"]


def critical_of(conversation: Conversation, flag: str | None) -> tuple[int, ...] | None:
    """The steps whose turn is flagged; None when no turn of the record has a flag.

    Raises:
        InputError: a flag is neither true, false, 1, 0 nor null, or marks a turn that is no step.
    """
    record, there = conversation.record, [f for f in FLAGS if any(t.raw.get(f) is not None for t in conversation.turns)]
    if flag is None and len(there) > 1:
        raise record.error(f"turns carry the flags {' and '.join(there)}: say which one counts", conversation.key)
    name = flag or (there[0] if there else None)
    if name not in there:
        return None
    for number, turn in enumerate(conversation.turns):
        value, field = turn.raw.get(name), f"{conversation.key}[{number}].{name}"
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise record.error(_wrong_flag(value), field)
        if value and number not in conversation.action_turns:
            raise record.error("is true, but only a step of the agent can be critical", field)
    return tuple(step for step, act in enumerate(conversation.action_turns) if conversation.turns[act].raw.get(name))


def _wrong_flag(value: object) -> str:
    if isinstance(value, str):
        return f"must be true, false, 1, 0 or null, is the text {value!r}: write it without quotation marks"
    if isinstance(value, int | float) and 0 < value < 1:
        return f"must be true, false, 1, 0 or null, is {value!r}: a step is critical or not, there is no half of it"
    return f"must be true, false, 1, 0 or null, is {value!r}"


def marked(
    items: Iterable[Trajectory], annotations: Iterable[Annotation] | None, unmarked: Unmarked
) -> list[tuple[Trajectory, Annotation | None, frozenset[int]]]:
    """Every trajectory that is exported, its annotation and its critical steps; without annotations all steps.

    Raises:
        InputError: nothing to export; an id twice; an annotation without its trajectory or with a step that does
            not exist; with ``unmarked="refuse"`` a trajectory without an annotation or with an empty one.
        EmptySelectionError: with ``unmarked="drop"`` nothing is left.
    """
    chosen = list(items)
    by_id = {t.id: t for t in chosen}
    if not chosen:
        raise InputError("there is no trajectory to export")
    if len(by_id) < len(chosen):
        name, count = Counter(t.id for t in chosen).most_common(1)[0]
        raise InputError(f"{count} trajectories to export have the id {name!r}")
    if annotations is None:
        return [(t, None, frozenset(range(len(t.steps)))) for t in chosen]
    by_trajectory: dict[str, Annotation] = {}
    for annotation in annotations:
        if annotation.trajectory_id not in by_id:
            raise InputError(f"an annotation is for {annotation.trajectory_id!r}, which is not among the trajectories")
        if annotation.trajectory_id in by_trajectory:
            raise InputError(f"trajectory {annotation.trajectory_id!r} has two annotations: export one selector's")
        if annotation.critical and annotation.critical[-1] >= len(by_id[annotation.trajectory_id].steps):
            raise InputError(f"trajectory {annotation.trajectory_id!r} has no step {annotation.critical[-1]}")
        by_trajectory[annotation.trajectory_id] = annotation
    bare = [t.id for t in chosen if t.id not in by_trajectory or not by_trajectory[t.id].critical]
    if bare and unmarked != "drop":
        raise InputError(
            f"{len(bare)} of {len(chosen)} trajectories have no critical step, the first is {bare[0]!r}: "
            'annotate them, or leave them out with unmarked="drop"'
        )
    if len(bare) == len(chosen):
        raise EmptySelectionError("no trajectory has a critical step, so there is nothing to train on")
    left_out = set(bare)
    return [(t, by_trajectory[t.id], frozenset(by_trajectory[t.id].critical)) for t in chosen if t.id not in left_out]


def import_annotations(
    path: str | Path,
    selector: str = "imported",
    flag: str | None = None,
    on_error: OnError = "stop",
    dropped: list[InputError] | None = None,
    *,
    examples: Examples = "refuse",
) -> list[Annotation]:
    """Read the flags on turns as annotations, from either format; ids are those of the import.

    A step is critical when its flag is true or 1. The formats do not hold the cap m, so ``fraction`` is 1, and they
    do not name the selector; both are exact for records that our export wrote.

    Args:
        path: a file that :func:`import_agenttraj` or ``import_messages`` reads.
        selector: the name for marks that have none.
        flag: the key that counts; None takes the only one of loss, trainable, train, weight that is there.
        on_error: as in :func:`import_agenttraj`.
        dropped: as in :func:`import_agenttraj`.
        examples: as in :func:`import_agenttraj`.

    Raises:
        InputError: also when the turns of a record carry no flag, or a turn that is no step is marked.
    """
    with reading(path) as source:
        return _annotations(source.path, selector, flag, on_error, dropped, Options(examples=examples))


def _annotations(
    path: Path, selector: str, flag: str | None, on_error: OnError, dropped: list[InputError] | None, options: Options
) -> list[Annotation]:
    annotations = []
    for conversation, item in read_items(path, key_of(path), "", options, on_error, dropped):
        try:
            critical = critical_of(conversation, flag)
            if critical is None:
                raise conversation.record.error(
                    f"no turn has the flag {flag}" if flag else "no turn has a flag", conversation.key
                )
        except InputError as error:
            refuse(error, on_error, dropped)
            continue
        annotations.append(_annotation(conversation, item, critical, selector))
    if not annotations:
        raise InputError("holds no flags that can be read", path)
    return annotations


def _annotation(conversation: Conversation, item: Trajectory, critical: tuple[int, ...], selector: str) -> Annotation:
    meta = meta_of(conversation.record)
    if meta is None:
        return Annotation(trajectory_id=item.id, selector=selector, fraction=1.0, critical=critical)
    return Annotation(
        trajectory_id=item.id,
        selector=meta.selector or selector,
        fraction=meta.fraction or 1.0,
        critical=critical,
        categories=meta.categories,
        reasons=meta.reasons,
        prompt_sha256=meta.prompt_sha256,
        model=meta.model,
    )


class FlaggedSteps:
    """The flags of all that is imported together, gathered record by record."""

    def __init__(self) -> None:
        self._annotations: list[Annotation] = []
        self._partly = False
        self._bare: InputError | None = None

    def add(self, conversation: Conversation, item: Trajectory) -> None:
        """The flags of a record.

        Raises:
            InputError: as :func:`critical_of`.
        """
        critical = critical_of(conversation, None)
        if critical is None:
            self.bare(conversation.record.error("no turn has a flag", conversation.key))
            return
        self._partly |= len(critical) < len(item.steps)
        self._annotations.append(_annotation(conversation, item, critical, "imported"))

    def bare(self, error: InputError) -> None:
        """``error`` is raised for what has no flags, should others mark some steps and not all."""
        self._bare = self._bare or error

    def annotations(self) -> list[Annotation]:
        """Those of an import that marks some steps and not others; nothing when all are marked, or none has flags.

        Raises:
            InputError: some steps are marked, and a record has no flags.
        """
        if self._partly and self._bare:
            raise self._bare
        return self._annotations if self._partly else []


def key_of(path: str | Path) -> str:
    """``messages``, ``conversations`` or, in a file of our own, ``steps``: what the first record of a file holds."""
    for peek in (True, False):  # the first may be a bad one
        first = next(read_records(path, "skip", None, peek), None)
        if first and (key := turns_key(first.value)):
            return key
    return KEYS[0]
