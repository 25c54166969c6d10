"""Stage 4: the untuned model and every arm on held-in and held-out environments, on the same episodes."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from .agents import Agent
from .engines import TransformersEngine
from .files import RunLog, append_jsonl, read_json, recover_jsonl
from .finetune import checkpoint_dir
from .progress import track
from .recipe import Evaluate, Finetune, Recipe
from .results import Arm, Atlas, Cell, Score, interval
from .rollout import EVALUATE, fresh, play, seed_block
from .workers import ActorPool

Row = dict[str, Any]


def _job(task: tuple[str, str, str, list[int], int | None, str, int], kept: dict[str, Any]) -> list[Row]:
    key, path, level, seeds, max_steps, style, num_envs = task
    if kept.get("path") != path:
        kept["path"], kept["agent"] = path, Agent(TransformersEngine(path, num_envs), style)  # type: ignore[arg-type]
    starts = ([fresh(level, seed, max_steps)] for seed in seeds)
    return [
        {
            "model": key,
            "level": level,
            "seed": int(finished.start.id.rpartition("/")[2]),
            "success": finished.success,
            "score": finished.score,
            "steps": len(finished.steps),
            "error": finished.error,
        }
        for finished in play(kept["agent"], starts)
    ]


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
    levels = [*config.held_in, *config.held_out]
    tasks = []
    for key, model in _models(recipe, run_dir).items():
        for level in levels:
            seeds = [s for s in range(first, first + config.episodes) if (key, level, s) not in done]
            if seeds:
                tasks.append((key, model, level, seeds, config.max_steps, recipe.style, recipe.num_envs))
    total = len(_models(recipe, run_dir)) * len(levels) * config.episodes
    retried = lambda task, n, why: log.event("evaluate", "retried", model=task[0], attempt=n, why=why)  # noqa: E731
    with track("evaluation episodes", total, len(rows)) as progress:
        with ActorPool[Any, Any](recipe.workers, on_retry=retried) as pool:
            for task, found in pool.map(_job, tasks):
                append_jsonl(path, found)
                rows += found
                for row in found:
                    if row["error"]:
                        log.event(
                            "evaluate", "failed episode", model=row["model"], level=row["level"], why=row["error"]
                        )
                progress.advance(len(found), f"{task[0]} on {task[2]}")
    return rows


def _score(rows: list[Row], keys: list[str], levels: list[str], first: int, episodes: int) -> Score | None:
    """Success of the models ``keys`` (training seeds of one arm) over ``levels``; an episode that failed is a miss."""
    if not levels:
        return None
    wins = {(r["model"], r["level"], r["seed"]): bool(r["success"]) for r in rows}

    def cell(chosen: list[str]) -> dict[str, Any]:
        table = [[wins[key, level, first + i] for level in chosen for i in range(episodes)] for key in keys]
        mean, low, high = interval(table)
        return {"success": mean, "ci95": (low, high), "episodes": len(keys) * len(table[0])}

    return Score(**cell(levels), levels={level: Cell(**cell([level])) for level in levels})


def _arm(rows: list[Row], recipe: Recipe, keys: list[str], about: list[Row], **fields: Any) -> Arm:
    config = recipe.evaluate
    assert config is not None
    first = seed_block(recipe.seed, EVALUATE)
    held_in = _score(rows, keys, config.held_in, first, config.episodes)
    assert held_in is not None

    def mean(name: str) -> float:
        return fmean(a[name] for a in about) if about else 0.0

    return Arm(
        steps_share=mean("steps_share"),
        trained_tokens=round(mean("trained_tokens")),
        context_tokens=round(mean("context_tokens")),
        train_seconds=mean("seconds"),
        held_in=held_in,
        held_out=_score(rows, keys, config.held_out, first, config.episodes),
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
