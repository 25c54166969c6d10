"""Paired differences: their interval covers the truth, and knows of episodes and seeds."""

import numpy as np
import pytest
from made_up_outcomes import CALLS, RATES, calls, plain_interval, successes
from scipy.stats import t as student

from atlas_ray.data.paired import (
    Difference,
    episodes_needed,
    level_for,
    paired_counts,
    paired_difference,
    two_sided_quantile,
)


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
    ("seeds", "spread", "chained", "least"),
    [
        ((1, 1), 0.0, False, 0.93),
        ((3, 3), 0.2, False, 0.93),
        ((2, 2), 0.1, True, 0.92),
        ((3, 3), 0.2, True, 0.92),
        ((5, 5), 0.4, True, 0.92),
        ((5, 1), 0.0, True, 0.94),
    ],
)
def test_it_covers_the_truth(seeds, spread, chained, least):
    for draw, compare, (first, second) in ((successes, paired_difference, RATES), (calls, paired_counts, CALLS)):
        rng, inside = np.random.default_rng(0), 0
        for _ in range(400):
            d = compare(*draw(rng, seeds, 100, spread, 0.5 * chained), chained=chained)
            inside += d.low <= first - second <= d.high
        assert inside >= least * 400, compare


def test_rare_successes_are_covered_too():
    rng = np.random.default_rng(0)
    found = [paired_difference(*successes(rng, (1, 1), 200, rates=(0.05, 0.02))) for _ in range(400)]
    assert sum(d.low <= 0.03 <= d.high for d in found) >= 0.93 * 400


@pytest.mark.parametrize("chained", [True, False])
def test_the_variance_is_that_of_plain_loops(chained):
    rng = np.random.default_rng(4)
    for spread in (0.0, 0.5):
        first, second = (table.astype(float) for table in successes(rng, (3, 3), 40, spread, 0.5))
        d = paired_difference(first, second, chained=chained)
        low, high = plain_interval(first.tolist(), second.tolist(), chained)
        assert (d.low, d.high) == pytest.approx((max(-1, low), min(1, high)))


def test_seeds_that_differ_by_chance_and_agree_on_average_leave_an_interval_that_says_something():
    first = np.random.default_rng(6).random((6, 40)) < 0.3
    d = paired_difference(first, first[::-1])
    low, high = plain_interval(first.tolist(), first[::-1].tolist(), chained=False)
    assert d.mean == 0 and (d.low, d.high) == pytest.approx((low, high))
    assert d.high == -d.low < 0.1, "no fewer degrees of freedom than one seed set has"


def test_one_row_stands_for_every_seed():
    rng = np.random.default_rng(2)
    many, (one,) = rng.random((3, 60)) < 0.6, rng.random((1, 60)) < 0.5
    for compare in (paired_difference, paired_counts):
        stacked = compare(many, [one] * 3, chained=True)
        assert compare(many, [one], chained=True) == stacked == compare(many, [one])
        back = compare([one], many, chained=True)
        assert (back.mean, back.low, back.high) == pytest.approx((-stacked.mean, -stacked.high, -stacked.low))


def test_what_a_chain_has_in_common_narrows_it():
    rng = np.random.default_rng(3)
    before, after = successes(rng, (5, 5), 200, spread=0.5, shared=1.0)
    chained, apart = paired_difference(after, before, chained=True), paired_difference(after, before)
    assert chained.high - chained.low < 0.7 * (apart.high - apart.low)


def test_counts_of_one_seed_have_the_interval_of_a_mean():
    d = np.random.default_rng(5).integers(0, 6, (1, 80))
    found, zero = paired_counts(d, np.zeros((1, 80))), paired_counts(d, d)
    half = student.ppf(0.975, 79) * ((d.var() * 80 + 1) / 79 / 80) ** 0.5
    assert (found.mean, found.low, found.high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert zero.mean == 0 and zero.high == -zero.low > 0 and not zero.above and not zero.below


def test_beyond_chance_leaves_zero_out():
    assert Difference(0.1, 0.01, 0.2).above and Difference(-0.1, -0.2, -0.01).below
    assert not Difference(0.1, 0.0, 0.2).above and not Difference(-0.1, -0.2, 0.0).below


def test_so_many_episodes_are_needed():
    first, second = [[True] * 32 + [False] * 28], [[False] * 10 + [True] * 20 + [False] * 20 + [True] * 10]
    assert paired_difference(first, second).low < -0.05
    needed = episodes_needed(first, second, -0.05)
    assert needed > 60 and needed % 10 == 0
    for times, reached in ((needed // 60 + 1, True), (needed // 60 - 1, False)):
        again = paired_difference(*(np.tile(rows, (1, times)) for rows in (first, second)))
        assert (again.low > -0.05) == reached
    assert episodes_needed(first * 3, second * 3, -0.05, chained=True) == needed, "seeds that agree change nothing"


def test_no_number_of_episodes_helps_against_less_success_or_against_the_spread_of_seeds():
    worse, better = [[True] * 40 + [False] * 60], [[True] * 60 + [False] * 40]
    assert episodes_needed(worse, better, -0.05) is None
    spread = [[True] * n + [False] * (100 - n) for n in (20, 50, 80)]
    assert episodes_needed(spread, [[True] * 50 + [False] * 50], -0.05, chained=True) is None


def test_several_comparisons_hold_together_by_being_wider():
    assert level_for(1) == 0.95 and level_for(5) == pytest.approx(0.99)
    wins, losses = [[True] * 30 + [False] * 10], [[True] * 20 + [False] * 20]
    one, five = (paired_difference(wins, losses, level_for(n)) for n in (1, 5))
    assert five.low < one.low and five.high > one.high and five.mean == one.mean


@pytest.mark.parametrize("other", [[[True]], [[]], []])
def test_other_episodes_are_refused(other):
    with pytest.raises(ValueError, match="same episodes"):
        paired_difference([[True, False]], other)


def test_chains_need_the_same_training_seeds():
    two, three = [[True, False]] * 2, [[True, False]] * 3
    with pytest.raises(ValueError, match="same training seeds"):
        paired_counts(two, three, chained=True)
    assert paired_counts(two, three).mean == 0
