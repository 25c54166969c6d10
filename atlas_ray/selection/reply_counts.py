"""What became of the replies of models that write in the select stage, from the files that the stage leaves."""

from __future__ import annotations

from pathlib import Path

from ..data.replies import summed
from ..rundir.files import jsonl_rows
from .scored_stage import scores_path

WHO = ("oracle", "mistakes", "value", "deviation", "verified", "start-after")
"""Who asks models here; the names of their files in ``annotations/scores``, too."""
_ABOUT = ("id", "after", "step", "side", "number")


def replies_of(run_dir: Path) -> dict[str, dict[str, int]]:
    """Their counts; who asked no model that writes is left out.

    The files say it and no process, so those of a run that was resumed are whole. Of two lines about the same the later
    counts: what was lost is asked for again.
    """
    found = {}
    for who in WHO:
        rows = jsonl_rows(scores_path(run_dir, who))
        last = {tuple(row.get(key) for key in _ABOUT): row.get("replies", {}) for row in rows}
        if counts := summed(last.values()).row():
            found[who] = counts
    return found
