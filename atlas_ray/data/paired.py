"""The difference of two success rates over the same episodes, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Difference:
    """One success rate less another.

    Attributes:
        mean: the difference, -1..1.
        low: lower end of its interval.
        high: upper end.
        episodes: how many both played and that were compared one by one; None where the two rates were taken as
            independent.
    """

    mean: float
    low: float
    high: float
    episodes: int | None = None


def level_for(comparisons: int) -> float:
    """Level of each of several intervals that shall hold together in 95 % of all cases (Bonferroni)."""
    return 1 - 0.05 / max(1, comparisons)


def two_sided_quantile(level: float) -> float:
    """Of the normal distribution: 1.96 for a level of 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def paired_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], level: float = 0.95
) -> Difference:
    """Success of ``first`` less that of ``second``, for new episodes *and* new training seeds.

    Rows are training seeds, columns are episodes, and both must hold the same episodes in the same order; the seeds of
    the two have nothing to do with each other. The variance of the difference is

        V = V_episodes + V_seeds(first) + V_seeds(second)

    with ``V_seeds`` as in :func:`atlas_ray.data.results.interval` (mean squares of seeds crossed with episodes) and
    ``V_episodes`` from the differences of single episodes, to which half an observation of each of the four outcomes
    of a pair is added (Agresti & Min 2005): without it two that agree on every episode would differ by exactly 0, with
    an interval of no width. The quantile is Student's t after Satterthwaite where seeds differ. The combination is
    ours.

    Raises:
        ValueError: no episodes, or other ones.
    """
    a_KN, b_LN = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a_KN.ndim != 2 or b_LN.ndim != 2 or a_KN.shape[1] != b_LN.shape[1] or not a_KN.size or not b_LN.size:
        raise ValueError("both need the same episodes, at least one, for every training seed")
    d_N = a_KN.mean(0) - b_LN.mean(0)
    count = d_N.size + 2
    middle = float(d_N.sum()) / count
    v_episodes = ((float((d_N**2).sum()) + 1) / count - middle**2) / count
    seeds = [(v, len(y) - 1) for y in (a_KN, b_LN) if (v := _seed_variance(y)) > 0]
    variance = v_episodes + sum(v for v, _ in seeds)
    quantile = two_sided_quantile(level)
    if seeds:
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        freedom = variance**2 / sum(v**2 / free for v, free in seeds)
        quantile = float(stdtrit(freedom, (1 + level) / 2))
    half, mean = quantile * math.sqrt(variance), float(d_N.mean())
    low, high = max(-1.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))
    return Difference(mean, low, high, d_N.size)


def _seed_variance(y_KN: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """Variance of the mean over all seeds and episodes that comes from the choice of seeds."""
    seeds, episodes = y_KN.shape
    if seeds < 2 or episodes < 2:
        return 0.0
    by_seed_K1, by_episode_N = y_KN.mean(1, keepdims=True), y_KN.mean(0)
    rest_KN = y_KN - by_seed_K1 - by_episode_N + y_KN.mean()
    ms_rest = float((rest_KN**2).sum()) / ((seeds - 1) * (episodes - 1))
    return max(0.0, episodes * float(by_seed_K1.var(ddof=1)) - ms_rest) / y_KN.size
