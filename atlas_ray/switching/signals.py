"""What a switch may see besides the text, by name: QUICK's answer, the episode's past, a classifier (all ours)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from ..models.hashed_words import Vector, encode
from .logistic import ANSWERED_WIDTH, WIDTH, chance, read, read_answer
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
    "verifier": 1,
}
"""Entries of each signal, as the recipe names them."""
SCORED = frozenset({"entropy", "margin"})
"""Those for which QUICK has to score the actions; as in the recipe, whose module takes a second to import."""
CLASSIFIER, VERIFIER = "classifier", "verifier"
"""Fitted to training episodes before a switch learns. The second is of QUICK's answer, which is then asked for."""
PAST = frozenset({"visits", "unchanged", "since-call"})
"""Those of the episode's own past, for which no model is asked."""
FROM_PAST = PAST | {CLASSIFIER}
"""Those that follow from the text and the episode's past."""
ANSWERED = frozenset({"proposal", VERIFIER})
"""Those of QUICK's answer."""


class Weights(NamedTuple):
    """Of the signals that are fitted, by name; nothing for those that a switch does not have."""

    classifier: tuple[float, ...] = ()
    verifier: tuple[float, ...] = ()

    def check(self, signals: Collection[str]) -> None:
        """Refuse others than those of these signals.

        Raises:
            InputError: some are missing, too many, or not finite.
        """
        for name, width in ((CLASSIFIER, WIDTH), (VERIFIER, ANSWERED_WIDTH)):
            own = getattr(self, name)
            if len(own) != (width if name in signals else 0):
                raise InputError(f"the signal {name} has {width} weights, and without it there are none")
            if not np.isfinite(own).all():
                raise InputError(f"the weights of {name} must be finite")


NOT_FITTED = Weights()


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


def of_verifier(weights: Sequence[float], text: str, past: Past, decision: Decision | None) -> float:
    """The chance that DEEPTHINK would do what QUICK is about to, 0..1; 0 where QUICK gives no answer."""
    if decision is None:
        return 0.0
    return chance(weights, read_answer(text, past._replace(acted=()), decision.action))


def of_episode(name: str, weights: Weights, text: str, past: Past) -> float:
    """One of :data:`FROM_PAST`."""
    return of_classifier(weights.classifier, text, past) if name == CLASSIFIER else of_past(name, past)


def of_answer(
    name: str, weights: Weights, goal: str, text: str, past: Past, decision: Decision | None
) -> float | Vector:
    """One of :data:`ANSWERED`."""
    if name == VERIFIER:
        return of_verifier(weights.verifier, text, past, decision)
    return of_proposal(goal, decision)


def of_proposal(goal: str, decision: Decision | None) -> Vector:
    """``[48]``: hashed words of what QUICK is about to think and do, plain and seen through the goal.

    Nothing where it gives no answer.
    """
    if decision is None:
        return np.zeros(WIDTHS["proposal"], np.float32)
    said = decision.action if decision.thought is None else f"{decision.thought}. {decision.action}"
    goal, said = (" ".join(text.splitlines()) for text in (goal, said))
    return encode(f"{goal}\n{said}", _ENCODED)[_GOAL:]
