"""Run directories: made from the files of others, and written in their formats."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ..errors import InputError
from ..records import (
    Trajectory,
    iter_trajectories,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)
from .agenttraj import export_agenttraj
from .items import read_items, unique
from .marks import Marks, Unmarked, key_of
from .messages import Flag, export_messages
from .turns import Talk
from .words import read_words, with_words, words_of, write_words

FORMATS = ("agenttraj", "messages")
_SOURCES = {"conversations": "AgentTraj-L", "messages": "messages"}


def export_run(
    run_dir: str | Path,
    selector: str | None,
    fmt: str,
    flag: str | None,
    out: str | Path,
    unmarked: Unmarked = "refuse",
) -> Path:
    """Write the expert episodes of a run in a neighbour's format, with a selector's steps marked.

    Args:
        run_dir: a run directory.
        selector: whose ``annotations/SELECTOR.jsonl``; None marks every step.
        fmt: ``agenttraj`` or ``messages``.
        flag: for ``messages``, the key of the mark, ``trainable`` when None; ``agenttraj`` has ``loss`` only.
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
    if fmt == "agenttraj" and flag not in (None, "loss"):
        raise InputError(f"agenttraj knows the flag loss only, not {flag!r}", None, None, "flag")
    items = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    annotations = None
    if selector is not None:
        marks = run_dir / "annotations" / f"{selector}.jsonl"
        there = sorted(p.stem for p in marks.parent.glob("[!.]*.jsonl"))
        if selector not in there:
            raise InputError(f"has no annotations by {selector!r}, only by: {', '.join(there) or 'none'}", run_dir)
        annotations = read_annotations(marks, items)
    if fmt == "messages":
        export_messages(out, items, annotations, cast(Flag, flag or "trainable"), unmarked)
        return out
    words = read_words(run_dir)
    export_agenttraj(out, [with_words(t, words.get(t.id, {})) for t in items], annotations, unmarked)
    return out


def import_file(path: str | Path, run_dir: str | Path) -> int:
    """Make a run directory's expert episodes out of a file of either format, or of our own, or a folder of such files.

    Of a folder every ``*.json`` and ``*.jsonl`` is read, in the order of their names; hidden files and folders inside
    are not. Equal ids are numbered across its files as they are within one, and its flags count together.

    Writes ``trajectories/expert.jsonl``; where the flags mark some steps and not others, also
    ``annotations/SELECTOR.jsonl`` (``imported`` when the file does not name the selector); and keeps what
    :func:`export_run` needs to write the turns of AgentTraj-L word by word. Everything is read twice, so that records
    need not be held: nothing is written when one of them is wrong.

    Returns:
        How many trajectories were imported.

    Raises:
        InputError: the run has expert episodes already; a file is wrong; the flags come from several selectors; a
            folder holds no file to read.
    """
    path, run_dir = Path(path), Path(run_dir)
    target = run_dir / "trajectories" / "expert.jsonl"
    if target.exists():
        raise InputError("is there already and is not overwritten: choose another run directory", target)
    files = [(file, key_of(file)) for file in _files(path)]
    marks, words, count = Marks(), {}, 0
    for file, talk, item in _read(files):
        count += 1
        if talk:
            marks.add(talk, item)
        else:
            marks.bare(InputError("has no flags, but other files of the folder mark some steps", file))
        if kept := words_of(item):
            words[item.id] = kept
    notes = marks.annotations()
    if len({n.selector for n in notes}) > 1:
        raise InputError("its marks come from several selectors: import one selector's export at a time", path)
    if notes and not re.fullmatch(r"[\w-]+", notes[0].selector):
        raise InputError(f"names the selector {notes[0].selector!r}, which cannot be the name of a file", path)
    if notes:
        write_annotations(run_dir / "annotations" / f"{notes[0].selector}.jsonl", notes)
    if words:
        write_words(run_dir, words)
    write_trajectories(target, (item for *_, item in _read(files)))  # last: a run that has it counts as collected
    return count


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.glob("[!.]*") if f.suffix in (".json", ".jsonl") and not f.is_dir())
    if not files:
        raise InputError("is a folder without a .json or .jsonl file", path)
    return files


def _read(files: list[tuple[Path, str]]) -> Iterator[tuple[Path, Talk | None, Trajectory]]:
    """The trajectories of files whose turns stand under these keys, with ids that are unique among all of them.

    Raises:
        InputError: names file, line or record, and field.
    """
    seen: set[str] = set()
    for file, key in files:
        if key == "steps":
            for own in iter_trajectories(file):
                yield file, None, own.model_copy(update={"id": unique(own.id, seen)})
        else:
            for talk, item in read_items(file, key, _SOURCES[key], True, "stop", None, seen):
                yield file, talk, item
