"""An engine that lives in an actor, as a worker sees it; it outlives the actor's deaths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster.remote_rundir import localize
from ..errors import WorkerFailedError
from ..models.loading import load_tokenizer
from .base import Batches, EngineCounters, Request, check
from .server import EngineInfo

_ATTEMPTS = 4
LOADING = 3600.0  # seconds
_RESTART = 600.0


@dataclass(frozen=True)
class EngineLease:
    """A worker's share of a server: the slots from ``first`` on are its own, so its episodes stay with one model.

    ``timeout``: seconds without a pass after which the server is taken for hung. ``all_slots``: of the server.
    """

    server: Any
    model: str
    first: int
    slots: int
    timeout: float
    all_slots: int


class RemoteEngine(Batches):
    """Implements :class:`atlas_ray.engines.base.Engine` by a server. Needs neither the weights nor a GPU.

    A server that died, or that is silent for too long and then killed, is started again by Ray, and what was asked is
    asked again. Answers do not depend on what a server has kept, so nothing else is lost.

    Args:
        lease: its share of the server.

    Attributes:
        lost: how often an answer was lost, with its server.

    Raises:
        WorkerFailedError: an answer was lost four times, or the server is gone for good.
    """

    def __init__(self, lease: EngineLease) -> None:
        self.lease, self.slots, self.lost = lease, lease.slots, 0
        self.tokenizer = load_tokenizer(localize(lease.model))
        self.computed_tokens = [0] * lease.slots
        self.counters = EngineCounters()
        self._forgotten: set[int] = set()
        info: EngineInfo = self._call("info")
        self.capabilities, self.context, self.parameters = info.capabilities, info.context, info.parameters

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
            replace(r, slot=self.lease.first + r.slot, ignore_cache=r.slot in self._forgotten, prompt=list(r.prompt))
            for r in requests
        ]
        answers, self.counters = self._call("answer", given)
        for request, answer in zip(requests, answers, strict=True):
            self.computed_tokens[request.slot] += answer.computed_tokens
            self._forgotten.discard(request.slot)
        return answers

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        for attempt in range(1, _ATTEMPTS + 1):
            answer = getattr(self.lease.server, method).remote(self.lease.model, self.lease.all_slots, *arguments)
            try:
                while not ray.wait([answer], timeout=self.lease.timeout)[0]:
                    self._check_alive()
                return ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                self.lost += 1
                if attempt == _ATTEMPTS or isinstance(error, ray.exceptions.ActorDiedError):
                    why = str(error).splitlines()[0]
                    raise WorkerFailedError(f"the engine for {self.lease.model} was lost: {why}") from error
                if isinstance(error, ray.exceptions.GetTimeoutError):
                    ray.kill(self.lease.server, no_restart=False)
                self._await_restart()

    def _await_restart(self) -> None:
        """Ray starts the actor again; a call to it meanwhile would fail at once."""
        import ray

        until = time.monotonic() + _RESTART
        while time.monotonic() < until:
            try:
                ray.get(self.lease.server.state.remote(), timeout=self.lease.timeout)
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

        state = ray.get(self.lease.server.state.remote(), timeout=self.lease.timeout)
        if state.idle > (LOADING if state.loading else self.lease.timeout):
            raise ray.exceptions.GetTimeoutError(f"no pass for {state.idle:.0f} s")
