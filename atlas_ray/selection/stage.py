"""Stage 2: annotations of the expert trajectories by every selector of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..agent_spec import AgentSpec, agent_spec
from ..engines import EnginePool
from ..errors import AtlasError
from ..files import RunLog, append_jsonl, recover_jsonl
from ..progress import say, track
from ..recipe import Recipe
from ..rollout import env_spec
from ..trajectory import Annotation, Trajectory, read_annotations, read_trajectories, write_annotations
from ..workers import chunks, worker_pool
from .controls import select_all, select_non_critical, select_random
from .value import ValueConfig, estimate_values, gains, select_by_value

_CHUNK = 8


def _value_job(task: tuple[list[Trajectory], ValueConfig, AgentSpec], kept: dict[str, Any]) -> Any:
    trajectories, config, spec = task
    yield estimate_values(spec.agent(kept), trajectories, config)


def _select_value(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    config, log = recipe.select, RunLog(run_dir)
    assert config is not None and recipe.collect is not None
    part = run_dir / "annotations" / ".value.part.jsonl"
    values = {row["id"]: row["values"] for row in recover_jsonl(part)}
    todo = [t for t in trajectories if t.id not in values]
    specs = {s.id: s for s in (env_spec(recipe, n, recipe.collect.max_steps, "train") for n in recipe.collect.levels)}
    settings = ValueConfig(config.rollouts, config.horizon, specs)
    spec = agent_spec(recipe, config.model, config.temperature)
    spent = 0
    retried = lambda task, n, why: log.event("select", "retried", attempt=n, why=why)  # noqa: E731
    with track("values by roll-out", len(trajectories), len(values)) as progress:
        with (
            worker_pool(recipe, retried) as pool,
            EnginePool(recipe.engine, config.model, recipe.workers, recipe.num_envs) as engines,
        ):
            tasks = [(chunk, settings, spec.seated(engines.seats)) for chunk in chunks(todo, _CHUNK)]
            for task, (found, problems, steps) in pool.stream(_value_job, tasks):
                append_jsonl(part, [{"id": i, "values": v} for i, v in found.items()])
                values.update(found)
                spent += steps
                for problem in problems:
                    log.event("select", "dropped", why=problem)
                progress.advance(len(task[0]), f"{spent} steps")
    annotated = [t for t in trajectories if t.id in values]
    if len(annotated) < len(trajectories):
        say(f"  {len(trajectories) - len(annotated)} trajectories could not be replayed and stay unannotated")
    flat = sum(max(gains(t, values[t.id])) <= 0 for t in annotated)
    if flat:
        log.event("select", "no gain", selector="value", trajectories=flat)
        say(f"  value: in {flat} of {len(annotated)} trajectories no step raised the value; the best one was taken")
    log.metric("select", selector="value", rollout_steps=spent, trajectories=len(annotated), flat=flat)
    return [select_by_value(t, values[t.id], config.fraction, config.model) for t in annotated]


def select(recipe: Recipe, run_dir: Path) -> dict[str, list[Annotation]]:
    """Annotate ``trajectories/expert.jsonl`` by each selector into ``annotations/SELECTOR.jsonl``.

    Raises:
        AtlasError: a selector marked nothing at all.
    """
    config = recipe.select
    assert config is not None
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    done: dict[str, list[Annotation]] = {}
    # non-critical draws from what value left, so value comes first
    for selector in sorted(config.selectors, key=lambda s: s != "value"):
        target = run_dir / "annotations" / f"{selector}.jsonl"
        if target.exists():
            done[selector] = read_annotations(target, trajectories)
            continue
        if selector == "value":
            made = _select_value(recipe, run_dir, trajectories)
        elif selector == "all":
            made = select_all(trajectories)
        elif selector == "random":
            made = select_random(trajectories, config.fraction, recipe.seed)
        else:
            made = select_non_critical(trajectories, done["value"], config.fraction, recipe.seed)
        empty = sum(not a.critical for a in made)
        if empty == len(made):
            raise AtlasError(f"the selector {selector} marked no step in any of {len(made)} trajectories")
        if empty:
            RunLog(run_dir).event("select", "empty", selector=selector, trajectories=empty)
            say(f"  {selector}: {empty} of {len(made)} trajectories have no step to select")
        write_annotations(target, made)
        (run_dir / "annotations" / f".{selector}.part.jsonl").unlink(missing_ok=True)
        done[selector] = made
    lengths = {t.id: len(t.steps) for t in trajectories}
    for name, marks in done.items():
        share = sum(len(a.critical) for a in marks) / sum(lengths[a.trajectory_id] for a in marks)
        say(f"  {name}: {share:.1%} of the steps")
    return done
