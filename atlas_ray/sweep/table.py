"""The outcome of a sweep as one table: one row per trial, in ``sweep.csv`` and ``sweep.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.results import Arm
from ..errors import InputError
from ..recipe.sweep import Sweep
from ..report.forgetting import forgotten
from ..report.run import read_recipe
from ..report.swept_arms import Group, compare_arms, group_trials, sweeps_arms
from ..rundir.files import read_json, write_json, write_text
from ..rundir.layout import RunLayout
from .trials import Trial, trials_of

Row = dict[str, Any]
_SWITCH = ("calls", "share", "return", "objective", "compute", "compute_unit", "budget_violations", "episodes", "steps")
_ATLAS = ("held_out", "held_out_ci95", "share", "trained_tokens", "episodes", "forgetting", "forgetting_ci95")

_INTERVALS = ("ci95", "held_out_ci95", "forgetting_ci95")


def begun(trial: Trial) -> Row:
    """What is known of a trial whatever became of it."""
    outcome = trial.outcome()
    row = {
        "trial": trial.number,
        "status": outcome.get("status", "unfinished"),
        "values": outcome.get("values", trial.values),
    }
    row["seconds"] = outcome.get("seconds", 0.0)
    return {**row, "why": outcome["why"]} if "why" in outcome else row


def atlas_row(trial: Trial, metric: str) -> Row:
    """A trial of ATLaS: its arm's scores."""
    row = begun(trial)
    if row["status"] != "done":
        return row
    (arm,) = _scores(trial.layout, untuned=False)
    held_in, held_out = arm["held_in"], arm.get("held_out")
    row |= {"success": held_in["success"], "ci95": held_in["ci95"], "episodes": held_in["episodes"]}
    if held_out:
        row |= {"held_out": held_out["success"], "held_out_ci95": held_out["ci95"]}
    row |= {"share": arm["steps_share"], "trained_tokens": arm["trained_tokens"], "arm": arm}
    return {**row, "metric": row["held_out" if metric == "held_out" else "success"]}


def _scores(trial: RunLayout, untuned: bool) -> list[Row]:
    return [arm for arm in read_json(trial.atlas_scores)["arms"] if (arm["selector"] == "none") == untuned]


def switch_row(trial: Trial, metric: str, scored: Row, objective: float, steps: int) -> Row:
    """A trial of the switch: its best policy on the test episodes, as the switch stage scores it."""
    names = {"calls": "deepthink_calls_per_episode", "share": "deepthink_share"}
    row = {**begun(trial), "success": scored["success"], "ci95": scored["ci95"], "objective": objective, "steps": steps}
    row |= {name: scored[names.get(name, name)] for name in _SWITCH if name not in ("objective", "steps")}
    return {**row, "metric": row[metric]}


def front(rows: Sequence[Row]) -> list[int]:
    """Trials than which none has more success with as few calls, nor fewer calls with as much success."""
    here = [r for r in rows if "calls" in r]

    def beaten(row: Row) -> bool:
        return any(
            r["calls"] <= row["calls"]
            and r["success"] >= row["success"]
            and (r["calls"], r["success"]) != (row["calls"], row["success"])
            for r in here
        )

    return [row["trial"] for row in sorted(here, key=lambda r: r["calls"]) if not beaten(row)]


def write(run_dir: Path, name: str, sweep: Sweep, rows: Sequence[Row], ends: Sequence[Row]) -> Row:
    """Write both files; returns what is in ``sweep.json``.

    Args:
        run_dir: of the sweep.
        name: of the recipe.
        sweep: the table of the recipe.
        rows: of the trials.
        ends: of the switch: always QUICK and always DEEPTHINK on the same episodes, where they are the same for all.
    """
    scored = [r for r in rows if "metric" in r]
    pick = max if sweep.mode == "max" else min
    best = pick(scored, key=lambda r: r["metric"])["trial"] if scored else None
    about: Row = {"name": name, "kind": sweep.kind, "metric": sweep.judged_by, "mode": sweep.mode}
    about |= {"scheduler": sweep.scheduler, "fields": list(sweep.space), "best": best, "front": front(rows)}
    made = {**about, "trials": list(rows), "ends": list(ends)}
    if sweep.kind == "atlas":
        made |= _brought_together(run_dir, made)
    write_json(RunLayout(run_dir).sweep_json, made)
    write_text(RunLayout(run_dir).sweep_csv, as_csv(made))
    return made


def _brought_together(run_dir: Path, made: Row) -> Row:
    """What the trials say of each other, and what each forgot."""
    untuned = {}
    for row in made["trials"]:
        if "arm" in row and (base := _scores(RunLayout(run_dir).trial(row["trial"]), untuned=True)):
            untuned[row["trial"]] = base[0]
    groups = group_trials(made["trials"], run_dir, untuned)
    rows = [_with_forgetting(row, groups) for row in made["trials"]]
    if not sweeps_arms(made["fields"]):
        return {"trials": rows}
    compared = [comparison.row() for comparison in compare_arms(groups)]
    return {"trials": rows, "groups": [group.row() for group in groups], "comparisons": compared}


def _with_forgetting(row: Row, groups: Sequence[Group]) -> Row:
    group = next((group for group in groups if row["trial"] in group.trials), None)
    if group is None:
        return row
    own = Arm.model_validate(row["arm"])
    arm = next(a for a in group.arms if (a.name, a.fraction) == (own.name, own.fraction))
    if (lost := forgotten(group.run, arm)) is None:
        return row
    return {**row, "forgetting": lost.change.mean, "forgetting_ci95": [lost.change.low, lost.change.high]}


def refresh(run_dir: Path) -> None:
    """Write both files again from what the trials are now, some of which may be unfinished.

    Nothing where the directory holds no sweep, or holds its files without its trials.

    Raises:
        InputError: it is a sweep of the switch that was not scored yet.
    """
    layout = RunLayout(run_dir)
    recipe = read_recipe(layout.recipe)
    if recipe is None or recipe.sweep is None:
        return
    trials = trials_of(recipe, run_dir)
    if not any(trial.layout.recipe.is_file() for trial in trials):
        return
    if recipe.sweep.kind == "atlas":
        write(run_dir, recipe.name, recipe.sweep, [atlas_row(t, recipe.sweep.judged_by) for t in trials], [])
    elif not layout.sweep_json.is_file():
        raise InputError("its switches are scored together, once all are trained: sweep it to the end first", run_dir)


def as_csv(made: Row) -> str:
    """The rows as comma-separated values, a column a swept field; lists and tables are JSON."""
    of_kind = _SWITCH if made["kind"] == "switch" else _ATLAS
    heads = ["trial", "status", *made["fields"], "metric", "success", "ci95_low", "ci95_high"]
    heads += [part for name in of_kind for part in ((f"{name}_low", f"{name}_high") if "ci95" in name else (name,))]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*heads, "seconds", "why"], restval="", lineterminator="\n")
    writer.writeheader()
    for row in made["trials"]:
        flat = {k: v for k, v in row.items() if k not in ("values", "arm", *_INTERVALS)}
        for name in _INTERVALS:
            if name in row:
                flat |= {f"{name}_low": row[name][0], f"{name}_high": row[name][1]}
        writer.writerow(
            flat | {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row["values"].items()}
        )
    return out.getvalue()
