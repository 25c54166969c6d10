"""Episodes of which somebody else steps the environment: they say what they see and are told what to do.

All models hold the true history, as in training: a :class:`atlas_ray.switching.text_game.TextGame` plays environments
that say what they are told. So a served switch sees what it saw when it learned, and the guard keeps its budget.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..agents.token_agent import Agent, Decision, LostAnswer
from ..errors import EndpointError
from ..switching.budget import BudgetGuard
from ..switching.decision_cache import DecisionCache
from ..switching.evaluate import Policy, game_for, situations
from ..switching.players import SwitchPlayer
from .asking import Answer, Asked, Refused, check, check_task
from .outside import Coming, Outside

IDLE = 600.0
"""Seconds after which an episode that nobody asks about may lose its place to a new one."""
_STEP = ("step",)
_LONGEST_REASON = 300


@dataclass
class _Place:
    """An episode's. ``choice`` is the model that was granted the present step, ``answer`` what it has answered.

    ``shown``: whether the models were asked about the present step. ``repeated``: whether the answer was told again to
    one who counts no steps. ``alone``: whether the models are asked for this episode alone, since they failed at it.
    """

    id: str
    row: int
    number: int
    instruction: str
    limit: int
    touched: float
    env: Outside | None = None
    choice: int | None = None
    answer: Answer | None = None
    shown: bool = False
    repeated: bool = False
    alone: bool = False
    over: str = ""

    def end(self, why: str, status: int = 409) -> Refused:
        """The episode goes on no more."""
        self.over = why
        return Refused(why, status)


class Desk:
    """Answers for up to ``rows`` episodes at a time. Use it from one thread.

    Args:
        name: of the policy.
        policy: who acts when.
        players: from QUICK to DEEPTHINK.
        models: their names.
        budget: calls an episode may make.
        decision_cache: decisions made before, for the same question to the same model; None asks every time.
        clock: seconds that pass.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        players: Sequence[SwitchPlayer],
        models: Sequence[str],
        budget: int | None = None,
        decision_cache: DecisionCache | None = None,
        clock: Any = time.monotonic,
    ) -> None:
        self.name, self.policy, self.models, self.budget = name, policy, tuple(models), budget
        self.rows = min(player.engine.slots for player in players)
        self._spec = Coming("outside")
        self._game = game_for(policy, players, [self._spec], self.rows, {"decision_cache": decision_cache})
        self._guard = BudgetGuard(budget, self.rows)
        self._clock, self._begun = clock, 0
        self._places: dict[str, _Place] = {}
        self._needs_list = any(player.needs_list for player in players)

    def open(self, instruction: str, limit: int) -> str:
        """A place for a new episode of at most ``limit`` steps; its id.

        Raises:
            Refused: all are taken, by episodes that were asked about lately; or the instruction cannot be read, or the
                limit is below 1.
        """
        check_task(instruction)
        if limit < 1:
            raise Refused(f"is {limit}, and must be at least 1", 422, ("max_steps",))
        free = set(range(self.rows)) - {place.row for place in self._places.values()}
        if not free:
            oldest = min(self._places.values(), key=lambda place: place.touched)
            if self._clock() - oldest.touched < IDLE:
                raise Refused(
                    f"all {self.rows} places are taken: end an episode, or serve with more --max-sessions", 503
                )
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

        Where that fails it is asked for them one by one, so that nobody goes without an answer for another's fault. A
        step whose model failed is answered when it is asked for again, by the same model: a call is paid for once.

        Args:
            asked: what is seen now, by the ids of the episodes.

        Returns:
            An answer for each, or why there is none.
        """
        found: dict[str, Answer | Refused] = {}
        live: list[_Place] = []
        for key, now in asked.items():
            try:
                place = self._place(key)
                if (told := self._told(place, now)) is not None:
                    found[key] = told
                    continue
                self._check(place, now)
                self._move(place, now)
                if not place.shown:
                    self._check_room(place, now.actions)
                place.shown = True
                live.append(place)
            except Refused as error:
                found[key] = error
        found |= self._together([place for place in live if place.choice is None], self._decide)
        for number in range(len(self.models)):
            own = [place for place in live if place.choice == number and place.id not in found]
            found |= self._together(own, self._answer)
        return found

    def _place(self, key: str) -> _Place:
        place = self._places.get(key)
        if place is None:
            raise Refused("no episode of this id: it was ended, or idle for long and lost its place", 404)
        place.touched = self._clock()
        return place

    def _told(self, place: _Place, asked: Asked) -> Answer | None:
        """What was answered already, where that is asked for.

        Raises:
            Refused: the step is not the next one.
        """
        before, last = place.answer, self._steps(place)
        same = place.env is not None and asked.like(place.env.asked)
        if asked.step is None:
            if before and same and asked.may_repeat and not place.repeated:
                place.repeated = True
                return before
            return None
        if before and asked.step == last:
            if same:
                return before
            raise Refused(f"was answered for another observation or other actions; the next is {last + 1}", 409, _STEP)
        following = last + (before is not None)
        if asked.step != following and not place.over:
            raise Refused(f"is {asked.step}, and the next one is {following}", 409, _STEP)
        return None

    def _check(self, place: _Place, asked: Asked) -> None:
        if place.over:
            raise Refused(place.over, 409)
        if self._needs_list and not asked.actions:
            raise Refused("a model picks one of them, and there is none", 422, ("actions",))
        check(asked)
        if place.env and place.answer is None:
            # what is known of this state, and what was paid for, holds for what was seen and offered then
            same = asked.observation == place.env.asked.observation
            if not same or (place.shown and not asked.like(place.env.asked)):
                raise Refused("the step before was not answered yet: send the same again", 409, ("observation",))

    def _move(self, place: _Place, asked: Asked) -> None:
        """Begin the episode, or carry out what was answered last."""
        try:
            if place.env is None:
                env = Outside(place.instruction, asked, place.limit)
                self._spec.coming[:] = [env]
                self._game.begin(place.row, place.number)
                place.env = env
                if not all(player.fits(place.row) for player in self._game.agents):
                    raise place.end("instruction and observation do not fit into the context of every model")
                return
            place.env.asked = asked
            if place.answer is None:
                return
            assert place.choice is not None
            outcome = self._game.advance({place.row: place.choice})[place.row]
        except Refused:
            raise
        except Exception as error:
            raise place.end(f"the models cannot read it: {_words(error)}", 422) from error
        place.choice, place.answer, place.shown, place.repeated = None, None, False, False
        if outcome.timeout:
            raise place.end(f"the episode has had its {place.limit} steps")
        if outcome.cut:
            raise place.end("the episode is longer than the context of a model")

    def _check_room(self, place: _Place, actions: Sequence[str]) -> None:
        """Refuse actions that a model could not score in this episode. Nothing is paid yet, and others may follow."""
        for player, model in zip(self._game.agents, self.models, strict=True):
            if not isinstance(player, Agent) or not player.needs_list:
                continue
            sizes = [len(player.renderer.action(action)) for action in actions]
            where = ("actions", sizes.index(max(sizes)))
            if 0 in sizes:
                raise Refused(f"is nothing to the tokenizer of {model}", 422, ("actions", sizes.index(0)))
            thinks = player.thought_tokens if player.renderer.separator else 0
            behind = len(player.prompt(place.row)) + thinks + len(player.renderer.separator)
            room = player.engine.context - behind
            if max(sizes) > room:
                raise Refused(f"is {max(sizes)} tokens long, and {model} has room for {room}", 422, where)

    def _together(
        self, places: Sequence[_Place], do: Callable[[Sequence[_Place]], dict[str, Answer | Refused]]
    ) -> dict[str, Answer | Refused]:
        """Do something for all, at once if that can be done."""
        found: dict[str, Answer | Refused] = {}
        batch = [place for place in places if not place.alone]
        for group in [batch, *([place] for place in places if place.alone)]:
            if not group:
                continue
            try:
                found |= do(group)
            except Exception as error:
                kind = error.kind if isinstance(error, EndpointError) else None
                # an endpoint that is gone was asked often enough; what it refuses may be one episode's alone
                if len(group) > 1 and kind not in ("", "error"):
                    for place in group:
                        place.alone = True
                    found |= self._together(group, do)
                elif kind is None:
                    found[group[0].id] = Refused(f"no answer: {_words(error)}; ask again", 503)
                else:
                    found |= {place.id: _lost(place, _words(error), kind) for place in group}
            else:
                for place in group:
                    place.alone = False
        return found

    def _decide(self, places: Sequence[_Place]) -> dict[str, Answer | Refused]:
        rows = [place.row for place in places]
        wanted = self.policy.decide(situations(self.policy, self._game, self._guard, rows))
        for place, number in zip(places, wanted, strict=True):
            place.choice = self._guard.grant(place.row, number)
            if place.choice:
                self._guard.record(place.row)
        return {}

    def _answer(self, places: Sequence[_Place]) -> dict[str, Answer | Refused]:
        choices = {place.row: place.choice for place in places if place.choice is not None}
        decisions = self._game.decisions(choices)
        return {place.id: self._said(place, choices[place.row], decisions[place.row]) for place in places}

    def _said(self, place: _Place, number: int, decision: Decision | LostAnswer) -> Answer | Refused:
        if not isinstance(decision, Decision):
            return _lost(place, decision.reason, decision.kind)
        made, left = self._guard.made[place.row], self._guard.left[place.row]
        about = (self.models[number], bool(number), made, left, self._steps(place))
        place.answer = Answer(decision.action, decision.thought, *about)
        return place.answer

    def _steps(self, place: _Place) -> int:
        return len(self._game.episodes[place.row].steps) if place.env else 0


def _lost(place: _Place, reason: str, kind: str) -> Refused:
    """Why a model's endpoint gave no answer; ``kind`` is that of :class:`atlas_ray.errors.EndpointError`."""
    if kind == "context":
        return place.end(f"the episode is longer than the context of a model: {reason}")
    return Refused(f"no answer: {reason}" + ("; ask again" if kind in ("", "error") else ""), 502)


def _words(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}..."
