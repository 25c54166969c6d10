"""Which part of the rounds is played now, how many there are at most, and how long they will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from statistics import fmean

from ..rundir.progress import duration, say

_SKIPPED_SECONDS = 1.0
"""A part that took no longer was there already, and says nothing of those to come."""


class Clock:
    """Says which part is played now, how many there are at most, and how long they will take.

    Args:
        parts: how many there are of each kind.
        count: most rounds.
    """

    def __init__(self, parts: Counter[str], count: int) -> None:
        self._left, self._count = Counter(parts), count
        self._total, self._done = self._left.total(), 0
        self._seconds: dict[str, list[float]] = {}

    def run(self, part: str, number: int, seed: int | None, play: Callable[[], None]) -> None:
        """Play a part of a round, for one training seed or for all."""
        start = time.monotonic()
        who = f"round {number} of {self._count}, " + ("all seeds" if seed is None else f"seed {seed}")
        say(f"  {who}: {part} · part {self._done + 1} of {self._total}{self._eta()}")
        play()
        if (passed := time.monotonic() - start) > _SKIPPED_SECONDS:
            self._seconds.setdefault(part, []).append(passed)
        self._left[part] -= 1
        self._done += 1

    def _eta(self) -> str:
        """At most so long, by what parts of this kind took so far."""
        known = [s for seconds in self._seconds.values() for s in seconds]
        if not known:
            return ""
        left = sum(n * fmean(self._seconds.get(part, known)) for part, n in self._left.items())
        return f", at most about {duration(left)} left"
