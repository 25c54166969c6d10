"""What models answered, kept: the same model asked the same is not asked again."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ..agents.token_agent import Decision

ENTRIES = 100_000


class Answer(NamedTuple):
    """A decision and the seconds that it took when it was made."""

    decision: Decision
    seconds: float


class Answers:
    """Answers by the 16 bytes that tell what was asked (:meth:`SwitchPlayer.key`); those used least recently go first.

    Args:
        entries: most answers; one takes about a kilobyte.

    Attributes:
        hits: how often an answer was there.
        misses: how often it was not.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        if entries < 1:
            raise ValueError("a cache holds one answer at least")
        self.entries = entries
        self.hits = self.misses = 0
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Answer | None:
        """The answer to what was asked, if it is there."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer; the oldest makes room for it."""
        self._kept[key] = answer
        self._kept.move_to_end(key)
        if len(self._kept) > self.entries:
            self._kept.popitem(last=False)
