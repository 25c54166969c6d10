"""Text to a vector, without a model: hashed word n-grams (ours; LONDI's own encoder is not known).

A vector of ``width + 2`` entries: goal words in the first quarter of ``width``, observation words in the next half,
observation words seen through the goal in the last quarter, then the remaining share of the budget
(:func:`atlas_ray.switching.budget.share`), then the share of the steps that are used.

An observation is split into facts at its commas, and n-grams of 1 to 3 words are taken within a fact, so that number
and direction stay together (``2 steps left``) and near the thing they place (``red ball 1``). Seen through the goal,
every word that the goal holds too becomes ``@``, and n-grams of 4 words and whole facts are taken as well: a red ball
under the goal ``pick up the red ball`` and a grey key under ``pick up the grey key`` are both ``@ @ 1 step forward``,
so that what is learnt of one thing holds for all. CRC-32 picks an n-gram's entry and its sign, the same in every
process; with signs, n-grams that share an entry cancel instead of adding up. A part has mean square 1 unless it is
empty.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LONGEST = 3
BUDGET_ENTRY, STEP_ENTRY = -2, -1
EXTRA = 2
FACT_ENDS = re.compile(r"[,.;\n]")

Vector = NDArray[np.float32]


def _facts(text: str) -> list[list[str]]:
    return [re.findall(r"\w+", fact) for fact in FACT_ENDS.split(text.lower())]


def _ngrams(words: Sequence[str], longest: int) -> Iterable[str]:
    for n in range(1, longest + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])


def _hashed(ngrams: Iterable[str], width: int) -> Vector:
    entries = np.zeros(width, np.float32)
    for ngram in ngrams:
        code = zlib.crc32(ngram.encode())
        entries[(code >> 1) % width] += 1.0 if code & 1 else -1.0
    norm = float(np.sqrt((entries**2).mean()))
    return entries / norm if norm else entries


def _through(goal: str, observation: str) -> Iterable[str]:
    """n-grams of the facts with ``@`` for the goal's words; short ones (``a``, ``to``, ``up``) stay."""
    shared = {word for words in _facts(goal) for word in words if len(word) > 2}
    for words in _facts(observation):
        if shared.intersection(words):
            masked = ["@" if word in shared else word for word in words]
            yield from _ngrams(masked, LONGEST + 1)
            yield " ".join(masked) + "."


@lru_cache(maxsize=50_000)
def encode(text: str, width: int) -> Vector:
    """``[width]`` float32 of ``"goal\\nobservation"``; a text of one line is all observation."""
    goal, newline, observation = text.partition("\n")
    if not newline:
        goal, observation = "", text
    quarter = width // 4
    parts = (
        _hashed((n for words in _facts(goal) for n in _ngrams(words, LONGEST)), quarter),
        _hashed((n for words in _facts(observation) for n in _ngrams(words, LONGEST)), width - 2 * quarter),
        _hashed(_through(goal, observation), quarter),
    )
    vector = np.concatenate(parts)
    vector.flags.writeable = False
    return vector


def with_shares(encoded: Vector, budgets: Sequence[float], steps: Sequence[float]) -> Vector:
    """``[N, width + 2]``: encoded texts ``[N, width]`` and the two shares of each."""
    shares = np.array([budgets, steps], np.float32).T
    return np.concatenate([encoded, shares], axis=1, dtype=np.float32)
