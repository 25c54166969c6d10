"""The 95 % interval of a number that is computed from trajectories, by resampling them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_RESAMPLES = 2000


def bootstrap_ci95(count: int, statistic: Callable[[Any], float | None]) -> tuple[float, float]:
    """Percentile bootstrap, the same for the same data.

    Args:
        count: trajectories, at least one.
        statistic: the number for the trajectories at indices ``[count]``, drawn with replacement; None where it is not
            defined, which leaves the resample out.

    Returns:
        Both ends.
    """
    rng = np.random.default_rng(0)
    found = (statistic(rng.integers(count, size=count)) for _ in range(_RESAMPLES))
    low, high = np.quantile([value for value in found if value is not None], [0.025, 0.975])
    return float(low), float(high)
