"""A model and how it acts, as it travels to the workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..data.parsing import Style
from ..engines import Engine, RemoteEngine, Seat, make_engine
from ..recipe.loading import Act, Recipe
from ..recipe.loading import Engine as Settings
from .rendering import Prompt
from .token_agent import Agent


@dataclass(frozen=True)
class AgentSpec:
    """What a worker needs to make its agent.

    ``seats`` are the workers' places at engine actors, one for each; without them every worker holds the model.
    """

    model: str
    engine: Settings
    act: Act
    style: Style
    slots: int
    temperature: float = 0.0
    seats: tuple[Seat, ...] = ()
    prompt: Prompt = "plain"
    unknown_share: float | None = None

    def seated(self, seats: tuple[Seat, ...]) -> AgentSpec:
        """The same at engine actors."""
        return replace(self, seats=seats)

    def open_engine(self, kept: dict[str, Any]) -> Engine:
        """The engine of the worker whose job has ``kept``; it stays until one of another spec is asked for."""
        if kept.get("spec") != self:
            if "engine" in kept:
                kept.pop("engine").close()
            kept.pop("agent", None)
            kept["engine"] = self.new_engine(kept.get("index", 0))
            kept["spec"] = self
        found: Engine = kept["engine"]
        return found

    def new_engine(self, worker: int) -> Engine:
        """An engine for the worker of that number, or its place at one."""
        return RemoteEngine(self.seats[worker]) if self.seats else make_engine(self.engine, self.model, self.slots)

    def new_agent(self, engine: Engine, price: tuple[float, float] = (0.0, 0.0)) -> Agent:
        """An agent that plays through ``engine``, which has the model."""
        return Agent(
            engine,
            self.style,
            self.temperature,
            prompt=self.prompt,
            decide=self.act.decide,
            window=self.act.window,
            thought_tokens=self.act.thought_tokens,
            action_tokens=self.act.action_tokens,
            thinking=self.act.thinking,
            name=self.model,
            price=price,
            unknown_share=self.unknown_share,
        )

    def agent(self, kept: dict[str, Any]) -> Agent:
        """The agent of the worker whose job has ``kept``."""
        engine = self.open_engine(kept)
        if "agent" not in kept:
            kept["agent"] = self.new_agent(engine)
            kept["made"] = kept.get("made", 0) + 1
        found: Agent = kept["agent"]
        return found


def agent_spec(recipe: Recipe, model: str, temperature: float = 0.0) -> AgentSpec:
    """A model that plays as a recipe says."""
    return AgentSpec(
        model,
        recipe.engine,
        recipe.agent,
        recipe.style,
        recipe.num_envs,
        temperature,
        prompt=recipe.prompt,
        unknown_share=recipe.unknown_share,
    )
