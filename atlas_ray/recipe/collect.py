"""The fields of `[collect]`: where the trajectories come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import ConfigModel, Environment, Positive, distinct


class Collect(ConfigModel):
    """Expert episodes."""

    levels: dict[Environment, Positive] = {}
    """Environments and how many expert episodes of each."""
    file: str | None = None
    """Take the trajectories from this file, or from this folder: our own JSONL, AgentTraj-L or OpenAI messages."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What a record of the file does that cannot be read: `stop` the run, or be left out, counted and logged."""
    success_field: str | None = Field(default=None, min_length=1)
    """The field of a record that says whether it was a success, with dots for what is inside; else the usual names."""
    success: bool | None = None
    """The outcome of records that do not say; without it theirs is unknown, which counts as no success."""
    reasoning: Literal["drop", "thought"] = "drop"
    """What is thought before or beside an answer: left out, or taken for the thought, and trained."""
    examples: Literal["refuse", "drop", "steps"] = "refuse"
    """Turns flagged false before all that are flagged true, if nothing tells whether they are an example: `refuse` the
    record, `drop` the turns, or take them for `steps` that are not critical."""
    max_steps: Positive | None = None
    """Own step limit of an episode; without it the level's."""
    cpu_seconds: float = Field(default=2.0, gt=0)
    """CPU time the expert may take for one move before the episode is given up."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        distinct(self.levels, "levels")
        if bool(self.levels) == bool(self.file):
            raise ValueError("levels: give either levels to play or a file to read, not both and not neither")
        for name in ("on_bad", "success_field", "success", "reasoning", "examples"):
            if not self.file and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: says how a file is read, and there is no file")
        return self
