"""Scores of the other stages, in one file for programs and one for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.kept import outcomes_of
from ..data.records import iter_trajectories
from ..data.results import Results, write_results
from ..errors import InputError
from ..report import build_report
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from ..selection.reply_counts import replies_of


def write_report(run_dir: Path) -> Path:
    """``results.json`` from the scores and counts of replies that the stages left, if any, and ``report.html``.

    Returns:
        The report.

    Raises:
        InputError: the directory holds neither scores nor annotations.
    """
    layout = RunLayout(run_dir)
    parts: dict[str, Any] = {}
    if layout.atlas_scores.exists():
        parts["atlas"] = read_json(layout.atlas_scores)
    if layout.switch_policies.exists() and (policies := read_json(layout.switch_policies)):
        parts["londi"] = {"policies": policies}
    others = layout.sweep_json.exists() or layout.switch_estimates.exists()
    if not parts and not layout.selectors and not others:
        raise InputError(
            "holds neither scores nor annotations: run its select, evaluate or switch stage first", run_dir
        )
    if replies := replies_of(run_dir):
        parts["replies"] = {"select": replies}
    if parts and layout.expert.exists() and (ended := outcomes_of(iter_trajectories(layout.expert))).mixed:
        parts["collected"] = ended._asdict()
    if parts:
        write_results(layout.results, Results.model_validate(parts))
    return build_report(run_dir)
