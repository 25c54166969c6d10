"""Intervals by resampling trajectories are those of the plain definition, to the bit."""

import random

import numpy as np
import pytest

from atlas_ray.selection.agreement import Counts, _kappa_ci95
from atlas_ray.selection.bootstrap import bootstrap_ci95
from atlas_ray.selection.start_after import _interval


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_interval_of_a_difference_is_that_of_all_resamples_at_once(count):
    rng = random.Random(count)
    first, second = ([(rng.randint(0, n), n) for n in rng.choices(range(1, 5), k=count)] for _ in range(2))
    pick_SN = np.random.default_rng(0).integers(0, count, (2000, count))
    shares = []
    for each in (first, second):
        won_N, played_N = np.array(each).T
        shares.append(won_N[pick_SN].sum(1) / played_N[pick_SN].sum(1))
    low, high = np.percentile(shares[0] - shares[1], [2.5, 97.5])
    assert _interval(first, second) == (low, high)


def test_the_interval_of_kappa_leaves_out_resamples_in_which_it_is_not_defined():
    each = [Counts(4, 2, 2, 1), Counts(3, 0, 0, 0), Counts(6, 3, 1, 1)]
    rng, kappas = np.random.default_rng(0), []
    for _ in range(2000):
        rows = [each[i] for i in rng.integers(3, size=3)]
        kappas.append(Counts(*(sum(getattr(c, name) for c in rows) for name in Counts.__dataclass_fields__)).kappa)
    assert None in kappas
    low, high = np.quantile([k for k in kappas if k is not None], [0.025, 0.975])
    assert _kappa_ci95(each) == (low, high)
    assert _kappa_ci95(each[:1]) is None


def test_a_number_that_is_always_the_same_has_no_width():
    assert bootstrap_ci95(5, lambda drawn: 0.25) == (0.25, 0.25)
