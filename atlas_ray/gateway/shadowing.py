"""QUICK in DEEPTHINK's shadow: after some of its steps QUICK is asked the same, for the record alone (ours).

No client waits for it or hears of it. Where the two differ is what a switch can be fitted to, without an environment
that can be reset (:mod:`atlas_ray.switching.logged_rules`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from ..data.parsing import Style, parse
from ..data.tool_calls import arguments_of
from ..switching.budget import QUICK
from .admission import Admission, Admitted
from .metrics import Metrics
from .requests import ChatRequest, text_of
from .store import Reservation
from .upstream import Upstream, UpstreamError

_STREAMED = ("stream", "stream_options")
_log = logging.getLogger(__name__)


class Shadowing:
    """Asks QUICK after steps of DEEPTHINK. Once each: what fails says nothing of a step.

    Args:
        admission: says at which steps, and keeps what was said.
        quick: the first model.
        metrics: what is counted.
        call: does something in the thread of the store.
    """

    def __init__(
        self, admission: Admission, quick: Upstream, metrics: Metrics, call: Callable[..., Awaitable[Any]]
    ) -> None:
        self._admission, self._quick, self._metrics, self._call = admission, quick, metrics, call

    async def follow(self, admitted: Admitted, request: ChatRequest, key: str, message: Mapping[str, Any]) -> None:
        """Ask QUICK what DEEPTHINK was asked, if the step is drawn for it and the budgets allow it.

        Args:
            admitted: a step that was answered.
            request: by which.
            key: whose it is.
            message: the answer's.
        """
        try:
            reservation = await self._call(self._admission.shadow, admitted, request, key)
            if reservation is not None:
                await self._ask(reservation, request, message)
        except Exception:
            _log.exception("the first model could not be asked in the shadow of a step")

    async def _ask(self, reservation: Reservation, request: ChatRequest, message: Mapping[str, Any]) -> None:
        body = {name: value for name, value in request.body.items() if name not in _STREAMED}
        try:
            _, said, usage = await self._quick.complete(replace(request, body=body, most=None))
        except UpstreamError as error:
            self._metrics.failures.labels(self._quick.name).inc()
            if error.free:
                await self._call(self._admission.return_unused, reservation)
            return
        self._metrics.spent(self._quick.name, self._admission.settings.models[QUICK], usage, reservation.amount)
        same = acts_alike(said, message, self._admission.style)
        self._metrics.shadows.labels({True: "same", False: "other", None: "none"}[same]).inc()
        await self._call(self._admission.shadowed, reservation, usage, said, same)


def acts_alike(one: Mapping[str, Any], other: Mapping[str, Any], style: Style) -> bool | None:
    """Whether two assistant's messages do the same: equal tool calls, or where there are none an equal action.

    Arguments are compared as JSON. Of a text the action counts, as :func:`atlas_ray.data.parsing.parse` reads it; where
    it names none, or more stands behind it, the whole text does. None: one of them does nothing, so nobody can tell.
    """
    made = [_done(message, style) for message in (one, other)]
    return made[0] == made[1] if all(made) else None


def _done(message: Mapping[str, Any], style: Style) -> str:
    """A text that is equal for messages that do the same; empty for one that does nothing that can be read."""
    try:
        calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
        if calls:
            return json.dumps([[call.get("name"), _arguments(call.get("arguments") or "")] for call in calls])
    except (AttributeError, TypeError):  # a server may say anything
        return ""
    said = text_of(message).strip()
    found = parse(said, style)
    return said if found.action is None or found.behind else found.action


def _arguments(text: str) -> str:
    try:
        return json.dumps(arguments_of(text), sort_keys=True)
    except ValueError:
        return text
