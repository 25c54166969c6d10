"""Ray, started the quiet way, and a pool of actors that loses no finished work when one dies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from .. import envs, ray_private
from ..errors import WorkerFailedError
from ..recipe.loading import Recipe
from ..rundir import logs
from . import address as cluster
from . import remote_rundir
from .capacity import check_groups, check_room
from .causes import culprit, portable
from .container import usable_cpus
from .devices import check_node
from .resources import peak_of, player_requests, resource_requests, total_of, worker_request
from .scheduling import no_placement_group
from .worker_state import WorkerState

Task = TypeVar("Task")
Result = TypeVar("Result")
Job = Callable[[Any, WorkerState], Iterable[Result]]
_least_cpus = 0
_groups: dict[str, float] = {}
_MOST_UNSETTLED = 64
"""Results of a task that are kept until the next time that what is left of it is worked out."""


def set_local_cluster_size(recipe: Recipe) -> None:
    """Have a Ray that is started here from now on be told of the CPUs and groups that the recipe asks for."""
    global _least_cpus, _groups
    _groups = {name: 1_000.0 for name in recipe.placement.model_dump().values() if name}
    _least_cpus = math.ceil(peak_of(resource_requests(recipe)).cpus)


def ensure_ray(cpus: int, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Connect to the cluster of ``RAY_ADDRESS`` (set under ``ray job submit``), else start Ray on this machine.

    On a small machine Ray is told of at least ``cpus`` CPUs. Its processes have ``variables`` in their environment.
    Token authentication stays as Ray sets it (on).

    Raises:
        InputError: there is no cluster at ``RAY_ADDRESS``, or no place for Ray's files.
    """
    ray_private.quiet_environment()
    import ray

    logs.capture_loggers("ray")
    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "logging_level": logging.getLogger("ray").level,
        "log_to_driver": True,
        "runtime_env": {"env_vars": cluster.environment(**variables)},
    }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if given := cluster.address():
        cluster.connect(given, **options)
    else:
        cluster.start(num_cpus=max(cpus, _least_cpus, usable_cpus()), resources=_groups, **options)
    ray_private.take_output(logs.on_ray_output)
    if threading.current_thread() is threading.main_thread() and callable(on_sigterm):
        # Ray's native code has taken the signal, prints a stack and ends the process where it stands
        signal.signal(signal.SIGTERM, on_sigterm)


class _Worker:
    """An actor that runs jobs.

    Args:
        path: the driver's ``sys.path``, where modules with environments of the user's own may lie.
        index: its number in the pool.
        threads: of its torch.
        log: where its log is, and under which name.
        run_dir: where the run directory is.
    """

    def __init__(
        self,
        path: list[str],
        index: int,
        threads: int,
        log: tuple[str | None, str],
        run_dir: remote_rundir.RunDirHandle | None,
    ) -> None:
        logs.attach_process(*log)
        remote_rundir.set_run_dir_handle(run_dir)
        self.state = WorkerState(index)
        if threads > 1:
            import torch

            torch.set_num_threads(threads)
        sys.path += [entry for entry in path if entry not in sys.path]

    def run(self, job: Job[Any], task: Any) -> Iterator[Any]:
        try:
            with logs.log_exceptions("a task failed"):
                yield from job(task, self.state)
        except Exception as error:
            found = portable(error)
            if found is error:
                raise
            raise found from error

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _RunningTask:
    """A task that an actor works on.

    ``left`` is what was left of it when ``received`` was last empty, so that not all of its results are kept.
    """

    actor: Any
    index: int
    task: Any
    attempt: int
    left: Any
    received: list[Any] = field(default_factory=list)
    begun: bool = False
    last_result_at: float = field(default_factory=time.monotonic)

    def take(self, result: Any, rest: Callable[[Any, list[Any]], Any]) -> None:
        """Note a result."""
        self.received.append(result)
        self.begun, self.last_result_at = True, time.monotonic()
        if len(self.received) == _MOST_UNSETTLED:
            self.remaining_now(rest)

    def remaining_now(self, rest: Callable[[Any, list[Any]], Any]) -> Any:
        """Forget the results that were kept; what is left of the task."""
        if self.left is not None and self.received:
            self.left = rest(self.left, self.received)
        self.received = []
        return self.left


def all_or_nothing(task: Task, received: list[Any]) -> Task | None:
    """What is left of a task that has one result."""
    return None if received else task


