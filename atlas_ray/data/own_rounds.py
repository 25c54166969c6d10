"""``own-rounds.json``: rounds of a model that learns from its own runs, their scores on the same test episodes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ..rundir.files import write_json
from .paired import Difference
from .records import load_json
from .results import Cell, Count, NonNegative, Share


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


class OwnLesson(_Strict):
    """What a round collected, of this round alone; counts are means over training seeds."""

    episodes: NonNegative
    """Episodes that are kept."""
    successes: NonNegative
    """Of these."""


class OwnArm(_Strict):
    """One way to tune the model in a round; counts are means over training seeds."""

    arm: str
    """As in the recipe; the first goes on into the next round."""
    held_in: Cell
    """On the held-in test episodes, over all training seeds."""
    held_out: Cell | None
    """On the held-out ones; null without any."""
    examples: NonNegative
    """Trajectories or pairs that its last training read."""
    steps_share: Share
    """Share of the steps that it marked."""
    trained_tokens: NonNegative
    """Tokens that carried the loss, over all epochs and all trainings on the way to this model."""
    flops: NonNegative | None
    """FLOPs of models in all collecting, selecting and training on the way to it; null where some are not known."""
    first_above: Difference | None
    """Held-in success of the first arm less this one's, on the same episodes; null for the first."""
    first_above_all: Difference | None
    """The same with an interval so wide that those of all arms of the round hold together."""


class OwnRound(_Strict):
    """One round. Number 0 is the model that nobody has tuned yet; later ones have that of the first arm."""

    round: Count
    held_in: Cell
    """Success on the held-in test episodes, over all training seeds."""
    held_out: Cell | None
    """Success on the held-out ones; null without any."""
    judged: Cell
    """Success on the episodes that judge."""
    over: Count | None
    """Number of the round kept before, with which it is compared; null for round 0."""
    gained: Difference | None
    """Its success less that of ``over``, on the episodes that judge; null for round 0."""
    kept: bool
    """Whether that is above zero beyond chance."""
    against_first: Difference | None
    """Held-in success less that of round 0, on the test episodes; null for round 0."""
    against_first_out: Difference | None
    """Held-out success less that of round 0; null for round 0 and without held-out levels."""
    lesson: OwnLesson | None = None
    """What was collected for it; null for round 0."""
    arms: tuple[OwnArm, ...] = ()
    """How the model was tuned for it."""


class OwnRounds(_Strict):
    """The whole file."""

    seeds: tuple[int, ...]
    """Training seeds; each has a chain of rounds of its own, from the first, whose episodes are the same for all."""
    base: str
    """The model of round 0."""
    arm: str
    """The arm that goes on."""
    tune_from: str
    """As in the recipe."""
    rounds: tuple[OwnRound, ...] = Field(min_length=1)
    """In their order."""
    kept: Count
    """Number of the round that is to be used, the last one kept."""
    why: str
    """Why no round behind it is kept, in words."""


def load_own_rounds(path: str | Path) -> OwnRounds:
    """Read ``own-rounds.json``.

    Raises:
        InputError: names the file and the dotted field.
    """
    return load_json(OwnRounds, path)


def write_own_rounds(path: str | Path, rounds: OwnRounds) -> None:
    """Write ``own-rounds.json``, atomically."""
    write_json(path, rounds.model_dump(mode="json"))
