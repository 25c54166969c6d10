"""HTTP clients with one connection each.

httpx looks at every connection that it keeps whenever a request begins or ends, which with many agents at a time takes
longer than all else that the gateway does. So each request on its way has a client of its own, of those that are free
the one that was used last.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from ..engines.http_transport import IDLE, Destination

_KEPT = 60.0
"""Seconds for which a client that is not needed is kept."""
_ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE)


class Clients:
    """As many clients as requests are on their way at once.

    Args:
        destination: where they send requests.
        timeout: seconds that may pass without a byte.

    Raises:
        InputError: a proxy or a file of certificates cannot be used.
    """

    def __init__(self, destination: Destination, timeout: float) -> None:
        with destination.options() as options:
            self._options: dict[str, Any] = {**options, "limits": _ONE, "timeout": timeout}
            self._free = deque([(time.monotonic(), httpx.AsyncClient(**self._options))])

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request."""
        client = self._free.pop()[1] if self._free else httpx.AsyncClient(**self._options)
        try:
            yield client
        finally:
            if not client.is_closed:
                self._free.append((time.monotonic(), client))
        if self._free and self._free[0][0] < time.monotonic() - _KEPT:
            await self._free.popleft()[1].aclose()

    async def close(self) -> None:
        """Close those that are free."""
        while self._free:
            await self._free.pop()[1].aclose()
