"""Exports that go to a dataset on the hub, and what `atlas-ray export` does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ..hub import dataset_name, push
from .dataset_card import MARK, dataset_card
from .flags import Unmarked
from .preference import PAIR_FORMATS
from .runs import export_run


def push_run(
    run_dir: str | Path, selector: str | None, fmt: str, flag: str | None, out: Path, repo: str, public: bool = False
) -> str:
    """Push what :func:`export_run` has written to ``out`` to a dataset on the hub, with a card.

    Args:
        run_dir: as in :func:`export_run`, as are ``selector``, ``fmt`` and ``flag``.
        selector: whose marks.
        fmt: the format.
        flag: the flag.
        out: the exported file.
        repo: ``ORG/NAME``; made where it is not there, as a private one.
        public: make it public, or push to one that is.

    Returns:
        The commit's address.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    card = dataset_card(run_dir, selector, fmt, flag, out, repo)
    message = f"{out.name}: {fmt}, steps by {selector or 'every-step'}"
    return push(repo, {out.name: out, "README.md": card.encode()}, message, MARK, public)


def export_command(
    run_dir: Path,
    selector: str,
    fmt: str,
    flag: str | None,
    unmarked: Unmarked,
    out: Path | None,
    repo: str | None,
    public: bool,
) -> Iterator[str]:
    """Export to a file, to a dataset, or to both; what was done, in words. ``every-step`` is no selector.

    Raises:
        InputError: neither is named, or what the export or the hub refuses.
    """
    if out is None and repo is None:
        raise InputError("says where to write: give it, or --push ORG/NAME", field="--out")
    if public and repo is None:
        raise InputError("is about a dataset that --push names", field="--public")
    if repo is not None:
        dataset_name(repo)
    what = (run_dir, None if selector == "every-step" else selector, fmt, flag)
    with tempfile.TemporaryDirectory() as folder:
        file = out or Path(folder) / f"{selector}.{'jsonl' if fmt in ('messages', *PAIR_FORMATS) else 'json'}"
        export_run(*what, file, unmarked)
        if out is not None:
            yield f"written: {out}"
        if repo is not None:
            yield f"pushed: {push_run(*what, file, repo, public)}"
