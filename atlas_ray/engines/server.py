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
from ..errors import AtlasError
from ..recipe.schema import Engine as Settings
from ..rundir import logs
from .base import Capabilities, EngineCounters, LocalEngine, Request, advance
from .reloading import Reloaded

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


@dataclass(frozen=True)
class _Load:
    """A model to take in place of the one that is there; ``done`` gets what the engine is then, or why it cannot."""

    model: str
    slots: int
    expected: Sequence[float]
    done: asyncio.Future[EngineInfo]


@dataclass(frozen=True)
class _Sleep:
    """Give a GPU's memory back; ``done`` gets whether the engine did."""

    done: asyncio.Future[bool]


_Item = _Load | _Sleep | tuple[Request, asyncio.Future[Request]]


class EngineServer:
    """A Ray actor that answers requests for one model at a time.

    A thread owns the engine; calls only put requests into its inbox and wait. Every call names the model, so that one
    that was restarted loads it again and comes back by itself, with nothing kept.

    Args:
        settings: of the recipe.
        log_folder, name: where and as whom its process logs.
        run_dir: where the run's directory is, which the model may lie in.
        rank: of adapters that there shall be room for.
        sleeps: whether it shall be able to :meth:`sleep`.
    """

    def __init__(
        self,
        settings: Settings,
        log_folder: str | None = None,
        name: str = "engine",
        run_dir: remote_rundir.RunDirHandle | None = None,
        rank: int = 0,
        sleeps: bool = False,
    ) -> None:
        logs.attach_process(log_folder, name)
        remote_rundir.set_run_dir_handle(run_dir)
        self._settings, self._rank, self._sleeps = settings, rank, sleeps
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: LocalEngine | None = None
        self._asked: tuple[str, int] | None = None
        self._loading: asyncio.Future[EngineInfo] | None = None
        self._how = Reloaded(anew=True)
        self._beat = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(max(1, int(self._settings.cpus)))
        waiting: dict[int, tuple[Request, asyncio.Future[Request]]] = {}
        while True:
            self._beat = time.monotonic()
            for item in self._arrived(block=not waiting):
                if isinstance(item, _Load):
                    while waiting:
                        self._pass(waiting)
                    self._load(item)
                elif isinstance(item, _Sleep):
                    self._rest(item)
                else:
                    self._submit(*item, waiting)
            if waiting:
                self._pass(waiting)

    def _load(self, wanted: _Load) -> None:
        try:
            self._engine, self._how = self._open(wanted)
            _log.info("%s is loaded, for %d slots: %s", wanted.model, wanted.slots, self._how)
            engine = self._engine
            self._tell(wanted.done, EngineInfo(engine.capabilities, engine.context, engine.parameters))
        except BaseException as error:
            _log.exception("%s cannot be loaded", wanted.model)
            self._engine = None  # (closed)
            self._tell(wanted.done, error if isinstance(error, Exception) else AtlasError(repr(error)))

    def _rest(self, wanted: _Sleep) -> None:
        from .vllm import VllmEngine

        try:
            if rests := isinstance(self._engine, VllmEngine):
                self._engine.sleep()
            self._tell(wanted.done, rests)
        except Exception:
            _log.exception("the engine does not sleep")
            self._tell(wanted.done, False)

    def _open(self, wanted: _Load) -> tuple[LocalEngine, Reloaded]:
        """An engine with this model, in place of the one that is open, if any."""
        from . import exchange, make_engine

        settings, model, slots = self._settings, wanted.model, wanted.slots
        if self._engine is None:
            return make_engine(settings, model, slots, self._rank, self._sleeps), Reloaded(anew=True)
        return exchange(self._engine, settings, model, slots, self._rank, wanted.expected, self._sleeps)

    def _submit(
        self,
        request: Request,
        future: asyncio.Future[Request],
        waiting: dict[int, tuple[Request, asyncio.Future[Request]]],
    ) -> None:
        assert self._engine is not None
        try:
            self._engine.submit(request)
            waiting[id(request)] = (request, future)
        except Exception as error:
            self._tell(future, error)

    def _pass(self, waiting: dict[int, tuple[Request, asyncio.Future[Request]]]) -> None:
        assert self._engine is not None
        self._beat = time.monotonic()
        try:
            for request in advance(self._engine):
                self._tell(waiting.pop(id(request))[1], request)
        except Exception as error:  # the engine has dropped them all
            _log.exception("a pass failed")
            for _, future in waiting.values():
                self._tell(future, error)
            waiting.clear()

    def _arrived(self, block: bool) -> list[_Item]:
        found = [self._inbox.get()] if block else []
        while not self._inbox.empty():
            found.append(self._inbox.get())
        return found

    def _tell(self, future: asyncio.Future[Any], what: object) -> None:
        assert self._loop is not None

        def tell() -> None:
            if not future.done():
                future.set_exception(what) if isinstance(what, Exception) else future.set_result(what)

        self._loop.call_soon_threadsafe(tell)

    async def load(self, model: str, slots: int, expected: Sequence[float] = ()) -> None:
        """Begin to load a model, unless it is the one that was asked for last. Requests before it are answered first.

        Args:
            model: shipped name, directory or Hugging Face id.
            slots: of the engine, over all its workers.
            expected: of the probe text, see :func:`atlas_ray.engines.exchange`.
        """
        if self._asked != (model, slots):
            self._loop = asyncio.get_running_loop()
            self._asked, self._loading = (model, slots), self._loop.create_future()
            self._loading.add_done_callback(lambda done: done.exception())  # (info raises it)
            self._inbox.put(_Load(model, slots, expected, self._loading))

    async def info(self, model: str, slots: int) -> EngineInfo:
        """What the engine is, once it has this model.

        Raises:
            InputError: it cannot be loaded.
        """
        await self.load(model, slots)
        assert self._loading is not None
        return await asyncio.shield(self._loading)

    async def reloaded(self, model: str, slots: int) -> Reloaded:
        """How the engine took this model, once it has it.

        Raises:
            InputError: it cannot be loaded.
        """
        await self.info(model, slots)
        return self._how

    async def expected(self, model: str) -> list[float]:
        """What the engine is to give for the probe text with another model; nothing where none is compared."""
        if self._loading is not None:  # (two threads must not load models at a time)
            await asyncio.wait([self._loading])
        if self._settings.kind != "vllm" or self._engine is None:
            return []
        from .probe import expected
        from .vllm import VllmEngine

        assert isinstance(self._engine, VllmEngine)
        model = remote_rundir.localize(model)
        return await asyncio.to_thread(expected, model, self._engine.dtype, self._engine.context)

    async def sleep(self) -> bool:
        """Give a GPU's memory back until a model is asked for again, the same or another; says whether it did.

        Nothing may be on its way.
        """
        self._loop = asyncio.get_running_loop()
        done = self._loop.create_future()
        self._asked = None  # what is asked for next is loaded, so that one that cannot wake starts anew
        self._inbox.put(_Sleep(done))
        return await done

    async def state(self) -> State:
        """Answers at once, whatever the engine does."""
        loading = self._loading is None or not self._loading.done()
        return State(loading, time.monotonic() - self._beat)

    async def answer(self, model: str, slots: int, requests: Sequence[Request]) -> tuple[list[Request], EngineCounters]:
        """The requests with their answers by this model, and the totals of the engine.

        Raises:
            ContextOverflowError: one does not fit.
        """
        await self.info(model, slots)
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


def spawn(
    settings: Settings, resources: dict[str, float], name: str = "engine", rank: int = 0, sleeps: bool = False
) -> Any:
    """A server as a Ray actor, restarted when it dies, on a node with the CPUs and GPUs that the recipe names.

    ``resources``: custom ones that it asks for besides. ``name``: of its log. ``rank``, ``sleeps``: see
    :class:`EngineServer`.
    """
    import ray

    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "resources": resources}
    options |= no_placement_group()
    server = ray.remote(EngineServer).options(**options, max_restarts=-1, max_concurrency=1000)
    return server.remote(settings, logs.folder(), name, remote_rundir.run_dir_handle(), rank, sleeps)
