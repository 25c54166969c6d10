"""Critical steps by deviation: where a model's own move costs most against the expert's (ours).

``value`` asks from where the base model reaches the goal, so a base that never does has nothing to say. Here somebody
else plays on: at every step the base's greedy decision is taken in the place of the recorded action, and where the two
differ, both are played to the end of the episode by the same player. What they end with tells what the base's move
costs.

The player is the environment's own expert without any bias, told of all that was done before, where it can go on from
there; else a model (:func:`play_on_by_model`). The recorded rest of an episode is what the expert would do only as far
as it advises just that. Where it does for the whole rest, as for what it played itself, the rest stands for its branch
and costs nothing; where it does not (a habit, noise, another's trajectory), the expert plays on behind the recorded
move as well. So a recorded move that is worse than the base's is not marked for what the expert makes good later; and
one that is worse than what the expert itself would do there, as a habit or a slip is, is never marked: it would be
learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from .. import envs
from ..agents.attempts import Attempts
from ..agents.rollout import EpisodeResult, EpisodeStart, rollout
from ..agents.token_agent import Player
from ..data.records import Annotation, Step, Trajectory, max_critical_steps
from .replays import Begin, Ending, Replay, start_at, start_behind


@dataclass(frozen=True)
class Deviation:
    """A step at which the base would have done otherwise.

    ``expert`` and ``base`` are how the episode ends behind the move of each, played on by ``by``; None while nobody
    could play on. ``best`` is how it ends if the environment's expert plays on from there, where it would not have made
    the recorded move.
    """

    action: str
    thought: str | None = None
    expert: Ending | None = None
    base: Ending | None = None
    by: str | None = None
    best: Ending | None = None

    @property
    def is_open(self) -> bool:
        """Whether one of its two ends is not known."""
        return self.expert is None or self.base is None

    def cost(self, limit: int) -> float:
        """What the base's move costs: 1 for a success lost, -1 for one won; steps only where both succeed.

        These are a share of ``limit``, the most steps of an episode, so that they never outweigh a success. At most 0
        where the recorded move is no better than a slip.
        """
        assert self.expert is not None
        assert self.base is not None
        if self.expert.success and self.base.success:
            cost = (self.base.steps - self.expert.steps) / limit
        else:
            cost = float(self.expert.success) - float(self.base.success)
        return min(0.0, cost) if self.best and self.best.is_better_than(self.expert) else cost

    def words(self, model: str) -> str:
        """What the base would have done, and what it costs."""
        assert self.expert is not None
        assert self.base is not None
        if self.base.success:
            cost = f"success after {self.base.steps} steps in place of {self.expert.steps}"
        else:
            cost = f"no success, in place of one after {self.expert.steps} steps"
        return f"{model} would {self.action}: {cost}"

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From :meth:`row`."""
        ends = {side: Ending(**row[side]) for side in ("expert", "base", "best") if side in row}
        return cls(row["action"], row.get("thought"), by=row.get("by"), **ends)


@dataclass
class StepCount:
    """Environment steps: beyond the recorded episodes, and to bring environments to their states."""

    played: int = 0
    replayed: int = 0


@dataclass
class Found:
    """The deviations of a trajectory, by step, and the most steps that its episode may have.

    At the last ``beyond`` steps the model's context is full, so that it has no move of its own there.
    """

    deviations: dict[int, Deviation]
    limit: int
    beyond: int = 0

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        rows = {str(t): made.row() for t, made in self.deviations.items()}
        return {"limit": self.limit, "deviations": rows, **({"beyond": self.beyond} if self.beyond else {})}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From :meth:`row`."""
        made = {int(t): Deviation.from_row(each) for t, each in row["deviations"].items()}
        return cls(made, row["limit"], row.get("beyond", 0))

    @property
    def open(self) -> dict[int, Deviation]:
        """Those whose ends are not known."""
        return {t: deviation for t, deviation in self.deviations.items() if deviation.is_open}

    def costs(self, steps: int) -> list[float]:
        """What the base's move costs at each step; 0 where it is the expert's."""
        return [self.deviations[t].cost(self.limit) if t in self.deviations else 0.0 for t in range(steps)]


def greedy_decisions(
    agent: Player,
    trajectories: Sequence[Trajectory],
    replays: Mapping[str, Replay],
    begin: Begin,
    at: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[EpisodeResult]:
    """One step of the agent from every state of the trajectories, none where its context is full.

    Args:
        agent: decides.
        trajectories: recorded episodes.
        replays: of them, by id.
        begin: begins them.
        at: the steps before which it decides, by id; without it all.

    Yields:
        it; ``start.id`` is ``ID@STEP``.
    """

    def starts(t: Trajectory) -> Iterator[EpisodeStart]:
        for index in range(len(t.steps)) if at is None else at[t.id]:
            yield start_at(t, replays[t.id].states[index], index, f"{t.id}@{index}", begin)

    yield from rollout(agent, (starts(t) for t in trajectories), horizon=1)


class _Guided:
    """An episode in which an environment's expert is told of every step."""

    def __init__(self, env: envs.TextEnv, expert: envs.Expert) -> None:
        self.env, self.expert = env, expert
        self.over, self.success = False, False

    def step(self, action: str) -> None:
        self.expert.follow(action)
        _, _, terminated, truncated, info = self.env.step(action)
        self.over, self.success = terminated or truncated, bool(info["success"])

    @property
    def ending(self) -> Ending:
        return Ending(self.success, len(self.env.history))


