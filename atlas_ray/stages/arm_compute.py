"""What an arm took in all, in FLOPs, so that arms can be compared at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..data.results import ArmCompute
from ..recipe.loading import Arm, Recipe
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from ..selection.compute import compute_of


def arm_compute(recipe: Recipe, layout: RunLayout, arm: Arm, records: Sequence[Mapping[str, Any]]) -> ArmCompute:
    """FLOPs to collect and to select what an arm is trained on, and of its training, a mean over its seeds.

    Args:
        recipe: of the run that collected and selected.
        layout: of that run.
        arm: of the recipe.
        records: of its trainings, each a ``run.json``.
    """
    own = recipe.finetune is not None and arm.selector in recipe.finetune.pairs.files
    selected = {"flops": None, "steps": None} if own else compute_of(recipe, layout.root, arm.selector)
    steps = selected["steps"]
    flops: list[float] = [record.get("flops", 0.0) for record in records]  # (an older run may not say)
    return ArmCompute(
        collect=_collected(recipe, layout),
        select=selected["flops"],
        select_steps=None if steps is None else int(steps),
        train=fmean(flops) if all(flops) else None,
    )


def _collected(recipe: Recipe, layout: RunLayout) -> float | None:
    """FLOPs of whoever played: none of experts, and not known of a file, an endpoint or another run's switch.

    Nor are they where the episodes were collected in another run directory, as those of a round.
    """
    config = recipe.collect
    if config is None or config.file or config.switch or (config.agent and config.agent.base_url):
        return None
    if not config.agent:
        return 0.0
    return float(read_json(layout.collecting_usage)["flops"]) if layout.collecting_usage.is_file() else None
