"""What an arm is trained on, steps of trajectories or pairs of turns, and how its ``run.json`` describes that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pairs import Pair, iter_pairs, read_pairs
from ..data.records import iter_trajectories, read_annotations
from ..recipe.loading import Arm, Recipe
from ..rundir.layout import RunLayout
from .data import Examples, Trained
from .inputs import base_logps_file, data_digest, open_store, reference_file
from .pairs import PairExamples


@dataclass(frozen=True)
class ArmData:
    """What an arm is trained on.

    Attributes:
        examples: asked for by index.
        about: fields of ``run.json``.
    """

    examples: Sequence[Trained]
    about: dict[str, Any]


def items(run_dir: Path, arm: Arm) -> int:
    """Trajectories or pairs that an epoch of the arm counts, be they trained or left out."""
    layout = RunLayout(run_dir)
    return sum(1 for _ in (iter_pairs(layout.pairs(arm.selector)) if arm.pairs else iter_trajectories(layout.expert)))


def arm_data(recipe: Recipe, run_dir: Path, arm: Arm) -> ArmData:
    """What :func:`atlas_ray.finetune.inputs.prepare` left for an arm."""
    return (_pairs if arm.pairs else _steps)(recipe, run_dir, arm)


def _steps(recipe: Recipe, run_dir: Path, arm: Arm) -> ArmData:
    config = recipe.finetune
    assert config is not None
    store = open_store(run_dir)
    annotations = read_annotations(RunLayout(run_dir).annotations(arm.selector))
    logps = base_logps_file(recipe, run_dir, store.key)
    base = np.load(logps, mmap_mode="r") if arm.anchor and logps.exists() else None
    examples = Examples(store, annotations, arm.anchor > 0, base, config.on_all_truncated)
    about = {
        "examples": len(examples),
        "trajectories": len(store),
        "emptied": examples.all_truncated,
        "lost_critical_steps": examples.lost,
        "shortened": sum(entry.kept < entry.steps for entry in store.entries),
        "data_sha256": data_digest(run_dir),
        "unknown": store.unknown,
        "steps_share": sum(len(a.critical) for a in annotations) / sum(entry.steps for entry in store.entries),
    }
    return ArmData(examples, about)


def _pairs(recipe: Recipe, run_dir: Path, arm: Arm) -> ArmData:
    config = recipe.finetune
    assert config is not None
    store = open_store(run_dir, arm.selector)
    examples = PairExamples(store, np.load(reference_file(recipe, run_dir, store.key)))
    pairs = read_pairs(RunLayout(run_dir).pairs(arm.selector))
    about = {
        "pairs": config.pairs.model_dump(include={"loss", "beta", "sft"}),
        "examples": len(examples),
        "trajectories": len(pairs),
        "emptied": len(pairs) - len(examples),
        "lost_critical_steps": 0,
        "shortened": sum(entry.kept < entry.steps for entry in store.entries[::2]),
        "data_sha256": data_digest(run_dir, arm.selector),
        "unknown": store.unknown,
        "steps_share": _steps_share(RunLayout(run_dir).expert, pairs),
    }
    return ArmData(examples, about)


def _steps_share(expert: Path, pairs: Sequence[Pair]) -> float:
    """Share of the run's steps at which there is a pair; of a run without trajectories, of those that pairs show."""
    if expert.exists():
        lengths = {t.id: len(t.steps) for t in iter_trajectories(expert)}
    else:
        lengths = {}
        for pair in pairs:
            lengths[pair.episode] = max(lengths.get(pair.episode, 0), pair.step + 1)
    marked = {(pair.episode, pair.step) for pair in pairs if pair.step < lengths.get(pair.episode, 0)}
    return len(marked) / sum(lengths.values())
