"""Episodes of which somebody else steps the environment: they say what they see and are told what to do.

All models hold the true history, as in training: a :class:`atlas_ray.switching.text.TextGame` plays environments that
say what they are told. So a served switch sees what it saw when it learned, and the guard keeps its budget.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

import envs

from ..agent_spec import agent_spec
from ..errors import AtlasError, InputError
from ..files import read_json
from ..recipe import Recipe
from ..rollout import EnvSpec
from ..schema_switch import EXPERT
from ..switching.answers import Answers
from ..switching.baselines import Always
from ..switching.budget import Budget
from ..switching.compare import unlearned
from ..switching.evaluate import Policy, game_for, situations
from ..switching.players import SwitchPlayer, close_players, open_players
from ..switching.policy import CONFIG, SwitchPolicy

IDLE = 600.0
"""Seconds after which an episode that nobody asks about may lose its place to a new one."""


class Refused(AtlasError, RuntimeError):
    """What was asked cannot be done; ``status`` is HTTP's word for why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class Asked(NamedTuple):
    """What an episode looks like now, and what may be done; no actions where the models write theirs."""

    observation: str
    actions: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What to do.

    ``model``: whose answer it is. ``called``: whether that is not the first model, QUICK. ``calls``: of the episode,
    this one included. ``calls_left``: None without a budget. ``step``: its number, from 0.
    """

    action: str
    thought: str | None
    model: str
    called: bool
    calls: int
    calls_left: int | None
    step: int


class _Outside(envs.TextEnv):
    """An episode somewhere else: its next observation and its actions are what its owner says."""

    endless = True

    def __init__(self, instruction: str, asked: Asked, limit: int) -> None:
        super().__init__("outside", limit)
        self.instruction, self.asked = instruction, asked

    def variations(self, task: str, split: str | None) -> Sequence[int]:
        return (0,)

    def begin(self, variation: int) -> tuple[str, str]:
        return self.instruction, self.asked.observation

    def do(self, action: str) -> envs.Turn:
        return envs.Turn(self.asked.observation, 0.0)

    def admissible(self) -> list[str]:
        return list(self.asked.actions)


@dataclass(frozen=True)
class _Coming(EnvSpec):
    """Leads to the episode that begins next."""

    coming: list[_Outside] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.name

    @property
    def endless(self) -> bool:
        return True

    def lease(self) -> envs.TextEnv:
        return self.coming.pop()


@dataclass
class _Place:
    """An episode's. ``choice`` is the model that was granted the present step, ``answered`` whether it has answered."""

    id: str
    row: int
    number: int
    instruction: str
    limit: int
    touched: float
    env: _Outside | None = None
    choice: int | None = None
    answered: bool = False
    over: str = ""


