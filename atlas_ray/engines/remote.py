"""An engine that lives in an actor, as a worker sees it; it outlives the actor's deaths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster.remote_rundir import localize
from ..errors import WorkerFailedError
from ..models.loading import load_tokenizer
from .base import Batches, Meter, Request, check
from .server import About

_ATTEMPTS = 4
_LOADING = 3600.0  # seconds
_RESTART = 600.0


@dataclass(frozen=True)
class Seat:
    """A worker's place at a server: the slots from ``first`` on are its own, so its episodes stay with one model.

    ``timeout``: seconds without a pass after which the server is taken for hung.
    """

    server: Any
    model: str
    first: int
    slots: int
    timeout: float


class RemoteEngine(Batches):
    """Implements :class:`atlas_ray.engines.base.Engine` by a server. Needs neither the weights nor a GPU.

    A server that died, or that is silent for too long and then killed, is started again by Ray, and what was asked is
    asked again. Answers do not depend on what a server has kept, so nothing else is lost.

    Args:
        seat: place at the server.

    Attributes:
        lost: how often an answer was lost, with its server.

    Raises:
        WorkerFailedError: an answer was lost four times, or the server is gone for good.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat, self.slots, self.lost = seat, seat.slots, 0
        self.tokenizer = load_tokenizer(localize(seat.model))
        self.tokens_fed = [0] * seat.slots
        self.meter = Meter()
        self._forgotten: set[int] = set()
        about: About = self._call("about")
        self.capabilities, self.context, self.parameters = about.capabilities, about.context, about.parameters

    def close(self) -> None:
        """Does nothing: the server is not this worker's."""

    def forget(self, slot: int) -> None:
        """See :meth:`Engine.forget`."""
        self._forgotten.add(slot)

    def answer(self, requests: Sequence[Request]) -> Sequence[Request]:
        """See :meth:`Batches.answer`."""
        for request in requests:
            check(request, self.context)
        given = [
            replace(r, slot=self.seat.first + r.slot, fresh=r.slot in self._forgotten, prompt=list(r.prompt))
            for r in requests
        ]
        answers, self.meter = self._call("answer", given)
        for request, answer in zip(requests, answers, strict=True):
            self.tokens_fed[request.slot] += answer.fed
            self._forgotten.discard(request.slot)
        return answers

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        for attempt in range(1, _ATTEMPTS + 1):
            answer = getattr(self.seat.server, method).remote(*arguments)
            try:
                while not ray.wait([answer], timeout=self.seat.timeout)[0]:
                    self._check_alive()
                return ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                self.lost += 1
                if attempt == _ATTEMPTS or isinstance(error, ray.exceptions.ActorDiedError):
                    why = str(error).splitlines()[0]
                    raise WorkerFailedError(f"the engine for {self.seat.model} was lost: {why}") from error
                if isinstance(error, ray.exceptions.GetTimeoutError):
                    ray.kill(self.seat.server, no_restart=False)
                self._await_restart()

    def _await_restart(self) -> None:
        """Ray starts the actor again; a call to it meanwhile would fail at once."""
        import ray

        until = time.monotonic() + _RESTART
        while time.monotonic() < until:
            try:
                ray.get(self.seat.server.state.remote(), timeout=self.seat.timeout)
                return
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
                time.sleep(0.2)
            except ray.exceptions.RayActorError:
                return  # the next call says why

    def _check_alive(self) -> None:
        """Return when the server is at work.

        Raises:
            ray.exceptions.GetTimeoutError: it hangs.
        """
        import ray

        state = ray.get(self.seat.server.state.remote(), timeout=self.seat.timeout)
        if state.idle > (_LOADING if state.loading else self.seat.timeout):
            raise ray.exceptions.GetTimeoutError(f"no pass for {state.idle:.0f} s")
