"""Several attempts at what the death of an environment may end."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from .. import envs

MOST_ATTEMPTS = 3
"""Times that an episode, its beginning or a replay is tried before it is lost."""


class Attempts:
    """``for attempt in Attempts(): with attempt: ...`` tries the block again when its environment dies.

    The loop ends with the first attempt that goes well. The death in the last attempt is raised, and so is any other
    error at once.

    Attributes:
        deaths: of the environment so far.
    """

    def __init__(self, most: int = MOST_ATTEMPTS) -> None:
        self.deaths: list[envs.EnvironmentDiedError] = []
        self._most, self._over = most, False

    def __iter__(self) -> Iterator[Self]:
        while not self._over:
            yield self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, envs.EnvironmentDiedError):
            self._over = True
            return False
        self.deaths.append(error)
        return len(self.deaths) < self._most
