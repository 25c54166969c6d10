"""What a learned switch has to beat: fixed rules that decide which model acts (ours; LONDI's own are not known).

A policy says in ``needs`` what it wants to be told of a situation: ``encoded``, ``margin``, ``agrees``, ``past`` or
``proposal``. Every rule calls model ``action``, usually the last one, and can be put under a budget, which the guard
keeps for it. Those that are fitted to episodes: :mod:`atlas_ray.switching.fitted`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, TypeVar

from ..agents.rollout import decision_seed
from .policy import Situation

T = TypeVar("T")


@dataclass(frozen=True)
class Always:
    """One model everywhere, by its number: 0 is QUICK."""

    action: int
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """The same for all."""
        return [self.action] * len(situations)


@dataclass(frozen=True)
class Random:
    """A call of model ``action`` with probability ``rate``; the draw depends on episode and step alone.

    With ``first`` a call is of each model from that one to ``action`` alike.
    """

    rate: float
    seed: int = 0
    action: int = 1
    first: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """A draw for each."""
        draws = (random.Random(decision_seed(f"switch{self.seed}/{s.episode}", s.step)).random() for s in situations)
        return [self._called(draw) if draw < self.rate else 0 for draw in draws]

    def _called(self, draw: float) -> int:
        if self.first is None:
            return self.action
        return min(self.action, self.first + int(draw / self.rate * (self.action - self.first + 1)))


@dataclass(frozen=True)
class EveryKth:
    """A call at every step t where ``floor(rate (t + 1)) > floor(rate t)``: the first T steps hold floor(rate T) calls.

    With a rate of 1/k these are steps k - 1, 2k - 1 and so on, counted from 0.
    """

    rate: float
    action: int = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """By the number of the step alone."""
        # as it is written: 0.29 x 100 is 28.999... in floats
        rate = Fraction(str(self.rate))
        return [self.action * (math.floor(rate * (s.step + 1)) > math.floor(rate * s.step)) for s in situations]


@dataclass(frozen=True)
class Threshold:
    """A call where QUICK's margin, the lead of its likeliest action, is below ``tau``; see :func:`calibrate`."""

    tau: float
    action: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """By the margins, which must be there."""
        return [self.action * (required(s.margin, "margin") < self.tau) for s in situations]


@dataclass(frozen=True)
class Oracle:
    """A call wherever QUICK's action is not what the environment's expert would do. It is told; nobody else can know.

    No bound on what a switch can reach: the expert's action need not be the only good one, and DEEPTHINK may be wrong.
    """

    action: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"agrees"})

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """By what the expert would do, which must be there."""
        return [self.action * (not required(s.agrees, "agrees")) for s in situations]


@dataclass(frozen=True)
class Triggers:
    """A call where a hand-written condition holds, as in SwiftSage (arXiv 2305.17390); the conditions here are ours.

    Stuck: the observation was seen before in the episode. Error: the environment says that the last action cannot be
    done. Critical: QUICK is about to act with one of the beginnings in ``critical``, for which it is asked at every
    step. SwiftSage's are five steps without reward, an invalid action, a final or irreversible one, and an exception;
    its large model then plans several actions, here the next state is looked at anew.
    """

    critical: tuple[str, ...] = ()
    action: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """The past; QUICK's answer only where some of its actions are critical."""
        return frozenset({"past", "proposal"} if self.critical else {"past"})

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """By each one's past and QUICK's answer, which must be there."""
        return [self.action * self._holds(s) for s in situations]

    def _holds(self, situation: Situation) -> bool:
        past = required(situation.past, "past")
        if past.visits or past.refused:
            return True
        return bool(self.critical) and required(situation.proposal, "proposal").action.startswith(self.critical)


@dataclass(frozen=True)
class Shadowed:
    """Model ``action`` everywhere while QUICK is asked too, so that its episodes say where QUICK would do otherwise."""

    action: int
    needs: ClassVar[frozenset[str]] = frozenset({"proposal"})

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """The same for all."""
        return [self.action] * len(situations)


def calibrate(margins: Sequence[float], rate: float) -> float:
    """The ``tau`` below which a share ``rate`` of ``margins`` lies, as nearly as ties allow.

    Take the margins from episodes that QUICK played alone, other ones than those of the test. With calls in between,
    episodes visit other states, so the rate that such a threshold has in play can differ from ``rate``.

    Raises:
        ValueError: there are no margins.
    """
    if not margins:
        raise ValueError("margins: none to calibrate with")
    ordered = sorted(margins)
    wanted = min(round(rate * len(ordered)), len(ordered))
    above = math.nextafter(ordered[-1], math.inf)
    if wanted == len(ordered):
        return above
    below, through = bisect_left(ordered, ordered[wanted]), bisect_right(ordered, ordered[wanted])
    if wanted - below <= through - wanted:
        return ordered[wanted]
    return ordered[through] if through < len(ordered) else above


def required(value: T | None, name: str) -> T:
    """What a policy needs of a situation.

    Raises:
        ValueError: it is not there.
    """
    if value is None:
        raise ValueError(f"this policy needs {name!r} of every situation")
    return value
