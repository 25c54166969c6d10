"""Two systems on the same episodes: the difference of their success or of their counts, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

_Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]
MOST_EPISODES = 100_000
"""More are not thought of: other training seeds would help sooner."""


@dataclass(frozen=True)
class Difference:
    """One mean less another.

    Attributes:
        mean: the difference; of success rates -1..1.
        low: lower end of its interval.
        high: upper end.
        episodes: how many both played and that were compared one by one; None where the two rates were taken as
            independent.
    """

    mean: float
    low: float
    high: float
    episodes: int | None = None

    @property
    def above(self) -> bool:
        """Whether it is above zero beyond chance."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether it is below zero beyond chance."""
        return self.high < 0


def level_for(comparisons: int) -> float:
    """Level of each of several intervals that shall hold together in 95 % of all cases (Bonferroni)."""
    return 1 - 0.05 / max(1, comparisons)


def two_sided_quantile(level: float) -> float:
    """Of the normal distribution: 1.96 for a level of 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def paired_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], level: float = 0.95, *, chained: bool = False
) -> Difference:
    """Success of ``first`` less that of ``second``, for new episodes *and* new training seeds.

    Rows are training seeds, columns are episodes, and both must hold the same episodes in the same order. The variance
    of the difference is

        V = V_episodes + V_seeds;   V_seeds = max(0, MS_seeds - MS_rest) / (K n)

    by mean squares of K seeds crossed with n episodes, a ``V_seeds`` for each of the two, or one of their difference
    where they are chained. ``V_episodes`` is of the differences of single episodes, to which half an observation of
    each of the four outcomes of a pair is added (Agresti & Min 2005): without it two that agree on every episode would
    differ by exactly 0, with an interval of no width. The quantile is Student's t, its degrees of freedom
    V^2 / sum of (MS_seeds / (K n))^2 / (K - 1) after Satterthwaite, and no fewer than the least K - 1: they would be
    where two agree on nearly every episode and their seeds do not, as V then leaves most of MS_seeds out. One seed says
    nothing of others. The combination is ours; how often it holds the truth is measured in
    ``tests/data/test_paired.py``.

    Args:
        first: ``[seeds, episodes]``; of what is not trained one row, which stands for every seed.
        second: likewise.
        level: of the interval.
        chained: row k of both is of the same training seed, and one may come from the other (a switch from its QUICK,
            a round from the one before). Else the seeds of the two have nothing to do with each other.

    Raises:
        ValueError: no episodes, or other ones; chained and other seeds.
    """
    return _success_spread(first, second, chained).difference(level, (-1.0, 1.0))


def paired_counts(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], level: float = 0.95, *, chained: bool = False
) -> Difference:
    """Mean count per episode (of calls, say) of ``first`` less that of ``second``; see :func:`paired_difference`.

    ``V_episodes`` is the sample variance of the differences of single episodes over their number, with one more in the
    sum of squares, an episode that differs by one count: so counts that agree have an interval, too. Student's t counts
    the episodes as well.

    Raises:
        ValueError: as there.
    """
    d_N, seeds = _apart(first, second, chained)
    mean, free = float(d_N.mean()), max(1, d_N.size - 1)
    v_episodes = (float(((d_N - mean) ** 2).sum()) + 1) / free / d_N.size
    return _Spread(mean, mean, d_N.size, v_episodes, seeds, free).difference(level, (-math.inf, math.inf))


def episodes_needed(
    first: Sequence[Sequence[bool]],
    second: Sequence[Sequence[bool]],
    low: float,
    level: float = 0.95,
    *,
    chained: bool = False,
) -> int | None:
    """About how many episodes :func:`paired_difference` would need for its lower end to be above ``low``.

    All else stays as it is: the mean, how much single episodes differ, and the training seeds.

    Returns:
        Their number, rounded up to two digits; None where no number of episodes is enough, as the mean is not above
        ``low``, or the seeds differ too much.
    """
    spread = _success_spread(first, second, chained)
    room = spread.middle - low
    if room <= 0 or spread.half(level, MOST_EPISODES) >= room:
        return None
    few, enough = 1, MOST_EPISODES
    while enough - few > 1:
        between = (few + enough) // 2
        few, enough = (few, between) if spread.half(level, between) < room else (between, enough)
    digits = 10 ** max(0, len(str(enough)) - 2)
    return -(-enough // digits) * digits


@dataclass(frozen=True)
class _Seeds:
    """What the choice of training seeds adds to the variance of a mean; ``MS_seeds / (K n)`` is the sum of both."""

    variance: float
    chance: float
    """That of single episodes, which shrinks with their number."""
    free: int


@dataclass(frozen=True)
class _Spread:
    """A mean difference and what its variance is made of."""

    mean: float
    middle: float
    episodes: int
    v_episodes: float
    seeds: list[_Seeds] = field(default_factory=list)
    free: int | None = None

    def half(self, level: float, episodes: int) -> float:
        """Half the width of the interval with so many episodes."""
        fewer = self.episodes / episodes
        v_episodes = self.v_episodes * fewer
        variance = v_episodes + sum(s.variance for s in self.seeds)
        uncertain = sum((s.variance + s.chance * fewer) ** 2 / s.free for s in self.seeds)
        uncertain += v_episodes**2 / self.free if self.free else 0.0
        quantile = two_sided_quantile(level)
        if uncertain > 0:
            from scipy.special import stdtrit  # type: ignore[import-untyped]

            fewest = min([seeds.free for seeds in self.seeds] + ([self.free] if self.free else []))
            quantile = float(stdtrit(max(variance**2 / uncertain, fewest), (1 + level) / 2))
        return quantile * math.sqrt(variance)

    def difference(self, level: float, ends: tuple[float, float]) -> Difference:
        half = self.half(level, self.episodes)
        low, high = min(self.mean, self.middle - half), max(self.mean, self.middle + half)
        return Difference(self.mean, max(ends[0], low), min(ends[1], high), self.episodes)


def _success_spread(first: Any, second: Any, chained: bool) -> _Spread:
    d_N, seeds = _apart(first, second, chained)
    count = d_N.size + 2
    middle = float(d_N.sum()) / count
    v_episodes = ((float((d_N**2).sum()) + 1) / count - middle**2) / count
    return _Spread(float(d_N.mean()), middle, d_N.size, v_episodes, seeds)


def _apart(first: Any, second: Any, chained: bool) -> tuple[Any, list[_Seeds]]:
    """The differences of single episodes, over all seeds, and what the seeds add."""
    a_KN, b_LN = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a_KN.ndim != 2 or b_LN.ndim != 2 or a_KN.shape[1] != b_LN.shape[1] or not a_KN.size or not b_LN.size:
        raise ValueError("both need the same episodes, at least one, for every training seed")
    if chained and len({len(a_KN), len(b_LN)} - {1}) > 1:
        raise ValueError(f"both need the same training seeds (got {len(a_KN)} and {len(b_LN)})")
    tables = (a_KN - b_LN,) if chained else (a_KN, b_LN)
    found = (_seeds(table) for table in tables)
    return a_KN.mean(0) - b_LN.mean(0), [seeds for seeds in found if seeds is not None]


def _seeds(y_KN: _Table) -> _Seeds | None:
    seeds, episodes = y_KN.shape
    if seeds < 2 or episodes < 2:
        return None
    by_seed_K1, by_episode_N = y_KN.mean(1, keepdims=True), y_KN.mean(0)
    rest_KN = y_KN - by_seed_K1 - by_episode_N + y_KN.mean()
    ms_rest = float((rest_KN**2).sum()) / ((seeds - 1) * (episodes - 1))
    mean_square = float(by_seed_K1.var(ddof=1)) / seeds
    variance = max(0.0, mean_square - ms_rest / y_KN.size)
    return _Seeds(variance, mean_square - variance, seeds - 1)
