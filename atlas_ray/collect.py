"""Stage 1: expert episodes, with the expert's sub-goals as thoughts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import envs

from .errors import AtlasError
from .files import RunLog, append_jsonl, recover_jsonl
from .progress import say, track
from .recipe import Collect, Recipe
from .rollout import TRAIN, seed_block
from .trajectory import Step, Trajectory, read_trajectories, write_trajectories
from .workers import ActorPool, chunks

_CHUNK = 25
_MOST_TRIES = 4


def expert_episode(env_name: str, seed: int, max_steps: int | None, cpu_seconds: float) -> Trajectory | str:
    """One episode of the BabyAI bot, or why there is none."""
    env = envs.make(env_name, max_steps=max_steps)
    observation, info = env.reset(seed=seed)
    goal, steps = info["goal"], []
    try:
        expert = envs.BabyAIExpert(env, cpu_seconds)
        while True:
            move = expert.act()
            following, reward, terminated, truncated, info = env.step(move.action)
            steps.append(Step(observation=observation, thought=move.thought, action=move.action, reward=reward))
            observation = following
            if terminated or truncated:
                break
    except envs.ExpertGaveUpError as error:
        return str(error)
    if not info["success"]:
        return f"not solved in {len(steps)} steps"
    full = envs.full_id(env_name)
    return Trajectory(
        id=f"{full}/{seed}",
        env=full,
        task=full.split("/")[-1],
        seed=seed,
        instruction=goal,
        steps=tuple(steps),
        score=info["score"],
        success=True,
        source="expert",
    )


def _job(task: tuple[str, list[int], Collect], kept: dict[str, Any]) -> list[dict[str, Any]]:
    env_name, seeds, config = task
    rows = []
    for seed in seeds:
        outcome = expert_episode(env_name, seed, config.max_steps, config.cpu_seconds)
        solved = isinstance(outcome, Trajectory)
        rows.append(
            {
                "env": env_name,
                "seed": seed,
                "trajectory": outcome.row() if isinstance(outcome, Trajectory) else None,
                "why": None if solved else outcome,
            }
        )
    return rows


def collect(recipe: Recipe, run_dir: Path) -> list[Trajectory]:
    """Expert episodes by ``recipe.collect`` into ``trajectories/expert.jsonl``.

    Of every environment the first n solved seeds are taken, whatever order the actors finish in. Episodes that the
    expert gave up are counted in ``events.jsonl``.

    Raises:
        AtlasError: the expert solves too few seeds of an environment.
    """
    config, log = recipe.collect, RunLog(run_dir)
    assert config is not None
    target, part = run_dir / "trajectories" / "expert.jsonl", run_dir / "trajectories" / ".expert.part.jsonl"
    if target.exists():
        return read_trajectories(target)
    tried: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in config.levels}
    for row in recover_jsonl(part):
        tried[row["env"]][row["seed"]] = row
    first = seed_block(recipe.seed, TRAIN)

    def solved(name: str) -> list[dict[str, Any]]:
        return [row for _, row in sorted(tried[name].items()) if row["trajectory"]]

    total = sum(config.levels.values())
    have = sum(min(len(solved(n)), want) for n, want in config.levels.items())
    retried = lambda task, n, why: log.event("collect", "retried", task=task[0], attempt=n, why=why)  # noqa: E731
    with (
        track("expert episodes", total, have) as progress,
        ActorPool[Any, Any](recipe.workers, on_retry=retried) as pool,
    ):
        while True:
            tasks = []
            for name, want in config.levels.items():
                missing = want - len(solved(name))
                if missing > 0 and len(tried[name]) > _MOST_TRIES * want + 100:
                    raise AtlasError(
                        f"the expert solved {len(solved(name))} of {len(tried[name])} episodes of {name}, "
                        f"{want} are asked for: leave this environment out or raise collect.max_steps"
                    )
                done = set(tried[name])
                # seeds are tried in order and without gaps, so the episodes taken do not depend on the timing
                seeds = [s for s in range(first, first + len(done) + max(0, missing)) if s not in done]
                tasks += [(name, chunk, config) for chunk in chunks(seeds, _CHUNK)]
            if not tasks:
                break
            for _, rows in pool.map(_job, tasks):
                append_jsonl(part, rows)
                for row in rows:
                    tried[row["env"]][row["seed"]] = row
                progress.advance(sum(row["trajectory"] is not None for row in rows))
    episodes = []
    for name, want in config.levels.items():
        given_up = [row for row in tried[name].values() if not row["trajectory"]]
        if given_up:
            log.event("collect", "dropped", env=name, episodes=len(given_up), why=given_up[0]["why"])
            say(f"  {name}: the expert did not solve {len(given_up)} episodes, other seeds took their place")
        episodes += [Trajectory.model_validate(row["trajectory"]) for row in solved(name)[:want]]
    write_trajectories(target, episodes)
    part.unlink(missing_ok=True)
    return episodes
