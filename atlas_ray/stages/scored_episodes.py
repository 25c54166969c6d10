"""Episodes that models play to be scored or judged, resumably, a row each in a file; and how they ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..agents.attempts import MOST_ATTEMPTS
from ..agents.rollout import (
    EVALUATE,
    SWITCH_JUDGE,
    EnvSpec,
    EpisodeResult,
    EpisodeStart,
    EpisodeStarter,
    env_spec,
    rollout,
    seed_block,
)
from ..agents.spec import AgentSpec, agent_spec
from ..agents.throughput import CounterSample, ThroughputMeter, replies_told, sample_counters, summary
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import worker_pool
from ..data.records import Trajectory
from ..data.replies import Losses, Replies, summed
from ..engines import EngineLease, EnginePool, engines_kept
from ..recipe.loading import Recipe
from ..rundir.files import RunLog
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track

Row = dict[str, Any]


Episode = tuple[str, EnvSpec, int]
"""Level, environment and seed."""

_LOST, _FAILED, _SUCCEEDED, _UNANSWERED = 1, 2, 3, 4
_SAYS_NOTHING = (_LOST, _UNANSWERED)


class Outcomes:
    """How episodes ended, a byte each: there may be very many, and the rest of them stays in the file.

    Args:
        first: the smallest seed.
        count: how many seeds a level has at most; rows of others are not noted.

    Attributes:
        replies: of each model that writes, in all its episodes.
    """

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count
        self._ends: dict[tuple[str, str], bytearray] = {}
        self.replies: dict[str, Replies] = {}
        self.why: str | None = None
        """Of the last episode that was lost."""

    def note(self, row: Row) -> None:
        """Note an episode that ended, or was lost to its environment or because the model gave no answer."""
        at = row["seed"] - self._first
        if 0 <= at < self._count:
            ends = self._ends.setdefault((row["model"], row["level"]), bytearray())
            ends.extend(bytes(max(0, at + 1 - len(ends))))
            self.why = row.get("error") if row["lost"] else self.why
            replies = row.get("replies", {})
            lost = _UNANSWERED if replies.get("lost") else _LOST
            ends[at] = lost if row["lost"] else _SUCCEEDED if row["success"] else _FAILED
            if replies:
                self.replies.setdefault(row["model"], Replies()).add(replies)

    def _end(self, model: str, level: str, seed: int) -> int:
        ends, at = self._ends.get((model, level), b""), seed - self._first
        return ends[at] if 0 <= at < len(ends) else 0

    def ended(self, model: str, level: str, seed: int) -> bool:
        """Whether it was noted."""
        return self._end(model, level, seed) > 0

    def success(self, model: str, level: str, seed: int) -> bool | None:
        """Whether it succeeded; None of one that was lost or never played."""
        end = self._end(model, level, seed)
        return None if end in (0, *_SAYS_NOTHING) else end == _SUCCEEDED

    def unanswered(self, model: str, level: str, seed: int) -> bool:
        """Whether the model gave no answer."""
        return self._end(model, level, seed) == _UNANSWERED

    @property
    def lost(self) -> int:
        """Episodes that say nothing of their model."""
        return self.lost_by({model for model, _ in self._ends})

    def lost_by(self, models: Collection[str]) -> int:
        """Episodes that say nothing of these models."""
        own = (ends for (model, _), ends in self._ends.items() if model in models)
        return sum(ends.count(_LOST) + ends.count(_UNANSWERED) for ends in own)

    def all_replies(self) -> Replies:
        """The replies of all models."""
        return summed(self.replies.values())

    def __len__(self) -> int:
        return sum(len(ends) - ends.count(0) for ends in self._ends.values())


@dataclass(frozen=True)
class EpisodeSet:
    """Episodes that several models play, the same for each.

    Attributes:
        path: of the file that keeps them.
        first: the smallest seed, of every level.
        levels: environments, and how many episodes of each.
        title: for the progress line.
    """

    path: Path
    first: int
    levels: Mapping[str, tuple[EnvSpec, int]]
    title: str

    @property
    def most(self) -> int:
        """Episodes of the level that has most."""
        return max(count for _, count in self.levels.values())

    @property
    def seeds(self) -> dict[str, list[int]]:
        """Seeds of each level."""
        return {level: list(range(self.first, self.first + count)) for level, (_, count) in self.levels.items()}


def scored_episodes(recipe: Recipe, run_dir: Path) -> EpisodeSet:
    """The test episodes of ``[evaluate]``, ``evaluation/episodes.jsonl``."""
    config = recipe.evaluate
    assert config is not None
    levels = _levels(recipe, (*config.held_in, *config.held_out), config.episodes, "test")
    path = RunLayout(run_dir).evaluation_episodes
    return EpisodeSet(path, seed_block(recipe.seed, EVALUATE), levels, "evaluation episodes")


def judging_episodes(recipe: Recipe, run_dir: Path, count: int) -> EpisodeSet:
    """About ``count`` episodes of the held-in levels, as many of each, that test and teach nothing."""
    config = recipe.evaluate
    assert config is not None
    levels = _levels(recipe, config.held_in, -(-count // len(config.held_in)), "dev")
    path = RunLayout(run_dir).evaluation_judged
    return EpisodeSet(path, seed_block(recipe.seed, SWITCH_JUDGE), levels, "episodes that judge")


def _levels(recipe: Recipe, names: Collection[str], episodes: int, split: str) -> dict[str, tuple[EnvSpec, int]]:
    """How many different episodes of each can be and are to be played."""
    assert recipe.evaluate is not None
    specs = {name: env_spec(recipe, name, recipe.evaluate.max_steps, split) for name in names}
    return {name: (spec, min(episodes, spec.episodes())) for name, spec in specs.items()}


@dataclass(frozen=True)
class _Task:
    key: str
    agent: AgentSpec
    episodes: tuple[Episode, ...]


def _play_task(task: _Task, state: WorkerState) -> Iterator[tuple[Row, CounterSample]]:
    agent, beginnings = task.agent.agent(state), EpisodeStarter()
    left = list(task.episodes)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        playing: dict[int, Episode] = {}

        def starts(episodes: list[Episode], playing: dict[int, Episode] = playing) -> Iterator[list[EpisodeStart]]:
            for level, spec, seed in episodes:
                start = beginnings.start(spec, seed)
                playing[id(start)] = (level, spec, seed)
                yield [start]

        lost = []
        for finished in rollout(agent, starts(left)):
            level, spec, seed = playing.pop(id(finished.start))
            if finished.retryable and attempt < MOST_ATTEMPTS:
                lost.append((level, spec, seed))
                continue
            row: Row = {
                "model": task.key,
                "level": level,
                "seed": seed,
                "success": finished.success,
                "score": finished.score,
                "steps": len(finished.steps),
                "error": finished.error,
                "lost": finished.lost,
                "attempts": attempt,
                "trajectory": _played(finished, spec, seed, task.key),
            }
            if replies := finished.replies.row():
                row["replies"] = replies
            yield row, sample_counters(agent, state)
        left = lost


def _played(finished: EpisodeResult, spec: EnvSpec, seed: int, key: str) -> Row | None:
    """The episode as a trajectory; None when there is no step in it."""
    if not finished.steps:
        return None
    return Trajectory(
        id=finished.start.id,
        env=spec.id,
        task=spec.id.split("/")[-1],
        seed=seed,
        instruction=finished.start.instruction,
        steps=tuple(finished.steps),
        score=finished.score,
        success=finished.success,
        source=key,
    ).row()


def _remaining(task: _Task, received: list[tuple[Row, CounterSample]]) -> _Task | None:
    done = {(row["level"], row["seed"]) for row, _ in received}
    episodes = tuple(e for e in task.episodes if (e[0], e[2]) not in done)
    return replace(task, episodes=episodes) if episodes else None


def play_models(recipe: Recipe, run_dir: Path, models: Mapping[str, str], episodes: EpisodeSet) -> Outcomes:
    """Play what the file of an episode set lacks.

    Args:
        recipe: says where and how models act.
        run_dir: where events and metrics go.
        models: by their key in the file, what to load.
        episodes: that each of them plays.

    Raises:
        AtlasError: more of a model's answers than ``max_lost_answers`` are none.
    """
    log, file = RunLog(run_dir), ResultFile(episodes.path)
    ends, losses = Outcomes(episodes.first, episodes.most), Losses(recipe.max_lost_answers)

    def note(row: Row) -> None:
        ends.note(row)
        losses.note(row["model"], row.get("replies", {}), row["error"] if row["lost"] else None)

    for row in file.rows():
        if not row["lost"]:  # said nothing of the model: a command that is given again plays it again
            note(row)
    if ends:
        log.event("evaluate", "resumed", found=len(ends))
    plan: dict[str, tuple[AgentSpec, list[Episode]]] = {}
    for key, model in models.items():
        left = [
            (level, episodes.levels[level][0], seed)
            for level, seeds in episodes.seeds.items()
            for seed in seeds
            if not ends.ended(key, level, seed)
        ]
        if left:
            plan[key] = (agent_spec(recipe, model), left)
    total = len(models) * sum(count for _, count in episodes.levels.values())
    retried = log_lost_workers(log, "evaluate", lambda task: {"model": task.key})
    with track(episodes.title, total, len(ends)) as progress:
        flow = ThroughputMeter("evaluate", log, progress, recipe.engine.actors or max(1, recipe.workers))
        with (
            replies_told(log, "evaluate", ends.all_replies),
            worker_pool(recipe, retried) as pool,
            engines_kept(recipe.finetune.adapter_rank if recipe.finetune else 0),
        ):
            for tasks, engines in _phases(recipe, plan):
                with engines:
                    played = file.stream(
                        pool, _play_task, tasks(engines.leases), lambda _, found: [found[0]], _remaining
                    )
                    for _, (row, seen) in played:
                        note(row)
                        which = {"model": row["model"], "level": row["level"], "seed": row["seed"]}
                        if row["attempts"] > 1:
                            log.event(
                                "evaluate", "lost episode", **which, attempts=row["attempts"], dropped=row["lost"]
                            )
                        if row["error"]:
                            log.event("evaluate", "failed episode", **which, why=row["error"])
                        told = ends.all_replies().words()
                        about = f"{row['model']} on {row['level']}{told and f' · replies: {told}'}"
                        flow.add(seen, row["steps"], about)
                        losses.check(early=True)
            losses.check()
    if dropped := ends.lost:
        say(
            f"  {dropped} episodes were lost to their environment {MOST_ATTEMPTS} times, or to a model that gave no "
            "answer, and are left out of the scores"
        )
    if flow.episodes:
        log.metric("evaluate", **flow.totals())
        say(f"  {summary(flow.totals(), run_dir, 'evaluate')}")
    return ends


def _phases(
    recipe: Recipe, plan: dict[str, tuple[AgentSpec, list[Episode]]]
) -> Iterator[tuple[Callable[[tuple[EngineLease, ...]], list[_Task]], EnginePool]]:
    """What is played at a time, and on which engine actors: one model after the other, or all without actors."""

    def tasks(keys: list[str], parts: int, leases: tuple[EngineLease, ...]) -> list[_Task]:
        return [
            _Task(key, plan[key][0].with_leases(leases), tuple(plan[key][1][part::parts]))
            for key in keys
            for part in range(parts)
            if plan[key][1][part::parts]
        ]

    workers = max(1, recipe.workers)
    if not recipe.engine.actors:
        # few models are shared out among the workers; many are not, since every part ends with idle slots
        parts = 1 if len(plan) >= 4 * workers else workers
        yield partial(tasks, list(plan), parts), EnginePool(recipe.engine, "", workers, recipe.num_envs)
        return
    where = recipe.placement.resource_request("engines")
    for key, (spec, _) in plan.items():
        yield partial(tasks, [key], workers), EnginePool(recipe.engine, spec.model, workers, recipe.num_envs, where)
