"""A model and how it acts, as it travels to the workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..cluster.worker_state import WorkerState
from ..data.parsing import Style
from ..engines import Engine, EngineLease, LocalEngine, RemoteEngine, exchange, make_engine
from ..engines.chat_endpoint import ChatEndpoint
from ..engines.endpoint import open_endpoint
from ..recipe.endpoint import EndpointFields
from ..recipe.loading import Act, Recipe
from ..recipe.loading import Engine as Settings
from .chat_agent import ChatAgent
from .rendering import Prompt
from .token_agent import Agent


@dataclass(frozen=True)
class AgentSpec:
    """What a worker needs to make its agent.

    ``leases`` are the workers' shares of engine actors, one for each; without them every worker holds the model.
    """

    model: str
    engine: Settings
    act: Act
    style: Style
    slots: int
    temperature: float = 0.0
    leases: tuple[EngineLease, ...] = ()
    prompt: Prompt = "plain"
    unknown_share: float | None = None
    catch_up: int | None = None

    def with_leases(self, leases: tuple[EngineLease, ...]) -> AgentSpec:
        """The same at engine actors."""
        return replace(self, leases=leases)

    def open_engine(self, state: WorkerState) -> Engine:
        """The engine of a worker; it stays open until one of another spec is asked for."""
        opened = state.get_or_create(OpenAgent)
        if opened.engine is None or opened.spec != self:
            held = opened.engine
            opened.spec = opened.engine = opened.agent = None
            if held is None or isinstance(held, RemoteEngine) or self.leases:
                opened.engine = self.new_engine(state.index or 0)
            else:
                opened.engine, _ = exchange(held, self.engine, self.model, self.slots)
            opened.spec = self
        return opened.engine

    def new_engine(self, worker: int) -> LocalEngine | RemoteEngine:
        """An engine for the worker of that number, or its share of one."""
        return RemoteEngine(self.leases[worker]) if self.leases else make_engine(self.engine, self.model, self.slots)

    def new_agent(self, engine: Engine, price: tuple[float, float] = (0.0, 0.0)) -> Agent:
        """An agent that plays through ``engine``, which has the model."""
        return Agent(
            engine,
            self.style,
            self.temperature,
            prompt=self.prompt,
            decide=self.act.decide,
            window=self.act.window,
            catch_up=self.catch_up,
            thought_tokens=self.act.thought_tokens,
            action_tokens=self.act.action_tokens,
            thinking=self.act.thinking,
            name=self.model,
            price=price,
            unknown_share=self.unknown_share,
        )

    def agent(self, state: WorkerState) -> Agent:
        """The agent of a worker; it stays until one of another spec is asked for."""
        engine, opened = self.open_engine(state), state.get_or_create(OpenAgent)
        if opened.agent is None:
            opened.agent = self.new_agent(engine)
            opened.made += 1
        return opened.agent


@dataclass
class OpenAgent:
    """The engine that a worker has open, of which spec, its agent if there is one, and how many it has made."""

    spec: AgentSpec | None = None
    engine: LocalEngine | RemoteEngine | None = None
    agent: Agent | None = None
    made: int = 0


@dataclass(frozen=True)
class EndpointSpec:
    """A model behind an endpoint, and how it acts, as it travels to the workers.

    ``where`` is the dotted name of the recipe's table that names it, for messages.
    """

    fields: EndpointFields
    act: Act
    style: Style
    slots: int
    temperature: float | None
    where: str
    catch_up: int | None = None

    @property
    def model(self) -> str:
        """The name by which the server knows it."""
        return self.fields.model

    def open(self) -> ChatEndpoint:
        """The endpoint; no request is sent."""
        return open_endpoint(self.fields, self.slots, self.where, self.act.thinking)

    def new_agent(self, endpoint: ChatEndpoint) -> ChatAgent:
        """An agent that plays through ``endpoint``."""
        return ChatAgent(
            endpoint,
            self.style,
            self.temperature,
            max_tokens=self.fields.max_tokens,
            window=self.act.window,
            catch_up=self.catch_up,
            thinking=self.act.thinking,
            context=self.fields.context,
            price=(self.fields.price_prompt, self.fields.price_completion),
            where=self.where,
        )

    def agent(self, state: WorkerState) -> ChatAgent:
        """The agent of a worker; it stays until one of another spec is asked for."""
        opened = state.get_or_create(OpenChatAgent)
        if opened.agent is None or opened.spec != self:
            if opened.agent is not None:
                opened.agent.engine.close()
            opened.spec, opened.agent = self, self.new_agent(self.open())
        return opened.agent


@dataclass
class OpenChatAgent:
    """The agent that a worker has open at an endpoint, and its spec."""

    spec: EndpointSpec | None = None
    agent: ChatAgent | None = None


def endpoint_spec(recipe: Recipe, fields: EndpointFields, where: str, slots: int | None = None) -> EndpointSpec:
    """A model behind an endpoint that plays as a recipe says; without ``slots`` ``num_envs`` episodes at a time."""
    return EndpointSpec(fields, recipe.agent, recipe.style, slots or recipe.num_envs, fields.warmth, where)


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
