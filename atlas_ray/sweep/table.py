"""The outcome of a sweep as one table: one row per trial, in ``sweep.csv`` and ``sweep.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..recipe.sweep import Sweep
from ..rundir.files import read_json, write_json, write_text
from ..rundir.layout import RunLayout
from .trials import Trial

Row = dict[str, Any]
_SWITCH = ("calls", "share", "return", "objective", "compute", "compute_unit", "budget_violations", "episodes", "steps")
_ATLAS = ("held_out", "held_out_ci95", "share", "trained_tokens", "episodes")


def begun(trial: Trial) -> Row:
    """What is known of a trial whatever became of it."""
    outcome = trial.outcome()
    row = {
        "trial": trial.number,
        "status": outcome.get("status", "failed"),
        "values": outcome.get("values", trial.values),
    }
    row["seconds"] = outcome.get("seconds", 0.0)
    return {**row, "why": outcome["why"]} if "why" in outcome else row


def atlas_row(trial: Trial, metric: str) -> Row:
    """A trial of ATLaS: its arm's scores."""
    row = begun(trial)
    if row["status"] != "done":
        return row
    (arm,) = (a for a in read_json(trial.layout.atlas_scores)["arms"] if a["selector"] != "none")
    held_in, held_out = arm["held_in"], arm.get("held_out")
    row |= {"success": held_in["success"], "ci95": held_in["ci95"], "episodes": held_in["episodes"]}
    if held_out:
        row |= {"held_out": held_out["success"], "held_out_ci95": held_out["ci95"]}
    row |= {"share": arm["steps_share"], "trained_tokens": arm["trained_tokens"]}
    return {**row, "metric": row["held_out" if metric == "held_out" else "success"]}


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
    write_json(RunLayout(run_dir).sweep_json, made)
    write_text(RunLayout(run_dir).sweep_csv, as_csv(made))
    return made


def as_csv(made: Row) -> str:
    """The rows as comma-separated values, a column a swept field; lists and tables are JSON."""
    of_kind = _SWITCH if made["kind"] == "switch" else _ATLAS
    heads = ["trial", "status", *made["fields"], "metric", "success", "ci95_low", "ci95_high"]
    heads += [part for name in of_kind for part in ((f"{name}_low", f"{name}_high") if "ci95" in name else (name,))]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*heads, "seconds", "why"], restval="", lineterminator="\n")
    writer.writeheader()
    for row in made["trials"]:
        flat = {k: v for k, v in row.items() if k not in ("values", "ci95", "held_out_ci95")}
        for name in ("ci95", "held_out_ci95"):
            if name in row:
                flat |= {f"{name}_low": row[name][0], f"{name}_high": row[name][1]}
        writer.writerow(
            flat | {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row["values"].items()}
        )
    return out.getvalue()
