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
from ..switching.billing import paid_for
from ..switching.budget import QUICK, BudgetGuard
from ..switching.decision_cache import DecisionCache
from ..switching.evaluate import Policy, make_game, situations
from ..switching.players import SwitchPlayer
from ..switching.spending import Unit, dollars
from .client_env import ClientEnv, ClientEnvSpec
from .messages import ActRequest, Answer, Refused, check_request, check_task

IDLE = 600.0
"""Seconds after which an episode that nobody asks about may lose its place to a new one."""
_STEP = ("step",)
_LONGEST_REASON = 300


@dataclass
class _Session:
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
    env: ClientEnv | None = None
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


class SessionManager:
    """Answers for up to ``rows`` episodes at a time. Use it from one thread.

    Args:
        name: of the policy.
        policy: who acts when.
        players: from QUICK to DEEPTHINK.
        models: their names.
        budget: of an episode, in the unit.
        decision_cache: decisions made before, for the same question to the same model; None asks every time.
        clock: seconds that pass.
        unit: of the budget.
        run: steps that a model takes once it is called.

    Attributes:
        budget: of an episode: calls, or by its unit.
        calls: most calls of an episode; None without a budget of calls.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        players: Sequence[SwitchPlayer],
        models: Sequence[str],
        budget: float | None = None,
        decision_cache: DecisionCache | None = None,
        clock: Any = time.monotonic,
        unit: Unit = "calls",
        run: int = 1,
    ) -> None:
        self.name, self.policy, self.models = name, policy, tuple(models)
        self.max_sessions = min(player.engine.slots for player in players)
        self._spec = ClientEnvSpec("outside")
        self._game = make_game(policy, players, [self._spec], self.max_sessions, {"decision_cache": decision_cache})
        self._guard = BudgetGuard(budget, self.max_sessions, unit, run)
        calls = unit == "calls" or budget is None
        self.budget: float | dict[str, float] | None = budget if calls or budget is None else {unit: budget}
        self.calls = self._guard.cap if calls else None
        self._clock, self._begun = clock, 0
        self._sessions: dict[str, _Session] = {}
        self._needs_list = any(player.needs_list for player in players)

    def open(self, instruction: str, limit: int) -> str:
        """A session for a new episode of at most ``limit`` steps; its id.

        Raises:
            Refused: all are taken, by episodes that were asked about lately; or the instruction cannot be read, or the
                limit is below 1.
        """
        check_task(instruction)
        if limit < 1:
            raise Refused(f"is {limit}, and must be at least 1", 422, ("max_steps",))
        free = set(range(self.max_sessions)) - {session.row for session in self._sessions.values()}
        if not free:
            oldest = min(self._sessions.values(), key=lambda session: session.touched)
            if self._clock() - oldest.touched < IDLE:
                raise Refused(
                    f"all {self.max_sessions} sessions are taken: end one, or serve with more --max-sessions",
                    503,
                )
            free.add(self._sessions.pop(oldest.id).row)
        session = _Session(uuid.uuid4().hex, min(free), self._begun, instruction, limit, self._clock())
        self._begun += 1
        self._sessions[session.id] = session
        self._guard.start(session.row)
        return session.id

    def close(self, key: str) -> None:
        """End an episode, however far it is.

        Raises:
            Refused: there is none of that id.
        """
        del self._sessions[self._session(key).id]

    def about(self, key: str) -> dict[str, Any]:
        """Steps, calls and what each model has used of an episode.

        Raises:
            Refused: there is none of that id.
        """
        session = self._session(key)
        used = self._game.usage(session.row) if session.env else []
        return {
            "id": session.id,
            "steps": self._steps(session),
            "max_steps": session.limit,
            "calls": self._guard.made[session.row],
            "calls_left": self._calls_left(session.row),
            **self._left(session.row),
            "over": session.over or None,
            "usage": [{"model": model, **asdict(usage)} for model, usage in zip(self.models, used, strict=False)],
        }

    def act(self, requests: Mapping[str, ActRequest]) -> dict[str, Answer | Refused]:
        """The next action of each episode, of all at once: a model is asked once for all of its episodes.

        Where that fails it is asked for them one by one, so that nobody goes without an answer for another's fault. A
        step whose model failed is answered when it is asked for again, by the same model: a call is paid for once.

        Args:
            requests: what is seen now, by the ids of the episodes.

        Returns:
            An answer for each, or why there is none.
        """
        found: dict[str, Answer | Refused] = {}
        live: list[_Session] = []
        for key, request in requests.items():
            try:
                session = self._session(key)
                if (told := self._repeated_answer(session, request)) is not None:
                    found[key] = told
                    continue
                self._check(session, request)
                self._apply(session, request)
                if not session.shown:
                    self._check_room(session, request.actions)
                session.shown = True
                live.append(session)
            except Refused as error:
                found[key] = error
        if self._guard.quotes:
            for session in live:
                if not self._pays(session):
                    found[session.id] = session.end("the episode's budget allows no further step")
            live = [session for session in live if session.id not in found]
        found |= self._batch_or_each([session for session in live if session.choice is None], self._decide)
        for number in range(len(self.models)):
            own = [session for session in live if session.choice == number and session.id not in found]
            found |= self._batch_or_each(own, self._answer)
        return found

    def _session(self, key: str) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            raise Refused("no episode of this id: it was ended, or idle for long and lost its place", 404)
        session.touched = self._clock()
        return session

    def _repeated_answer(self, session: _Session, request: ActRequest) -> Answer | None:
        """What was answered already, where that is asked for.

        Raises:
            Refused: the step is not the next one.
        """
        before, last = session.answer, self._steps(session)
        same = session.env is not None and request.like(session.env.request)
        if request.step is None:
            if before and same and request.may_repeat and not session.repeated:
                session.repeated = True
                return before
            return None
        if before and request.step == last:
            if same:
                return before
            raise Refused(f"was answered for another observation or other actions; the next is {last + 1}", 409, _STEP)
        following = last + (before is not None)
        if request.step != following and not session.over:
            raise Refused(f"is {request.step}, and the next one is {following}", 409, _STEP)
        return None

    def _check(self, session: _Session, request: ActRequest) -> None:
        if session.over:
            raise Refused(session.over, 409)
        if self._needs_list and not request.actions:
            raise Refused("a model picks one of them, and there is none", 422, ("actions",))
        check_request(request)
        if session.env and session.answer is None:
            # what is known of this state, and what was paid for, holds for what was seen and offered then
            same = request.observation == session.env.request.observation
            if not same or (session.shown and not request.like(session.env.request)):
                raise Refused("the step before was not answered yet: send the same again", 409, ("observation",))

    def _apply(self, session: _Session, request: ActRequest) -> None:
        """Begin the episode, or carry out what was answered last."""
        try:
            if session.env is None:
                env = ClientEnv(session.instruction, request, session.limit)
                self._spec.starting[:] = [env]
                self._game.begin(session.row, session.number)
                session.env = env
                if not all(player.fits(session.row) for player in self._game.agents):
                    raise session.end("instruction and observation do not fit into the context of every model")
                return
            session.env.request = request
            if session.answer is None:
                return
            assert session.choice is not None
            outcome = self._game.advance({session.row: session.choice})[session.row]
        except Refused:
            raise
        except Exception as error:
            raise session.end(f"the models cannot read it: {_shortened(error)}", 422) from error
        session.choice, session.answer, session.shown, session.repeated = None, None, False, False
        if outcome.timeout:
            raise session.end(f"the episode has had its {session.limit} steps")
        if outcome.cut:
            raise session.end("the episode is longer than the context of a model")

    def _check_room(self, session: _Session, actions: Sequence[str]) -> None:
        """Refuse actions that a model could not score in this episode. Nothing is paid yet, and others may follow."""
        for player, model in zip(self._game.agents, self.models, strict=True):
            if not isinstance(player, Agent) or not player.needs_list:
                continue
            sizes = [len(player.renderer.action(action)) for action in actions]
            where = ("actions", sizes.index(max(sizes)))
            if 0 in sizes:
                raise Refused(f"is nothing to the tokenizer of {model}", 422, ("actions", sizes.index(0)))
            thinks = player.thought_tokens if player.renderer.separator else 0
            behind = len(player.prompt(session.row)) + thinks + len(player.renderer.separator)
            room = player.engine.context - behind
            if max(sizes) > room:
                raise Refused(f"is {max(sizes)} tokens long, and {model} has room for {room}", 422, where)

    def _batch_or_each(
        self, sessions: Sequence[_Session], do: Callable[[Sequence[_Session]], dict[str, Answer | Refused]]
    ) -> dict[str, Answer | Refused]:
        """Do something for all, at once if that can be done."""
        found: dict[str, Answer | Refused] = {}
        batch = [session for session in sessions if not session.alone]
        for group in [batch, *([session] for session in sessions if session.alone)]:
            if not group:
                continue
            try:
                found |= do(group)
            except Exception as error:
                kind = error.kind if isinstance(error, EndpointError) else None
                # an endpoint that is gone was asked often enough; what it refuses may be one episode's alone
                if len(group) > 1 and kind not in ("", "error"):
                    for session in group:
                        session.alone = True
                    found |= self._batch_or_each(group, do)
                elif kind is None:
                    found[group[0].id] = Refused(f"no answer: {_shortened(error)}; ask again", 503)
                else:
                    found |= {session.id: _lost(session, _shortened(error), kind) for session in group}
            else:
                for session in group:
                    session.alone = False
        return found

    def _decide(self, sessions: Sequence[_Session]) -> dict[str, Answer | Refused]:
        rows = [session.row for session in sessions if not self._guard.run_left(session.row)]
        seen = situations(self.policy, self._game, self._guard, rows) if rows else []
        wanted = dict(zip(rows, self.policy.decide(seen), strict=True))
        for session in sessions:
            session.choice = self._guard.grant(session.row, wanted.get(session.row, QUICK))
            if session.choice:
                self._guard.record(session.row)
        return {}

    def _answer(self, sessions: Sequence[_Session]) -> dict[str, Answer | Refused]:
        choices = {session.row: session.choice for session in sessions if session.choice is not None}
        decisions = self._game.decisions(choices)
        return {
            session.id: self._to_answer(session, choices[session.row], decisions[session.row]) for session in sessions
        }

    def _to_answer(self, session: _Session, number: int, decision: Decision | LostAnswer) -> Answer | Refused:
        if not isinstance(decision, Decision):
            return _lost(session, decision.reason, decision.kind)
        if self._guard.quotes:
            self._guard.settle(session.row, paid_for(self._game.agents, session.row, number, decision))
        made, left = self._guard.made[session.row], self._calls_left(session.row)
        about = (self.models[number], bool(number), made, left, self._steps(session))
        session.answer = Answer(decision.action, decision.thought, *about)
        return session.answer

    def _pays(self, session: _Session) -> bool:
        """Whether the budget allows a step, or another attempt at one, whose last stays paid."""
        if session.choice is not None:
            return self._guard.again(session.row)
        self._guard.quote(session.row, self._game.worst_cases(session.row))
        return not self._guard.is_empty(session.row)

    def _calls_left(self, row: int) -> int | None:
        return None if self._guard.quotes else self._guard.left[row]

    def _left(self, row: int) -> dict[str, Any]:
        """What is left of a budget that is not in calls."""
        left = self._guard.left[row]
        if left is None or not self._guard.quotes:
            return {}
        return {"budget_left": {self._guard.unit: float(dollars(left)) if self._guard.unit == "usd" else left}}

    def _steps(self, session: _Session) -> int:
        return len(self._game.episodes[session.row].steps) if session.env else 0


def _lost(session: _Session, reason: str, kind: str) -> Refused:
    """Why a model's endpoint gave no answer; ``kind`` is that of :class:`atlas_ray.errors.EndpointError`."""
    if kind == "context":
        return session.end(f"the episode is longer than the context of a model: {reason}")
    return Refused(f"no answer: {reason}" + ("; ask again" if kind in ("", "error") else ""), 502)


def _shortened(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}..."