class ExpertPlaysOn:
    """The expert of a trajectory's environment, which plays on from wherever it is asked to.

    Args:
        trajectory: a recorded episode.
        replay: of it.
        begin: begins it.
        cpu_seconds: CPU time of a move.
        spent: counts its steps.

    Raises:
        envs.EnvironmentDiedError: the episode is lost, in several attempts.
    """

    def __init__(
        self, trajectory: Trajectory, replay: Replay, begin: Begin, cpu_seconds: float, spent: StepCount
    ) -> None:
        self._trajectory, self._spec, self._limit = trajectory, replay.spec, replay.limit
        self._begin, self._cpu_seconds, self._spent = begin, cpu_seconds, spent
        self._actions = [step.action for step in trajectory.steps]
        self.advised: dict[int, envs.ExpertStep] = {}
        """What it would have done at each step, if it knows that."""
        self._known: dict[int, Ending | None] = {}
        """Ends of the episode behind recorded steps."""
        self._is_there = False
        self._look_on()

    def compare(self, base: Mapping[int, Step]) -> Found:
        """The deviations of moves of the base, by step; both ends of one are unknown where the expert gives up."""
        found = {}
        for t, move in base.items():
            made = Deviation(move.action, move.thought)
            if (ending := self._play_on(t, move.action)) is not None and (own := self._behind(t)) is not None:
                best = self._behind(t - 1) if self._does_otherwise(t) else None
                made = replace(made, expert=own, base=ending, by="expert", best=best)
            found[t] = made
        return Found(found, self._limit)

    def _behind(self, t: int) -> Ending | None:
        """The end if it plays on behind the recorded step ``t``, from the beginning for -1."""
        if t not in self._known:
            self._known[t] = self._play_on(t + 1)
        return self._known[t]

    @contextmanager
    def _guided(self) -> Iterator[_Guided]:
        env = self._begin(self._spec, self._trajectory.seed, self._trajectory.id).env
        try:
            expert = env.expert(self._cpu_seconds)
            self._is_there = True
            yield _Guided(env, expert)
        finally:
            envs.release(env)

    def _look_on(self) -> None:
        """Ask the expert before each recorded step what it would do."""
        for attempt in Attempts():
            with attempt, suppress(envs.ExpertGaveUpError), self._guided() as game:
                self.advised.clear()
                for t, action in enumerate(self._actions):
                    with suppress(envs.ExpertGaveUpError):
                        self.advised[t] = game.expert.act()
                    self._spent.replayed += 1
                    game.step(action)
                if game.over:
                    others = filter(self._does_otherwise, range(len(self._actions)))
                    self._known = dict.fromkeys(range(max(others, default=-1), len(self._actions)), game.ending)

    def _does_otherwise(self, t: int) -> bool:
        return t not in self.advised or self.advised[t].action != self._actions[t]

    def _play_on(self, t: int, action: str | None = None) -> Ending | None:
        """The end if it plays on from step ``t``, or behind another's ``action`` there; None where it gives up."""
        ending = None
        for attempt in Attempts() if self._is_there else ():
            with attempt, suppress(envs.ExpertGaveUpError), self._guided() as game:
                for before in self._actions[:t]:
                    self._spent.replayed += 1
                    game.step(before)
                following = action
                while not game.over:
                    self._spent.played += 1
                    game.step(game.expert.act().action if following is None else following)
                    following = None
                ending = game.ending
        return ending


def play_on_by_model(
    agent: Player, name: str, work: Iterable[tuple[Trajectory, Replay, Found]], begin: Begin, spent: StepCount
) -> Iterator[EpisodeResult]:
    """Play on behind both moves of every open deviation with a model, and note the ends in what was found.

    An episode that is lost leaves its deviation open.

    Yields:
        what the model played; ``start.id`` is ``ID@STEP#SIDE``.
    """
    ends: dict[str, Ending] = {}
    work = list(work)

    def starts(trajectory: Trajectory, replay: Replay, found: Found) -> Iterator[EpisodeStart]:
        for t, deviation in found.open.items():
            expert = trajectory.steps[t]
            moves = {"base": (deviation.action, deviation.thought), "expert": (expert.action, expert.thought)}
            for side, (action, thought) in moves.items():
                start = start_at(trajectory, replay.states[t], t, f"{trajectory.id}@{t}#{side}", begin)
                spent.played += not start.lost
                behind = start_behind(start, action, thought)
                if isinstance(behind, Ending):
                    ends[start.id] = behind
                else:
                    yield behind

    for finished in rollout(agent, (starts(*each) for each in work)):
        spent.played += len(finished.steps)
        if not finished.lost:
            steps = len(finished.start.steps) + len(finished.steps)
            ends[finished.start.id] = Ending(finished.success, steps)
        yield finished
    for trajectory, _, found in work:
        for t, deviation in found.open.items():
            expert, base = (ends.get(f"{trajectory.id}@{t}#{side}") for side in ("expert", "base"))
            if expert and base:
                found.deviations[t] = replace(deviation, expert=expert, base=base, by=name)


def select_by_deviation(trajectory: Trajectory, found: Found, fraction: float, model: str) -> Annotation:
    """At most ``max_critical_steps(fraction, T)`` steps at which the base's move costs most, and something at all.

    A success lost weighs more than any number of steps; the earlier wins ties. There may be no such step.
    """
    cost = found.costs(len(trajectory.steps))
    ranked = sorted((t for t in range(len(cost)) if cost[t] > 0), key=lambda t: (-cost[t], t))
    critical = sorted(ranked[: max_critical_steps(fraction, len(cost))])
    return Annotation(
        trajectory_id=trajectory.id,
        selector="deviation",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: found.deviations[t].words(model) for t in critical},
        model=model,
    )
