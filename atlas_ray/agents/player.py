"""What rolling out asks of whoever plays: a model in an engine, one behind a server, or a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..data.records import Step
from .decisions import Decision, LostAnswer


class Places(Protocol):
    """What can hold so many episodes at a time."""

    @property
    def slots(self) -> int:
        """Episodes at a time."""
        ...


class Player(Protocol):
    """Who plays episodes side by side, each in a slot of its ``engine``."""

    @property
    def engine(self) -> Places:
        """Where its text comes from."""
        ...

    @property
    def needs_list(self) -> bool:
        """Whether it cannot act without the admissible actions, however dear it is to list them."""
        ...

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Begin an episode in ``slot``, with the ``steps`` that were already taken."""
        ...

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Append a step, whoever took it, and the observation that followed."""
        ...

    def fits(self, slot: int) -> bool:
        """Whether there is room for one more turn."""
        ...

    def act(
        self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> Sequence[Decision | LostAnswer]:
        """One decision for each of ``slots``, or why there is none; ``actions`` are those offered to it."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A player that knows what its decisions read and write."""

    def tokens_of(self, slot: int, decision: Decision | LostAnswer) -> tuple[int, int] | None:
        """Tokens that a decision in ``slot`` has read and written, the whole prompt included; None where unknown."""
        ...

    def computed_by(self, slot: int, decision: Decision | LostAnswer) -> int | None:
        """Tokens through the model for the decision if it keeps the last prompt of the episode; None where unknown."""
        ...
