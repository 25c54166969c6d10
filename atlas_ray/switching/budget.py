"""LONDI-B's budget: ``z_0 = n``, ``z_{t+1} = z_t - g_t``, and the guard that no call gets past (arXiv 2402.12061).

The guard alone keeps the budget almost surely, whatever the policy asks for. The action mask of the Q network and the
penalty of the environment only keep the learner from wasting its time on requests that would be overridden [ours].
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import BudgetViolationError, InputError
from .spending import Account, Amount, Limits

QUICK, CALL = 0, Amount(calls=1)


def as_integer(value: Any, field: str) -> int:
    """A number of calls as somebody gives it: an integer, NumPy's too, or a float that has no fraction.

    Raises:
        InputError: it is none; booleans, strings, NaN and infinities are none.
    """
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"must be a whole number, is {reprlib.repr(value)}", field=field)
    return number


class BudgetGuard:
    """The accounts of several episodes that run side by side. A call is a step of any model but the first.

    Args:
        calls: most calls per episode (n); None is no limit.
        rows: episodes side by side.

    Raises:
        InputError: the budget is no whole number, or below 0.

    Attributes:
        left: calls left (z) for every row; None without a limit.
        made: calls that reached a model, counted where it is called and not where the guard grants.
        overrides: requests the guard turned down.
    """

    def __init__(self, calls: int | None, rows: int) -> None:
        if calls is not None and (calls := as_integer(calls, "budget")) < 0:
            raise InputError(f"a budget of {calls} calls; it must be at least 0")
        self.calls = calls
        self.left: list[int | None] = [calls] * rows
        self.made = [0] * rows
        self.overrides = [0] * rows

    def start(self, row: int) -> None:
        """A new episode in ``row``, with the full budget."""
        self.left[row], self.made[row], self.overrides[row] = self.calls, 0, 0

    def grant(self, row: int, wanted: int) -> int:
        """The guard: the model that may act where ``wanted`` is asked for; a granted call is paid for at once."""
        left = self.left[row]
        if not wanted or left is None:
            return wanted
        after = _reserved(left, CALL)
        if after is None:
            self.overrides[row] += 1
            return QUICK
        self.left[row] = after
        return wanted

    def record(self, row: int) -> None:
        """A call is about to reach its model.

        Raises:
            BudgetViolationError: it is one more than the budget, which means it did not pass the guard.
        """
        self.made[row] += 1
        if self.calls is not None and self.made[row] > self.calls:
            raise BudgetViolationError(f"call {self.made[row]} of an episode whose budget is {self.calls}")

    def share(self, row: int) -> float:
        """What the policy sees of the budget, see :func:`share`."""
        return share(self.left[row], self.calls)


@lru_cache(maxsize=4096)  # in training the same few come again and again
def _reserved(left: int, more: Amount) -> int | None:
    """What is left once ``more`` is reserved; None where it does not fit."""
    account = Account(Limits(calls=left))
    return account.charged(more).left.calls if account.fits(more) else None


def shown(left: int | None, allowed: Sequence[bool]) -> int | None:
    """What a switch is told is left, where it is known which models still fit: nothing once no call does."""
    return left if any(allowed[1:]) else 0


def share(left: int | None, calls: int | None) -> float:
    """Remaining share ``z / n`` of a budget: 0.0 only when no call is left, 1.0 when there is no limit.

    Less than nothing left is nothing, and more than the budget is all of it.
    """
    if calls is None or left is None:
        return 1.0
    return max(0, min(left, calls)) / calls if calls else 0.0
