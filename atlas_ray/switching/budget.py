"""LONDI-B's budget: ``z_0 = n``, ``z_{t+1} = z_t - g_t``, and the guard that no call gets past (arXiv 2402.12061).

In tokens or money z falls by what each step of any model took. The worst case of a step is reserved before its model is
asked, and what it did not take comes back [ours].

The guard alone keeps the budget almost surely, whatever the policy asks for. The action mask of the Q network and the
penalty of the environment only keep the learner from wasting its time on requests that would be overridden [ours].
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import BudgetViolationError, InputError
from .spending import NOTHING, Account, Amount, Limits, Unit, picodollars, settlement

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


def amount(value: Any, unit: Unit, field: str) -> int:
    """Calls, tokens or dollars as somebody gives them, in whole calls, tokens or picodollars.

    Raises:
        InputError: it is no number, or has a fraction in another unit than dollars.
    """
    if unit != "usd":
        return as_integer(value, field)
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InputError(f"must be a number of dollars, is {reprlib.repr(value)}", field=field)
    return picodollars(str(number))


def whole(budget: Any, unit: Unit) -> int:
    """:func:`amount` of a budget.

    Raises:
        InputError: it is none, or below 0.
    """
    made = amount(budget, unit, "budget")
    if made < 0:
        raise InputError(f"a budget of {budget} {unit}; it must be at least 0")
    return made


class BudgetGuard:
    """The accounts of several episodes that run side by side. A call is a step of any model but the first.

    A budget of calls needs no more than :meth:`grant`. In another unit, :meth:`quote` tells before each step what it
    may cost, and :meth:`settle` after it what it took; where QUICK does not fit either, the episode is over.

    With a ``run`` of several steps a model that is called acts for so many, whatever is asked for meanwhile. All of it
    is reserved when it begins, and none begins where it does not fit [ours].

    Args:
        budget: most of an episode (n), in the unit; None is no limit.
        rows: episodes side by side.
        unit: of the budget; ``tokens`` and ``usd`` are of all models.
        run: steps of a call.

    Raises:
        InputError: the budget is no number of that unit, or below 0.
        ValueError: a run of several steps under a budget of tokens or money, which cannot know what they take.

    Attributes:
        cap: the budget in whole calls, tokens or picodollars.
        left: what is left (z) for every row, reservations taken off; None without a limit.
        made: calls that reached a model, counted where it is called and not where the guard grants.
        overrides: requests the guard turned down.
    """

    def __init__(self, budget: float | None, rows: int, unit: Unit = "calls", run: int = 1) -> None:
        self.unit: Unit = unit
        self.run, self._call = run, CALL if run == 1 else Amount(calls=run)
        self.cap = None if budget is None else whole(budget, unit)
        self.quotes = self.cap is not None and unit != "calls"
        if self.quotes and run > 1:
            raise ValueError("a budget of tokens or money cannot be reserved for a run")
        self.left: list[int | None] = [self.cap] * rows
        self.made = [0] * rows
        self.overrides = [0] * rows
        self._worst: list[Sequence[Amount]] = [()] * rows
        self._reserved = [NOTHING] * rows
        self._allowed: list[Sequence[bool]] = [()] * rows
        self._runs = [(QUICK, 0)] * rows

    def start(self, row: int) -> None:
        """A new episode in ``row``, with the full budget."""
        self.left[row], self.made[row], self.overrides[row] = self.cap, 0, 0
        self._worst[row], self._allowed[row], self._reserved[row] = (), (), NOTHING
        self.end_run(row)

    def end_run(self, row: int) -> None:
        """The episode is over, and with it a run that was on."""
        self._runs[row] = QUICK, 0

    def run_left(self, row: int) -> int:
        """Steps that the model that was called will take without a decision."""
        return self._runs[row][1]

    def quote(self, row: int, worst: Sequence[Amount]) -> None:
        """What the next step may cost at most, by each model."""
        left = self.left[row]
        assert left is not None
        self._worst[row] = worst
        self._allowed[row] = [_reserved(self.unit, left, amount) is not None for amount in worst]

    def is_empty(self, row: int) -> bool:
        """Whether the budget allows no further step, of any model."""
        return bool(self._allowed[row]) and not self._allowed[row][QUICK]

    def grant(self, row: int, wanted: int) -> int:
        """The guard: the model that may act where ``wanted`` is asked for; its worst case is paid for at once.

        Where a run is on, its model, which is paid for.

        Raises:
            BudgetViolationError: not even QUICK fits, and the episode should be over.
        """
        if self.run == 1:
            return self._reserve(row, wanted)
        number, left = self._runs[row]
        if not left:
            number = self._reserve(row, wanted)
            left = self.run if number else 1
        self._runs[row] = number, left - 1
        return number

    def _reserve(self, row: int, wanted: int) -> int:
        """The model that may act; its step, or its whole run, is paid for."""
        left = self.left[row]
        if left is None or (not wanted and not self.quotes):
            return wanted
        worst = self._worst[row]
        more = worst[wanted] if self.quotes else self._call
        after = _reserved(self.unit, left, more)
        if after is None:
            self.overrides[row] += 1
            if not self.quotes:
                return QUICK
            wanted, more = QUICK, worst[QUICK]
            after = _reserved(self.unit, left, more)
            if after is None:
                raise BudgetViolationError(f"a step of an episode whose budget is spent: {left} {self.unit} left")
        self.left[row], self._reserved[row] = after, more
        return wanted

    def again(self, row: int) -> bool:
        """Reserve the same once more, where what an attempt took is not known and stays spent; False: it does not fit.

        The step stays one call.
        """
        left = self.left[row]
        if left is None or not self.quotes:
            return True
        after = _reserved(self.unit, left, self._reserved[row])
        self.left[row] = left if after is None else after
        return after is not None

    def record(self, row: int) -> None:
        """A call is about to reach its model.

        Raises:
            BudgetViolationError: it is one more than the budget, which means it did not pass the guard.
        """
        self.made[row] += 1
        if self.unit == "calls" and self.cap is not None and self.made[row] > self.cap:
            raise BudgetViolationError(f"call {self.made[row]} of an episode whose budget is {self.cap}")

    def settle(self, row: int, used: Amount | None) -> None:
        """The step took so much; None: nobody tells, and what was reserved for it stays spent."""
        left = self.left[row]
        if left is not None and self.quotes:
            self.left[row] = left - getattr(settlement(self._reserved[row], used), self.unit)
            self._reserved[row], self._allowed[row] = NOTHING, ()

    def shown(self, row: int) -> int | None:
        """What a policy is told is left, see :func:`shown`."""
        allowed, left = self._allowed[row], self.left[row]
        if self.run > 1 and left is not None and left < self.run:
            return 0
        return shown(left, allowed) if allowed else left

    def share(self, row: int) -> float:
        """What the policy sees of the budget, see :func:`share`."""
        return share(self.shown(row), self.cap)


@lru_cache(maxsize=4096)  # in training the same few come again and again
def _reserved(unit: Unit, left: int, more: Amount) -> int | None:
    """What is left once ``more`` is reserved; None where it does not fit."""
    account = Account(Limits(**{unit: left}))
    if not account.fits(more):
        return None
    after: int = getattr(account.charged(more).left, unit)
    return after


def shown(left: int | None, allowed: Sequence[bool]) -> int | None:
    """What a switch is told is left, where it is known which models still fit: nothing once no call does."""
    return left if any(allowed[1:]) else 0


def share(left: int | None, budget: int | None) -> float:
    """Remaining share ``z / n`` of a budget: 0.0 only when nothing is left, 1.0 when there is no limit.

    Less than nothing left is nothing, and more than the budget is all of it.
    """
    if budget is None or left is None:
        return 1.0
    return max(0, min(left, budget)) / budget if budget else 0.0
