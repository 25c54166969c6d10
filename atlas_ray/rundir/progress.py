"""Long work shows where it is and when it will end: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import logs

console = Console(stderr=False, highlight=False, soft_wrap=True)
_LINE_SECONDS = 10.0


def say(message: str) -> None:
    """A line for the user, taken literally (no markup). A full disk behind stdout loses the line, not the run."""
    logs.record(message)
    try:
        console.print(message, markup=False)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Tracker:
    """Counts finished work; make one with :func:`track`."""

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        self.label, self.total, self.done, self._bar = label, total, done, bar
        # the clock starts with the first piece that is done: starting actors says nothing about the rest
        self._begun, self._first, self._said = 0.0, done, time.monotonic()
        self._task = bar.add_task(label, total=total, completed=done, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more are done."""
        self.done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if not self._begun:
            self._begun, self._first = now, self.done
        elif now - self._said >= _LINE_SECONDS and self.done < self.total:
            self._said = now
            since, seconds = self.done - self._first, now - self._begun
            known = since and seconds > _LINE_SECONDS / 2
            left = seconds / max(1, since) * (self.total - self.done)
            parts = [f"{self.done}/{self.total}" + (f", about {duration(left)} left" if known else "")]
            say(f"  {self.label}: {' · '.join(parts + ([note] if note else []))}")


@contextmanager
def track(label: str, total: int, done: int = 0) -> Iterator[Tracker]:
    """Progress of ``total`` pieces of work, ``done`` of which an earlier run did."""
    if not console.is_terminal:
        yield Tracker(label, total, done, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Tracker(label, total, done, bar)