class ActorPool(Generic[Task, Result]):
    """Runs ``job(task, state)``, which yields results, for many tasks on Ray actors.

    A result is handed on as soon as it is there. An actor that dies, or is silent for too long, is replaced and what is
    left of its task tried again; an exception of the job itself is raised here at once.

    Args:
        workers: actors; 0 runs everything in this process.
        retries: how often a task may lose its actor.
        on_retry: told (task, attempt, reason) of each lost actor.
        timeout: seconds without a result after which an actor is taken for hung.
        cpus, gpus: of an actor. Whole CPUs are also the threads of its torch.
        resources: custom ones that each actor asks for besides.
        name: of the actors' logs, before their number.
    """

    def __init__(
        self,
        workers: int,
        retries: int = 3,
        on_retry: Callable[[Task, int, str], None] = lambda t, n, r: None,
        timeout: float = math.inf,
        cpus: float = 1.0,
        gpus: float = 0.0,
        resources: dict[str, float] | None = None,
        name: str = "worker",
    ) -> None:
        self.name = name
        self.workers, self.retries, self.on_retry, self.timeout = workers, retries, on_retry, timeout
        self._cpus, self._gpus, self._resources = cpus, gpus, resources or {}
        self._state = WorkerState(0)
        self._actors: dict[int, Any] = {}
        if workers:
            ensure_ray(math.ceil(workers * cpus))
            check_groups(self._resources)

    def _spawn(self, index: int) -> tuple[int, Any]:
        import ray

        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "resources": self._resources, "max_restarts": 0}
        options |= no_placement_group()
        log = (logs.folder(), f"{self.name}-{index}")
        self._actors[index] = (
            ray.remote(_Worker)
            .options(**options)
            .remote(sys.path, index, int(self._cpus), log, remote_rundir.run_dir_handle())
        )
        return index, self._actors[index]

    def stream(
        self,
        job: Job[Result],
        tasks: Iterable[Task],
        rest: Callable[[Task, list[Result]], Task | None] = all_or_nothing,
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, result) as results come in, in no fixed order.

        Args:
            job: yields results.
            tasks: what to do.
            rest: what is left of a task after these results, for one whose actor is lost; None when nothing is. Of a
                long task it is asked now and then, for what is left of what was left. By default a task has one result.

        Raises:
            WorkerFailedError: a task lost its actor more than ``retries`` times.
        """
        if not self.workers:
            for task in tasks:
                for result in job(task, self._state):
                    yield task, result
            return
        import ray

        queue: list[tuple[Task, int]] = [(task, 0) for task in tasks][::-1]
        while len(self._actors) < min(self.workers, len(queue)):
            self._spawn(len(self._actors))
        idle = list(self._actors.items())
        in_flight: dict[Any, _RunningTask] = {}
        while queue or in_flight:
            while queue and idle:
                index, actor = idle.pop()
                task, attempt = queue.pop()
                # at most 16 results wait in the object store before the actor waits for us
                options = ray_private.streaming(16)
                in_flight[actor.run.options(**options).remote(job, task)] = _RunningTask(
                    actor, index, task, attempt, task
                )
            done, _ = ray.wait(list(in_flight), num_returns=1, timeout=min(self.timeout, 5.0), fetch_local=False)
            for stream in done:
                running = in_flight[stream]
                try:
                    result = ray.get(next(stream))
                except StopIteration:
                    del in_flight[stream]
                    idle.append((running.index, running.actor))
                except ray.exceptions.RayActorError as error:
                    if ray_private.never_began(error):  # another one would too
                        raise culprit(error) from error
                    del in_flight[stream]
                    idle += self._lost(running, rest, queue, str(error).splitlines()[0])
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                else:
                    running.take(result, rest)
                    yield running.task, result
            for stream, running in list(in_flight.items()):
                if time.monotonic() - running.last_result_at > self.timeout:
                    del in_flight[stream]
                    ray.kill(running.actor)
                    idle += self._lost(running, rest, queue, f"no result for {self.timeout:g} s: taken for hung")

    def _lost(
        self,
        running: _RunningTask,
        rest: Callable[[Task, list[Result]], Task | None],
        queue: list[tuple[Task, int]],
        why: str,
    ) -> list[tuple[int, Any]]:
        """Put back what is left of the task; the actor that takes the place of the lost one."""
        left = running.remaining_now(rest)
        if left is not None:
            # a task that got on is not one that kills its actors
            attempt = 1 if running.begun else running.attempt + 1
            if attempt > self.retries:
                task = textwrap.shorten(
                    getattr(running.task, "who", None) or repr(running.task), 200, placeholder="..."
                )
                raise WorkerFailedError(f"a worker died {attempt} times on the same task {task}: {why}")
            self.on_retry(running.task, attempt, why)
            queue.append((left, attempt))
        return [self._spawn(running.index)]

    def pids(self) -> list[int]:
        """Process ids of the live actors."""
        import ray

        return [ray.get(a.pid.remote()) for a in self._actors.values()] if self._actors else []

    def close(self) -> None:
        """End the actors and free their CPUs, and the processes behind environments that were played in this one."""
        envs.drain()
        if self._actors:
            import ray

            for actor in self._actors.values():
                with contextlib.suppress(Exception):
                    ray.kill(actor)
            self._actors = {}

    def __enter__(self) -> ActorPool[Task, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def chunks(items: Sequence[Task], size: int) -> list[list[Task]]:
    """``items`` in lists of at most ``size``."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def worker_pool(
    recipe: Recipe,
    on_retry: Callable[[Any, int, str], None],
    models: int = 1,
    beside: int = 0,
    place: Literal["workers", "trainers"] = "workers",
) -> ActorPool[Any, Any]:
    """The workers of a recipe that play with a model: with engine actors they need none of its CPUs and GPUs.

    Args:
        recipe: the recipe.
        on_retry: see :class:`ActorPool`.
        models: how many there are engine actors for at a time.
        beside: environment runners that the workers start themselves.
        place: whose group of nodes they are put on.

    Raises:
        InputError: Ray on this machine has not the CPUs, GPUs or groups that workers and engine actors ask for.
    """
    if recipe.workers:
        set_local_cluster_size(recipe)
        ensure_ray(0)
        requests = player_requests(recipe, models=models, runners=beside)
        room = total_of(requests)
        check_room(room.cpus, room.gpus, "workers and engines ask for", ("engine.cpus", "engine.gpus"))
        if recipe.engine.actors:
            check_groups(recipe.placement.resource_request("engines"))
        for request in requests:
            check_node(request.gpus, request.group)
    one, asked = worker_request(recipe), recipe.placement.resource_request(place)
    return ActorPool(
        recipe.workers,
        on_retry=on_retry,
        timeout=recipe.worker_timeout,
        cpus=one.cpus,
        gpus=one.gpus,
        resources=asked,
        name=place.removesuffix("s"),
    )
