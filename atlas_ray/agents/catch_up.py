"""How far a model has read an episode in which others act too, and what it skips of what it missed (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass

from ..errors import InputError


def check_window(window: int | None, catch_up: int | None) -> None:
    """Refuse a negative window, and one of a model that is to catch up.

    Raises:
        InputError: names the field.
    """
    if window is not None and window < 0:
        raise InputError("must be 0 or more", field="window")
    if window is not None and catch_up is not None:
        raise InputError("a window has nothing to catch up: give one of the two", field="catch_up")


@dataclass
class ReadProgress:
    """Steps of an episode, by number, as one model has read them.

    Attributes:
        most: of the steps that it missed, at most so many of the last are read at its next answer; what stands before
            them it sees no more. None: all.
        taken: steps so far.
        known: leading steps that it cannot miss any more: those before its last answer, and that answer's own.
        skipped: leading steps that it does not see.
        observed: tokens of the observation in its last answer's state; what follows of that step is its own turn.
    """

    most: int | None = None
    taken: int = 0
    known: int = 0
    skipped: int = 0
    observed: int = 0

    @property
    def first(self) -> int:
        """The first step that it would see now."""
        if self.most is None or self.taken - self.known <= self.most:
            return self.skipped
        return self.taken - self.most

    def mark(self, observed: int = 0) -> None:
        """It answers, or reads, in the present state, whose observation has so many tokens."""
        self.skipped, self.known, self.observed = self.first, self.taken + 1, observed

    def missed(self, steps: Iterable[Sized], start: int, cached: int) -> int:
        """Tokens that it reads now to catch up: of the steps it sees, all but its own last turn.

        Args:
            steps: tokens of each step that it sees, up to the last one.
            start: tokens of the prompt before them.
            cached: leading tokens of the prompt that it need not read.
        """
        found, sizes = 0, [len(step) for step in steps]
        for number, size in enumerate(sizes, self.taken - len(sizes)):
            of_others = self.observed if number == self.known - 1 else size
            found += max(0, start + of_others - max(start, cached))
            start += size
        return found
