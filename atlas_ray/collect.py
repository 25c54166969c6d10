"""Stage 1: expert episodes, with the expert's sub-goals as thoughts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envs

from .errors import AtlasError, InputError
from .exchange import Notices, Options, import_file
from .files import RunLog, append_jsonl, recover_jsonl
from .progress import say, track
from .recipe import Collect, Recipe
from .rollout import TRAIN, EnvSpec, env_spec, fresh, seed_block
from .trajectory import Step, Trajectory, read_trajectories, write_trajectories
from .workers import ActorPool, chunks

_CHUNK = 25
_MOST_TRIES = 4
_MOST_DEATHS = 3


def expert_episode(spec: EnvSpec, seed: int, cpu_seconds: float) -> Trajectory | str:
    """One episode of the environment's expert, or why there is none.

    Raises:
        envs.EnvironmentDiedError: the episode is lost, which says nothing of the expert.
    """
    start = fresh(spec, seed)
    env, observation, steps = start.env, start.observation, []
    try:
        expert = env.expert(cpu_seconds)
        while True:
            move = expert.act()
            following, reward, terminated, truncated, info = env.step(move.action)
            steps.append(Step(observation=observation, thought=move.thought, action=move.action, reward=reward))
            observation = following
            if terminated or truncated:
                break
    except envs.ExpertGaveUpError as error:
        return str(error)
    finally:
        envs.release(env)
    if not info["success"]:
        return f"not solved in {len(steps)} steps" + (", the limit: see collect.max_steps" if truncated else "")
    return Trajectory(
        id=start.id,
        env=spec.id,
        task=spec.id.split("/")[-1],
        seed=seed,
        instruction=start.instruction,
        steps=tuple(steps),
        score=info["score"],
        success=True,
        source="expert",
    )


_Task = tuple[str, EnvSpec, list[int], float]


def _job(task: _Task, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name, spec, seeds, cpu_seconds = task
    for seed in seeds:
        deaths: list[str] = []
        outcome: Trajectory | str = ""
        while not outcome:
            try:
                outcome = expert_episode(spec, seed, cpu_seconds)
            except envs.EnvironmentDiedError as error:
                deaths.append(str(error))
                if len(deaths) == _MOST_DEATHS:
                    outcome = f"lost {len(deaths)} times: {error}"
        row: dict[str, Any] = {"env": name, "seed": seed, "trajectory": None, "why": None, "deaths": deaths}
        if isinstance(outcome, Trajectory):
            row["trajectory"] = outcome.row()
        else:
            row["why"] = outcome
        yield row


def _rest(task: _Task, received: list[dict[str, Any]]) -> _Task | None:
    name, spec, seeds, cpu_seconds = task
    left = seeds[len(received) :]
    return (name, spec, left, cpu_seconds) if left else None


def reading_options(recipe: Recipe) -> Options:
    """How the records of the recipe's file are read."""
    config = recipe.collect
    assert config is not None
    return Options(
        success=config.success,
        success_field=config.success_field,
        reasoning=config.reasoning,
        examples=config.examples,
        thinking=tuple(recipe.agent.thinking),
    )


def _import(recipe: Recipe, config: Collect, run_dir: Path) -> None:
    """The trajectories of the recipe's file; what was left out of them, or is unknown, is said and logged.

    Raises:
        InputError: the file cannot be read, or a record of it, if those are not to be skipped.
    """
    assert config.file is not None
    notices = Notices()
    try:
        count = import_file(
            config.file, run_dir, options=reading_options(recipe), on_bad=config.on_bad, notices=notices
        )
    except InputError as error:
        if config.on_bad == "stop" and (error.line is not None or (error.field or "").startswith("[")):
            message = f'{error.message} (collect.on_bad = "skip" leaves such records out)'
            error = InputError(message, error.path, error.line, error.field)
        raise error from None
    say(f"  {count} trajectories from {config.file}")
    for line in notices.lines():
        say(f"  {line}")


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
    if config.file:
        _import(recipe, config, run_dir)
        return read_trajectories(target)
    tried: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in config.levels}
    for row in recover_jsonl(part):
        tried[row["env"]][row["seed"]] = row
    first = seed_block(recipe.seed, TRAIN)
    specs = {name: env_spec(recipe, name, config.max_steps, "train") for name in config.levels}
    there = {name: spec.episodes() for name, spec in specs.items()}

    def solved(name: str) -> list[dict[str, Any]]:
        return [row for _, row in sorted(tried[name].items()) if row["trajectory"]]

    total = sum(config.levels.values())
    have = sum(min(len(solved(n)), want) for n, want in config.levels.items())
    retried = lambda task, n, why: log.event("collect", "retried", task=task[0], attempt=n, why=why)  # noqa: E731
    with (
        track("expert episodes", total, have) as progress,
        ActorPool[Any, Any](
            recipe.workers, on_retry=retried, silence=recipe.patience, resources=recipe.placement.asks("workers")
        ) as pool,
    ):
        while True:
            tasks = []
            for name, want in config.levels.items():
                missing = want - len(solved(name))
                left = min(_MOST_TRIES * want + 101, there[name]) - len(tried[name])
                if missing > 0 and left <= 0:
                    raise AtlasError(
                        f"the expert solved {len(solved(name))} of {len(tried[name])} episodes of {name}, "
                        f"{want} are asked for: leave this environment out or raise collect.max_steps"
                    )
                done = set(tried[name])
                # seeds are tried in order and without gaps, so the episodes taken do not depend on the timing
                seeds = [s for s in range(first, first + len(done) + max(0, min(missing, left))) if s not in done]
                tasks += [(name, specs[name], chunk, config.cpu_seconds) for chunk in chunks(seeds, _CHUNK)]
            if not tasks:
                break
            for _, row in pool.stream(_job, tasks, _rest):
                append_jsonl(part, [row])
                tried[row["env"]][row["seed"]] = row
                for why in row["deaths"]:
                    log.event("collect", "lost episode", env=row["env"], seed=row["seed"], why=why)
                progress.advance(row["trajectory"] is not None)
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
