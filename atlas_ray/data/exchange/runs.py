"""Run directories: made from the files of others, and written in their formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from ...errors import InputError
from ...rundir.files import RunLog, replacing
from ...rundir.layout import RunLayout
from ..kept import Keep, is_kept
from ..pairs import read_pairs
from ..records import Annotation, OnError, Trajectory, read_annotations, read_trajectories, write_annotations
from .agenttraj import write_agenttraj
from .conversations import Conversation, Options
from .flags import FlaggedSteps, Unmarked, key_of
from .notices import Notices
from .openai_messages import Flag, write_messages, write_originals
from .outcomes import of_fields
from .preference import PAIR_FORMATS, export_pairs
from .raw_files import files_of
from .reading import JsonRecord, read_records, refuse, turns_key
from .sources import Source, reading, recorded
from .survey import Survey
from .tool_records import RecordKeeper, RecordReader
from .trajectories import own_trajectories, own_trajectory, read_items, read_record, unique
from .verbatim import Verbatim, read_verbatim, verbatim_of, with_verbatim, write_verbatim

FORMATS = ("agenttraj", "messages", "original", *PAIR_FORMATS)
_SOURCES = {"conversations": "AgentTraj-L", "messages": "messages", "traj": "tau-bench"}
TOOL_CALLS = "tool calls"
"""What :func:`check_file` calls records of agents that call tools."""
_NAMES = {"conversations": "AgentTraj-L", "messages": "messages", "steps": "trajectories"}


def export_run(
    run_dir: str | Path,
    selector: str | None,
    fmt: str,
    flag: str | None,
    out: str | Path,
    unmarked: Unmarked = "refuse",
) -> Path:
    """Write the expert episodes of a run in a neighbour's format, with a selector's steps marked, or its pairs.

    Args:
        run_dir: a run directory.
        selector: whose ``annotations/SELECTOR.jsonl``; None marks every step. Of pairs ``pairs/SELECTOR.jsonl``.
        fmt: ``agenttraj`` or ``messages``, for records of tool-calling agents also ``original``, or for pairs of turns
            ``trl-pairs`` or ``llamafactory-pairs``.
        flag: for ``messages``, the key of the mark, ``trainable`` when None; ``agenttraj`` has ``loss`` only;
            ``original`` has one if ``selector`` or ``flag`` is given.
        out: the file.
        unmarked: as in :func:`export_agenttraj`.

    Returns:
        ``out``.

    Raises:
        InputError: a name that does not exist, or what the export itself refuses.
        EmptySelectionError: everything would be left out.
    """
    run_dir, out = Path(run_dir), Path(out)
    if fmt not in FORMATS:
        raise InputError(f"must be one of {', '.join(FORMATS)}, is {fmt!r}", None, None, "format")
    if fmt in PAIR_FORMATS:
        return _export_pairs(RunLayout(run_dir), selector, fmt, flag, out)
    if fmt == "agenttraj" and flag not in (None, "loss"):
        raise InputError(f"agenttraj knows the flag loss only, not {flag!r}", None, None, "flag")
    items = read_trajectories(RunLayout(run_dir).expert)
    annotations = None
    if selector is not None:
        there = RunLayout(run_dir).selectors
        if selector not in there:
            raise InputError(f"has no annotations by {selector!r}, only by: {', '.join(there) or 'none'}", run_dir)
        annotations = read_annotations(RunLayout(run_dir).annotations(selector), items)
    verbatim, records = read_verbatim(run_dir), RecordReader(run_dir)

    def told(item: Trajectory) -> Trajectory:
        return with_verbatim(item, verbatim.get(item.id, {})) if item.tools is None else records.with_record(item)

    if fmt == "original":
        write_originals(out, items, annotations, cast(Flag | None, flag), unmarked, told)
    elif fmt == "messages":
        write_messages(out, items, annotations, cast(Flag, flag or "trainable"), unmarked, told)
    else:
        write_agenttraj(out, items, annotations, unmarked, told)
    return out


def _export_pairs(layout: RunLayout, selector: str | None, fmt: str, flag: str | None, out: Path) -> Path:
    if flag is not None:
        raise InputError(f"{fmt} has no flags, so give none", None, None, "flag")
    there = layout.pair_names
    if selector not in there:
        who = repr(selector) if selector else "every step"
        raise InputError(f"has no pairs of {who}, only of: {', '.join(there) or 'none'}", layout.root)
    return export_pairs(out, read_pairs(layout.pairs(selector)), fmt)


def import_file(
    path: str | Path,
    run_dir: str | Path,
    *,
    options: Options | None = None,
    on_bad: OnError = "stop",
    keep: Keep = "all",
    notices: Notices | None = None,
) -> int:
    """Make a run directory's expert episodes out of a file of either format, or of our own, or a folder of such files.

    On this machine or the hub, ``hf://datasets/ORG/NAME@REVISION/PATH``, of which a copy is made first.

    Of a folder every file is read whose name ends as one of :data:`SUFFIXES`, in the order of their names; hidden files
    and folders inside are not. Equal ids are numbered across its files as they are within one, and its flags count
    together.

    Writes ``trajectories/expert.jsonl``, and first ``source.json`` beside it, which says what is read, so that an
    import that was killed goes on with the same bytes or refuses; where the flags mark some steps and not others, also
    ``annotations/SELECTOR.jsonl`` (``imported`` when the file does not name the selector); keeps what
    :func:`export_run` needs to write the turns word by word; and logs in ``events.jsonl`` what was left out or is
    unknown. One record at a time is held, and nothing is left when one of them is wrong.

    Args:
        path: the file or folder, here or on the hub.
        run_dir: the run directory.
        options: how records are read where they leave it open.
        on_bad: ``"stop"`` raises at the first bad record, ``"skip"`` goes on without it.
        keep: which episodes; one of unknown outcome is neither a success nor a failure. The others are counted.
        notices: gets what was left out or is unknown.

    Returns:
        How many trajectories were imported.

    Raises:
        InputError: the run has expert episodes already; a file is wrong, or another one than before a kill; the flags
            come from several selectors; a folder holds no file to read; no record has ``options.success_field``; no
            episode is kept.
    """
    run_dir = Path(run_dir)
    target = RunLayout(run_dir).expert
    if target.exists():
        raise InputError("is there already and is not overwritten: choose another run directory", target)
    notices, options = notices or Notices(), options or Options()
    made = [p for p in (run_dir, target.parent) if not p.exists()]
    try:
        with recorded(path, run_dir) as source:
            _import(source, run_dir, target, options, on_bad, keep, notices)
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise
    return notices.records


def _import(
    source: Source, run_dir: Path, target: Path, options: Options, on_bad: OnError, keep: Keep, notices: Notices
) -> None:
    path = source.path
    # in its place last: a run that has it counts as collected
    with replacing(target) as part, RecordKeeper(run_dir) as records:
        flagged, verbatim = FlaggedSteps(), dict[str, Verbatim]()
        with part.open("w", encoding="utf-8") as file:
            for item in _usable(_Reading(path, options, on_bad), flagged, notices, keep):
                if kept := verbatim_of(item):
                    verbatim[item.id] = kept
                records.keep(item)
                file.write(json.dumps(item.row(), ensure_ascii=False) + "\n")
        notices.bad[:] = map(source.renamed, notices.bad)
        _check(path, options, notices, keep)
        annotations = _one_selector(path, flagged.annotations())
        if annotations:
            write_annotations(RunLayout(run_dir).annotations(annotations[0].selector), annotations)
        if verbatim:
            write_verbatim(run_dir, verbatim)
        for kind, values in notices.events():
            RunLog(run_dir).event("collect", kind, **values)


def _usable(reading: _Reading, flagged: FlaggedSteps, notices: Notices, keep: Keep) -> Iterator[Trajectory]:
    for file, conversation, item in reading.items(notices.bad):
        if not is_kept(keep, item.success):
            notices.leave_out(conversation, item, reading.options)
            continue
        try:
            if conversation:
                flagged.add(conversation, item)
            else:
                flagged.bare(InputError("has no flags, but other files of the folder mark some steps", file))
        except InputError as error:
            refuse(error, reading.on_bad, notices.bad)
            continue
        notices.add(conversation, item, reading.options)
        yield item


def _check(path: Path, options: Options, notices: Notices, keep: Keep) -> None:
    if not notices.records and notices.bad and not any(notices.left_out):
        raise InputError(f"holds no record that can be read; the first of {len(notices.bad)}: {notices.bad[0]}", path)
    if options.success_field is not None and notices.without_field == notices.conversations:
        message = f"no record of {path} has the field {options.success_field!r}"
        raise InputError(message, None, None, "collect.success_field")
    if not notices.records:
        raise InputError(f"has none of the {keep}, which are to be kept: it holds {notices.left_out.words()}", path)


def _one_selector(path: Path, annotations: list[Annotation]) -> list[Annotation]:
    if len({a.selector for a in annotations}) > 1:
        raise InputError("its critical steps come from several selectors: import one selector's export at a time", path)
    if annotations and not re.fullmatch(r"[\w-]+", annotations[0].selector):
        raise InputError(f"names the selector {annotations[0].selector!r}, which cannot be the name of a file", path)
    return annotations


def check_file(path: str | Path, options: Options | None = None, on_bad: OnError = "stop") -> str:
    """Look cheaply whether a file, or every file of a folder, can be read: its shape and its first record.

    Args:
        path: the file or folder; of one on the hub a copy is made first.
        options: how records are read where they leave it open.
        on_bad: with ``"skip"`` the first record counts that can be read.

    Returns:
        What it is, in words: ``"AgentTraj-L"``, ``"messages"``, ``"tool calls"`` or ``"trajectories"``; several joined
        by ``", "``.

    Raises:
        InputError: it is not there, or its first record cannot be read; names file, line or record, and field.
    """
    options = options or Options()
    with reading(path) as source:
        return ", ".join(dict.fromkeys(_look_at(file, options, on_bad) for file in files_of(source.path)))


def _look_at(file: Path, options: Options, on_bad: OnError) -> str:
    bad: list[InputError] = []
    for record in read_records(file, on_bad, bad, peek=on_bad == "stop"):
        try:
            return _look(record, options)
        except InputError as error:
            refuse(error, on_bad, bad)
    raise bad[0] if bad else InputError("holds no record that can be read", file)


def _look(record: JsonRecord, options: Options) -> str:
    """What a record is, in words.

    Raises:
        InputError: it cannot be read.
    """
    if turns_key(record.value) == "steps":
        own_trajectory(record)
        return _NAMES["steps"]
    conversation = read_record(record, options, lambda: True)
    of_fields(record, options.success_field)
    return _NAMES[conversation.key] if conversation.tools is None else TOOL_CALLS


class _Reading:
    """A file or a folder, to be read."""

    def __init__(self, path: Path, options: Options, on_bad: OnError) -> None:
        self._files = files_of(path)
        self.options, self.on_bad = options, on_bad
        self._survey = Survey(self._files)

    def items(self, bad: list[InputError]) -> Iterator[tuple[Path, Conversation | None, Trajectory]]:
        """The trajectories of all files, with ids that are unique among them; ``bad`` gets what was left out.

        Raises:
            InputError: names file, line or record, and field.
        """
        seen: set[str] = set()
        for file in self._files:
            try:
                yield from ((file, conversation, item) for conversation, item in self._of_file(file, bad, seen))
            except InputError as error:
                if len(self._files) == 1:
                    raise
                refuse(error, self.on_bad, bad)

    def _of_file(
        self, file: Path, bad: list[InputError], seen: set[str]
    ) -> Iterator[tuple[Conversation | None, Trajectory]]:
        key = key_of(file)
        if key != "steps":
            yield from read_items(file, key, _SOURCES[key], self.options, self.on_bad, bad, seen, self._survey)
            return
        for own in own_trajectories(file, self.on_bad, bad):
            yield None, own.model_copy(update={"id": unique(own.id, seen)})
