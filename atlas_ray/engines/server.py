"""An engine in a Ray actor of its own, for many workers: what any of them asks joins the batch at the next pass."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster import remote_rundir
from ..cluster.scheduling import no_placement_group
from ..recipe.schema import Engine as Settings
from ..rundir import logs
from .base import Capabilities, EngineCounters, LocalEngine, Request, advance

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is."""

    capabilities: Capabilities
    context: int
    parameters: int


@dataclass(frozen=True)
class State:
    """How a server does. ``loading``: the model is not there yet. ``idle``: seconds since it last finished a pass."""

    loading: bool
    idle: float


class EngineServer:
    """A Ray actor that answers requests for one model.

    A thread owns the engine; calls only put requests into its inbox and wait. Loading begins with the actor, so a
    restarted one comes back by itself, with nothing kept.

    Args:
        settings: of the recipe.
        model: shipped name, directory or Hugging Face id.
        slots: of the engine, over all its workers.
        log_folder, name: where and as whom its process logs.
        run_dir: where the run's directory is, which the model may lie in.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        slots: int,
        log_folder: str | None = None,
        name: str = "engine",
        run_dir: remote_rundir.RunDirHandle | None = None,
    ) -> None:
        logs.attach_process(log_folder, name)
        remote_rundir.set_run_dir_handle(run_dir)
        self._inbox: queue.SimpleQueue[tuple[Request, asyncio.Future[Request]]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: LocalEngine | None = None
        self._failed: BaseException | None = None
        self._loaded = threading.Event()
        self._beat = time.monotonic()
        threading.Thread(target=self._run, args=(settings, model, slots), daemon=True).start()

    def _run(self, settings: Settings, model: str, slots: int) -> None:
        import torch

        from . import make_engine

        try:
            torch.set_num_threads(max(1, int(settings.cpus)))
            self._engine = make_engine(settings, model, slots)
            _log.info("%s is loaded, for %d slots", model, slots)
        except BaseException as error:
            _log.exception("%s cannot be loaded", model)
            self._failed = error
        self._loaded.set()
        if self._engine is not None:
            self._serve(self._engine)

    def _serve(self, engine: LocalEngine) -> None:
        waiting: dict[int, tuple[Request, asyncio.Future[Request]]] = {}
        while True:
            self._beat = time.monotonic()
            for request, future in self._arrived(block=not waiting):
                try:
                    engine.submit(request)
                    waiting[id(request)] = (request, future)
                except Exception as error:
                    self._tell(future, error)
            if not waiting:
                continue
            try:
                for request in advance(engine):
                    self._tell(waiting.pop(id(request))[1], request)
            except Exception as error:  # the engine has dropped them all
                _log.exception("a pass failed")
                for _, future in waiting.values():
                    self._tell(future, error)
                waiting.clear()

    def _arrived(self, block: bool) -> list[tuple[Request, asyncio.Future[Request]]]:
        found = [self._inbox.get()] if block else []
        while not self._inbox.empty():
            found.append(self._inbox.get())
        return found

    def _tell(self, future: asyncio.Future[Request], what: Request | Exception) -> None:
        assert self._loop is not None

        def tell() -> None:
            if not future.done():
                future.set_exception(what) if isinstance(what, Exception) else future.set_result(what)

        self._loop.call_soon_threadsafe(tell)

    async def info(self) -> EngineInfo:
        """What the engine is, once it is loaded.

        Raises:
            InputError: it cannot be loaded.
        """
        while not self._loaded.is_set():
            await asyncio.sleep(0.02)
        if self._failed is not None:
            raise self._failed
        assert self._engine is not None
        return EngineInfo(self._engine.capabilities, self._engine.context, self._engine.parameters)

    async def state(self) -> State:
        """Answers at once, whatever the engine does."""
        return State(not self._loaded.is_set(), time.monotonic() - self._beat)

    async def answer(self, requests: Sequence[Request]) -> tuple[list[Request], EngineCounters]:
        """The requests with their answers, and the totals of the engine.

        Raises:
            ContextOverflowError: one does not fit.
        """
        await self.info()
        self._loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Request]] = []
        for request in requests:
            futures.append(self._loop.create_future())
            self._inbox.put((request, futures[-1]))
        answered = await asyncio.gather(*futures)
        assert self._engine is not None
        # what was asked need not travel back
        return [replace(r, prompt=()) for r in answered], replace(self._engine.counters)

    async def pid(self) -> int:
        """Of the process."""
        return os.getpid()


def spawn(settings: Settings, model: str, slots: int, resources: dict[str, float], name: str = "engine") -> Any:
    """A server as a Ray actor, restarted when it dies, on a node with the CPUs and GPUs that the recipe names.

    ``resources``: custom ones that it asks for besides. ``name``: of its log.
    """
    import ray

    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "resources": resources}
    options |= no_placement_group()
    server = ray.remote(EngineServer).options(**options, max_restarts=-1, max_concurrency=1000)
    return server.remote(settings, model, slots, logs.folder(), name, remote_rundir.run_dir_handle())
