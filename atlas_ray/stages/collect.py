"""Stage 1: expert episodes, with the expert's sub-goals as thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import envs
from ..agents.attempts import Attempts
from ..agents.rollout import TRAIN, EnvSpec, EpisodeStarter, env_spec, seed_block
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import ActorPool, chunks
from ..data.reasons import Reasons, counted, told
from ..data.records import Trajectory, read_trajectories, write_trajectories
from ..recipe.loading import Recipe
from ..rundir.files import RunLog
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .collect_file import import_collected
from .experts import Biased, Unsolved, expert_episode, help_for, unsolved
from .first_seeds import FirstSeeds

_CHUNK = 25
_MOST_TRIES = 4


_Task = tuple[str, EnvSpec, list[int], float, Biased | None]


def _play_task(task: _Task, state: WorkerState) -> Iterator[dict[str, Any]]:
    name, spec, seeds, cpu_seconds, biased = task
    beginnings = state.get_or_create(EpisodeStarter)
    for seed in seeds:
        attempts = Attempts()
        outcome: Trajectory | Unsolved
        try:
            for attempt in attempts:
                with attempt:
                    outcome = expert_episode(spec, seed, cpu_seconds, beginnings.begin, biased)
        except envs.EnvironmentDiedError as error:
            outcome = unsolved(f"lost {len(attempts.deaths)} times: {error}", "lost")
        deaths = [str(error) for error in attempts.deaths]
        row: dict[str, Any] = {"env": name, "seed": seed, "trajectory": None, "why": None, "deaths": deaths}
        if isinstance(outcome, Trajectory):
            row["trajectory"] = outcome.row()
        else:
            row |= {"why": str(outcome), "kind": outcome.kind}
        yield row


def _remaining(task: _Task, received: list[dict[str, Any]]) -> _Task | None:
    name, spec, seeds, cpu_seconds, biased = task
    left = seeds[len(received) :]
    return (name, spec, left, cpu_seconds, biased) if left else None


def _reasons(rows: Iterable[dict[str, Any]]) -> Reasons:
    return counted(row["why"] for row in rows if row["why"] is not None)


def collect(recipe: Recipe, run_dir: Path) -> list[Trajectory]:
    """Expert episodes by ``recipe.collect`` into ``trajectories/expert.jsonl``.

    Of every environment the first n solved seeds are taken, whatever order the actors finish in. Episodes that the
    expert gave up are counted in ``events.jsonl``, with the reasons.

    Raises:
        AtlasError: the expert solves too few seeds of an environment; says why, and what helps.
        EnvironmentGoneError: an environment begins no episode any more.
    """
    config, log = recipe.collect, RunLog(run_dir)
    assert config is not None
    target = RunLayout(run_dir).expert
    part = ResultFile(RunLayout(run_dir).expert_part)
    if target.exists():
        return read_trajectories(target)
    if config.file:
        import_collected(recipe, run_dir)
        return read_trajectories(target)
    if config.switch:
        from .collect_switch import collect_by_switch  # (imports torch)

        return collect_by_switch(recipe, run_dir)
    first = seed_block(recipe.seed, TRAIN)
    specs = {name: env_spec(recipe, name, config.max_steps, "train") for name in config.levels}
    there = {name: spec.episodes() for name, spec in specs.items()}
    biased = Biased(config.expert, recipe.seed) if config.expert.words else None

    def too_few(name: str, rows: list[dict[str, Any]]) -> str:
        solved, why = sum(row["trajectory"] is not None for row in rows), told(_reasons(rows))
        return (
            f"the expert solved {solved} of {len(rows)} episodes of {name}, {config.levels[name]} are asked for. "
            f"The others: {why}. To go on, {help_for(rows, config.expert)}, or ask for fewer"
        )

    played = FirstSeeds(config.levels, first, there, _MOST_TRIES, lambda row: row["trajectory"] is not None, too_few)
    for row in part.rows():
        if row.get("kind") != "lost":  # says nothing of the expert: a command that is given again tries it again
            played.add(row)
    total, have = sum(config.levels.values()), sum(len(played.taken(name)) for name in config.levels)
    retried = log_lost_workers(log, "collect", lambda task: {"task": task[0]})
    with (
        track("expert episodes", total, have) as progress,
        ActorPool[Any, Any](
            recipe.workers,
            on_retry=retried,
            timeout=recipe.worker_timeout,
            resources=recipe.placement.resource_request("workers"),
        ) as pool,
    ):
        while wanted := played.wanted():
            tasks = [
                (name, specs[name], chunk, config.cpu_seconds, biased)
                for name, seeds in wanted
                for chunk in chunks(seeds, _CHUNK)
            ]
            for _, row in part.stream(pool, _play_task, tasks, lambda _, row: [row], _remaining):
                played.add(row)
                for why in row["deaths"]:
                    log.event("collect", "lost episode", env=row["env"], seed=row["seed"], why=why)
                progress.advance(row["trajectory"] is not None)
    episodes = []
    for name in config.levels:
        if found := _reasons(played.rows(name)):
            dropped = sum(count for _, count in found)
            log.event("collect", "dropped", env=name, episodes=dropped, why=found[0][0], reasons=dict(found))
            say(f"  {name}: {dropped} episodes were not solved, others took their place ({told(found)})")
        episodes += [Trajectory.model_validate(row["trajectory"]) for row in played.taken(name)]
    write_trajectories(target, episodes)
    part.path.unlink(missing_ok=True)
    return episodes
