"""Amounts, limits, and the worst that a request may cost. Money is counted in whole picodollars, so nothing is rounded.

The guarantee: a request reaches a model only after its worst case was added to what its session and its key's day have
spent, in one transaction that refuses whatever would exceed a limit. Later the reservation is only ever made smaller
to what was used, and only where that is known. So as long as no model reads or writes more than its worst case, no
limit is exceeded, whatever dies in between (ours).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .replies import ApiError

if TYPE_CHECKING:
    from ..recipe.gateway import Budget, GatewayModel
    from .requests import ChatRequest

PER_DOLLAR = 10**12
PER_MESSAGE, PER_REQUEST = 64, 256
"""Tokens that a server's template may put around a message, and around a conversation and its tools."""
MARGIN = 16
"""Tokens around a message where a tokenizer counts its text."""


class Amount(NamedTuple):
    """What was or may be spent; ``usd`` in picodollars."""

    calls: int = 0
    tokens: int = 0
    usd: int = 0

    def plus(self, more: Amount) -> Amount:
        """The sum."""
        return Amount(*(a + b for a, b in zip(self, more, strict=True)))

    def minus(self, less: Amount) -> Amount:
        """The difference."""
        return Amount(*(a - b for a, b in zip(self, less, strict=True)))


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
        return all(not m or cap is None or s + m <= cap for cap, s, m in zip(self, spent, more, strict=True))

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
    """What a session and the day of its key may spend, and have spent, reservations included."""

    session: str
    limits: Limits
    spent: Amount
    key: str
    day: str
    daily: Limits
    today: Amount

    def fits(self, more: Amount) -> bool:
        """The guard: whether so much more may be spent. Nothing is reserved that has not passed it."""
        return self.limits.fit(self.spent, more) and self.daily.fit(self.today, more)

    @property
    def left(self) -> Limits:
        """What is left to the session."""
        return self.limits.left(self.spent)

    def charged(self, more: Amount) -> Account:
        """The same once more is spent."""
        return self._replace(spent=self.spent.plus(more), today=self.today.plus(more))


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


def read_usage(said: object) -> Usage | None:
    """The ``usage`` of an answer; None where it does not say, and what was reserved is taken for spent."""
    if not isinstance(said, dict):
        return None
    counts = [said.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 10**12 for n in counts):
        return None
    prompt, completion = (int(n) for n in counts if n is not None)
    total = said.get("total_tokens")
    if isinstance(total, int) and not isinstance(total, bool) and prompt + completion < total < 10**12:
        completion = total - prompt  # some servers leave thoughts out of what was written
    return Usage(prompt, completion)


def worst_case(model: GatewayModel, request: ChatRequest, count: Callable[[str], int] | None = None) -> Usage:
    """Most tokens that a request may read and write.

    A byte-level tokenizer makes no more tokens of a text than it has bytes, and JSON makes no text shorter: the prompt
    has at most the bytes of its JSON, and what a template puts around it (:data:`PER_MESSAGE`, :data:`PER_REQUEST`).
    Several answers to choose from may each count the prompt.

    Args:
        model: who would act.
        request: what it would be asked.
        count: tokens of a text by the model's tokenizer.

    Raises:
        ApiError: something else than text is asked about, whose tokens nobody knows, and the model has no ``context``.
    """
    limit = model.max_tokens if request.limit is None else min(request.limit, model.max_tokens)
    if request.has_media:
        if model.context is None:
            why = "tokens of images, sound and files cannot be counted: the recipe must give the model's context"
            raise ApiError(400, why, "unbounded_cost", "messages")
        return Usage(model.context * request.choices, limit * request.choices)
    around = len(request.messages)
    if count is None:
        prompt = request.size + len(json.dumps(model.extra)) + around * PER_MESSAGE + PER_REQUEST
    else:
        tools = [request.body[name] for name in ("tools", "functions", "response_format") if name in request.body]
        texts = [json.dumps(message, ensure_ascii=False) for message in [*request.messages, *tools, model.extra]]
        prompt = sum(map(count, texts)) + around * MARGIN + PER_REQUEST
    if model.context is not None:
        prompt = min(prompt, model.context)
    return Usage(prompt * request.choices, limit * request.choices)
