"""The endpoint that a recipe's table describes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..data.thinking import THINKING
from ..errors import InputError
from ..recipe.endpoint import EndpointFields
from .chat_endpoint import ChatEndpoint

# what a model of ours has no use for
_SERVERS = sorted(EndpointFields.model_fields.keys() - {"model", "base_url", "price_prompt", "price_completion"})


def check_endpoint(fields: EndpointFields, where: str, own: Collection[str] = ()) -> None:
    """Refuse a table that describes no model, at a server or here. No request is sent.

    Args:
        fields: the table.
        where: dotted name of the table, for messages.
        own: fields that a model of ours knows too.

    Raises:
        InputError: a field cannot be used, or is a server's where there is none; names it.
    """
    if fields.base_url:
        open_endpoint(fields, 1, where).close()
        return
    known = type(fields).model_fields
    # a resolved recipe says them all, so that defaults count as not given
    if given := [name for name in _SERVERS if name not in own and getattr(fields, name) != known[name].default]:
        raise InputError("is a server's, and base_url is missing", field=f"{where}.{given[0]}")


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
