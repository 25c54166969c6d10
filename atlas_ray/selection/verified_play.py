"""What workers do for ``verified``: ask somebody else what to do, then let the agent play on behind both actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .. import envs
from ..agents.rollout import EpisodeResult, EpisodeStart, EpisodeStarter, rollout
from ..agents.spec import AgentSpec, EndpointSpec
from ..cluster.worker_state import WorkerState
from ..data.records import Step, Trajectory
from ..data.replies import summed
from .deviation import ExpertPlaysOn, StepCount, greedy_decisions
from .replays import Begin, Ending, Replay, ReplayState, Specs, Unreplayable, replay_all
from .verified import Branch, branch_starts

Model = AgentSpec | EndpointSpec
Part = tuple[Trajectory, Mapping[int, Step], tuple[Branch, ...]]
"""A trajectory, what else is done at its steps, and roll-outs of it."""


@dataclass(frozen=True)
class MoveRequest:
    """Trajectories, and the steps at which a model, or for None each environment's expert, is asked what else to do."""

    trajectories: tuple[Trajectory, ...]
    steps: Mapping[str, Sequence[int]]
    specs: Specs
    model: Model | None
    cpu_seconds: float


@dataclass(frozen=True)
class Work:
    """Roll-outs of trajectories, and the agent that plays them."""

    parts: tuple[Part, ...]
    specs: Specs
    model: Model


