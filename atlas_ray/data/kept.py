"""How episodes ended, counted, and which of them a recipe keeps.

An episode whose outcome nobody knows is neither a success nor a failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from .records import Trajectory

Keep = Literal["all", "successes", "failures"]


def is_kept(keep: Keep, success: bool | None) -> bool:
    """Whether an episode that ended so is kept; one of unknown outcome only where all are."""
    return keep == "all" or (success is not None and success == (keep == "successes"))


class Outcomes(NamedTuple):
    """Numbers of episodes, or of their steps, by how the episodes ended."""

    successes: int = 0
    failures: int = 0
    unknown: int = 0

    def add(self, success: bool | None, count: int = 1) -> Outcomes:
        """With so many more that ended so."""
        name = outcome(success)
        return self._replace(**{name: getattr(self, name) + count})

    @property
    def mixed(self) -> bool:
        """Whether there is more to tell than that all are successes."""
        return bool(self.failures or self.unknown)

    def words(self) -> str:
        """``80 successes, 40 failures, 2 of unknown outcome``; what there is none of is left out."""
        said = {
            f"{self.successes:,} success{'es' * (self.successes != 1)}": self.successes,
            f"{self.failures:,} failure{'s' * (self.failures != 1)}": self.failures,
            f"{self.unknown:,} of unknown outcome": self.unknown,
        }
        return ", ".join(words for words, count in said.items() if count) or "none"


def outcome(success: bool | None) -> Literal["successes", "failures", "unknown"]:
    """The field of :class:`Outcomes` in which such an episode counts."""
    return "unknown" if success is None else "successes" if success else "failures"


def outcomes_of(trajectories: Iterable[Trajectory]) -> Outcomes:
    """How these episodes ended."""
    found = Outcomes()
    for trajectory in trajectories:
        found = found.add(trajectory.success)
    return found
