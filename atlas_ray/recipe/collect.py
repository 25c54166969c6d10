"""The fields of `[collect]`: where the trajectories come from."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import ConfigModel, Environment, Positive, distinct


class ExpertBias(ConfigModel):
    """What an expert does besides what it should (ours).

    A new sub-goal is a thought that its episode has not had; of an expert without thoughts, such a score.
    """

    habit: list[Annotated[str, Field(min_length=1)]] = []
    """Actions that it makes, in this order, whenever it begins a new sub-goal, its first move included."""
    habit_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the new sub-goals at which it makes them."""
    detour: int = Field(default=0, ge=0)
    """So many random moves whenever it begins a new sub-goal, behind the habit."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Share of its other moves that are drawn at random instead; then it goes on from where that led."""

    @property
    def words(self) -> tuple[str, ...]:
        """What it does, as the source of its trajectories says it; nothing for a plain expert."""
        said = []
        if self.habit and self.habit_share:
            runs = [(action, len(list(same))) for action, same in groupby(self.habit)]
            moves = ", ".join(f"{count} x {action}" if count > 1 else action for action, count in runs)
            said.append(f"habit {moves}" + (f" at {self.habit_share:g}" if self.habit_share < 1 else ""))
        if self.detour:
            said.append(f"detour {self.detour}")
        if self.noise:
            said.append(f"noise {self.noise:g}")
        return tuple(said)


class Collect(ConfigModel):
    """Episodes to learn from: of an expert, of a learned switch, or from a file."""

    levels: dict[Environment, Positive] = {}
    """Environments and how many episodes of each."""
    switch: str | None = Field(default=None, min_length=1)
    """Who plays in place of the environments' experts: a policy of another run, `RUN/switch-cost0.05-seed0`, or one of
    its models alone, `RUN/always-deepthink`."""
    keep: Literal["success", "all"] = "success"
    """switch: keep its successes only, or all its episodes."""
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
    expert: ExpertBias = ExpertBias()
    """How far the expert of an environment is biased; by default not at all."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        distinct(self.levels, "levels")
        if bool(self.levels) == bool(self.file):
            raise ValueError("levels: give either levels to play or a file to read, not both and not neither")
        for name in ("on_bad", "success_field", "success", "reasoning", "examples"):
            if not self.file and self._is_set(name):
                raise ValueError(f"{name}: says how a file is read, and there is no file")
        if self.file and self.expert.words:
            raise ValueError("expert: says how the experts of levels play, and a file is read")
        if self.switch and self.file:
            raise ValueError("switch: plays levels, and a file is read: give either")
        if not self.switch and self._is_set("keep"):
            raise ValueError("keep: says what is kept of a switch's episodes, and there is no switch")
        if self.switch:
            for name in ("cpu_seconds", "expert"):
                if self._is_set(name):
                    raise ValueError(f"{name}: is of the environments' experts, and a switch plays")
        return self

    def _is_set(self, name: str) -> bool:
        """Whether a field has another value than by default; a resolved recipe says them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)
