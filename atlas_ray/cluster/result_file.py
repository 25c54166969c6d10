"""Results of actors in a file, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..rundir.files import RunLog, append_jsonl, jsonl_rows, mend_jsonl
from .workers import ActorPool, Job, Result, Task, all_or_nothing

Row = dict[str, Any]


class ResultFile:
    """A JSONL file of results: each stands in it before anything else is made of it, so it is never computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[Row]:
        """What is there, one row at a time; a last line that a kill cut is removed first."""
        mend_jsonl(self.path)
        return jsonl_rows(self.path)

    def stream(
        self,
        pool: ActorPool[Task, Result],
        job: Job[Result],
        tasks: Iterable[Task],
        rows: Callable[[Task, Result], list[Row]],
        rest: Callable[[Task, list[Result]], Task | None] = all_or_nothing,
    ) -> Iterator[tuple[Task, Result]]:
        """:meth:`ActorPool.stream`, with the ``rows`` of each result appended to the file before it is yielded."""
        for task, result in pool.stream(job, tasks, rest):
            if found := rows(task, result):
                append_jsonl(self.path, found)
            yield task, result


def log_lost_workers(
    log: RunLog, stage: str, about: Callable[[Any], dict[str, Any]] = lambda task: {}
) -> Callable[[Any, int, str], None]:
    """``on_retry`` of a pool: each lost worker is an event of the run.

    Args:
        log: of the run.
        stage: of the run.
        about: what the event says of the task besides.
    """
    return lambda task, attempt, why: log.event(stage, "retried", **about(task), attempt=attempt, why=why)
