"""How long to wait before a request: its place in the rate, the pause before a repetition, what the server asks for."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

FIRST_BACKOFF, MAX_BACKOFF = 0.5, 8.0
"""Seconds before the first repetition and before any; each is drawn between half of it and all of it."""
MAX_RETRY_AFTER = 60.0
"""Seconds; a server that asks for more gets this."""
# not the global generator: a run's other draws must not depend on a server's moods
_jitter = random.Random()


class RateLimiter:
    """Spaces requests evenly.

    Args:
        rate: requests a second; None is as fast as they come.
        clock: seconds, only ever rising.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap, self._clock = 0.0 if rate is None else 1 / rate, clock
        self._next = -float("inf")
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take the next place; seconds to wait for it."""
        with self._lock:
            now = self._clock()
            place = max(now, self._next)
            self._next = place + self._gap
            return place - now


def now() -> float:
    """Seconds on a clock that only rises."""
    return time.monotonic()


def sleep(stop: threading.Event, seconds: float) -> bool:
    """Wait; whether it ended because of ``stop``."""
    return stop.wait(seconds) if seconds > 0 else stop.is_set()


def backoff(attempt: int, retry_after: float = 0.0) -> float:
    """Seconds before the attempt after number ``attempt``, counted from 0, on top of what the server asks for.

    So those who were sent away together do not come back together.
    """
    return min(FIRST_BACKOFF * 2 ** min(attempt, 30), MAX_BACKOFF) * _jitter.uniform(0.5, 1.0) + min(
        retry_after, MAX_RETRY_AFTER
    )


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that ``Retry-After`` asks for, as a number or a date, or OpenAI's ``retry-after-ms``; 0 if nothing."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers.get("retry-after", 0))
    except ValueError:
        try:
            seconds = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