class Desk:
    """Answers for up to ``rows`` episodes at a time. Use it from one thread.

    Args:
        name: of the policy.
        policy: who acts when.
        players: from QUICK to DEEPTHINK.
        models: their names.
        budget: calls an episode may make.
        answers: what the models answered already; None asks every time.
        clock: seconds that pass.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        players: Sequence[SwitchPlayer],
        models: Sequence[str],
        budget: int | None = None,
        answers: Answers | None = None,
        clock: Any = time.monotonic,
    ) -> None:
        self.name, self.policy, self.models, self.budget = name, policy, tuple(models), budget
        self.rows = min(player.engine.slots for player in players)
        self._spec = _Coming("outside")
        self._game = game_for(policy, players, [self._spec], self.rows, {"answers": answers})
        self._guard = Budget(budget, self.rows)
        self._clock, self._begun = clock, 0
        self._places: dict[str, _Place] = {}
        self._needs_list = any(player.needs_list for player in players)

    def open(self, instruction: str, limit: int) -> str:
        """A place for a new episode of at most ``limit`` steps; its id.

        Raises:
            Refused: all are taken, by episodes that were asked about lately.
        """
        free = set(range(self.rows)) - {place.row for place in self._places.values()}
        if not free:
            oldest = min(self._places.values(), key=lambda place: place.touched)
            if self._clock() - oldest.touched < IDLE:
                raise Refused(f"all {self.rows} places are taken: end an episode, or serve with more --places", 503)
            free.add(self._places.pop(oldest.id).row)
        place = _Place(uuid.uuid4().hex, min(free), self._begun, instruction, limit, self._clock())
        self._begun += 1
        self._places[place.id] = place
        self._guard.start(place.row)
        return place.id

    def close(self, key: str) -> None:
        """End an episode, however far it is.

        Raises:
            Refused: there is none of that id.
        """
        del self._places[self._place(key).id]

    def about(self, key: str) -> dict[str, Any]:
        """Steps, calls and what each model has used of an episode.

        Raises:
            Refused: there is none of that id.
        """
        place = self._place(key)
        used = self._game.usage(place.row) if place.env else []
        return {
            "id": place.id,
            "steps": self._steps(place),
            "max_steps": place.limit,
            "calls": self._guard.made[place.row],
            "calls_left": self._guard.left[place.row],
            "over": place.over or None,
            "usage": [{"model": model, **asdict(usage)} for model, usage in zip(self.models, used, strict=False)],
        }

    def act(self, asked: Mapping[str, Asked]) -> dict[str, Answer | Refused]:
        """The next action of each episode, of all at once: a model is asked once for all of its episodes.

        A step whose model failed is answered when it is asked for again, by the same model: a call is paid for once.

        Args:
            asked: what is seen now, by the ids of the episodes.

        Returns:
            An answer for each, or why there is none.
        """
        found: dict[str, Answer | Refused] = {}
        live: dict[int, _Place] = {}
        for key, now in asked.items():
            try:
                place = self._check(key, now)
                self._move(place, now)
            except Refused as error:
                found[key] = error
            else:
                live[place.row] = place
        if not live:
            return found
        try:
            self._decide([place for place in live.values() if place.choice is None])
            choices = {row: place.choice for row, place in live.items() if place.choice is not None}
            decisions = self._game.decisions(choices)
        except Exception as error:
            why = Refused(f"no answer: {' '.join(str(error).split())}; ask again", 503)
            return found | {place.id: why for place in live.values()}
        for row, place in live.items():
            place.answered = True
            decision, number = decisions[row], choices[row]
            made, left = self._guard.made[row], self._guard.left[row]
            about = (self.models[number], bool(number), made, left, self._steps(place))
            found[place.id] = Answer(decision.action, decision.thought, *about)
        return found

    def _place(self, key: str) -> _Place:
        place = self._places.get(key)
        if place is None:
            raise Refused("no episode of this id: it was ended, or idle for long and lost its place", 404)
        place.touched = self._clock()
        return place

    def _check(self, key: str, asked: Asked) -> _Place:
        place = self._place(key)
        if place.over:
            raise Refused(place.over, 409)
        if self._needs_list and not asked.actions:
            raise Refused("actions: a model picks one of them, and there is none", 422)
        if place.env and not place.answered and asked.observation != place.env.asked.observation:
            raise Refused("observation: the step before was not answered yet, send what was seen then again", 409)
        return place

    def _move(self, place: _Place, asked: Asked) -> None:
        """Begin the episode, or carry out what was answered last."""
        if place.env is None:
            env = _Outside(place.instruction, asked, place.limit)
            self._spec.coming.append(env)
            self._game.begin(place.row, place.number)
            place.env = env
            if not all(player.fits(place.row) for player in self._game.agents):
                place.over = "instruction and observation do not fit into the context of every model"
        else:
            place.env.asked = asked
            if place.answered:
                assert place.choice is not None
                outcome = self._game.advance({place.row: place.choice})[place.row]
                place.choice, place.answered = None, False
                if outcome.timeout:
                    place.over = f"the episode has had its {place.limit} steps"
                elif outcome.cut:
                    place.over = "the episode is longer than the context of a model"
        if place.over:
            raise Refused(place.over, 409)

    def _decide(self, places: Sequence[_Place]) -> None:
        rows = [place.row for place in places]
        wanted = self.policy.decide(situations(self.policy, self._game, self._guard, rows)) if rows else []
        for place, number in zip(places, wanted, strict=True):
            place.choice = self._guard.grant(place.row, number)
            if place.choice:
                self._guard.record(place.row)

    def _steps(self, place: _Place) -> int:
        return len(self._game.episodes[place.row].steps) if place.env else 0


def policies(recipe: Recipe, run_dir: Path) -> dict[str, Path | int]:
    """What of a run can be served: directories of switches and of tuned models, numbers of the switch's own models."""
    made = run_dir / "checkpoints"
    marks = [*sorted(made.glob("*/run.json")), *sorted(made.glob(f"switch-*/{CONFIG}"))]
    found: dict[str, Path | int] = {p.parent.name: p.parent for p in marks if not p.parent.name.startswith(".")}
    if recipe.switch:
        models = recipe.switch.models
        found |= {c.name: c.action for c in unlearned(recipe.switch) if models[c.action].model != EXPERT}
    return found


