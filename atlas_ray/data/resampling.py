"""Two systems on the same episodes: the mean difference and its 95 % interval, by resampling."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_RESAMPLES = 4000


class MeanDifference(NamedTuple):
    """A mean difference per episode and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """Whether it is above zero beyond chance."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether it is below zero beyond chance."""
        return self.high < 0


def resampled_difference(first: Any, second: Any) -> MeanDifference:
    """The mean of ``first - second`` and its 95 % interval, the same for the same data.

    A percentile bootstrap: training seeds and episodes are each drawn with replacement, crossed, so that the interval
    holds for new episodes and, with several seeds, for new seeds (Owen 2007 calls it the pigeonhole bootstrap). It is
    too wide where seeds and episodes act together, and too narrow for what two or three seeds differ by. The choice
    is ours.

    Args:
        first: ``[seeds, episodes]``; a system that is not trained has one row, which stands for every seed.
        second: likewise, of the same episodes in the same order.

    Raises:
        ValueError: no episode, or shapes that do not fit.
    """
    one, two = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    rows = {len(one), len(two)} - {1}
    if one.shape[1:] != two.shape[1:] or not one.size or len(rows) > 1:
        raise ValueError(f"first and second: need the same episodes and seeds (got {one.shape} and {two.shape})")
    difference_KN = one - two
    seeds, episodes = difference_KN.shape
    rng = np.random.default_rng(0)
    seeds_BK = rng.multinomial(seeds, [1 / seeds] * seeds, _RESAMPLES) / seeds
    episodes_BN = rng.multinomial(episodes, [1 / episodes] * episodes, _RESAMPLES) / episodes
    means_B = ((seeds_BK @ difference_KN) * episodes_BN).sum(1)
    low, high = np.quantile(means_B, [0.025, 0.975])
    return MeanDifference(float(difference_KN.mean()), float(low), float(high))
