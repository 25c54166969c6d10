"""How good predicted probabilities of marks are: order, calibration, and the marks made from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import Counts

BINS = 10
Array = NDArray[Any]


def auc(probabilities_N: Array, marked_N: Array) -> float | None:
    """Chance that a marked step is given more than an unmarked one, a tie counting half (Mann and Whitney's U).

    None without steps of either kind.
    """
    many, few = int(marked_N.sum()), int((~marked_N).sum())
    if not many or not few:
        return None
    _, where, counts = np.unique(probabilities_N, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # steps of equal probability share their mean rank
    return float((ranks[where][marked_N].sum() - many * (many + 1) / 2) / (many * few))


def brier(probabilities_N: Array, marked_N: Array) -> float:
    """Mean square of probability minus outcome; always saying the share p of marks would give p (1 - p)."""
    return float(np.square(probabilities_N - marked_N).mean())


def calibration_error(probabilities_N: Array, marked_N: Array) -> float:
    """Expected calibration error: how far mean probability and share of marks are apart, over :data:`BINS` bins.

    The bins are of equal width and weigh as many steps as they hold.
    """
    bin_N = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    apart = np.bincount(bin_N, probabilities_N - marked_N, BINS)
    return float(np.abs(apart).sum() / len(marked_N))


def marks_quality(chosen_N: Array, marked_N: Array) -> dict[str, float | None]:
    """Share, precision, recall and Cohen's kappa of marks against a teacher's; None where one is not defined."""
    counts = Counts(len(marked_N), int(chosen_N.sum()), int(marked_N.sum()), int((chosen_N & marked_N).sum()))
    share, teacher_share = counts.shares
    return {
        "share": share,
        "teacher_share": teacher_share,
        "precision": counts.both / counts.first if counts.first else None,
        "recall": counts.both / counts.second if counts.second else None,
        "kappa": counts.kappa,
    }
