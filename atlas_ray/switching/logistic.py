"""A logistic regression on what an episode shows: hashed words, actions so far, loops, QUICK's answer (ours)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

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
_PAIRS, _ANSWERS = 512, 32
ANSWERED_WIDTH = WIDTH + _PAIRS + _ANSWERS
"""Entries where an answer is read too: behind the state's its words, each paired with the answer, and the answer."""
_RIDGE, _ANSWERED_RIDGE = 1.0, 10.0
_ITERATIONS = 30
_WORD = re.compile(r"\w+")
_LOUD = 4.0  # of an answer's single entry, beside the 256 of its pairs


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


@lru_cache(maxsize=10_000)
def read_answer(text: str, past: Past, action: str) -> Vector:
    r"""``[ANSWERED_WIDTH]``: a state and what QUICK would do there, read-only.

    A pair of a word and an answer has an entry of its own, so that the same answer may be right in one state and wrong
    in another. The goal's words are ``@`` in an answer, so that what is learnt of one thing holds for all.

    Args:
        text: ``"goal\nobservation"``.
        past: as for :func:`read`.
        action: that QUICK proposes.
    """
    state, goal = read(text, past), set(_WORD.findall(text.partition("\n")[0].lower()))
    code = crc32(" ".join("@" if word in goal else word for word in _WORD.findall(action.lower())).encode())
    pairs, answers = np.zeros(_PAIRS, np.float32), np.zeros(_ANSWERS, np.float32)
    pairs[(np.arange(WORDS) + code) % _PAIRS] = state[:WORDS]
    answers[code % _ANSWERS] = _LOUD
    vector = np.concatenate([state, pairs, answers])
    vector.flags.writeable = False
    return vector


def fit(features: Sequence[Vector], labels: Sequence[bool]) -> tuple[float, ...]:
    """Weights ``[F]`` of a logistic regression of labels ``[N]`` on features ``[N, F]``, by Newton's method.

    All weights are shrunk, those of answers more, so one exists for any labels, also where all are the same.

    Raises:
        ValueError: there is nothing to fit.
    """
    if not len(features):
        raise ValueError("features: none to fit to")
    x, y = np.array(features, np.float64), np.array(labels, np.float64)
    weights = np.zeros(x.shape[1])
    ridge = _ANSWERED_RIDGE if len(weights) == ANSWERED_WIDTH else _RIDGE
    for _ in range(_ITERATIONS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + ridge * weights
        hessian = (x.T * (p * (1 - p))) @ x + ridge * np.eye(len(weights))
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
