"""Stage 4: the untuned model and every arm on held-in and held-out environments, on the same episodes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.replies import summed
from ..data.results import Arm, Atlas, Cell, Score, interval
from ..errors import AtlasError
from ..finetune import checkpoint_dir, refuse_other_base
from ..finetune.card import card
from ..recipe.loading import Finetune, Recipe
from ..rundir.files import RunLog, read_json, write_text
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from ..selection.stage import fraction_of
from .arm_compute import arm_compute
from .scored_episodes import Outcomes, Row, play_models, scored_episodes


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


def _play_all(recipe: Recipe, run_dir: Path, models: dict[str, str]) -> Outcomes:
    config, episodes = recipe.evaluate, scored_episodes(recipe, run_dir)
    assert config is not None
    for level, (_, count) in episodes.levels.items():
        if count < config.episodes:
            RunLog(run_dir).event("evaluate", "fewer episodes", level=level, asked=config.episodes, there=count)
            say(f"  {level} has {count} test episodes, {config.episodes} are asked for: it is scored on those")
    return play_models(recipe, run_dir, models, episodes)


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
    seeds, others = scored_episodes(recipe, run_dir).seeds, _models(recipe, run_dir)
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
    assert config is not None and isinstance(tuning, Finetune)
    ends = _play_all(recipe, run_dir, _models(recipe, run_dir))
    arms = []
    if not tuning.scratch:
        arms.append(_arm(ends, recipe, run_dir, ["none"], [], selector="none", fraction=0.0, seeds=()))
    for arm in tuning.arms:
        about = [read_json(RunLayout(run_dir).checkpoint_record(arm.name, seed)) for seed in tuning.seeds]
        own = arm.pairs and arm.selector in tuning.pairs.files
        cap = 1.0 if own else fraction_of(recipe, run_dir, arm.selector)
        kind = {"selector": arm.selector, "fraction": cap, "anchor": arm.anchor}
        kind |= {"pairs": tuning.pairs.loss} if arm.pairs else {}
        kind |= {"compute": arm_compute(recipe, RunLayout(run_dir), arm, about)}
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
    _play_all(recipe, run_dir, {"none": tuning.base})
    return RunLayout(run_dir).evaluation_episodes


def _words(score: Score | None) -> str:
    if score is None:
        return "not measured"
    return f"{score.success:.2f} [{score.ci95[0]:.2f}, {score.ci95[1]:.2f}] of {score.episodes} episodes"
