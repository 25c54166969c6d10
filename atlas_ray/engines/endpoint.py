"""The endpoint that a recipe's table describes."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.thinking import THINKING
from ..errors import InputError
from ..recipe.endpoint import EndpointFields
from .chat_endpoint import ChatEndpoint


def open_endpoint(fields: EndpointFields, slots: int, where: str, thinking: Sequence[str] = THINKING) -> ChatEndpoint:
    """A :class:`ChatEndpoint` as a recipe says. No request is sent.

    Args:
        fields: the table, which has a ``base_url``.
        slots: most requests at a time.
        where: dotted name of the table, for messages.
        thinking: tags of what a model thinks before it answers, ``agent.thinking`` of the recipe.

    Raises:
        InputError: a field cannot be used; names it.
    """
    if fields.base_url is None:
        raise ValueError(f"{where} names no endpoint")
    try:
        return ChatEndpoint(
            fields.base_url,
            fields.model,
            key_variable=fields.key_variable,
            timeout=fields.timeout,
            deadline=fields.timeout * (fields.retries + 1),
            retries=fields.retries,
            rate=fields.rate,
            concurrency=slots,
            limit_field=fields.limit_field,
            extra=fields.extra,
            headers=fields.headers,
            send_system=fields.send_system,
            thinking=thinking,
            where=where,
        )
    except InputError as error:
        raise InputError(error.message, field=f"{where}.{error.field}" if error.field else where) from None
