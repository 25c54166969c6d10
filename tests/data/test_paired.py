"""Paired differences: their interval covers the truth, and knows of episodes and seeds."""

from statistics import NormalDist

import numpy as np
import pytest

from atlas_ray.data.paired import level_for, paired_difference, two_sided_quantile


def test_pairs_that_agree_differ_by_nothing_and_still_have_an_interval():
    wins = [[True] * 30 + [False] * 50]
    same = paired_difference(wins, wins)
    assert same.mean == 0 and same.episodes == 80
    assert same.high == -same.low == pytest.approx(two_sided_quantile(0.95) / 82)


def test_one_seed_each_is_the_adjusted_interval_of_matched_pairs():
    first = [[True] * 40 + [False] * 10 + [True] * 30 + [False] * 20]
    second = [[True] * 40 + [True] * 10 + [False] * 30 + [False] * 20]
    d = paired_difference(first, second)
    # by hand, Agresti & Min 2005: 30.5 and 10.5 of 102 pairs are discordant
    p, q = 30.5 / 102, 10.5 / 102
    half = 1.959964 * ((p + q - (p - q) ** 2) / 102) ** 0.5
    assert d.mean == pytest.approx(0.2)
    assert (d.low, d.high) == pytest.approx((p - q - half, p - q + half), abs=1e-6)


def test_pairing_is_narrower_than_independence_where_episodes_are_hard_for_both():
    hard = [i % 2 == 0 for i in range(80)]
    first, second = [hard], [[*hard[:-4], True, True, True, True]]
    d = paired_difference(second, first)
    independent = 1.96 * (2 * 0.25 / 80) ** 0.5
    assert d.high - d.low < independent


def test_seeds_that_differ_widen_it():
    rng = np.random.default_rng(1)
    alike = [list(rng.random(100) < 0.5) for _ in range(3)]
    spread = [list(rng.random(100) < p) for p in (0.2, 0.5, 0.8)]
    other = [list(rng.random(100) < 0.5)]
    narrow, wide = paired_difference(alike, other), paired_difference(spread, other)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("episodes", "seeds", "first", "second", "spread", "least"),
    [(80, 1, 0.5, 0.5, 0.0, 0.93), (200, 1, 0.05, 0.02, 0.0, 0.93), (80, 3, 0.5, 0.4, 0.2, 0.92)],
)
def test_it_covers_the_truth(episodes, seeds, first, second, spread, least):
    rng, quantile = np.random.default_rng(0), NormalDist().inv_cdf

    def drawn(rate, hard):
        at = quantile(rate) * (1 + spread**2) ** 0.5 + spread * rng.normal(size=(seeds, 1))
        return at + 0.7**0.5 * hard + 0.3**0.5 * rng.normal(size=(seeds, episodes)) > 0

    inside = 0
    for _ in range(400):
        hard = rng.normal(size=episodes)
        d = paired_difference(drawn(first, hard), drawn(second, hard))
        inside += d.low <= first - second <= d.high
    assert inside >= least * 400


def test_several_comparisons_hold_together_by_being_wider():
    assert level_for(1) == 0.95 and level_for(5) == pytest.approx(0.99)
    wins, losses = [[True] * 30 + [False] * 10], [[True] * 20 + [False] * 20]
    one, five = (paired_difference(wins, losses, level_for(n)) for n in (1, 5))
    assert five.low < one.low and five.high > one.high and five.mean == one.mean


@pytest.mark.parametrize("other", [[[True]], [[]], []])
def test_other_episodes_are_refused(other):
    with pytest.raises(ValueError, match="same episodes"):
        paired_difference([[True, False]], other)
