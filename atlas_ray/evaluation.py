"""Stage 4: the untuned model and every arm on held-in and held-out environments, on the same episodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from .agents import Agent
from .engines import make_engine
from .errors import AtlasError
from .files import RunLog, append_jsonl, read_json, recover_jsonl
from .finetune import checkpoint_dir
from .progress import say, track
from .recipe import Evaluate, Finetune, Recipe
from .rendering import Style
from .results import Arm, Atlas, Cell, Score, interval
from .rollout import EVALUATE, EnvSpec, env_spec, fresh, play, seed_block
from .workers import ActorPool

Row = dict[str, Any]
_MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class _Task:
    key: str
    path: str
    level: str
    spec: EnvSpec
    seeds: tuple[int, ...]
    engine: str
    style: Style
    num_envs: int


def _job(task: _Task, kept: dict[str, Any]) -> Iterator[Row]:
    if kept.get("path") != task.path:
        if "agent" in kept:
            kept.pop("agent").engine.close()
        kept["path"], kept["agent"] = task.path, Agent(make_engine(task.engine, task.path, task.num_envs), task.style)
    left = list(task.seeds)
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        lost = []
        for finished in play(kept["agent"], ([fresh(task.spec, seed)] for seed in left)):
            seed = int(finished.start.id.rpartition("/")[2])
            if finished.lost and attempt < _MOST_ATTEMPTS:
                lost.append(seed)
                continue
            yield {
                "model": task.key,
                "level": task.level,
                "seed": seed,
                "success": finished.success,
                "score": finished.score,
                "steps": len(finished.steps),
                "error": finished.error,
                "lost": finished.lost,
                "attempts": attempt,
            }
        left = lost


def _rest(task: _Task, received: list[Row]) -> _Task | None:
    done = {row["seed"] for row in received}
    seeds = tuple(s for s in task.seeds if s not in done)
    return replace(task, seeds=seeds) if seeds else None


def _models(recipe: Recipe, run_dir: Path) -> dict[str, str]:
    """Key of a model in the episode file -> what to load."""
    config = recipe.finetune
    assert config is not None
    models = {} if config.scratch else {"none": config.base}
    for arm in config.arms:
        for seed in config.seeds:
            models[f"{arm.name}/{seed}"] = str(checkpoint_dir(run_dir, arm, seed))
    return models


def _play_all(recipe: Recipe, run_dir: Path, config: Evaluate) -> list[Row]:
    log, path = RunLog(run_dir), run_dir / "evaluation" / "episodes.jsonl"
    rows = recover_jsonl(path)
    done = {(r["model"], r["level"], r["seed"]) for r in rows}
    first = seed_block(recipe.seed, EVALUATE)
    levels = _levels(recipe)
    tasks = []
    for key, model in _models(recipe, run_dir).items():
        for level, (spec, episodes) in levels.items():
            seeds = tuple(s for s in range(first, first + episodes) if (key, level, s) not in done)
            if seeds:
                tasks.append(_Task(key, model, level, spec, seeds, recipe.engine, recipe.style, recipe.num_envs))
    for level, (_, episodes) in levels.items():
        if episodes < config.episodes:
            log.event("evaluate", "fewer episodes", level=level, asked=config.episodes, there=episodes)
            say(f"  {level} has {episodes} test episodes, {config.episodes} are asked for: it is scored on those")
    total = len(_models(recipe, run_dir)) * sum(episodes for _, episodes in levels.values())
    retried = lambda task, n, why: log.event("evaluate", "retried", model=task.key, attempt=n, why=why)  # noqa: E731
    with track("evaluation episodes", total, len(rows)) as progress:
        with ActorPool[Any, Any](recipe.workers, on_retry=retried, silence=recipe.patience) as pool:
            for _, row in pool.stream(_job, tasks, _rest):
                append_jsonl(path, [row])
                rows.append(row)
                about = {"model": row["model"], "level": row["level"], "seed": row["seed"]}
                if row["attempts"] > 1:
                    log.event("evaluate", "lost episode", **about, attempts=row["attempts"], dropped=row["lost"])
                if row["error"]:
                    log.event("evaluate", "failed episode", **about, why=row["error"])
                progress.advance(1, f"{row['model']} on {row['level']}")
    if dropped := sum(row["lost"] for row in rows):
        say(
            f"  {dropped} episodes were lost to their environment {_MOST_ATTEMPTS} times and are left out of the scores"
        )
    return rows


def _levels(recipe: Recipe) -> dict[str, tuple[EnvSpec, int]]:
    """Environments of the evaluation, and how many different episodes of each can be and are to be played."""
    config = recipe.evaluate
    assert config is not None
    found = {}
    for level in (*config.held_in, *config.held_out):
        spec = env_spec(recipe, level, config.max_steps, "test")
        found[level] = (spec, min(config.episodes, spec.episodes()))
    return found


def _score(rows: list[Row], keys: list[str], levels: dict[str, list[int]]) -> Score | None:
    """Success of the models ``keys`` (training seeds of one arm) over the episodes of ``levels``.

    An episode that one of them lost to its environment is left out for all of them.
    """
    if not levels:
        return None
    wins = {(r["model"], r["level"], r["seed"]): bool(r["success"]) for r in rows if not r["lost"]}

    def cell(chosen: list[str]) -> dict[str, Any]:
        played = [(c, s) for c in chosen for s in levels[c] if all((key, c, s) in wins for key in keys)]
        if not played:
            raise AtlasError(f"no episode of {', '.join(chosen)} could be played: every one was lost")
        mean, low, high = interval([[wins[key, level, seed] for level, seed in played] for key in keys])
        return {"success": mean, "ci95": (low, high), "episodes": len(keys) * len(played)}

    return Score(**cell(list(levels)), levels={level: Cell(**cell([level])) for level in levels})


def _arm(rows: list[Row], recipe: Recipe, keys: list[str], about: list[Row], **fields: Any) -> Arm:
    config = recipe.evaluate
    assert config is not None
    first = seed_block(recipe.seed, EVALUATE)
    seeds = {level: list(range(first, first + episodes)) for level, (_, episodes) in _levels(recipe).items()}
    held_in = _score(rows, keys, {level: seeds[level] for level in config.held_in})
    assert held_in is not None

    def mean(name: str) -> float:
        return fmean(a[name] for a in about) if about else 0.0

    return Arm(
        steps_share=mean("steps_share"),
        trained_tokens=round(mean("trained_tokens")),
        context_tokens=round(mean("context_tokens")),
        train_seconds=mean("seconds"),
        held_in=held_in,
        held_out=_score(rows, keys, {level: seeds[level] for level in config.held_out}),
        **fields,
    )


def evaluate(recipe: Recipe, run_dir: Path) -> Atlas:
    """Play every model of the recipe and sum up; finished episodes in ``evaluation/episodes.jsonl`` are kept."""
    config, tuning = recipe.evaluate, recipe.finetune
    assert config is not None and isinstance(tuning, Finetune) and recipe.select is not None
    rows = _play_all(recipe, run_dir, config)
    arms = []
    if not tuning.scratch:
        arms.append(_arm(rows, recipe, ["none"], [], selector="none", fraction=0.0, seeds=()))
    for arm in tuning.arms:
        about = [read_json(checkpoint_dir(run_dir, arm, seed) / "run.json") for seed in tuning.seeds]
        arms.append(
            _arm(
                rows,
                recipe,
                [f"{arm.name}/{seed}" for seed in tuning.seeds],
                about,
                selector=arm.selector,
                fraction=1.0 if arm.selector == "all" else recipe.select.fraction,
                anchor=arm.anchor,
                seeds=tuple(tuning.seeds),
            )
        )
    return Atlas(arms=tuple(arms))
