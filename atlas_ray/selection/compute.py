"""What it takes to select: FLOPs of models, 2 x weights x tokens as everywhere, and environment steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..agents.rendering_chat import make_renderer
from ..data.records import Trajectory
from ..models.loading import load_tokenizer, parameters
from ..recipe.loading import Recipe
from ..recipe.select import BY_BASE, matched, members
from ..rundir.files import jsonl_rows, read_json
from ..rundir.layout import RunLayout
from .scored_stage import perplexity_model
from .verified_stage import is_expert, rollout_agent

FREE = ("all", "successes", "random", "uniform", "last", "non-critical", "calls", "advised")
"""Selectors for which no model computes anything."""
Taken = dict[str, float | int | None]
"""``flops`` of models and ``steps`` of environments, replayed ones too; None where that is not counted."""


def selection_compute(recipe: Recipe, run_dir: Path, selector: str, trajectories: Sequence[Trajectory]) -> Taken:
    """What a selector's own pass took, at all starts of the run; of those that it joins or draws from nothing.

    Environment steps are counted of ``verified`` alone, FLOPs of what one's own file, the oracle, ``mistakes``,
    ``value``, ``deviation`` and ``distilled`` took are not.
    """
    assert recipe.select is not None
    if selector in recipe.select.files:
        return {"flops": None, "steps": None}
    if selector in FREE or members(selector):
        return {"flops": 0, "steps": None if selector == "advised" else 0}
    if selector in BY_BASE:
        name = perplexity_model(recipe)
        renderer = make_renderer(load_tokenizer(name), recipe.style, recipe.prompt)
        return {"flops": 2 * parameters(name) * sum(len(renderer.render(t).ids) for t in trajectories), "steps": 0}
    return _verified(recipe, run_dir) if selector == "verified" else {"flops": None, "steps": None}


def compute_of(recipe: Recipe, run_dir: Path, selector: str) -> Taken:
    """What everything took that a selector's marks come from, by what the stage has noted of each.

    Of a size-matched control that is nothing: it stands for a draw.
    """
    parts = [selector, *_behind(recipe, selector)]
    noted = [_noted(run_dir, part) for part in parts]
    return {name: _sum(each.get(name) for each in noted) for name in ("flops", "steps")}


def _behind(recipe: Recipe, selector: str) -> tuple[str, ...]:
    assert recipe.select is not None
    if selector == "verified":
        proposer = recipe.select.verified.propose
        return () if proposer == "all" else (proposer, *_behind(recipe, proposer))
    return () if matched(selector) else tuple(members(selector))


def _noted(run_dir: Path, selector: str) -> Mapping[str, Any]:
    path = RunLayout(run_dir).selection_compute(selector)
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _sum(numbers: Iterable[float | None]) -> float | None:
    found = list(numbers)
    return None if None in found else sum(number for number in found if number is not None)


def _verified(recipe: Recipe, run_dir: Path) -> Taken:
    """Of every line: its first pass is of who says what else to do, its second of who plays on."""
    assert recipe.select is not None
    rows = list(jsonl_rows(RunLayout(run_dir).scores("verified")))
    agent, other = rollout_agent(recipe)[0], recipe.select.verified.alternative
    flops: float | None = 0
    for model, own in ((agent, [r for r in rows if "step" in r]), (other, [r for r in rows if "step" not in r])):
        if flops is None or not any(row.get("calls") for row in own):
            continue
        through = _sum(row.get("computed") if row.get("calls") else 0 for row in own)
        known = through is not None and not model.base_url and not is_expert(model)
        flops = flops + 2 * parameters(model.model) * through if known and through is not None else None
    return {"flops": flops, "steps": sum(row["steps"] + row["replayed"] for row in rows)}
