"""What becomes of a request: it is let in, a model is asked, and whoever asks the same meanwhile gets the same answer.

A model is asked in a task of its own, which goes on when its client hangs up: what it answers is paid for, and kept for
the client who comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..engines import retry
from ..switching.budget import QUICK
from ..switching.spending import Limits, Usage
from .admission import Admission, Admitted, Known
from .metrics import Metrics
from .replies import ApiError
from .requests import ChatRequest
from .shadowing import Shadowing
from .sse import DONE, StreamedAnswer
from .upstream import Upstream, UpstreamError

JSON, EVENTS = "application/json", "text/event-stream"
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
"""Seconds between two looks at a step that another gateway answers."""
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass
class Reply:
    """An answer to a client. ``body``: all of it, or its events as they come."""

    headers: dict[str, str]
    media_type: str
    body: bytes | AsyncIterator[bytes]


@dataclass
class Flight:
    """An answer on its way, for all who ask for it.

    ``began``: done once it is known whether there is one: then come ``pieces``, or ``error``.
    """

    session: str
    step: int
    number: int
    left: Limits
    began: asyncio.Future[None]
    pieces: list[bytes] = field(default_factory=list)
    over: bool = False
    error: ApiError | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, piece: bytes) -> None:
        """A piece came."""
        self.pieces.append(piece)
        self._wake()

    def end(self, error: ApiError | None = None) -> None:
        """Nothing follows."""
        self.error, self.over = error, True
        if error is not None and self.began.done():
            self.pieces.append(b"data: " + error.body + b"\n\n")
        self._wake()

    def _wake(self) -> None:
        if not self.began.done():
            self.began.set_result(None)
        self._more.set()
        self._more = asyncio.Event()

    async def events(self) -> AsyncIterator[bytes]:
        """All pieces, from the first on; those that are there already at once."""
        told = 0
        while True:
            while told < len(self.pieces):
                there = self.pieces[told:]
                told += len(there)
                yield b"".join(there)
            if self.over:
                return
            await self._more.wait()


class Answering:
    """Answers requests.

    Args:
        admission: lets them in.
        upstreams: the models, from QUICK to DEEPTHINK.
        metrics: what is counted.
    """

    def __init__(self, admission: Admission, upstreams: Sequence[Upstream], metrics: Metrics) -> None:
        self.admission, self.upstreams, self.metrics = admission, tuple(upstreams), metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._flights: dict[tuple[str, int], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shadowing = Shadowing(admission, self.upstreams[QUICK], metrics, self.call)
        self._longest = max(m.timeout * (m.retries + 2) for m in admission.settings.models)

    async def call(self, what: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread of the store."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, *arguments)

    async def answer(self, request: ChatRequest, key: str) -> Reply:
        """The answer to a request.

        Args:
            request: the request.
            key: whose it is.

        Raises:
            ApiError: there is none.
        """
        given_up, pause, until = 0, _FIRST_PAUSE, time.monotonic() + self._longest
        while given_up < 3 and time.monotonic() < until:
            found = await self.call(self.admission.admit, request, key)
            if isinstance(found, Admitted):
                flight = self._start(request, key, found)
            elif found.answer is not None:
                self.metrics.repeated.inc()
                media = EVENTS if request.stream else JSON
                return Reply(self._headers(found, repeated=True), media, found.answer)
            elif (known := self._flights.get((found.session, found.step))) is not None:
                self.metrics.repeated.inc()
                flight = known
            elif found.owner != self.admission.owner:  # another gateway of this store is answering it
                await asyncio.sleep(pause)
                pause = min(_LAST_PAUSE, 1.5 * pause)
                continue
            else:
                given_up += 1  # what was being answered was lost before this request came to hear of it
                continue
            # one who hangs up takes nobody else's answer with him
            await asyncio.shield(flight.began)
            if flight.error is not None and not flight.pieces:
                raise flight.error
            repeated = not isinstance(found, Admitted)
            if request.stream:
                return Reply(self._headers(flight, repeated), EVENTS, flight.events())
            return Reply(self._headers(flight, repeated), JSON, flight.pieces[0])
        raise ApiError(503, "the step is being given up: ask again", "busy")

    async def close(self, seconds: float) -> None:
        """Give what is on its way some seconds, and let go of the models."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.close()
        self._thread.shutdown()

    def _headers(self, found: Flight | Known, repeated: bool) -> dict[str, str]:
        made = {
            "x-atlas-model": self.upstreams[found.number].name.encode("ascii", "replace").decode(),
            "x-atlas-session": found.session,
            "x-atlas-step": str(found.step),
            "x-atlas-budget-left": str(found.left),
        }
        return {**made, "x-atlas-repeated": "true"} if repeated else made

    def _start(self, request: ChatRequest, key: str, admitted: Admitted) -> Flight:
        began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flight = Flight(admitted.session, admitted.step, admitted.number, admitted.left, began)
        self._flights[admitted.session, admitted.step] = flight
        if admitted.limit is not None:
            request = replace(request, most=admitted.limit)
        self._in_background(self._run(flight, request, key, admitted))
        return flight

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, flight: Flight, request: ChatRequest, key: str, admitted: Admitted) -> None:
        try:
            await self._attempts(flight, request, key, admitted)
        except asyncio.CancelledError:
            flight.end(ApiError(503, "the gateway is ending", "ending"))
            raise
        except ApiError as error:
            flight.end(error)
        except Exception:
            _log.exception("a step could not be answered")
            flight.end(ApiError(500, "the gateway has failed; its log says why", "gateway_failed"))
        finally:
            del self._flights[admitted.session, admitted.step]

    async def _attempts(self, flight: Flight, request: ChatRequest, key: str, admitted: Admitted) -> None:
        """Ask the model until it answers, within the retries of its table."""
        model, upstream = self.admission.settings.models[admitted.number], self.upstreams[admitted.number]
        begun, attempt = time.monotonic(), 0
        self.metrics.steps.labels(upstream.name).inc()
        while True:
            try:
                usage, message, answer = await self._ask(flight, request, upstream)
                break
            except UpstreamError as error:
                trouble = error
            self.metrics.failures.labels(upstream.name).inc()
            seconds = retry.backoff(attempt, trouble.wait)
            late = time.monotonic() + seconds - begun > model.timeout * (model.retries + 1)
            following: Admitted | None = None
            if trouble.retryable and attempt < model.retries and not late and not flight.pieces:
                await asyncio.sleep(seconds)
                following = admitted if trouble.free else await self.call(self.admission.again, admitted, key)
            if following is None:
                await self.call(self.admission.failed, admitted, trouble.free)
                flight.end(trouble.told)
                return
            admitted, attempt = following, attempt + 1
        flight.left = await self.call(self.admission.answered, admitted, usage, message, answer)
        self.metrics.answered(upstream.name, model, usage, admitted.reserved, time.monotonic() - begun)
        if not request.stream:
            flight.add(answer)
        elif answer.endswith(DONE):
            flight.add(DONE)
        flight.end()
        if self.admission.settings.shadow:
            self._in_background(self._shadowing.follow(admitted, request, key, message))

    async def _ask(
        self, flight: Flight, request: ChatRequest, upstream: Upstream
    ) -> tuple[Usage | None, dict[str, Any], bytes]:
        if not request.stream:
            body, message, usage = await upstream.complete(request)
            return usage, message, body
        answer = StreamedAnswer(request.wants_usage, request.choices)
        async with aclosing(upstream.stream(request, answer)) as events:  # type: ignore[type-var]
            async for event in events:
                if answer.done:
                    break  # the last one is told once the step is settled
                flight.add(event)
        return answer.usage, answer.message, b"".join(flight.pieces) + (DONE if answer.done else b"")
