"""What a switch may see besides the text, by name: QUICK's answer, the episode's past, a classifier (all ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..models.hashed_words import Vector, encode
from .logistic import chance, read
from .past import Past

if TYPE_CHECKING:  # a saved switch decides without the agents
    from ..agents.decisions import Decision

_ENCODED, _GOAL = 64, 16
"""Entries of an encoded text, and those of its goal, which the switch reads already."""

WIDTHS = {
    "entropy": 1,
    "margin": 1,
    "catch-up": 1,
    "visits": 1,
    "unchanged": 1,
    "since-call": 1,
    "proposal": _ENCODED - _GOAL,
    "classifier": 1,
}
"""Entries of each signal, as the recipe names them."""
SCORED = frozenset({"entropy", "margin"})
"""Those for which QUICK has to score the actions; as in the recipe, whose module takes a second to import."""
CLASSIFIER = "classifier"
"""Fitted to training episodes before a switch learns; at play no model is asked for it."""
PAST = frozenset({"visits", "unchanged", "since-call"})
"""Those of the episode's own past, for which no model is asked."""
FROM_PAST = PAST | {CLASSIFIER}
"""Those that follow from the text and the episode's past."""


class Confidence(NamedTuple):
    """Of QUICK's answer: normalised entropy of its choice and margin of the likeliest action, 0..1 each."""

    entropy: float
    margin: float


OVER = Confidence(0.0, 1.0)
"""Of an episode that is over, where nothing is asked any more."""


def total_width(signals: Sequence[str]) -> int:
    """Entries of these signals together."""
    return sum(WIDTHS[name] for name in signals)


def of_past(name: str, past: Past) -> float:
    """A signal of the episode's past, 0..1.

    ``visits``: n / (n + 1) for a state that was seen n times before. ``unchanged``: the same for n actions in a row
    that had no effect. ``since-call``: 1 / n, n steps after the last call of another model than QUICK; 0 before any.
    """
    if name == "since-call":
        return 1 / past.since_call if past.since_call else 0.0
    count = past.visits if name == "visits" else past.unchanged
    return count / (1 + count)


def of_classifier(weights: Sequence[float], text: str, past: Past) -> float:
    """The chance that QUICK would do what DEEPTHINK would, 0..1, by weights that were fitted to training episodes."""
    return chance(weights, read(text, past._replace(acted=())))  # so that equal states are read once


def of_proposal(goal: str, decision: Decision | None) -> Vector:
    """``[48]``: hashed words of what QUICK is about to think and do, plain and seen through the goal.

    Nothing where it gives no answer.
    """
    if decision is None:
        return np.zeros(WIDTHS["proposal"], np.float32)
    said = decision.action if decision.thought is None else f"{decision.thought}. {decision.action}"
    goal, said = (" ".join(text.splitlines()) for text in (goal, said))
    return encode(f"{goal}\n{said}", _ENCODED)[_GOAL:]
