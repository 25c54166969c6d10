"""The models of a recipe's `[switch]` table, ready to play: local ones, chat endpoints, the environments' experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from .. import envs
from ..agents.spec import agent_spec, endpoint_spec
from ..agents.token_agent import Decision, Player
from ..cluster.worker_state import WorkerState
from ..data.records import Step
from ..engines import Engine, EngineLease, EnginePool, RemoteEngine
from ..engines.endpoint import check_endpoint
from ..engines.kept import kept_engines
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.switch import EXPERT, SCORED, Switch, SwitchModel


class SwitchPlayer(Player, Protocol):
    """A player among several: what it reads can be counted, and what it answered be kept."""

    @property
    def parameters(self) -> int | None:
        """Number of weights of its model; None where it is unknown."""
        ...

    @property
    def price(self) -> tuple[float, float]:
        """Money for a million tokens read, and for a million written."""
        ...

    def fork(self) -> Self:
        """The same model with episodes of its own, for another game."""
        ...

    def prompt(self, slot: int) -> Sequence[Any]:
        """What it would read now, token by token or character by character."""
        ...

    def key(self, slot: int, offered: Sequence[str]) -> bytes | None:
        """Cache key: all that its decision in ``slot`` depends on; None where decisions must not be cached."""
        ...

    def on_cache_hit(self, slot: int, decision: Decision) -> None:
        """Called when a cached decision is taken in place of a request."""
        ...

    def mark_read(self, slot: int) -> None:
        """Its present prompt is read: what it sees of this state stays what it was."""
        ...

    def worst_case(self, slot: int, offered: Sequence[str]) -> tuple[int, int]:
        """Most tokens that a decision in ``slot`` reads and writes, the whole prompt included."""
        ...

    def tokens_of(self, slot: int, decision: Decision) -> tuple[int, int] | None:
        """Tokens that a decision in ``slot`` has read and written, the whole prompt included; None where unknown."""
        ...


@dataclass(frozen=True)
class _Slots:
    slots: int


class ExpertPlayer:
    """The environment's own expert as a model. It reads nothing and uses nothing but time.

    An expert is bound to its episode's environment, so the game tells it whom to ask.

    Args:
        slots: episodes at a time.
    """

    needs_list = False
    parameters = 0
    price = (0.0, 0.0)

    def __init__(self, slots: int) -> None:
        self.engine = _Slots(slots)
        self.ask: Callable[[int], Decision] | None = None

    def fork(self) -> ExpertPlayer:
        """One for another game."""
        return ExpertPlayer(self.engine.slots)

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Nothing to note: the environment knows."""

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Nothing to note: the environment knows."""

    def fits(self, slot: int) -> bool:
        """Always."""
        return True

    def act(self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[Decision]:
        """What the experts of these episodes would do."""
        if self.ask is None:
            raise ValueError("an expert plays in a TextGame only")
        return [self.ask(slot) for slot in slots]

    def prompt(self, slot: int) -> Sequence[Any]:
        """It reads nothing."""
        return ()

    def key(self, slot: int, offered: Sequence[str]) -> None:
        """It has to see every state itself."""
        return None

    def on_cache_hit(self, slot: int, decision: Decision) -> None:
        """Never called: its decisions are not cached."""

    def mark_read(self, slot: int) -> None:
        """It reads nothing."""

    def worst_case(self, slot: int, offered: Sequence[str]) -> tuple[int, int]:
        """None: it is no model."""
        return 0, 0

    def tokens_of(self, slot: int, decision: Decision) -> tuple[int, int]:
        """None: it is no model."""
        return 0, 0


def check_players(recipe: Recipe) -> None:
    """Refuse models that cannot play as the recipe wants, before anything is started. Opens nothing.

    Raises:
        InputError: an endpoint's field, a unit that is not known of a model, an environment without an expert, or
            `agent.decide` where probabilities are to be read. Names the field.
    """
    settings = recipe.switch
    if settings is None:
        return
    for number, model in enumerate(settings.models):
        where = f"switch.models.{number}"
        if model.catch_up is not None and (model.window, recipe.agent.window) != (None, None):
            raise InputError("a window has nothing to catch up: give one of the two", field=f"{where}.catch_up")
        if model.model == EXPERT:
            if model.base_url:
                raise InputError("the environment's expert is behind no server", field=f"{where}.base_url")
            for level in settings.levels:
                if envs.environment_class(level).expert is envs.TextEnv.expert:
                    raise InputError(f"{envs.full_id(level)} has no expert", field=f"{where}.model")
            continue
        check_endpoint(model, where, ("temperature",) if _draws(settings) else ())
        if model.base_url and settings.unit == "flops":
            raise InputError(
                f"the FLOPs of {model.model} are unknown, since it is behind an endpoint: take seconds or money",
                field="switch.unit",
            )
    last = settings.models[-1]
    if settings.unit == "money" and not last.price_prompt and not last.price_completion:
        raise InputError(
            "the unit is money, and the last model has no price: give price_prompt and price_completion",
            field=f"switch.models.{len(settings.models) - 1}",
        )
    reads = [s for s in settings.signals if s in SCORED] + ["threshold"] * ("threshold" in settings.baselines)
    if reads and recipe.agent.decide != "score":
        raise InputError(f"{reads[0]} needs a first model that scores the actions (score)", field="agent.decide")


def _draws(settings: Switch) -> bool:
    """Whether a temperature may say how a model of ours draws: where it plays alone, and no switch learns."""
    return len(settings.models) == 1 and settings.models[0].warmth is not None


def open_players(
    recipe: Recipe, state: WorkerState, leases: Sequence[tuple[EngineLease, ...]] = ()
) -> tuple[SwitchPlayer, ...]:
    """The models of a recipe, from QUICK to DEEPTHINK, each with ``switch.num_envs`` slots.

    There is one engine for each local model, however often it stands in the table. They stay open until a
    recipe with other models asks.

    Args:
        recipe: one with a ``[switch]`` table.
        state: of the worker; with ``leases`` its number counts.
        leases: of :func:`engine_actors`; without them this process holds the models.

    Raises:
        InputError: see :func:`check_players`; or a model cannot be had.
    """
    settings = recipe.switch
    if settings is None:
        raise ValueError("the recipe has no [switch] table")
    asked = (
        settings.models,
        settings.num_envs,
        recipe.engine,
        recipe.agent,
        recipe.style,
        recipe.prompt,
        tuple(leases),
    )
    held = state.get_or_create(OpenPlayers)
    if held.settings == asked:
        return held.players
    check_players(recipe)
    held.close()
    with ExitStack() as opened:
        engines: dict[str, Engine] = {}
        for number, name in enumerate(settings.local):
            spec = replace(agent_spec(recipe, name), slots=settings.num_envs)
            engine = (spec.with_leases(leases[number]) if leases else spec).new_engine(state.index or 0)
            opened.callback(engine.close)
            engines[name] = engine
        players: list[SwitchPlayer] = []
        for number, model in enumerate(settings.models):
            price = (model.price_prompt, model.price_completion)
            if model.model == EXPERT:
                players.append(ExpertPlayer(settings.num_envs))
            elif model.base_url:
                behind = endpoint_spec(recipe, model, f"switch.models.{number}", settings.num_envs)
                endpoint = behind.open()
                opened.callback(endpoint.close)
                players.append(replace(behind, **_reads(recipe, model)).new_agent(endpoint))
            else:
                spec = replace(agent_spec(recipe, model.model, model.warmth or 0.0), **_reads(recipe, model))
                players.append(spec.new_agent(engines[model.model], price))
        held.settings, held.players, held.opened = asked, tuple(players), opened.pop_all()
        return held.players


def _reads(recipe: Recipe, model: SwitchModel) -> dict[str, Any]:
    """What a model reads of an episode, as fields of its spec."""
    act = recipe.agent if model.window is None else recipe.agent.model_copy(update={"window": model.window})
    return {"act": act, "catch_up": model.catch_up}


@dataclass
class OpenPlayers:
    """The players that a worker has open, of which settings, and what is to be closed after them."""

    settings: tuple[Any, ...] | None = None
    players: tuple[SwitchPlayer, ...] = ()
    opened: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Free them, if there are any."""
        self.settings, self.players = None, ()
        self.opened.close()


