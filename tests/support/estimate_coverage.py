"""How often the intervals of off-policy estimates hold the true value, over many logs of games."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import switch_logs
import switch_mdps
from switch_mdps import MDPS

from atlas_ray.switching.estimates import estimate

GAMES = {
    "chain-6, n = 1": ("chain-6", {"budget": 1}, 1400, 0.4),
    "chain-6, c = 0.2": ("chain-6", {"cost": 0.2}, 1200, 0.4),
    "tree-4, n = 2": ("tree-4", {"budget": 2}, 1200, 0.5),
    "dead-ends-12, n = 1": ("dead-ends-12", {"budget": 1}, 8000, 0.15),
}
"""Game, terms of its best switch, which is what is estimated, episodes of a log, and how often that has a call."""


def parts(name, count, seed, **how):
    """The held-out half of a log, and the half for the model."""
    return tuple(switch_logs.arrays(name, count // 2, 2 * seed + n, **how) for n in (0, 1))


def decider(name, table, budget):
    """A table as a function of features; the games here have one-hot codes."""

    def decide(features):
        left = (features[:, -2] * budget).round().astype(int) if budget else 0
        return table[features[:, :-2].argmax(1), left]

    return decide


def truth(name, table, budget):
    """Exact return, which is the success of a chain, and calls."""
    mdp = MDPS[name]
    success = switch_mdps.table_values(mdp, table, 1.0, 0.0, budget)[0, -1]
    return success, success - switch_mdps.table_values(mdp, table, 1.0, 1.0, budget)[0, -1]


@dataclass
class Coverage:
    """Of a game: in how many logs each interval held the true value, their widths, and the effective episodes."""

    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    widths: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ess: list[float] = field(default_factory=list)


def coverage(game: str, seeds: Sequence[int]) -> Coverage:
    """Play a log for each seed, and estimate the best switch by it."""
    name, terms, count, call = GAMES[game]
    budget, found = terms.get("budget"), Coverage()
    table = switch_mdps.best_table(MDPS[name], 0.98, **terms)
    true = dict(zip(("return", "calls"), truth(name, table, budget), strict=True))
    decide = decider(name, table, budget)
    for seed in seeds:
        row = estimate(decide, 2, budget, *parts(name, count, seed, call=call))
        found.ess.append(row["ess"])
        for kind in ("weighted", "doubly_robust"):
            for what, value in true.items():
                told = row[kind][what]
                found.held[kind, what] += bool(told["low"] <= value <= told["high"])
                found.widths.setdefault((kind, what), []).append(float(np.subtract(told["high"], told["low"])))
    return found
