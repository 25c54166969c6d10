"""Counts of models' replies by outcome, and the limit at which a stage stops because too many answers are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from ..errors import AtlasError, EndpointError

ReplyOutcome = Literal[
    "ok",
    "no action",
    "not admissible",
    "not valid",
    "empty",
    "cut off",
    "too long",
    "invented",
    "asked again",
    "fallen back",
    "lost",
]
_BY_CHANCE = 2
"""Up to so many lost answers are allowed in any case, unless the limit is 0: they say nothing about an endpoint."""
_EARLY = 10
"""From so many lost answers on, a stage may stop before all episodes are played."""


class Replies(Counter[str]):
    """Counts of replies by outcome, for models that write; those that score the offered actions have none.

    Each reply counts once: ``ok``, ``no action``, ``not admissible``, ``empty``, ``cut off`` (at the limit, in an
    action) or ``too long``. Of these, ``invented`` went on with an observation of their own, which was cut. A decision
    may take several: ``asked again`` counts those that followed one that could not be used. ``fallen back``: decisions
    whose last reply went to the environment as it was. ``lost``: decisions without an answer, whose episode ends and
    is not scored; where a server answered nothing there is no reply to count beside it.

    Of the oracle's answers, ``ok`` were taken, ``not admissible`` marks a step that is not there, and ``not valid``
    breaks another of its rules.
    """

    @property
    def answers(self) -> int:
        """Decisions that were asked for."""
        return self["ok"] + self["fallen back"] + self["lost"]

    def add(self, other: Mapping[str, int]) -> Self:
        """Add the counts of another."""
        for name, count in other.items():
            self[name] += count
        return self

    def row(self) -> dict[str, int]:
        """The counts above 0, in the order of :data:`ReplyOutcome`, ready for JSON."""
        return {name: self[name] for name in get_args(ReplyOutcome) if self[name]}

    def words(self) -> str:
        """``120 ok, 3 empty, 1 lost``."""
        return ", ".join(f"{count:,} {name}" for name, count in self.row().items())


def summed(parts: Any) -> Replies:
    """All of these counts together."""
    whole = Replies()
    for part in parts:
        whole.add(part)
    return whole


def because(error: EndpointError) -> str:
    """Why there is no answer, in one line."""
    return " ".join(str(error).split())


class Losses:
    """The share of answers that each model lost, and the limit on it.

    Args:
        most: the share that may be lost, ``max_lost_answers`` of the recipe.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.counts: dict[str, Replies] = {}
        self._last: dict[str, str] = {}

    def note(self, who: str, replies: Mapping[str, int], reason: str | None = None) -> None:
        """Count answers of a model; ``reason`` says why the last one was lost."""
        self.counts.setdefault(who, Replies()).add(replies)
        if reason is not None:
            self._last[who] = reason

    def over(self, who: str) -> bool:
        """Whether a model lost more answers than the limit allows."""
        counts = self.counts.get(who, Replies())
        return counts["lost"] > self.most * counts.answers + (_BY_CHANCE if self.most else 0)

    def check(self, early: bool = False) -> None:
        """Stop the stage if a model lost too many answers.

        Args:
            early: more answers are to come, so a few lost ones are not enough to stop.

        Raises:
            AtlasError: a model lost too many; says why, and which field to change.
        """
        for who, counts in self.counts.items():
            if self.over(who) and not (early and counts["lost"] < _EARLY):
                raise AtlasError(
                    f"{who}: {counts['lost']:,} of {counts.answers:,} answers are none, and max_lost_answers allows "
                    f"{self.most:.0%}. The last one: {self._last.get(who, 'no reason was given')}"
                )
