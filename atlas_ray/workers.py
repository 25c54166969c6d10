"""Ray, started the quiet way, and a pool of actors that loses no finished work when one dies."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import envs

from .errors import WorkerFailedError

Task = TypeVar("Task")
Result = TypeVar("Result")
Job = Callable[[Any, dict[str, Any]], Result]


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
        ray.init(address="local", num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **options)


class _Worker:
    """An actor that runs jobs; ``kept`` lives as long as the actor, for models and the like."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def run(self, job: Job[Any], task: Any) -> Any:
        return job(task, self.kept)

    def pid(self) -> int:
        return os.getpid()


class ActorPool(Generic[Task, Result]):
    """Runs ``job(task, kept)`` for many tasks on Ray actors of one CPU each.

    An actor that dies is replaced and its task tried again; an exception of the job itself is raised here at once.

    Args:
        workers: actors; 0 runs everything in this process.
        retries: how often a task may lose its actor.
        on_retry: told (task, attempt, reason) of each lost actor.
    """

    def __init__(
        self, workers: int, retries: int = 3, on_retry: Callable[[Task, int, str], None] = lambda t, n, r: None
    ) -> None:
        self.workers, self.retries, self.on_retry = workers, retries, on_retry
        self._kept: dict[str, Any] = {}
        self._actors: list[Any] = []
        if workers:
            ensure_ray(workers)

    def _spawn(self) -> Any:
        import ray

        actor = ray.remote(_Worker).options(num_cpus=1, max_restarts=0).remote()
        self._actors.append(actor)
        return actor

    def map(self, job: Job[Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yield (task, result) as results come in, in no fixed order.

        Raises:
            WorkerFailedError: a task lost its actor more than ``retries`` times.
        """
        if not self.workers:
            for task in tasks:
                yield task, job(task, self._kept)
            return
        import ray

        queue: list[tuple[Task, int]] = [(task, 0) for task in tasks][::-1]
        while len(self._actors) < min(self.workers, len(queue)):
            self._spawn()
        idle = list(self._actors)
        flying: dict[Any, tuple[Any, Task, int]] = {}
        while queue or flying:
            while queue and idle:
                actor = idle.pop()
                task, attempt = queue.pop()
                flying[actor.run.remote(job, task)] = (actor, task, attempt)
            done, _ = ray.wait(list(flying), num_returns=1)
            actor, task, attempt = flying.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                self._actors.remove(actor)
                if attempt >= self.retries:
                    raise WorkerFailedError(f"a worker died {attempt + 1} times on the same task {task!r}") from error
                self.on_retry(task, attempt + 1, str(error).splitlines()[0])
                queue.append((task, attempt + 1))
                idle.append(self._spawn())
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            idle.append(actor)
            yield task, result

    def pids(self) -> list[int]:
        """Process ids of the live actors."""
        import ray

        return [ray.get(a.pid.remote()) for a in self._actors] if self._actors else []

    def close(self) -> None:
        """End the actors and free their CPUs, and the processes behind environments that were played in this one."""
        envs.drain()
        if self._actors:
            import ray

            for actor in self._actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor)
            self._actors = []

    def __enter__(self) -> ActorPool[Task, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def chunks(items: Sequence[Task], size: int) -> list[list[Task]]:
    """``items`` in lists of at most ``size``."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
