"""What comes in from the workers while they play: rates for the eye, for ``metrics.jsonl`` and for the totals."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..cluster.worker_state import WorkerState
from ..data.replies import Replies
from ..engines import RemoteEngine
from ..engines.base import EngineCounters
from ..rundir.files import RunLog, jsonl_rows
from ..rundir.layout import RunLayout
from ..rundir.progress import Tracker, say
from .spec import OpenAgent
from .token_agent import Agent

_LOG_SECONDS = 10.0
_WINDOW = 30.0
_MARK = 0.25
_TOTALS = [f.name for f in fields(EngineCounters) if f.name != "id"]


@dataclass(frozen=True)
class CounterSample:
    """Totals at some moment: of an engine, and of a worker's agent.

    ``lost``: answers of engines that died, which the worker asked for again. ``replies``: outcomes of the replies that
    the agent's model wrote.
    """

    counters: EngineCounters
    worker: str
    lost: int
    replies: dict[str, int]


def sample_counters(agent: Agent, state: WorkerState) -> CounterSample:
    """The totals of a worker and of its agent now."""
    engine = agent.engine
    lost = engine.lost if isinstance(engine, RemoteEngine) else 0
    replies = {str(outcome): count for outcome, count in agent.tally.items()}
    return CounterSample(
        replace(engine.counters), f"{os.getpid()}/{state.get_or_create(OpenAgent).made}", lost, replies
    )


class ThroughputMeter:
    """Counts what comes in. ``steps/s``, ``tokens/s`` and the share of time that engines compute are of the last 30 s.

    Args:
        stage: of the run.
        log: where numbers go every 10 s.
        progress: the line or bar that the user watches.
        engines: how many compute at a time.
    """

    def __init__(self, stage: str, log: RunLog, progress: Tracker, engines: int) -> None:
        self.stage, self.log, self.progress, self.engines = stage, log, progress, engines
        self.episodes = self.steps = 0
        self._engines: dict[str, EngineCounters] = {}
        self._whole = EngineCounters()
        self._lost: dict[str, int] = {}
        self._replies: dict[str, dict[str, int]] = {}
        self._begun = self._logged = time.monotonic()
        self._past: deque[tuple[float, int, EngineCounters]] = deque()

    def add(self, seen: CounterSample, steps: int, about: str = "") -> None:
        """One more episode of so many steps is there."""
        self.episodes += 1
        self.steps += steps
        known = self._engines.get(seen.counters.id)
        if known is None or seen.counters.answered > known.answered:  # workers of one engine report in no order
            self._engines[seen.counters.id] = seen.counters
            for name in _TOTALS:
                more = getattr(seen.counters, name) - (getattr(known, name) if known else 0)
                setattr(self._whole, name, getattr(self._whole, name) + more)
        if seen.lost > self._lost.get(seen.worker, 0):
            lost = seen.lost - self._lost.get(seen.worker, 0)
            self._lost[seen.worker] = seen.lost
            self.log.event(self.stage, "engine lost", worker=seen.worker, answers=lost)
        self._replies[seen.worker] = seen.replies
        now = time.monotonic()
        if len(self._past) > 1 and now - self._past[-2][0] < _MARK:
            self._past.pop()
        self._past.append((now, self.steps, replace(self._whole)))
        while now - self._past[0][0] > _WINDOW:
            self._past.popleft()
        rates = self.rates()
        note = (
            f"{rates['steps_per_second']:.0f} steps/s · {rates['tokens_per_second']:.0f} tokens/s · "
            f"engine {rates['engine_busy']:.0%}"
        )
        self.progress.advance(1, f"{note} · {about}" if about else note)
        if now - self._logged > _LOG_SECONDS:
            self._logged = now
            self.log.metric(self.stage, episodes=self.episodes, **rates)

    def rates(self) -> dict[str, float]:
        """Steps and tokens a second and the engines' share of time at work, of late."""
        (first, steps, then), (last, _, now) = self._past[0], self._past[-1]
        seconds = max(last - first, 1.0)
        return {
            "steps_per_second": round((self.steps - steps) / seconds, 2),
            "tokens_per_second": round((now.computed_tokens - then.computed_tokens) / seconds, 1),
            "engine_busy": round(min(1.0, (now.busy - then.busy) / seconds / self.engines), 3),
        }

    def totals(self) -> dict[str, Any]:
        """What this process saw: episodes, steps, seconds, tokens, and answers that were asked for again."""
        whole, replies = self._whole, Counter[str]()
        for found in self._replies.values():
            replies.update(found)
        return {
            "episodes": self.episodes,
            "steps": self.steps,
            "seconds": round(time.monotonic() - self._begun, 2),
            "engines": self.engines,
            "busy_seconds": round(whole.busy, 2),
            "prompt_tokens": whole.prompt_tokens,
            "cached_tokens": whole.cached_tokens,
            "fed_tokens": whole.computed_tokens,
            "answers_asked_again": sum(self._lost.values()),
            **{f"replies_{outcome.replace(' ', '_')}": count for outcome, count in replies.items()},
        }


@contextmanager
def replies_told(
    log: RunLog, stage: str, count: Callable[[], Replies], said: Callable[[str], None] = say, **about: Any
) -> Iterator[None]:
    """At the end of the block, whatever it is, say and note as an event what became of the replies of models.

    Args:
        log: of the run.
        stage: of the run.
        count: all replies of the stage, those of earlier starts of the run too; nothing is said where there are none.
        said: told the line.
        **about: stands in the event besides.
    """
    try:
        yield
    finally:
        if replies := count():
            log.event(stage, "replies", **about, **replies.row())
            said(f"  replies of the models: {replies.words()}")


def summary(totals: dict[str, Any], run_dir: Path, stage: str) -> str:
    """Totals in a line, with what all runs of this stage had to do again."""
    seconds, again = max(totals["seconds"], 1e-9), Counter[str]()
    for row in jsonl_rows(RunLayout(run_dir).events):
        if row["stage"] == stage:
            again[row["event"]] += row.get("answers", 1)
    parts = [
        f"{totals['episodes']} episodes, {totals['steps']:,} steps ({totals['steps'] / seconds:.0f}/s)",
        f"{totals['fed_tokens']:,} tokens through the model ({totals['fed_tokens'] / seconds:.0f}/s)",
        f"{totals['cached_tokens'] / max(1, totals['prompt_tokens']):.0%} of the prompts from the cache",
        f"engine {totals['busy_seconds'] / seconds / totals['engines']:.0%} busy",
    ]
    names = {
        "retried": "workers lost",
        "engine lost": "engine answers asked again",
        "lost episode": "episodes lost to their environment",
        "resumed": "times resumed",
    }
    parts += [f"{again[event]} {name}" for event, name in names.items() if again[event]]
    return " · ".join(parts)