def close_players(state: WorkerState) -> None:
    """Free what :func:`open_players` has opened for this worker, if anything."""
    state.get_or_create(OpenPlayers).close()


def lost(players: Sequence[Player]) -> int:
    """Answers that were lost with their engine actor, and asked for again."""
    engines = {id(p.engine): p.engine for p in players}
    return sum(engine.lost for engine in engines.values() if isinstance(engine, RemoteEngine))


@contextmanager
def engine_actors(recipe: Recipe, processes: int | None = None) -> Iterator[tuple[tuple[EngineLease, ...], ...]]:
    """The engine actors of a recipe for as long as the block lasts: ``engine.actors`` for each local model.

    Args:
        recipe: one with a ``[switch]`` table.
        processes: how many play; by default the recipe's workers.

    Yields:
        For each local model the leases of all who play; nothing where the recipe wants no actors.
    """
    settings = recipe.switch
    if settings is None or not recipe.engine.actors:
        yield ()
        return
    processes = recipe.workers if processes is None else processes
    where = recipe.placement.resource_request("engines")
    with ExitStack() as pools:
        leases = {}
        kept = kept_engines()
        for name in sorted(settings.local, key=lambda name: not (kept and kept.has(name))):
            # (a model that is there keeps its engines; another may take what is left)
            pool = EnginePool(recipe.engine, name, processes, settings.num_envs, where)
            leases[name] = pools.enter_context(pool).leases
        yield tuple(leases[name] for name in settings.local)
