"""Text to a vector, without a model: hashed word n-grams (ours; LONDI's own encoder is not known).

Goal words lie in the first quarter of the vector, observation words in the next half, observation words seen through
the goal in the last quarter.

An observation is split into facts at its commas, and n-grams of 1 to 3 words are taken within a fact, so that number
and direction stay together (``2 steps left``) and near the thing they place (``red ball 1``). Seen through the goal,
every word that the goal holds too becomes ``@``, and n-grams of 4 words and whole facts are taken as well: a red ball
under the goal ``pick up the red ball`` and a grey key under ``pick up the grey key`` are both ``@ @ 1 step forward``,
so that what is learnt of one thing holds for all. CRC-32 picks an n-gram's entry and its sign, the same in every
process; with signs, n-grams that share an entry cancel instead of adding up. A part has mean square 1 unless it is
empty.

Of the goal and of the observation the first :data:`LONGEST_PART` characters are read, so that a text of any length
costs a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

LONGEST = 3
LONGEST_PART = 100_000
"""Characters of a goal or an observation that are read."""
FACT_ENDS = re.compile(r"[,.;\n]")
_ENDS = frozenset(",.;\n")
_TOKENS = re.compile(r"\w+|[,.;\n]")
_LONGEST_CACHED = 10_000
"""Characters; the vector of a longer text is not kept."""

Vector = NDArray[np.float32]


def _words(text: str) -> tuple[list[str], list[int]]:
    """The words of a text, and the number of the fact that each stands in."""
    tokens = _TOKENS.findall(text.lower())
    facts = accumulate(token in _ENDS for token in tokens)
    pairs = [(token, fact) for token, fact in zip(tokens, facts, strict=True) if token not in _ENDS]
    return [word for word, _ in pairs], [fact for _, fact in pairs]


def _codes(words: Sequence[str], facts: Sequence[int], longest: int) -> list[int]:
    """CRC-32 of every n-gram of up to ``longest`` words that lies within a fact."""
    spaced = [f" {word}".encode() for word in words]
    # that of "a b" goes on from that of "a": nothing is joined, and time grows with the words alone
    codes = [crc32(word[1:]) for word in spaced]
    found = list(codes)
    for n in range(1, longest):
        codes = list(map(crc32, spaced[n:], codes))
        found += [code for code, first, last in zip(codes, facts, facts[n:], strict=False) if first == last]
    return found


def _hashed(codes: Sequence[int], width: int) -> Vector:
    if not width:
        return np.zeros(0, np.float32)
    code = np.array(codes, np.int64)
    entries = np.bincount((code >> 1) % width, 2.0 * (code & 1) - 1, width).astype(np.float32)
    norm = float(np.sqrt((entries**2).mean()))
    return entries / norm if norm else entries


def _through(goal: Sequence[str], words: Sequence[str], facts: Sequence[int]) -> list[int]:
    """n-grams of the facts with ``@`` for the goal's words; short ones (``a``, ``to``, ``up``) stay."""
    shared = {word for word in goal if len(word) > 2}
    met = {fact for word, fact in zip(words, facts, strict=True) if word in shared}
    masked = [("@" if w in shared else w, fact) for w, fact in zip(words, facts, strict=True) if fact in met]
    whole: dict[int, list[str]] = {}
    for word, fact in masked:
        whole.setdefault(fact, []).append(word)
    sentences = [crc32((" ".join(fact) + ".").encode()) for fact in whole.values()]
    return _codes([word for word, _ in masked], [fact for _, fact in masked], LONGEST + 1) + sentences


def encode(text: str, width: int) -> Vector:
    r"""``[width]`` float32 of ``"goal\nobservation"``; a text of one line is all observation."""
    return _encode(text, width) if len(text) <= _LONGEST_CACHED else _encode.__wrapped__(text, width)


@lru_cache(maxsize=50_000)
def _encode(text: str, width: int) -> Vector:
    goal, newline, observation = text.partition("\n")
    if not newline:
        goal, observation = "", text
    quarter = width // 4
    wanted, wanted_facts = _words(goal[:LONGEST_PART])
    seen, seen_facts = _words(observation[:LONGEST_PART])
    parts = (
        _hashed(_codes(wanted, wanted_facts, LONGEST), quarter),
        _hashed(_codes(seen, seen_facts, LONGEST), width - 2 * quarter),
        _hashed(_through(wanted, seen, seen_facts), quarter),
    )
    vector = np.concatenate(parts)
    vector.flags.writeable = False
    return vector