@contextmanager
def open_desk(run_dir: Path, name: str | None = None, places: int | None = None) -> Iterator[Desk]:
    """Serve one of :func:`policies` as long as the block lasts, with the models in this process.

    Args:
        run_dir: a run directory.
        name: of the policy; None takes the only switch, or the only tuned model where there is no switch.
        places: episodes at a time; by default what the recipe has.

    Raises:
        InputError: it is no run directory of this version, has no such policy, or one of its models plays in
            environments of ours only.
    """
    resolved = run_dir / "recipe.resolved.json"
    if not resolved.is_file():
        raise InputError("is not a run directory: it has no recipe.resolved.json", run_dir)
    try:
        recipe = Recipe.model_validate(read_json(resolved))
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError("the run was made by a version with other fields", resolved, None, field) from None
    known = policies(recipe, run_dir)
    name = name or _only(run_dir, known)
    if name not in known:
        raise InputError(f"has no policy {name!r}; it has {', '.join(known) or 'none'}", run_dir)
    what, settings = known[name], recipe.switch
    with ExitStack() as stack:
        if isinstance(what, Path) and not what.name.startswith("switch-"):
            spec = replace(agent_spec(recipe, str(what)), slots=places or recipe.num_envs)
            engine = spec.new_engine(0)
            stack.callback(engine.close)
            yield Desk(name, Always(0), [spec.new_agent(engine)], [name])
            return
        if settings is None:
            raise InputError(f"{name} is a switch, and the run's recipe has no [switch] table", run_dir)
        chosen = settings.models if isinstance(what, Path) else [settings.models[what]]
        if EXPERT in [model.model for model in chosen]:
            raise InputError(f"{name} asks the environment's expert, who plays in environments of ours only", run_dir)
        playing = settings.model_copy(update={"models": chosen, "num_envs": places or settings.num_envs})
        kept: dict[str, Any] = {}
        stack.callback(close_players, kept)
        players = open_players(recipe.model_copy(update={"switch": playing}), kept)
        policy: Policy = SwitchPolicy.load(what) if isinstance(what, Path) else Always(0)
        budget = policy.config.budget if isinstance(policy, SwitchPolicy) else None
        answers = Answers() if settings.cache else None
        yield Desk(name, policy, players, [model.model for model in chosen], budget, answers)


def _only(run_dir: Path, known: Mapping[str, Path | int]) -> str:
    learned = [name for name, what in known.items() if isinstance(what, Path)]
    switches = [name for name in learned if name.startswith("switch-")]
    choice = switches or learned
    if len(choice) != 1:
        raise InputError(f"say which policy: {', '.join(known) or 'the run has none yet'}", run_dir)
    return choice[0]
