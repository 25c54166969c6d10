"""What an episode's own past says of a state: whether it was seen before, whether actions change anything (ours).

Small models fall into loops: they turn round and round, or try again what was refused. An observation is taken for the
state, as it is by the models.
"""

from __future__ import annotations

from typing import NamedTuple

REFUSALS = (
    "can't",
    "cannot",
    "don't know",
    "don't understand",
    "invalid action",
    "is not a valid",
    "no known action",
    "not a verb",
    "not possible",
    "nothing happens",
    "unknown action",
)
"""What environments say, in lower case, of an action that cannot be done: ScienceWorld, TextWorld, ALFWorld and
others."""


class Past(NamedTuple):
    """An episode so far: ``observations``, the present one last, ``actions``, and which model took each (``acted``)."""

    observations: tuple[str, ...]
    actions: tuple[str, ...]
    acted: tuple[int, ...]

    def until(self, step: int) -> Past:
        """The episode as it was when so many steps were taken."""
        return Past(self.observations[: step + 1], self.actions[:step], self.acted[:step])

    @property
    def visits(self) -> int:
        """How often the present state was seen before in the episode."""
        return self.observations[:-1].count(self.observations[-1])

    @property
    def unchanged(self) -> int:
        """How many actions in a row, up to the last, have left the observation as it was."""
        run = 0
        for before in reversed(self.observations[:-1]):
            if before != self.observations[-1]:
                break
            run += 1
        return run

    @property
    def refused(self) -> bool:
        """Whether the environment says that the last action cannot be done."""
        said = self.observations[-1].lower()
        return bool(self.actions) and any(words in said for words in REFUSALS)

    @property
    def since_call(self) -> int | None:
        """Steps since a model other than QUICK acted, 1 right after it; None where none has."""
        return next((n for n, number in enumerate(reversed(self.acted), 1) if number), None)
