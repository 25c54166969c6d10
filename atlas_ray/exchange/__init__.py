"""Trajectories in the formats of the neighbours, in and out; docs/formats.md says who reads which flag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from ..errors import InputError
from ..files import write_text
from ..records import read_annotations, read_trajectories, write_annotations, write_trajectories
from .agenttraj import export_agenttraj, import_agenttraj
from .marks import Unmarked, import_annotations, key_of, partly_marked
from .messages import Flag, export_messages, import_messages

__all__ = [
    "export_agenttraj",
    "export_messages",
    "export_run",
    "import_agenttraj",
    "import_annotations",
    "import_file",
    "import_messages",
]

FORMATS = ("agenttraj", "messages")


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
    for original in run_dir.glob("imported.json*"):
        kept = {t.id: t for t in import_agenttraj(original)}
        items = [kept[t.id] if t.id in kept and kept[t.id] == t else t for t in items]
    export_agenttraj(out, items, annotations, unmarked)
    return out


def import_file(path: str | Path, run_dir: str | Path) -> int:
    """Make a run directory's expert episodes out of a file of either format, or of our own.

    Writes ``trajectories/expert.jsonl``; where the file's flags mark some steps and not others, also
    ``annotations/SELECTOR.jsonl`` (``imported`` when the file does not name the selector); and keeps a file in the
    format of AgentTraj-L as ``imported.json`` or ``imported.jsonl``, so that :func:`export_run` can write its turns
    word by word.

    Returns:
        How many trajectories were imported.

    Raises:
        InputError: the run has expert episodes already; the file is wrong; its flags come from several selectors.
    """
    path, run_dir = Path(path), Path(run_dir)
    target = run_dir / "trajectories" / "expert.jsonl"
    if target.exists():
        raise InputError("is there already and is not overwritten: choose another run directory", target)
    key = key_of(path)
    if key == "steps":
        own = read_trajectories(path)
        write_trajectories(target, own)
        return len(own)
    messages = key == "messages"
    items = import_messages(path) if messages else import_agenttraj(path)
    notes = partly_marked(path)
    if len({n.selector for n in notes}) > 1:
        raise InputError("its marks come from several selectors: import one selector's export at a time", path)
    if notes and not re.fullmatch(r"[\w-]+", notes[0].selector):
        raise InputError(f"names the selector {notes[0].selector!r}, which cannot be the name of a file", path)
    if notes:
        write_annotations(run_dir / "annotations" / f"{notes[0].selector}.jsonl", notes)
    if not messages:
        kept = run_dir / ("imported.jsonl" if path.suffix == ".jsonl" else "imported.json")
        write_text(kept, path.read_text(encoding="utf-8-sig"))
    write_trajectories(target, items)  # last, because a run that has it counts as collected
    return len(items)
