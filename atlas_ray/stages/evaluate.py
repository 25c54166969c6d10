"""Stage 4: the untuned model and every arm on held-in and held-out environments, on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ..agents.attempts import MOST_ATTEMPTS
from ..agents.rollout import (
    EVALUATE,
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
from ..data.results import Arm, Atlas, Cell, Score, interval
from ..engines import EngineLease, EnginePool
from ..errors import AtlasError
from ..finetune import checkpoint_dir, refuse_other_base
from ..finetune.card import card
from ..recipe.loading import Evaluate, Finetune, Recipe
from ..rundir.files import RunLog, read_json, write_text
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from ..selection.stage import fraction_of

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


def _models(recipe: Recipe, run_dir: Path) -> dict[str, str]:
    """Key of a model in the episode file -> what to load."""
    config = recipe.finetune
    assert config is not None
    refuse_other_base(recipe, run_dir)
    models = {} if config.scratch else {"none": config.base}
    for arm in config.arms:
        for seed in config.seeds:
            models[f"{arm.name}/{seed}"] = str(checkpoint_dir(run_dir, arm, seed).resolve())
    return models


def _play_all(recipe: Recipe, run_dir: Path, config: Evaluate, models: dict[str, str]) -> Outcomes:
    log, file = RunLog(run_dir), ResultFile(RunLayout(run_dir).evaluation_episodes)
    first, levels = seed_block(recipe.seed, EVALUATE), _levels(recipe)
    ends, losses = Outcomes(first, max(count for _, count in levels.values())), Losses(recipe.max_lost_answers)

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
        episodes = [
            (level, spec, seed)
            for level, (spec, count) in levels.items()
            for seed in range(first, first + count)
            if not ends.ended(key, level, seed)
        ]
        if episodes:
            plan[key] = (agent_spec(recipe, model), episodes)
    for level, (_, count) in levels.items():
        if count < config.episodes:
            log.event("evaluate", "fewer episodes", level=level, asked=config.episodes, there=count)
            say(f"  {level} has {count} test episodes, {config.episodes} are asked for: it is scored on those")
    total = len(models) * sum(count for _, count in levels.values())
    retried = log_lost_workers(log, "evaluate", lambda task: {"model": task.key})
    with track("evaluation episodes", total, len(ends)) as progress:
        flow = ThroughputMeter("evaluate", log, progress, recipe.engine.actors or max(1, recipe.workers))
        with replies_told(log, "evaluate", ends.all_replies), worker_pool(recipe, retried) as pool:
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


def _levels(recipe: Recipe) -> dict[str, tuple[EnvSpec, int]]:
    """Environments of the evaluation, and how many different episodes of each can be and are to be played."""
    config = recipe.evaluate
    assert config is not None
    found = {}
    for level in (*config.held_in, *config.held_out):
        spec = env_spec(recipe, level, config.max_steps, "test")
        found[level] = (spec, min(config.episodes, spec.episodes()))
    return found


def _score(ends: Outcomes, keys: list[str], levels: dict[str, list[int]], others: Collection[str] = ()) -> Score | None:
    """Success of the models ``keys`` (training seeds of one arm) over the episodes of ``levels``.

    An episode that one of them lost to its environment is left out for all of them, and so is one in which one of them
    or of the ``others``, the models of other arms, gave no answer: that may depend on the episode.
    """

    def counts(level: str, seed: int) -> bool:
        lost = any(ends.success(key, level, seed) is None for key in keys)
        return not lost and not any(ends.unanswered(other, level, seed) for other in others)

    if not levels:
        return None

    def cell(chosen: list[str]) -> dict[str, Any]:
        played = [(c, s) for c in chosen for s in levels[c] if counts(c, s)]
        if not played:
            because = f", the last because {ends.why}" if ends.why else ""
            raise AtlasError(f"no episode of {', '.join(chosen)} could be played: every one was lost{because}")
        mean, low, high = interval([[bool(ends.success(key, *episode)) for episode in played] for key in keys])
        return {"success": mean, "ci95": (low, high), "episodes": len(keys) * len(played)}

    return Score(**cell(list(levels)), levels={level: Cell(**cell([level])) for level in levels})


def _arm(ends: Outcomes, recipe: Recipe, run_dir: Path, keys: list[str], about: list[Row], **fields: Any) -> Arm:
    config = recipe.evaluate
    assert config is not None
    first = seed_block(recipe.seed, EVALUATE)
    seeds = {level: list(range(first, first + episodes)) for level, (_, episodes) in _levels(recipe).items()}
    others = _models(recipe, run_dir)
    held_in = _score(ends, keys, {level: seeds[level] for level in config.held_in}, others)
    assert held_in is not None

    replies: Any = summed(ends.replies.get(key, {}) for key in keys).row()

    def mean(name: str) -> float:
        return fmean(a[name] for a in about) if about else 0.0

    return Arm(
        steps_share=mean("steps_share"),
        trained_tokens=round(mean("trained_tokens")),
        context_tokens=round(mean("context_tokens") + mean("anchored_tokens")),
        train_seconds=mean("seconds"),
        held_in=held_in,
        held_out=_score(ends, keys, {level: seeds[level] for level in config.held_out}, others),
        replies=replies or None,
        lost_episodes=ends.lost_by(keys),
        **fields,
    )


def evaluate(recipe: Recipe, run_dir: Path) -> Atlas:
    """Play every model of the recipe and sum up; finished episodes in ``evaluation/episodes.jsonl`` are kept."""
    config, tuning = recipe.evaluate, recipe.finetune
    assert config is not None and isinstance(tuning, Finetune) and recipe.select is not None
    ends = _play_all(recipe, run_dir, config, _models(recipe, run_dir))
    arms = []
    if not tuning.scratch:
        arms.append(_arm(ends, recipe, run_dir, ["none"], [], selector="none", fraction=0.0, seeds=()))
    for arm in tuning.arms:
        about = [read_json(RunLayout(run_dir).checkpoint_record(arm.name, seed)) for seed in tuning.seeds]
        own = arm.pairs and arm.selector in tuning.pairs.files
        cap = 1.0 if own else fraction_of(recipe, run_dir, arm.selector)
        kind = {"selector": arm.selector, "fraction": cap, "anchor": arm.anchor}
        kind |= {"pairs": tuning.pairs.loss} if arm.pairs else {}
        keys = [f"{arm.name}/{seed}" for seed in tuning.seeds]
        arms.append(_arm(ends, recipe, run_dir, keys, about, seeds=tuple(tuning.seeds), **kind))
        for key, seed, run in zip(keys, tuning.seeds, about, strict=True):
            alone = _arm(ends, recipe, run_dir, [key], [run], seeds=(seed,), **kind)
            scores = {"held-in success": _words(alone.held_in), "held-out success": _words(alone.held_out)}
            write_text(checkpoint_dir(run_dir, arm, seed) / "README.md", card(recipe, run, scores))
    return Atlas(arms=tuple(arms))


def play_untuned(recipe: Recipe, run_dir: Path) -> Path:
    """Play the untuned model alone; returns the file of its episodes, which any run that it is the base of can take."""
    config, tuning = recipe.evaluate, recipe.finetune
    assert config is not None and tuning is not None and not tuning.scratch
    _play_all(recipe, run_dir, config, {"none": tuning.base})
    return RunLayout(run_dir).evaluation_episodes


def _words(score: Score | None) -> str:
    if score is None:
        return "not measured"
    return f"{score.success:.2f} [{score.ci95[0]:.2f}, {score.ci95[1]:.2f}] of {score.episodes} episodes"
