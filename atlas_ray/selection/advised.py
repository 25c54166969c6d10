"""The selector ``advised``: the steps at which the environment's own expert would do the same (ours).

It stands for ``mistakes`` where an environment has an expert that advises from wherever the agent went: the loss leaves
out what the expert would not have done. An expert knows one good action of several, so what is left out need not be a
mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.workers import chunks, worker_pool
from ..data.records import Annotation, Trajectory
from ..recipe.loading import Recipe
from ..rundir.files import RunLog
from ..rundir.progress import say, track
from .replays import replay_specs
from .scored_stage import say_left_out, scores_path
from .verified_play import MoveRequest, ask

_CHUNK = 8


def select_by_advice(trajectory: Trajectory, advice: dict[int, str]) -> Annotation:
    """The steps whose action is the advised one, and what else was advised at the others. There may be none."""
    same = [t for t, step in enumerate(trajectory.steps) if t in advice and advice[t].split() == step.action.split()]
    return Annotation(
        trajectory_id=trajectory.id,
        selector="advised",
        fraction=1.0,
        critical=tuple(same),
        reasons={t: f"expert would {action}" for t, action in sorted(advice.items()) if t not in same},
        model="expert",
    )


def by_advised(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    """Ask the experts at every step of every trajectory, by replaying it; a killed run goes on.

    Raises:
        AtlasError: every trajectory was lost.
        InputError: none of the trajectories can be replayed, or no expert advises.
    """
    assert recipe.collect is not None
    log, file = RunLog(run_dir), ResultFile(scores_path(run_dir, "advised"))
    rows: dict[str, dict[str, Any]] = {row["id"]: row for row in file.rows() if "moves" in row}
    specs, unplayable = replay_specs(recipe, trajectories)
    left_out = {t.id: unplayable[t.env] for t in trajectories if t.env in unplayable and t.id not in rows}
    todo = [t for t in trajectories if t.id not in rows and t.id not in left_out]
    steps = {t.id: range(len(t.steps)) for t in todo}
    if todo:
        with (
            track("experts' advice", len(todo)) as progress,
            worker_pool(recipe, log_lost_workers(log, "select")) as pool,
        ):
            tasks = [
                MoveRequest(tuple(part), {t.id: steps[t.id] for t in part}, specs, None, recipe.collect.cpu_seconds)
                for part in chunks(todo, _CHUNK)
            ]
            for task, result in file.stream(pool, ask, tasks, lambda _, found: found.rows):
                rows |= {row["id"]: row for row in result.rows if "moves" in row}
                left_out |= result.left_out
                progress.advance(len(task.trajectories))
    say_left_out(recipe, run_dir, "advised", left_out, len(trajectories))
    advice = {name: {int(t): move["action"] for t, move in row["moves"].items()} for name, row in rows.items()}
    made = [select_by_advice(t, advice[t.id]) for t in trajectories if advice.get(t.id)]
    if silent := sum(t.id in advice and not advice[t.id] for t in trajectories):
        why = "no expert advises at any step"
        log.event("select", "left out", selector="advised", trajectories=silent, why=why)
        say(f"  advised: at {silent} of {len(trajectories)} trajectories {why}, left out")
    replayed = sum(row["replayed"] for row in rows.values())
    say(f"  advised: {replayed:,} environment steps to replay")
    log.metric("select", selector="advised", replayed_steps=replayed, trajectories=len(made))
    return made
