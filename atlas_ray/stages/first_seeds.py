"""The first seeds of each environment that are of use, whatever order they are played in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import AtlasError

Row = dict[str, Any]


class FirstSeeds:
    """Which seeds are still to be played until each environment has as many episodes of use as are asked for.

    Seeds are tried in order and without gaps, and never more than may be missing, so that the episodes that are taken,
    and those that are played for them, do not depend on who plays how fast.

    Args:
        levels: environments and how many episodes of each are asked for.
        first: the first seed.
        there: how many episodes an environment has.
        most_tries: about so many episodes are tried for each that is asked for.
        is_of_use: says of a row whether its episode is one of those that are asked for.
        too_few: says of an environment and its rows why there are too few, and what helps.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        first: int,
        there: Mapping[str, int],
        most_tries: int,
        is_of_use: Callable[[Row], bool],
        too_few: Callable[[str, list[Row]], str],
    ) -> None:
        self._levels, self._first, self._there, self._most_tries = levels, first, there, most_tries
        self._is_of_use, self._too_few = is_of_use, too_few
        self._tried: dict[str, dict[int, Row]] = {name: {} for name in levels}

    def add(self, row: Row) -> None:
        """Note an episode that was played: ``env``, ``seed`` and whatever ``is_of_use`` looks at."""
        self._tried[row["env"]][row["seed"]] = row

    def rows(self, name: str) -> list[Row]:
        """All episodes of an environment, by seed."""
        return [row for _, row in sorted(self._tried[name].items())]

    def taken(self, name: str) -> list[Row]:
        """The first episodes of use of an environment, at most as many as are asked for."""
        return [row for row in self.rows(name) if self._is_of_use(row)][: self._levels[name]]

    def wanted(self) -> list[tuple[str, list[int]]]:
        """The seeds to play next, by environment; none when all have what is asked for.

        Raises:
            AtlasError: an environment has no more episodes, or too many were tried.
        """
        found = []
        for name, want in self._levels.items():
            missing, tried = want - len(self.taken(name)), self._tried[name]
            left = min(self._most_tries * want + 101, self._there[name]) - len(tried)
            if missing > 0 and left <= 0:
                raise AtlasError(self._too_few(name, self.rows(name)))
            last = self._first + len(tried) + max(0, min(missing, left))
            if seeds := [seed for seed in range(self._first, last) if seed not in tried]:
                found.append((name, seeds))
        return found