@dataclass
class Result:
    """Lines for the file, and why there are none of some trajectories."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def _counted(finished: EpisodeResult) -> dict[str, Any]:
    """What an episode of a model took: its calls, tokens where they are known, and replies."""
    said: dict[str, Any] = {"calls": len(finished.steps) + (finished.unanswered is not None)}
    said |= {"tokens": list(finished.tokens)} if finished.tokens else {}
    said |= {} if finished.computed is None else {"computed": finished.computed}
    return said | ({"replies": counts} if (counts := finished.replies.row()) else {})


def ask(task: MoveRequest, state: WorkerState) -> Iterator[Result]:
    """The first pass: what somebody else would do at the proposed steps."""
    result, begin = Result(), state.get_or_create(EpisodeStarter).begin
    replays, result.left_out = replay_all(task.trajectories, task.specs, begin)
    there = [t for t in task.trajectories if t.id in replays]
    for t in there:
        if t.success is False and replays[t.id].success:
            result.left_out[t.id] = Unreplayable("its environment ends it with a success, and it is said to be none")
    there = [t for t in there if t.id not in result.left_out]
    rows: dict[str, dict[str, Any]] = {
        t.id: {"id": t.id, "proposed": list(task.steps[t.id]), "moves": {}} for t in there
    }
    taken = {t.id: StepCount(replayed=len(t.steps)) for t in there}
    if task.model is None:
        for t in there:
            try:
                advised = ExpertPlaysOn(t, replays[t.id], begin, task.cpu_seconds, taken[t.id]).advised
            except envs.EnvironmentDiedError as error:
                result.left_out[t.id] = f"lost as the expert was asked: {error}"
                continue
            rows[t.id]["moves"] = {n: _move(advised[n]) for n in task.steps[t.id] if n in advised}
    else:
        counts: dict[str, list[dict[str, Any]]] = {}
        for finished in greedy_decisions(task.model.agent(state), there, replays, begin, task.steps):
            name, _, place = finished.start.id.rpartition("@")
            taken[name].played += len(finished.steps)
            if finished.lost or finished.steps:
                counts.setdefault(name, []).append(_counted(finished))
            if finished.error and (finished.lost or finished.steps):
                result.problems.append(f"{finished.start.id}: {finished.error}")
            if finished.lost:
                result.left_out[name] = "the other's move at one of its steps was lost"
            elif finished.steps:
                rows[name]["moves"][int(place)] = _move(finished.steps[0])
        for name, each in counts.items():
            rows[name] |= _together(each)
    for name, row in rows.items():
        spent = {"steps": taken[name].played, "replayed": taken[name].replayed}
        if name in result.left_out:  # it is asked for again, but was paid for
            row = {key: value for key, value in row.items() if key not in ("proposed", "moves")} | {"lost": True}
        result.rows.append(row | spent)
    yield result


def _move(step: Step | envs.ExpertStep) -> dict[str, str]:
    return {"action": step.action, **({"thought": step.thought} if step.thought else {})}


def _together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """:func:`_counted` of several episodes; tokens only where all are known."""
    said: dict[str, Any] = {"calls": sum(each["calls"] for each in counts)}
    if all("tokens" in each for each in counts):
        said["tokens"] = [sum(column) for column in zip(*(each["tokens"] for each in counts), strict=True)]
    if all("computed" in each for each in counts):
        said["computed"] = sum(each["computed"] for each in counts)
    replies = summed(each.get("replies", {}) for each in counts).row()
    return said | ({"replies": replies} if replies else {})


def play(task: Work, state: WorkerState) -> Iterator[Result]:
    """The second pass: the agent plays on behind both actions of every step.

    A trajectory is replayed once for all its roll-outs, which copy its states where the environment can be copied.
    Those of one number are played one after the other in one slot of the model, whose cache they share.
    """
    roll_outs = _RollOuts(task, state.get_or_create(EpisodeStarter).begin)
    for finished in rollout(task.model.agent(state), roll_outs.groups()):
        roll_outs.note(finished)
        yield roll_outs.taken()
    yield roll_outs.taken()


class _RollOuts:
    """Begins the roll-outs of a task, and writes down how they end."""

    def __init__(self, task: Work, begin: Begin) -> None:
        self._task, self._begin, self._result = task, begin, Result()
        self._playing: dict[str, tuple[Trajectory, Branch]] = {}
        self._replayed: dict[str, int] = {}
        """Steps that were replayed for an episode alone; of the first of a trajectory those of its replay, too."""

    def groups(self) -> Iterator[Iterator[EpisodeStart]]:
        """The roll-outs of one number of one trajectory, each group in the order of steps."""
        for trajectory, moves, branches in self._task.parts:
            replays, missing = replay_all([trajectory], self._task.specs, self._begin)
            self._result.left_out |= missing
            if missing:
                continue
            replay, ordered = replays[trajectory.id], sorted(branches)
            for branch in ordered:
                name = branch.episode(trajectory.id)
                self._playing[name] = trajectory, branch
                self._replayed[name] = branch.step if isinstance(replay.states[branch.step], ReplayState) else 0
            self._replayed[ordered[0].episode(trajectory.id)] += len(trajectory.steps)
            for _, group in groupby(ordered, lambda branch: branch.number):
                yield self._starts(trajectory, replay, moves, list(group))

    def _starts(
        self, trajectory: Trajectory, replay: Replay, moves: Mapping[int, Step], group: list[Branch]
    ) -> Iterator[EpisodeStart]:
        ended: dict[Branch, Ending] = {}
        yield from branch_starts(trajectory, replay, moves, group, self._begin, ended)
        for branch, ending in ended.items():
            self._write(branch.episode(trajectory.id), success=ending.success, steps=1, calls=0)

    def note(self, finished: EpisodeResult) -> None:
        """Write down a roll-out that the agent played."""
        name = finished.start.id
        if finished.error:
            self._result.problems.append(f"{name}: {finished.error}")
        what = {"lost": True, "again": finished.retryable} if finished.lost else {"success": finished.success}
        self._write(name, **what, steps=len(finished.steps) + (finished.start.lost is None), **_counted(finished))

    def _write(self, name: str, **what: Any) -> None:
        trajectory, branch = self._playing.pop(name)
        where = {"id": trajectory.id, "step": branch.step, "side": branch.side, "number": branch.number}
        self._result.rows.append({**where, **what, "replayed": self._replayed.pop(name)})

    def taken(self) -> Result:
        """What was written down since this was asked last."""
        result, self._result = self._result, Result()
        return result


def rest(task: Work, received: list[Result]) -> Work | None:
    """What is left of a task whose worker was lost after these results."""
    done = {key_of(row) for result in received for row in result.rows}
    parts = tuple((t, moves, tuple(b for b in branches if (t.id, b) not in done)) for t, moves, branches in task.parts)
    parts = tuple(part for part in parts if part[2])
    return Work(parts, task.specs, task.model) if parts else None


def key_of(row: Mapping[str, Any]) -> tuple[str, Branch]:
    """The trajectory and the roll-out that a line of the file is about."""
    return row["id"], Branch(row["number"], row["step"], row["side"])


@dataclass
class Cost:
    """What all lines of the file took, those of earlier starts too; tokens are None where some are not known."""

    steps: int = 0
    replayed: int = 0
    calls: int = 0
    read: int | None = 0
    written: int | None = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a line."""
        self.steps += row["steps"]
        self.replayed += row["replayed"]
        self.calls += row.get("calls", 0)
        if row.get("calls"):
            read, written = row.get("tokens", (None, None))
            self.read = None if self.read is None or read is None else self.read + read
            self.written = None if self.written is None or written is None else self.written + written

    def words(self) -> str:
        """In a line."""
        tokens = "" if self.read is None else f", {self.read:,} tokens in their prompts and {self.written:,} written"
        return f"{self.steps:,} environment steps, and {self.replayed:,} to replay; {self.calls:,} calls{tokens}"
