"""Decisions that models made before, so that the same model is not asked the same question twice."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ..agents.token_agent import Decision

MAX_ENTRIES = 100_000


class CachedDecision(NamedTuple):
    """A decision and the seconds that it took when it was made."""

    decision: Decision
    seconds: float


class DecisionCache:
    """Least-recently-used cache of decisions, by the 16 bytes of :meth:`SwitchPlayer.key`.

    Args:
        max_entries: most decisions; one takes about a kilobyte.

    Attributes:
        hits: lookups that found a decision.
        misses: lookups that found none.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        if max_entries < 1:
            raise ValueError("max_entries: a cache holds at least one decision")
        self.max_entries = max_entries
        self.hits = self.misses = 0
        self._entries: OrderedDict[bytes, CachedDecision] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CachedDecision | None:
        """The decision of this key, if it is cached."""
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, decision: CachedDecision) -> None:
        """Add a decision; the least recently used one makes room for it."""
        self._entries[key] = decision
        self._entries.move_to_end(key)
        if len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)
