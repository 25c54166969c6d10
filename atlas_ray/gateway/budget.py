"""The account of a session and of its key's day, and the worst that a request may cost.

The guarantee: a request reaches a model only after its worst case was added to what its session and its key's day have
spent, in one transaction that refuses whatever would exceed a limit (:mod:`atlas_ray.switching.spending`).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..switching.spending import Account, Amount, Limits, Usage, cost
from .replies import ApiError

if TYPE_CHECKING:
    from ..recipe.gateway import GatewayModel
    from .requests import ChatRequest

PER_MESSAGE, PER_REQUEST = 64, 256
"""Tokens that a server's template may put around a message, and around a conversation and its tools."""
_READ = ("tools", "functions", "response_format", "structured_outputs", "guided_choice")
MARGIN = 16
"""Tokens around a message where a tokenizer counts its text."""


class SessionAccount(NamedTuple):
    """What a session and the day of its key may spend, and have spent: a step must fit both."""

    session: str
    own: Account
    key: str
    day: str
    today: Account

    def fits(self, more: Amount) -> bool:
        """Whether so much more may be spent."""
        return self.own.fits(more) and self.today.fits(more)

    @property
    def spent(self) -> Amount:
        """What the session has spent."""
        return self.own.spent

    @property
    def left(self) -> Limits:
        """What is left to the session."""
        return self.own.left

    def charged(self, more: Amount) -> SessionAccount:
        """The same once more is spent."""
        return self._replace(own=self.own.charged(more), today=self.today.charged(more))


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
        tools = [request.body[name] for name in _READ if name in request.body]
        texts = [json.dumps(message, ensure_ascii=False) for message in [*request.messages, *tools, model.extra]]
        prompt = sum(map(count, texts)) + around * MARGIN + PER_REQUEST
    if model.context is not None:
        prompt = min(prompt, model.context)
    return Usage(prompt * request.choices, limit * request.choices)


class Offer(NamedTuple):
    """What a model may be asked for.

    ``amount``: its worst case. ``fits``: whether so much may be spent. ``limit``: tokens of each answer, where they are
    fewer than was asked for.
    """

    amount: Amount
    fits: bool
    limit: int | None = None


def offer(model: GatewayModel, call: bool, request: ChatRequest, usage: Usage, account: SessionAccount) -> Offer:
    """What a model may be asked for, with a shorter answer where its ``min_answer`` allows one.

    Args:
        model: who would act.
        call: whether it counts as a call.
        request: what it would be asked.
        usage: the worst case.
        account: what may be spent.
    """

    def amount(limit: int) -> Amount:
        return cost(model, usage._replace(completion=limit * request.choices), call)

    whole, longest = cost(model, usage, call), usage.completion // request.choices
    if account.fits(whole):
        return Offer(whole, True)
    if model.min_answer is None or not account.fits(amount(least := min(model.min_answer, longest))):
        return Offer(whole, False)
    limit = least - 1 + bisect_left(range(least, longest), True, key=lambda n: not account.fits(amount(n)))
    return Offer(amount(limit), True, limit)
