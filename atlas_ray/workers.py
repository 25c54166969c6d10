"""Ray, started the quiet way, and a pool of actors that loses no finished work when one dies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import envs

from .errors import InputError, WorkerFailedError
from .progress import say
from .recipe import Recipe

Task = TypeVar("Task")
Result = TypeVar("Result")
Job = Callable[[Any, dict[str, Any]], Iterable[Result]]
_expected = 0


def expect(recipe: Recipe) -> None:
    """A Ray that is started on this machine from now on has the CPUs that all stages of the recipe ask for."""
    global _expected
    models, runners = (1, 0) if recipe.switch is None else (len(recipe.switch.local), recipe.switch.env_runners)
    held = recipe.engine.cpus * recipe.engine.actors * max(1, models)
    _expected = math.ceil(recipe.workers * _worker_cpus(recipe) + held + runners * max(1, recipe.workers))


def ensure_ray(cpus: int) -> None:
    """Connect to the cluster of ``RAY_ADDRESS`` (set under ``ray job submit``), else start Ray on this machine.

    On a small machine Ray is told of at least ``cpus`` CPUs. Token authentication stays as Ray sets it (on).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    # one thread a process: two processes with two threads each starve each other on two cores
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": environment,
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
    else:
        ray.init(
            address="local", num_cpus=max(cpus, _expected, os.cpu_count() or 1), include_dashboard=False, **options
        )


class _Worker:
    """An actor that runs jobs; ``kept`` lives as long as the actor, for models and the like.

    ``path`` is the driver's, where modules with environments of the user's own may lie. ``kept["index"]`` is the
    worker's number in its pool, which one that takes its place has too.
    """

    def __init__(self, path: list[str], index: int, threads: int) -> None:
        self.kept: dict[str, Any] = {"index": index}
        if threads > 1:
            import torch

            torch.set_num_threads(threads)
        sys.path += [entry for entry in path if entry not in sys.path]

    def run(self, job: Job[Any], task: Any) -> Iterator[Any]:
        yield from job(task, self.kept)

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _Flight:
    """A task on its way: who works on it, how often it was begun, what came of it so far and when."""

    actor: Any
    index: int
    task: Any
    attempt: int
    received: list[Any] = field(default_factory=list)
    heard: float = field(default_factory=time.monotonic)


