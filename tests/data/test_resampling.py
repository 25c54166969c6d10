"""Differences on the same episodes: what they must be, and how often their intervals hold the truth."""

import numpy as np
import pytest

from atlas_ray.data.resampling import resampled_difference


def test_a_constant_difference_has_no_spread_and_order_turns_the_sign():
    one = np.arange(12.0).reshape(3, 4)
    assert resampled_difference(one + 0.25, one) == pytest.approx((0.25, 0.25, 0.25))
    two = np.random.default_rng(1).random((3, 4))
    there, back = resampled_difference(one, two), resampled_difference(two, one)
    assert there == pytest.approx((-back.mean, -back.high, -back.low))
    assert resampled_difference(one, two) == there


def test_one_row_stands_for_every_seed():
    alone, seeds = np.array([0.0, 1.0, 1.0]), np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert resampled_difference(seeds, alone) == resampled_difference(seeds, np.stack([alone, alone]))


@pytest.mark.parametrize(("first", "second"), [([], []), ([[1, 2]], [[1]]), ([[1], [2]], [[1], [2], [3]])])
def test_what_is_not_paired_is_refused(first, second):
    with pytest.raises(ValueError, match="same episodes"):
        resampled_difference(first, second)


def test_one_seed_is_the_bootstrap_of_its_episodes():
    rng = np.random.default_rng(5)
    d = rng.normal(0.2, 1.0, 80)
    found = resampled_difference(d[None], np.zeros((1, 80)))
    # of a mean of 80, resampled, the spread is known
    assert found.high - found.low == pytest.approx(2 * 1.96 * d.std() / np.sqrt(80), rel=0.06)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (5, 0.0), (5, 0.05)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seeds, spread):
    rng, inside = np.random.default_rng(7), 0
    for _ in range(150):
        hard = rng.random(60)  # an episode is as hard for both
        lift = 0.1 + rng.normal(0, spread, (seeds, 1))
        one = rng.random((seeds, 60)) < 0.8 * hard + lift
        two = rng.random((seeds, 60)) < 0.8 * hard
        found = resampled_difference(one, two)
        inside += found.low <= 0.1 <= found.high
    assert inside / 150 >= 0.88


def test_whether_a_difference_is_beyond_chance():
    up = resampled_difference(np.ones((1, 30)), np.zeros((1, 30)))
    assert up.above and not up.below
    down = resampled_difference(np.zeros((1, 30)), np.ones((1, 30)))
    assert down.below and not down.above
    mixed = resampled_difference([[1, 0] * 10], [[0, 1] * 10])
    assert not mixed.above and not mixed.below
