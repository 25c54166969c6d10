"""``rounds.json``: rounds of switching and tuning, their scores on the same test episodes, and which is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..rundir.files import write_json
from .paired import Difference
from .records import load_json
from .results import Share

NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


class System(_Strict):
    """A way to act: one model throughout, or a switch. Means are per episode, over all training seeds."""

    name: str
    """``always-quick``, ``always-deepthink``, or the switch's name as in ``results.json``."""
    success: Share
    """Share of episodes that succeeded."""
    ci95: tuple[Share, Share]
    """Its 95 % interval, for new episodes and training seeds."""
    calls: NonNegative
    """Steps of any model but QUICK."""
    flops: NonNegative
    """FLOPs of all models; 0 where they are not known."""
    seconds: NonNegative
    """Wall time of the models."""
    money: NonNegative
    """What endpoints charged, in the currency of the recipe's prices."""
    episodes: Annotated[int, Field(ge=1)]
    """Episodes, over all training seeds."""


class LevelCollected(_Strict):
    """Episodes of one level, mean over training seeds."""

    episodes: NonNegative
    """Episodes that ended."""
    kept: NonNegative
    """Successful ones, from which QUICK learns."""


class Collected(LevelCollected):
    """What a round collected with its switch: means over training seeds, of this round alone."""

    calls: NonNegative
    """Calls in all that were played: the price of the lesson."""
    levels: dict[str, LevelCollected]
    """Of each level."""


class TunedArm(_Strict):
    """One way to tune QUICK, which then plays the test episodes alone. Counts are means over training seeds."""

    arm: str
    """As in the recipe; the first goes on into the next switch."""
    success: Share
    """Share of episodes that succeeded without any call."""
    ci95: tuple[Share, Share]
    """Its 95 % interval, for new episodes and training seeds."""
    trajectories: NonNegative
    """That its last training read."""
    steps_share: Share
    """Share of their steps that carried the loss."""
    trained_tokens: NonNegative
    """Tokens that carried the loss, over all epochs and all rounds that this QUICK comes from."""
    calls_spent: NonNegative
    """Calls of the larger models in all episodes that were played to collect what it learned from, failures too."""
    first_above: Difference | None
    """Success of the first arm less this one's, on the same episodes; null for the first."""
    first_above_all: Difference | None
    """The same with an interval so wide that those of all arms of the round hold together."""


class Comparison(_Strict):
    """Two systems on the same episodes: mean differences with 95 % intervals, over episodes and training seeds."""

    success: Difference
    calls: Difference


class Round(_Strict):
    """One round. Number 0 is the recipe's own switch with the QUICK that nobody has tuned yet."""

    round: Count
    quick: System
    """QUICK alone, on the test episodes."""
    switch: System
    """The switch, on the test episodes."""
    policy: str
    """Which of the two acts in this round."""
    alone: Comparison
    """QUICK alone less the switch, on the episodes that judge."""
    over: Count | None
    """Number of the round kept before, with which it is compared; null for round 0."""
    gained: Comparison | None
    """This round's policy less that of ``over``, on the episodes that judge; null for round 0."""
    on_test: Comparison | None
    """The same on the test episodes."""
    kept: bool
    """Whether it gained enough to be kept."""
    against_first: Comparison | None
    """This round's policy less that of round 0, on the test episodes; null for round 0."""
    learned: Difference | None
    """Success of this round's QUICK alone less that of the untuned one, on the test episodes; null for round 0."""
    against_deepthink: Comparison
    """This round's policy less DEEPTHINK alone, on the test episodes."""
    lesson: Collected | None = None
    """What was collected for it; null for round 0."""
    arms: tuple[TunedArm, ...] = ()
    """How QUICK was tuned for it."""


class Rounds(_Strict):
    """The whole file."""

    seeds: tuple[int, ...]
    """Training seeds; each has a chain of rounds of its own."""
    term: str
    """The switch, by its name in ``results.json``."""
    tune_from: str
    """As in the recipe."""
    deepthink: System
    """DEEPTHINK alone, on the test episodes."""
    rounds: tuple[Round, ...] = Field(min_length=1)
    """In their order."""
    margin: Share
    """As in the recipe."""
    kept: Count
    """Number of the round that is to be used, the last one kept."""
    why: str
    """Why no round behind it is kept, in words."""


def load_rounds(path: str | Path) -> Rounds:
    """Read ``rounds.json``.

    Raises:
        InputError: names the file and the dotted field.
    """
    return load_json(Rounds, path)


def write_rounds(path: str | Path, rounds: Rounds) -> None:
    """Write ``rounds.json``, atomically."""
    write_json(path, rounds.model_dump(mode="json"))
