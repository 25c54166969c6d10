"""What happened on the way: events and stage times, read from the run's append-only files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..rundir.layout import RunLayout
from ..rundir.progress import duration
from .page import Html, missing, table


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file that may still be written to: a last line without its newline is left alone."""
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"not JSON: {error}", path, number) from None
        if not isinstance(row, dict) or not isinstance(row.get("stage"), str):
            raise InputError("a row must be a JSON object that names its stage", path, number, "stage")
        rows.append(row)
    return rows


def events(run_dir: Path) -> Html:
    """Counts of every kind of event in each stage, with the first as an example.

    A row may stand for several ``episodes`` or ``trajectories``; then their number is counted.
    """
    path = RunLayout(run_dir).events
    if not path.is_file():
        return missing("events.jsonl is missing")
    counts: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], str] = {}
    for row in _rows(path):
        key = (row["stage"], str(row.get("event", "")))
        many = row.get("episodes", row.get("trajectories"))
        counts[key] = counts.get(key, 0) + (many if isinstance(many, int) else 1)
        rest = {k: v for k, v in row.items() if k not in ("stage", "event")}
        first.setdefault(key, ", ".join(f"{k}: {v}" for k, v in rest.items())[:300])
    if not counts:
        return missing("events.jsonl holds no event; nothing was dropped or retried")
    rows: list[list[str | Html]] = [[*key, f"{n:,}", first[key]] for key, n in counts.items()]
    return table(["stage", "event", "count", "the first of them"], rows, text=2, wrap_last=True)


def stage_times(run_dir: Path) -> Html:
    """Seconds of each stage, summed over resumed runs."""
    path = RunLayout(run_dir).metrics
    seconds: dict[str, float] = {}
    if path.is_file():
        for row in _rows(path):
            if row["stage"] == "pipeline":
                try:
                    seconds[str(row["name"])] = seconds.get(str(row["name"]), 0.0) + float(row["seconds"])
                except (KeyError, TypeError, ValueError):
                    raise InputError("a row of the stage pipeline needs name and seconds", path) from None
    if not seconds:
        return missing("metrics.jsonl holds no times of stages")
    total = ["all", duration(sum(seconds.values()))]
    return table(["stage", "wall time"], [*[[k, duration(s)] for k, s in seconds.items()], total])
