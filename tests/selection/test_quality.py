"""How good predicted probabilities are, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.selection.quality import auc, brier, calibration_error, marks_quality

STEPS = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.booleans()), min_size=1, max_size=30)


@given(STEPS)
def test_auc_is_the_share_of_pairs_in_order(steps):
    told, marked = (np.array(each) for each in zip(*steps, strict=True))
    pairs = [(a > b) + (a == b) / 2 for a, m in steps if m for b, n in steps if not n]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auc(told, marked) == pytest.approx(expected)


def test_brier_and_calibration_by_hand():
    told, marked = np.array([0.05, 0.08, 0.55, 1.0]), np.array([False, True, True, True])
    assert brier(told, marked) == pytest.approx((0.05**2 + 0.92**2 + 0.45**2) / 4)
    # bins: the first two together, the third, the last
    assert calibration_error(told, marked) == pytest.approx((abs(0.13 - 1) + abs(0.55 - 1) + 0) / 4)
    assert calibration_error(np.array([0.3, 0.3]), np.array([False, False])) == pytest.approx(0.3)


def test_marks_against_a_teacher():
    chosen, marked = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 1, 0], bool)
    found = marks_quality(chosen, marked)
    assert (found["share"], found["teacher_share"], found["precision"], found["recall"]) == (0.4, 0.6, 0.5, 1 / 3)
    assert found["kappa"] == pytest.approx((2 / 5 - 12 / 25) / (1 - 12 / 25))
    assert marks_quality(np.zeros(3, bool), np.zeros(3, bool)) == {
        "share": 0.0,
        "teacher_share": 0.0,
        "precision": None,
        "recall": None,
        "kappa": None,
    }
