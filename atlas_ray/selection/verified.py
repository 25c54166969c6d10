"""Verified critical steps: where another action turns a failed episode of the agent into a success.

After CSO (arXiv 2602.03412, as far as its abstract says): steps of failed runs are proposed, an expert proposes an
alternative, the branch is played to its end and kept only if failure turns into success. Ours: who proposes and how
many, that one action is replaced and the agent itself plays on, the control, and when a step counts as verified.

The recorded failure is one sample of what the agent does from there, so it is no evidence that its action was at fault.
The control is: the agent's own action, played on as often as the other one. A step is verified where the other action
succeeds often enough, and more often than the agent's own by an exact test.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..agents.rollout import EpisodeStart
from ..data.pairs import Pair, Turn
from ..data.records import Annotation, Step, Trajectory
from .oracle_task import MISTAKE
from .replays import Begin, Ending, Replay, start_at, start_behind

Side = Literal["alternative", "agent"]
SIDES: tuple[Side, Side] = ("alternative", "agent")
"""Whose action is made at a step before the agent plays on; the second is the control."""


@dataclass(frozen=True, order=True)
class Branch:
    """One roll-out: the how manieth, behind which step, and whose action is made there."""

    number: int
    step: int
    side: Side

    def episode(self, trajectory_id: str) -> str:
        """The id of its episode, from which its draws follow."""
        return f"{trajectory_id}@{self.step}#{self.side}/{self.number}"


def branches_of(steps: Sequence[int], rollouts: int) -> list[Branch]:
    """All roll-outs behind these steps."""
    return [Branch(number, step, side) for number in range(rollouts) for step in steps for side in SIDES]


def chance_of(alternative: int, agent: int, rollouts: int) -> float:
    """One-sided p of Fisher's exact test.

    The probability of at least so many successes behind the alternative, of ``rollouts``, if both actions are as good
    and ``alternative + agent`` of all ``2 * rollouts`` succeed. It is at most p exactly where the exact lower bound of
    the odds ratio, with a confidence of 1 - p, is at least 1.
    """
    both = alternative + agent
    ways = sum(
        math.comb(rollouts, n) * math.comb(rollouts, both - n) for n in range(alternative, min(rollouts, both) + 1)
    )
    return ways / math.comb(2 * rollouts, both)


@dataclass(frozen=True)
class Criterion:
    """When a step is verified (ours)."""

    rollouts: int
    wins: int
    significance: float

    def holds(self, evidence: Evidence) -> bool:
        """Whether the alternative succeeds ``wins`` times or more, with a p of at most ``significance``."""
        return evidence.alternative >= self.wins and evidence.chance <= self.significance


@dataclass(frozen=True)
class Evidence:
    """Of so many roll-outs behind either action, how many succeeded."""

    rollouts: int
    alternative: int
    agent: int

    @property
    def chance(self) -> float:
        """:func:`chance_of` it."""
        return chance_of(self.alternative, self.agent, self.rollouts)


@dataclass(frozen=True)
class Tried:
    """A step at which another action was tried, by whom, and what came of it."""

    step: int
    move: Step
    evidence: Evidence

    def words(self, trajectory: Trajectory, by: str) -> str:
        """What was done otherwise, and the evidence."""
        e = self.evidence
        return (
            f"{by} would {self.move.action}: {e.alternative} of {e.rollouts} succeed, and {e.agent} of {e.rollouts} "
            f"after {trajectory.steps[self.step].action} (p = {e.chance:.2g})"
        )


def proposed_steps(trajectory: Trajectory, proposal: Annotation | None, most: int, seed: int) -> tuple[int, ...]:
    """The steps of a trajectory to try.

    Args:
        trajectory: a failed episode.
        proposal: of another selector, whose marks are taken; where it gives labels, the mistakes. None: all steps.
        most: of more, as many are drawn, by seed and trajectory id only.
        seed: of the run.
    """
    if proposal is None:
        steps: Sequence[int] = range(len(trajectory.steps))
    elif proposal.categories and MISTAKE in proposal.categories.values():
        steps = sorted(t for t, label in proposal.categories.items() if label == MISTAKE)
    else:
        # labels without a mistake: its marks are the steps that are good
        steps = () if proposal.selector == "mistakes" else proposal.critical
    steps = [t for t in steps if trajectory.steps[t].action.strip()]
    if len(steps) > most:
        steps = random.Random(f"verified/{seed}/{trajectory.id}").sample(steps, most)
    return tuple(sorted(steps))


def other_moves(trajectory: Trajectory, moves: Mapping[int, Step]) -> dict[int, Step]:
    """The moves that are another action than the recorded one, up to white space, in the order of steps."""
    return {
        t: move
        for t, move in sorted(moves.items())
        if move.action.strip() and move.action.split() != trajectory.steps[t].action.split()
    }


def branch_starts(
    trajectory: Trajectory,
    replay: Replay,
    moves: Mapping[int, Step],
    branches: Sequence[Branch],
    begin: Begin,
    ended: dict[Branch, Ending],
) -> Iterator[EpisodeStart]:
    """A start behind the action of each branch, in their order; ``ended`` gets those that end the episode at once.

    In the order of steps each one's history begins with that of the one before, up to its step.
    """
    for branch in branches:
        t = branch.step
        move = moves[t] if branch.side == "alternative" else trajectory.steps[t]
        start = start_at(trajectory, replay.states[t], t, branch.episode(trajectory.id), begin)
        behind = start_behind(start, move.action, move.thought)
        if isinstance(behind, Ending):
            ended[branch] = behind
        else:
            yield behind


def select_by_verified(trajectory: Trajectory, tried: Sequence[Tried], criterion: Criterion, by: str) -> Annotation:
    """The steps that are verified, with the evidence as reason; there may be none."""
    verified = [each for each in tried if criterion.holds(each.evidence)]
    return Annotation(
        trajectory_id=trajectory.id,
        selector="verified",
        fraction=1.0,
        critical=tuple(each.step for each in verified),
        reasons={each.step: each.words(trajectory, by) for each in verified},
        model=by,
    )


def pair_of(trajectory: Trajectory, tried: Tried, by: str, played_by: str) -> Pair:
    """The alternative's turn, preferred to the agent's on the same history."""
    step, e = trajectory.steps[tried.step], tried.evidence
    return Pair(
        id=f"{trajectory.id}/{tried.step}",
        episode=trajectory.id,
        step=tried.step,
        env=trajectory.env,
        task=trajectory.task,
        seed=trajectory.seed,
        instruction=trajectory.instruction,
        source=trajectory.source,
        history=trajectory.steps[: tried.step],
        observation=step.observation,
        chosen=Turn(thought=tried.move.thought, action=tried.move.action, actor=by),
        rejected=Turn(thought=step.thought, action=step.action, actor=step.actor),
        evidence={
            "selector": "verified",
            "rollouts": e.rollouts,
            "chosen_successes": e.alternative,
            "rejected_successes": e.agent,
            "p": e.chance,
            "played_by": played_by,
        },
    )
