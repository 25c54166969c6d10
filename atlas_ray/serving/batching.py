"""One thread that owns the sessions, behind an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from .messages import ActRequest, Answer, Refused
from .sessions import SessionManager

T = TypeVar("T")


class RequestBatcher:
    """Hands requests to the sessions; those that come while they work are answered together.

    The thread does not keep the process from ending.
    """

    def __init__(self, sessions: SessionManager) -> None:
        self._sessions = sessions
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_jobs, name="sessions", daemon=True)
        self._waiting: dict[str, tuple[ActRequest, asyncio.Future[Answer]]] = {}
        self._served: dict[str, tuple[ActRequest, asyncio.Future[Answer]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._thread.start()

    async def call(self, what: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread of the sessions."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if future.done():  # the client has gone
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, failed = None, None
            try:
                result = what(*arguments)
            except Exception as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(settle, result, failed)

        self._jobs.put(job)
        return await future

    async def act(self, key: str, request: ActRequest) -> Answer:
        """An episode's next action. Who asks the same while it is being answered gets the same answer.

        Raises:
            Refused: there is none.
        """
        known = self._waiting.get(key) or self._served.get(key)
        if known is None:
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[key] = (request, future)
        elif known[0] == request:
            future = known[1]
        else:
            raise Refused("this episode's step before is being answered", 409)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer_waiting())
        # one who goes takes nobody else's answer with him
        return await asyncio.shield(future)

    def stop(self, seconds: float) -> bool:
        """Take no more; whether what was begun was done in so many seconds."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def _answer_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            self._served = batch
            found: dict[str, Answer | Refused]
            try:
                found = await self.call(self._sessions.act, {key: request for key, (request, _) in batch.items()})
            except Exception as error:
                found = dict.fromkeys(batch, Refused(f"{type(error).__name__}: {error}", 500))
            self._served = {}
            for key, (_, future) in batch.items():
                answer = found[key]
                if isinstance(answer, Refused):
                    future.set_exception(answer)
                    future.exception()  # nobody may be there any more to hear of it
                else:
                    future.set_result(answer)
