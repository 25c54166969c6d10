"""Amounts, limits and accounts: the one place that says what may be spent, and what was. Money in whole picodollars.

The rule, in the gateway as in training, evaluation and ``serve``: before a model is asked, its step's worst case is
reserved, and :meth:`Account.fits` refuses whatever would exceed a limit. Once it is told what the step took, the
reservation is made that; where nothing is told, it stays spent (:func:`settlement`). So as long as no model takes more
than its worst case, no limit is exceeded, whatever dies in between (ours).
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from ..recipe.gateway import Budget

PER_DOLLAR = 10**12
Unit = Literal["calls", "tokens", "usd"]
"""What a budget is in; as in the recipe, whose module takes a second to import."""


class Amount(NamedTuple):
    """What was or may be spent; ``usd`` in picodollars."""

    calls: int = 0
    tokens: int = 0
    usd: int = 0

    def plus(self, more: Amount) -> Amount:
        """The sum."""
        (a, b, c), (d, e, f) = self, more
        return Amount(a + d, b + e, c + f)

    def minus(self, less: Amount) -> Amount:
        """The difference."""
        (a, b, c), (d, e, f) = self, less
        return Amount(a - d, b - e, c - f)


class Limits(NamedTuple):
    """Most of what may be spent; None has no limit. ``usd`` in picodollars."""

    calls: int | None = None
    tokens: int | None = None
    usd: int | None = None

    @classmethod
    def of(cls, budget: Budget) -> Limits:
        """Those of a recipe."""
        return cls(budget.calls, budget.tokens, None if budget.usd is None else picodollars(str(budget.usd)))

    def tightened(self, other: Limits) -> Limits:
        """The tighter one of each."""
        pairs = zip(self, other, strict=True)
        return Limits(*(b if a is None else a if b is None else min(a, b) for a, b in pairs))

    def fit(self, spent: Amount, more: Amount) -> bool:
        """Whether ``more`` may be spent. What costs nothing always may, even where too much was spent."""
        (most, tokens_most, usd_most), (calls, tokens, usd) = self, spent
        return (
            (not more.calls or most is None or calls + more.calls <= most)
            and (not more.tokens or tokens_most is None or tokens + more.tokens <= tokens_most)
            and (not more.usd or usd_most is None or usd + more.usd <= usd_most)
        )

    def left(self, spent: Amount) -> Limits:
        """What is left of each."""
        return Limits(*(None if cap is None else max(0, cap - s) for cap, s in zip(self, spent, strict=True)))

    def __str__(self) -> str:
        said = []
        for name, value in zip(self._fields, self, strict=True):
            if value is not None:
                said.append(f"{name}={dollars(value):f}" if name == "usd" else f"{name}={value}")
        return " ".join(said) or "unlimited"


UNLIMITED, NOTHING = Limits(), Amount()


class Account(NamedTuple):
    """What may be spent, and what has been, reservations included."""

    limits: Limits
    spent: Amount = NOTHING

    def fits(self, more: Amount) -> bool:
        """The guard: whether so much more may be spent. Nothing is reserved that has not passed it."""
        return self.limits.fit(self.spent, more)

    def charged(self, more: Amount) -> Account:
        """The same once more is spent."""
        return Account(self.limits, self.spent.plus(more))

    @property
    def left(self) -> Limits:
        """What is left."""
        return self.limits.left(self.spent)


def settlement(reserved: Amount, used: Amount | None) -> Amount:
    """What is added to what was spent once it is told what a reservation came to; nothing where nothing is told."""
    return NOTHING if used is None else used.minus(reserved)


def picodollars(usd: str) -> int:
    """A sum as somebody writes it, rounded down: a limit is never looser than what was said."""
    return int(Decimal(usd) * PER_DOLLAR)


def dollars(picodollars: int) -> Decimal:
    """The same in dollars, exactly."""
    return (Decimal(picodollars) / PER_DOLLAR).normalize()


class Usage(NamedTuple):
    """Tokens that were read and written."""

    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        """Both."""
        return self.prompt + self.completion


class Prices(NamedTuple):
    """In dollars per million tokens that are read, and that are written."""

    price_prompt: float
    price_completion: float


class Priced(Protocol):
    """What has prices, in dollars per million tokens."""

    @property
    def price_prompt(self) -> float:
        """Of tokens that are read."""
        ...

    @property
    def price_completion(self) -> float:
        """Of tokens that are written."""
        ...


def cost(model: Priced, usage: Usage, call: bool) -> Amount:
    """What tokens of a model cost, rounded up to whole picodollars.

    Args:
        model: whose prices count.
        usage: its tokens.
        call: whether it is another model than QUICK.
    """
    per_million = Decimal(PER_DOLLAR // 10**6)
    money = usage.prompt * Decimal(str(model.price_prompt)) + usage.completion * Decimal(str(model.price_completion))
    return Amount(int(call), usage.tokens, int((money * per_million).to_integral_value(ROUND_CEILING)))
