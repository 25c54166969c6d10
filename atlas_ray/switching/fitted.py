"""Rules that are fitted to episodes on training seeds, without a reward to learn from: what RL has to beat (ours).

Both are a logistic regression on hashed words, see :mod:`atlas_ray.switching.logistic`. A rule calls where its number
is below ``tau``; which one keeps to a rate is said by :func:`atlas_ray.switching.baselines.calibrate` and
:func:`calibrate_escalation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..models.hashed_words import Vector
from .baselines import required
from .features import EXTRA
from .logistic import chance, read
from .policy import Situation, SwitchConfig, SwitchPolicy
from .signals import Weights
from .spending import Unit


def doubting_switch(
    signal: str,
    weights: tuple[float, ...],
    tau: float,
    action: int = 1,
    budget: float | None = None,
    unit: Unit = "calls",
    run_length: int = 1,
) -> SwitchPolicy:
    """A switch that calls where QUICK's chance to do what DEEPTHINK would is below ``tau``: linear, and not learned.

    The chance is fitted to the steps of DEEPTHINK's successes, in which QUICK was asked too. A step has the label
    "downgrade" where QUICK says the same.

    Args:
        signal: the chance: ``classifier`` reads the state, ``verifier`` QUICK's answer too.
        weights: of the chance, see :mod:`atlas_ray.switching.logistic`.
        tau: rounded up to float32, in which the chance is read.
        action: the model that it calls, which is the last one.
        budget: of an episode.
        unit: of the budget.
        run_length: steps of a call.
    """
    below = np.float32(tau)
    if float(below) < tau:  # (numpy would compare in float32)
        below = np.nextafter(below, np.float32(np.inf))
    # half of it for models between the two, so that none of them is ever the largest
    shares = np.array([0, *[0.5] * (action - 1), 1], np.float32)
    weight = np.zeros((action + 1, 1 + EXTRA), np.float32)
    weight[:, 0] = -shares
    bias = shares * below
    own = Weights(**{signal: tuple(map(float, weights))})
    config = SwitchConfig(
        *(1, (), action + 1),
        budget=budget,
        unit=unit,
        signals=(signal,),
        run_length=run_length,
        classifier=own.classifier,
        verifier=own.verifier,
    )
    return SwitchPolicy(config, {"layers.0.weight": weight, "layers.0.bias": bias})


@dataclass(frozen=True)
class EscalateOnce:
    """One switch for the rest of the episode, where after ``after`` steps QUICK's chance to succeed is below ``tau``.

    The idea is SWE-Router's (arXiv 2607.00053), which values the first turns and then hands over, or does not.
    """

    weights: tuple[float, ...]
    tau: float
    after: int
    action: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"past"})

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """By the first steps of each, whatever came later."""
        return [self.action * (s.step >= self.after and self._value(s) < self.tau) for s in situations]

    def _value(self, situation: Situation) -> float:
        return chance(self.weights, _seen(situation, self.after))


def _seen(situation: Situation, step: int) -> Vector:
    past = required(situation.past, "past")
    goal = situation.text.removesuffix(f"\n{past.observations[-1]}")
    then = past.until(step)
    return read(f"{goal}\n{then.observations[-1]}", then)


class Branch(NamedTuple):
    """An episode that QUICK began: its value then, and the steps and calls to its end by QUICK and by DEEPTHINK."""

    value: float
    steps: int
    escalated_steps: int
    calls: int


def calibrate_escalation(branches: Sequence[Branch], rate: float, budget: int | None, other_steps: int = 0) -> float:
    """The ``tau`` below which escalated episodes have calls at a share of all steps that is nearest to ``rate``.

    Args:
        branches: episodes that reached the step at which is decided.
        rate: share of the steps.
        budget: most calls of an episode.
        other_steps: steps of episodes that ended before.

    Raises:
        ValueError: no episode reached that step.
    """
    if not branches:
        raise ValueError("branches: none to calibrate with")
    ordered = sorted(branches)
    steps, calls = other_steps + sum(b.steps for b in ordered), 0
    best, off = ordered[0].value, rate
    for number, branch in enumerate(ordered):
        steps += branch.escalated_steps - branch.steps
        calls += branch.calls if budget is None else min(branch.calls, budget)
        last = number + 1 == len(ordered)
        if not last and ordered[number + 1].value == branch.value:
            continue  # equal values escalate together
        if abs(calls / steps - rate) < off:
            off = abs(calls / steps - rate)
            best = math.inf if last else ordered[number + 1].value
    return best
