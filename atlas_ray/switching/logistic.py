"""A logistic regression on what an episode shows: hashed words, the actions so far, loops (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..models.hashed_words import Vector, encode
from .past import Past

WORDS, ACTIONS = 256, 32
"""Entries for goal and observation, and for the actions that led there."""
WIDTH = WORDS + ACTIONS + 3
"""Entries that a rule reads: words, actions, how often the state was seen, actions without effect, and a one."""
BLANK = (0.0,) * WIDTH
"""Weights that give every state the chance 0.5."""
_RIDGE = 1.0
_ITERATIONS = 30


@lru_cache(maxsize=10_000)
def read(text: str, past: Past) -> Vector:
    r"""``[WIDTH]``: the present state of an episode, read-only.

    Args:
        text: ``"goal\nobservation"``.
        past: its actions are read; of its observations, which may be digests, only which are the same.
    """
    loops: list[float] = [past.visits / (1 + past.visits), past.unchanged / (1 + past.unchanged), 1.0]
    parts: list[Vector | list[float]] = [
        encode(text, WORDS),
        encode(", ".join(past.actions), ACTIONS),
        loops,
    ]
    vector = np.concatenate(parts, dtype=np.float32)
    vector.flags.writeable = False
    return vector


def fit(features: Sequence[Vector], labels: Sequence[bool]) -> tuple[float, ...]:
    """Weights ``[F]`` of a logistic regression of labels ``[N]`` on features ``[N, F]``, by Newton's method.

    All weights are shrunk, so one exists for any labels, also where all are the same.

    Raises:
        ValueError: there is nothing to fit.
    """
    if not len(features):
        raise ValueError("features: none to fit to")
    x, y = np.array(features, np.float64), np.array(labels, np.float64)
    weights = np.zeros(x.shape[1])
    for _ in range(_ITERATIONS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + _RIDGE * weights
        hessian = (x.T * (p * (1 - p))) @ x + _RIDGE * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    return tuple(weights.tolist())


def chance(weights: Sequence[float], features: Vector) -> float:
    """The probability that the label holds."""
    return float(_sigmoid(np.array(features @ np.array(weights))))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(x / 2))
