"""``rounds.json``: rounds of switching and tuning, their scores on the same test episodes, and which is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..rundir.files import write_json
from .records import load_json
from .resampling import MeanDifference
from .results import Share

NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


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


class Collected(_Strict):
    """What a round collected with its switch: means over training seeds, of this round alone."""

    episodes: NonNegative
    """Episodes played."""
    kept: NonNegative
    """Successful ones that QUICK could be tuned on."""
    calls: NonNegative
    """Calls in all that were played: the price of the lesson."""


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
    first_above: MeanDifference | None
    """Success of the first arm less this one's, on the same episodes; null for the first."""


class Comparison(_Strict):
    """Two systems on the same episodes: mean differences with 95 % intervals, over episodes and training seeds."""

    success: MeanDifference
    calls: MeanDifference
    objective: MeanDifference | None
    """Of the return less what calls cost in training, or of the return where a call has no price; null on test
    episodes, which nothing is chosen by."""


class Round(_Strict):
    """One round. Number 0 is the recipe's own switch with the QUICK that nobody has tuned yet."""

    round: Count
    quick: System
    """QUICK alone, on the test episodes."""
    switch: System
    """The switch, on the test episodes."""
    policy: str
    """Which of the two acts in this round: the switch only where its calls are of use."""
    of_use: Comparison
    """Switch less QUICK alone, on the episodes that judge. It decides ``policy``."""
    gained: Comparison | None
    """This round's policy less that of the round before, on the episodes that judge; null for round 0."""
    on_test: Comparison | None
    """The same on the test episodes."""
    against_first: Comparison | None
    """This round's policy less that of round 0, on the test episodes; null for round 0."""
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
    kept: Count
    """Number of the round that is to be used."""
    why: str
    """Why no round behind it is kept."""


def load_rounds(path: str | Path) -> Rounds:
    """Read ``rounds.json``.

    Raises:
        InputError: names the file and the dotted field.
    """
    return load_json(Rounds, path)


def write_rounds(path: str | Path, rounds: Rounds) -> None:
    """Write ``rounds.json``, atomically."""
    write_json(path, rounds.model_dump(mode="json"))
