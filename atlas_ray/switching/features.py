"""What a switch reads: an encoded text, and behind it two shares.

The last two of its ``width + 2`` entries are the remaining share of the budget
(:func:`atlas_ray.switching.budget.share`) and the share of the steps that are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.hashed_words import Vector

BUDGET_ENTRY, STEP_ENTRY = -2, -1
EXTRA = 2
DISCOUNTS = "discounts"
"""Column of transitions of several steps: of what follows each, in the place of gamma."""


def with_shares(encoded: Vector, budgets: Sequence[float], steps: Sequence[float]) -> Vector:
    """``[N, width + 2]``: encoded texts ``[N, width]`` and the two shares of each."""
    shares = np.array([budgets, steps], np.float32).T
    return np.concatenate([encoded, shares], axis=1, dtype=np.float32)
