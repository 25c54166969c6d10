"""The fields of `[rounds]`: switch and tuning in turn, the join of LONDI and ATLaS, or own runs and tuning (ours)."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from .base import ConfigModel, Positive
from .finetune import Tuning

RoundArm = Literal["calls", "random_calls", "all", "deepthink-equal-calls", "deepthink-equal-tokens"]
LESSON_ARMS: tuple[RoundArm, ...] = ("calls", "random_calls", "all")
"""Arms that are tuned on the episodes of the switch; the others are on those that DEEPTHINK plays alone."""
EQUAL_CALLS: RoundArm = "deepthink-equal-calls"
EQUAL_TOKENS: RoundArm = "deepthink-equal-tokens"
OF_A_SWITCH = ("episodes", "arms", "switch_steps", "margin", "finetune")
"""Fields of rounds of a switch alone."""


class Rounds(ConfigModel):
    """Rounds of switching and tuning: a switch's calls become QUICK's lesson, and the next switch has the new QUICK.

    Without `[switch]` a model learns from its own runs: `[collect]` plays with the model of the round before,
    `[select]`, `[finetune]` and `[evaluate]` say what is learned and scored, and the first arm goes on.
    """

    count: Annotated[int, Field(ge=1, le=100)] = 2
    """Most rounds of tuning. Behind the first switch, which is that of `[switch]`; of a model's own runs the recipe's
    own stages are the first."""
    episodes: Positive = 150
    """Episodes of each of the switch's levels that a round plays to collect; QUICK learns from the successful ones."""
    arms: list[RoundArm] = Field(default=list(get_args(RoundArm)), min_length=1)
    """What QUICK is tuned on: the `calls` of the switch, as many random steps (`random_calls`), `all` steps, or all
    steps of DEEPTHINK's own episodes, for which it was called as often (`deepthink-equal-calls`) or which have as many
    trained tokens (`deepthink-equal-tokens`). The first goes on, the others are its controls."""
    tune_from: Literal["before", "start"] = "before"
    """Tune the model of the round `before` on this round's episodes, or that of the `start` on those of all rounds."""
    switch_steps: Positive | None = None
    """Environment steps for which a round's switch is trained; by default those of `[switch]`."""
    judge_episodes: Positive = 400
    """Episodes by which it is judged which policy of a round acts and whether the round is kept; of a model's own runs
    of all held-in levels together. None is trained on, and none chooses a policy in training or is a test episode."""
    margin: float = Field(default=0.05, ge=0, le=1)
    """Success that may be lost for fewer calls: the interval of what is lost must lie within it."""
    stop: bool = True
    """Whether a round that is not kept is the last."""
    finetune: Tuning = Tuning()
    """How QUICK is tuned."""

    @property
    def of_a_switch(self) -> list[str]:
        """Fields that rounds of a switch alone have and that are not as by default; a resolved recipe says them all."""
        usual = type(self)()
        return [name for name in OF_A_SWITCH if getattr(self, name) != getattr(usual, name)]

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError("arms: the same arm stands twice")
        if self.arms[0] == EQUAL_TOKENS:
            raise ValueError(f"arms: {EQUAL_TOKENS} has as many tokens as the first arm, so it cannot be that")
        if "random_calls" in self.arms and "calls" not in self.arms:
            raise ValueError("arms: random_calls draws as many steps as calls marked, which must be named too")
        return self
