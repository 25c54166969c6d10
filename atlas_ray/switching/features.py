"""Text to a vector, without a model: hashed word n-grams (ours; LONDI's own encoder is not known).

A vector of ``width + 2`` entries: goal words in the first half of ``width``, observation words in the second, then the
remaining share of the budget (:func:`atlas_ray.switching.budget.share`), then the share of the steps that are used.

An observation is split into facts at its commas, and n-grams of 1 to 3 words are taken within a fact, so that number
and direction stay together (``2 steps left``) and near the thing they place (``red ball 1``). CRC-32 picks an n-gram's
entry and its sign, the same in every process; with signs, n-grams that share an entry cancel instead of adding up. A
half has mean square 1 unless it is empty.
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

Vector = NDArray[np.float32]


def _ngrams(text: str) -> Iterable[str]:
    for fact in re.split(r"[,.;\n]", text.lower()):
        words = re.findall(r"\w+", fact)
        for n in range(1, LONGEST + 1):
            for start in range(len(words) - n + 1):
                yield " ".join(words[start : start + n])


@lru_cache(maxsize=50_000)
def _half(text: str, width: int) -> Vector:
    entries = np.zeros(width, np.float32)
    for ngram in _ngrams(text):
        code = zlib.crc32(ngram.encode())
        entries[(code >> 1) % width] += 1.0 if code & 1 else -1.0
    norm = float(np.sqrt((entries**2).mean()))
    entries = entries / norm if norm else entries
    entries.flags.writeable = False
    return entries


def encode(text: str, width: int) -> Vector:
    """``[width]`` float32 of ``"goal\\nobservation"``; a text of one line is all observation."""
    goal, newline, observation = text.partition("\n")
    if not newline:
        goal, observation = "", text
    return np.concatenate([_half(goal, width // 2), _half(observation, width - width // 2)])


def with_shares(encoded: Sequence[Vector], budgets: Sequence[float], steps: Sequence[float]) -> Vector:
    """``[N, width + 2]``: encoded texts and the two shares of each."""
    shares = np.array([budgets, steps], np.float32).T
    return np.concatenate([np.stack(list(encoded)), shares], axis=1)