class ActorPool(Generic[Task, Result]):
    """Runs ``job(task, kept)``, which yields results, for many tasks on Ray actors.

    A result is handed on as soon as it is there. An actor that dies, or is silent for too long, is replaced and what is
    left of its task tried again; an exception of the job itself is raised here at once.

    Args:
        workers: actors; 0 runs everything in this process.
        retries: how often a task may lose its actor.
        on_retry: told (task, attempt, reason) of each lost actor.
        silence: seconds without a result after which an actor is taken for hung.
        cpus, gpus: of an actor. Whole CPUs are also the threads of its torch.
    """

    def __init__(
        self,
        workers: int,
        retries: int = 3,
        on_retry: Callable[[Task, int, str], None] = lambda t, n, r: None,
        silence: float = math.inf,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        self.workers, self.retries, self.on_retry, self.silence = workers, retries, on_retry, silence
        self._cpus, self._gpus = cpus, gpus
        self._kept: dict[str, Any] = {"index": 0}
        self._actors: dict[int, Any] = {}
        if workers:
            ensure_ray(math.ceil(workers * cpus))

    def _spawn(self, index: int) -> tuple[int, Any]:
        import ray

        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0}
        self._actors[index] = ray.remote(_Worker).options(**options).remote(sys.path, index, int(self._cpus))
        return index, self._actors[index]

    def stream(
        self,
        job: Job[Result],
        tasks: Iterable[Task],
        rest: Callable[[Task, list[Result]], Task | None] = lambda task, received: None if received else task,
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, result) as results come in, in no fixed order.

        Args:
            job: yields results.
            tasks: what to do.
            rest: what is left of a task whose actor was lost after these results; None when nothing is. By default a
                task has one result.

        Raises:
            WorkerFailedError: a task lost its actor more than ``retries`` times.
        """
        if not self.workers:
            for task in tasks:
                for result in job(task, self._kept):
                    yield task, result
            return
        import ray

        queue: list[tuple[Task, int]] = [(task, 0) for task in tasks][::-1]
        while len(self._actors) < min(self.workers, len(queue)):
            self._spawn(len(self._actors))
        idle = list(self._actors.items())
        flying: dict[Any, _Flight] = {}
        while queue or flying:
            while queue and idle:
                index, actor = idle.pop()
                task, attempt = queue.pop()
                # at most 16 results wait in the object store before the actor waits for us
                options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 16}
                flying[actor.run.options(**options).remote(job, task)] = _Flight(actor, index, task, attempt)
            done, _ = ray.wait(list(flying), num_returns=1, timeout=min(self.silence, 5.0), fetch_local=False)
            for stream in done:
                flight = flying[stream]
                try:
                    result = ray.get(next(stream))
                except StopIteration:
                    del flying[stream]
                    idle.append((flight.index, flight.actor))
                except ray.exceptions.RayActorError as error:
                    del flying[stream]
                    idle += self._lost(flight, rest, queue, str(error).splitlines()[0])
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                else:
                    flight.received.append(result)
                    flight.heard = time.monotonic()
                    yield flight.task, result
            for stream, flight in list(flying.items()):
                if time.monotonic() - flight.heard > self.silence:
                    del flying[stream]
                    ray.kill(flight.actor)
                    idle += self._lost(flight, rest, queue, f"no result for {self.silence:g} s: taken for hung")

    def _lost(
        self,
        flight: _Flight,
        rest: Callable[[Task, list[Result]], Task | None],
        queue: list[tuple[Task, int]],
        why: str,
    ) -> list[tuple[int, Any]]:
        """Put back what is left of the task; the actor that takes the place of the lost one."""
        left = rest(flight.task, flight.received)
        if left is not None:
            # a task that got on is not one that kills its actors
            attempt = 1 if flight.received else flight.attempt + 1
            if attempt > self.retries:
                raise WorkerFailedError(f"a worker died {attempt} times on the same task {flight.task!r}: {why}")
            self.on_retry(flight.task, attempt, why)
            queue.append((left, attempt))
        return [self._spawn(flight.index)]

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
    recipe: Recipe, on_retry: Callable[[Any, int, str], None], models: int = 1, beside: int = 0
) -> ActorPool[Any, Any]:
    """The workers of a recipe that play with a model: with engine actors they need none of its CPUs and GPUs.

    Args:
        recipe: the recipe.
        on_retry: see :class:`ActorPool`.
        models: how many there are engine actors for at a time.
        beside: CPUs of actors that the workers start themselves.

    Raises:
        InputError: Ray on this machine has not the CPUs or GPUs that workers and engine actors ask for.
    """
    cpus, gpus = _worker_cpus(recipe), 0.0 if recipe.engine.actors else recipe.engine.gpus
    if recipe.workers:
        expect(recipe)
        ensure_ray(0)
        holders = recipe.engine.actors * models or recipe.workers
        check_room(
            recipe.workers * cpus + recipe.engine.actors * models * recipe.engine.cpus + beside,
            holders * recipe.engine.gpus,
            "workers and engines ask for",
            ("engine.cpus", "engine.gpus"),
        )
    return ActorPool(recipe.workers, on_retry=on_retry, silence=recipe.patience, cpus=cpus, gpus=gpus)


def _worker_cpus(recipe: Recipe) -> float:
    return recipe.worker_cpus if recipe.engine.actors else max(recipe.worker_cpus, recipe.engine.cpus)


def check_room(cpus: float, gpus: float, who: str, fields: tuple[str, str]) -> None:
    """What never becomes free would be waited for without end; a cluster may grow.

    Raises:
        InputError: names the one of ``fields`` that asks for more CPUs, or more GPUs, than this machine has.
    """
    import ray

    there = ray.cluster_resources()
    for name, asked, where in (("CPU", cpus, fields[0]), ("GPU", gpus, fields[1])):
        if asked > there.get(name, 0):
            lack = f"{who} {asked:g} {name}s, Ray has {there.get(name, 0):g}"
            if not os.environ.get("RAY_ADDRESS"):
                raise InputError(lack, None, None, where)
            say(f"  {lack}: waiting for the cluster to grow")
