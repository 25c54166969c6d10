"""The fields of `[collect]`: where the trajectories come from."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..data.kept import Keep
from .base import ConfigModel, Environment, Positive, distinct
from .endpoint import EndpointFields
from .switch import EXPERT


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


class CollectingAgent(EndpointFields):
    """A model that plays in place of the experts. `"tiny-quick"` is short for `{ model = "tiny-quick" }`."""

    @property
    def source(self) -> str:
        """How trajectories name it: its model, and its temperature where it is not greedy."""
        return self.model if self.temperature == 0 else f"{self.model}, temperature {_shown(self.temperature)}"


def _shown(temperature: float | str | None) -> str:
    return f"{temperature:g}" if isinstance(temperature, float) else str(temperature)


class Collect(ConfigModel):
    """Episodes to learn from: of an expert, of a model, of a learned switch, or from a file."""

    levels: dict[Environment, Positive] = {}
    """Environments and how many episodes of each."""
    switch: str | None = Field(default=None, min_length=1)
    """Who plays in place of the environments' experts: a policy of another run, `RUN/switch-cost0.05-seed0`, or one of
    its models alone, `RUN/always-deepthink`."""
    agent: CollectingAgent | None = None
    """Who plays in place of the environments' experts: a model, whose failures are kept too."""
    keep: Keep = "successes"
    """Which episodes of a switch, an agent or a file are kept: `all`, `successes` or `failures`. Without it successes
    of a switch and all of an agent or a file. An episode of unknown outcome is neither a success nor a failure."""
    file: str | None = None
    """Take the trajectories from this file or folder: our own JSONL, AgentTraj-L, OpenAI messages, or records of agents
    that call tools. On the hub it is `hf://datasets/ORG/NAME@REVISION/PATH`, where revision and path may be left
    out."""
    tools: str | None = Field(default=None, min_length=1)
    """A file with the JSON schemas of the tools that an agent could call, as one list in OpenAI's form, for records
    that do not say them."""
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

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """Data with what short forms stand for: an agent's name, and what is kept where nothing is said."""
        if not isinstance(given, dict):
            return given
        made = dict(given)
        if isinstance(made.get("agent"), str):
            made["agent"] = {"model": made["agent"]}
        keep = made.get("keep")
        if keep == "success":  # of the release before, where recipes without a switch had it too, as the default
            keep = None if "switch" in made and made["switch"] is None else "successes"
        if keep is None:
            keep = "all" if made.get("file") or made.get("agent") else "successes"
        return {**made, "keep": keep}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        distinct(self.levels, "levels")
        if bool(self.levels) == bool(self.file):
            raise ValueError("levels: give either levels to play or a file to read, not both and not neither")
        for name in ("on_bad", "success_field", "success", "reasoning", "examples", "tools"):
            if not self.file and self._is_set(name):
                raise ValueError(f"{name}: says how a file is read, and there is no file")
        if self.file and self.expert.words:
            raise ValueError("expert: says how the experts of levels play, and a file is read")
        if self.switch and self.file:
            raise ValueError("switch: plays levels, and a file is read: give either")
        if self.agent and (self.file or self.switch):
            other = "a file is read" if self.file else "a switch does too"
            raise ValueError(f"agent: plays levels, and {other}: give either")
        if self.agent and self.agent.model == EXPERT and not self.agent.base_url:
            raise ValueError("agent: the environments' own experts play without it")
        if self._is_set("keep") and not (self.switch or self.agent or self.file):
            raise ValueError(
                "keep: says what is kept of the episodes of a switch, an agent or a file, and experts are collected "
                "where they succeed"
            )
        if self.switch or self.agent:
            for name in ("cpu_seconds", "expert"):
                if self._is_set(name):
                    who = "a switch" if self.switch else "an agent"
                    raise ValueError(f"{name}: is of the environments' experts, and {who} plays")
        return self

    def _is_set(self, name: str) -> bool:
        """Whether a field has another value than by default; a resolved recipe says them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)
