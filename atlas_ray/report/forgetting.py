"""What a tuned model lost of what its base could do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.paired import Difference
from ..data.results import Arm, Cell
from .outcomes import unpaired
from .run import Run

COULD = 0.5
"""Success of the untuned model from which on it could do a level (ours)."""


@dataclass(frozen=True)
class Forgotten:
    """Success on the levels that the untuned model could do: its own, an arm's, and the difference."""

    base: float
    success: float
    change: Difference


def _cells(arm: Arm) -> dict[str, Cell]:
    scores = [arm.held_in, *([arm.held_out] if arm.held_out is not None else [])]
    return {name: cell for score in scores for name, cell in (score.levels or {}).items()}


def _untuned(arms: Sequence[Arm]) -> Arm | None:
    return next((arm for arm in arms if arm.selector == "none"), None)


def known_levels(arms: Sequence[Arm]) -> list[str]:
    """Levels that the untuned model could do; none where it was not scored by level."""
    base = _untuned(arms)
    return [name for name, cell in _cells(base).items() if cell.success >= COULD] if base is not None else []


def forgotten(run: Run, arm: Arm, level: float = 0.95) -> Forgotten | None:
    """What an arm lost; None of the untuned model itself, and where there is no such level."""
    base, levels = _untuned(run.arms), known_levels(run.arms)
    own = _cells(arm)
    if base is None or arm is base or not levels or any(name not in own for name in levels):
        return None
    weights = {name: _cells(base)[name].episodes for name in levels}
    share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    means = [sum(_cells(a)[name].success * share[name] for name in levels) for a in (base, arm)]
    alone = sum(a.name == arm.name for a in run.arms) == 1
    change = run.outcomes.of_arms(arm, base, levels, level) if alone else None
    if change is None:
        terms = [(sign * share[name], _cells(a)[name]) for sign, a in ((1, arm), (-1, base)) for name in levels]
        change = unpaired(terms, level)
    return Forgotten(means[0], means[1], change)
