"""Stage 1: episodes to learn from; here those of experts, with the expert's sub-goals as thoughts."""

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
from ..data.kept import outcomes_of
from ..data.reasons import Reasons, counted, told
from ..data.records import Trajectory, read_trajectories, write_trajectories
from ..recipe.loading import Collect, Recipe
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
    """Episodes by ``recipe.collect`` into ``trajectories/expert.jsonl``: of experts, a model, a switch or a file.

    Of every environment the first n solved seeds are taken, whatever order the actors finish in. Episodes that the
    expert gave up are counted in ``events.jsonl``, with the reasons, and how episodes ended that are no successes.

    Raises:
        AtlasError: the expert solves too few seeds of an environment; says why, and what helps.
        EnvironmentGoneError: an environment begins no episode any more.
    """
    config = recipe.collect
    assert config is not None
    target = RunLayout(run_dir).expert
    if target.exists():
        return read_trajectories(target)
    if config.file:
        import_collected(recipe, run_dir)
        made = read_trajectories(target)
    elif config.switch or config.agent:
        from .collect_switch import collect_by_switch  # (imports torch)

        made = collect_by_switch(recipe, run_dir)
    else:
        return _of_experts(recipe, run_dir, config)
    if (ended := outcomes_of(made)).mixed:
        RunLog(run_dir).event("collect", "outcomes", **ended._asdict())
        say(f"  of the {len(made):,} episodes: {ended.words()}")
    return made


def _of_experts(recipe: Recipe, run_dir: Path, config: Collect) -> list[Trajectory]:
    log, target = RunLog(run_dir), RunLayout(run_dir).expert
    part = ResultFile(RunLayout(run_dir).expert_part)
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
