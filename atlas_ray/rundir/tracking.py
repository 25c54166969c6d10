"""The rows of ``metrics.jsonl`` on their way to TensorBoard and W&B, each once, even if the run is killed and goes on.

``.tracked.json`` in the run directory remembers how far each tracker is. What a killed process wrote beyond that is cut
off TensorBoard's files. W&B keeps rows in memory for a while, so they are remembered only when its run has ended well;
after a kill its server knows which it has. Offline nobody knows: what a killed process left in ``RUN/wandb`` is all in
the next one's folder too, and need not be synced.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from .files import RunLog, read_json, recover_jsonl, write_json
from .following import Tail, polling
from .layout import RunLayout
from .progress import say

_POLL_SECONDS = 2.0
_FINISH = 300.0  # seconds that W&B may go on uploading at the end; without a limit it waits for the network for ever


class _Point(NamedTuple):
    """A row: its number, the byte at which it ends, its stage, its step and its values by tag."""

    number: int
    end: int
    stage: str
    step: int
    values: dict[str, float]


def check(trackers: Sequence[str]) -> None:
    """Import what the trackers need.

    Raises:
        InputError: W&B is not installed or has no key.
    """
    if "tensorboard" in trackers:
        import_module("tensorboardX")
    if "wandb" in trackers:
        try:
            # W&B leaves a folder of its own name wherever it runs, and that imports as an empty package
            there = hasattr(import_module("wandb"), "init")
        except ImportError:
            there = False
        if not there:
            raise InputError("wandb is not installed: pip install 'atlas-ray[track]'", None, None, "trackers")
        # without a key W&B would ask the terminal for one, from a thread
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
        if not offline and not os.environ.get("WANDB_API_KEY"):
            raise InputError("wandb has no key: set WANDB_API_KEY, or WANDB_MODE=offline", None, None, "trackers")


class _TensorBoard:
    """Event files in ``RUN/tensorboard``, one a process, named by the byte of ``metrics.jsonl`` at which it begins.

    Not tensorboardX's ``SummaryWriter`` with ``purge_step``. Its flush does not wait for the thread that writes, so
    nobody knows what is on disk. A full disk ends that thread, and then the process never ends. A purge hides every
    series from one step on, while each stage of a run counts its own steps.
    """

    def __init__(self, run_dir: Path, state: dict[str, Any], name: str, config: dict[str, Any]) -> None:
        module = import_module("tensorboardX")
        folder = run_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        if (folder / state.get("file", "none")).exists():
            os.truncate(folder / state["file"], state["size"])
        self.path = folder / f"events.out.tfevents.{state['offset']:012d}"
        self.state, self.event, self.file = state, module.proto.event_pb2.Event, module.RecordWriter(str(self.path))
        self._write(file_version="brain.Event:2")

    def _write(self, **event: Any) -> None:
        self.file.write(self.event(wall_time=time.time(), **event).SerializeToString())

    def send(self, points: list[_Point]) -> None:
        for point in points:
            values = [{"tag": tag, "simple_value": value} for tag, value in point.values.items()]
            self._write(step=point.step, summary={"value": values})
        self.file.flush()
        self.state |= {"offset": points[-1].end, "file": self.path.name, "size": self.path.stat().st_size}

    def close(self, exit_code: int) -> None:
        self.file.close()


class _Wandb:
    """A W&B run, gone on with if it is known there. Stages keep their own steps, since W&B's may never go back."""

    def __init__(self, run_dir: Path, state: dict[str, Any], name: str, config: dict[str, Any]) -> None:
        module = import_module("wandb")
        self.run = module.init(
            project=os.environ.get("WANDB_PROJECT", "atlas-ray"),
            id=state["id"],
            name=name,
            config=config,
            dir=str(run_dir),
            resume="allow",
            reinit="create_new",
            settings=module.Settings(console="off", finish_timeout=_FINISH, finish_timeout_raises=True),
        )
        self.state, self.end = state, 0
        self.stages: set[str] = set()

    def send(self, points: list[_Point]) -> None:
        self.end = points[-1].end
        for point in points:
            axis = f"{point.stage}/step"
            if point.stage not in self.stages:
                self.run.define_metric(f"{point.stage}/*", step_metric=axis)
                self.stages.add(point.stage)
            if point.number >= self.run.starting_step:
                self.run.log({**point.values, axis: point.step}, step=point.number, commit=True)

    def close(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        self.state["offset"] = self.end


_TRACKERS: dict[str, type[_TensorBoard | _Wandb]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def _read(path: Path, log: RunLog) -> Iterator[list[_Point]]:
    """What is new in the file, each time; from its first row on, so that a resumed run counts as an unbroken one."""
    tail, position, number = Tail(path, 0), 0, 0
    rows: Counter[str] = Counter()
    while True:
        points = []
        for line in tail.lines():
            position += len(line)
            number += 1
            try:
                row = json.loads(line)
            except ValueError as error:
                log.event("tracking", "dropped", row=number, why=str(error))
                continue
            stage, seed = row.pop("stage"), row.pop("seed", None)
            labels = [v for v in row.values() if isinstance(v, str)] + ([] if seed is None else [f"s{seed}"])
            series = "/".join([stage, *labels])
            step = row.pop("step", rows[series])
            rows[series] += 1
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            if numbers:
                values = {"/".join([stage, key, *labels]): float(value) for key, value in numbers.items()}
                points.append(_Point(number, position, stage, step, values))
        yield points


class _Follower:
    def __init__(self, run_dir: Path, trackers: Sequence[str], name: str, config: dict[str, Any]) -> None:
        self.about, self.run_dir, self.log = (name, config), run_dir, RunLog(run_dir)
        self.news = _read(RunLayout(run_dir).metrics, self.log)
        self.exit_code = 1
        self.memory = RunLayout(run_dir).tracking_state
        self.state: dict[str, Any] = read_json(self.memory) if self.memory.exists() else {}
        self.trackers: dict[str, _TensorBoard | _Wandb | None] = dict.fromkeys(trackers)  # opened for their first row
        for tracker in list(self.trackers):
            self.state.setdefault(tracker, {"offset": 0, "id": uuid.uuid4().hex[:8]})
            with self._harmless(tracker):
                check([tracker])  # imports, before there is a thread: two that import torch at once may see half of it
        write_json(self.memory, self.state)

    @contextmanager
    def _harmless(self, tracker: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.trackers.pop(tracker)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            why = why.replace(os.environ.get("WANDB_API_KEY") or "\0", "(key)")
            say(f"  {tracker} FAILED, the run goes on without it: {why}")
            with suppress(OSError):
                self.log.event("tracking", "tracker failed", tracker=tracker, why=why)

    def close(self) -> None:
        for name, tracker in list(self.trackers.items()):
            with self._harmless(name):
                if tracker:
                    tracker.close(self.exit_code)
                    write_json(self.memory, self.state)

    def forward(self) -> None:
        points = next(self.news)
        for name, tracker in list(self.trackers.items()):
            state = self.state[name]
            if new := [p for p in points if p.end > state["offset"]]:
                with self._harmless(name):
                    self.trackers[name] = tracker = tracker or _TRACKERS[name](self.run_dir, state, *self.about)
                    tracker.send(new)
                    write_json(self.memory, self.state)


@contextmanager
def follow(run_dir: Path, trackers: Sequence[str], name: str, config: dict[str, Any]) -> Iterator[None]:
    """Send the rows of ``RUN/metrics.jsonl`` to the trackers while the block runs, and what is left when it ends.

    A tracker that fails is left out, loudly; the block never hears of it. ``config`` is the resolved recipe.
    """
    if not trackers:
        yield
        return
    RunLayout(run_dir).metrics.touch()
    with suppress(ValueError):  # half a line that a kill left would swallow the next row
        recover_jsonl(RunLayout(run_dir).metrics)
    follower = _Follower(run_dir, trackers, name, config)
    try:
        with polling(follower.forward, _POLL_SECONDS):
            yield
        follower.exit_code = 0
    finally:
        follower.close()
