"""One transaction for what must not be torn apart: find the session, decide who acts, reserve the worst case."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ..recipe.gateway import Gateway
from ..switching.budget import QUICK, shown
from ..switching.past import Past
from ..switching.policy import Situation
from ..switching.spending import Account, Amount, Limits, Usage, cost
from . import sessions as places
from .budget import SessionAccount, offer, worst_case
from .deciding import Choice, Decider
from .past import inherit, note_turn, past_of
from .removal import remove_sessions
from .replies import ApiError
from .requests import ChatRequest, action_of, check_bounded, link
from .store import Reservation, Store, Transaction
from .tables import ANSWERED, FAILED, OPEN, sessions, shadows, steps

Counter = Callable[[str], int]
_k, _p = steps.c, sa.bindparam


def _of_step(*changed: str) -> Any:
    at = sa.and_(_k.session == _p("session_"), _k.number == _p("step_"))
    return steps.update().where(at).values({name: _p(f"{name}_") for name in changed})


_AGAIN = _of_step("model", "probability", "owner", "state", "ended")
_ANSWERED = _of_step("state", "ended", "answer", "action", "told", "prompt_tokens", "completion_tokens")
_FAILED = _of_step("state", "ended")
_FORGET = steps.update().where(_k.ended < _p("before_"), _k.answer.is_not(None)).values(answer=None)
_SHADOW_GONE = sa.delete(shadows).where(shadows.c.session == _p("session_"), shadows.c.number == _p("step_"))
_ANY = sa.select(sessions.c.id).limit(1)


@dataclass(frozen=True)
class Admitted:
    """A step that may be answered, and is paid for.

    ``left``: what is left of the session's budget then. ``asked``: the digest of its conversation; None where a header
    names the session. ``seen``: that of what it saw; None where the switch reads no past. ``limit``: see
    :class:`atlas_ray.gateway.budget.Offer`.
    """

    session: str
    step: int
    number: int
    probability: float
    reservation: Reservation
    left: Limits
    asked: str | None
    seen: str | None
    limit: int | None = None

    @property
    def reserved(self) -> Amount:
        """What it may cost."""
        return self.reservation.amount


@dataclass(frozen=True)
class Known:
    """A step that was asked for before. ``answer``: None while it is being answered, by the gateway ``owner``."""

    session: str
    step: int
    number: int
    left: Limits
    owner: str
    answer: bytes | None = None


class Admission:
    """Lets requests in. Use it from one thread.

    Args:
        settings: of the recipe.
        store: where it is written.
        decider: who decides.
        counters: of each model, what counts the tokens of a text; None where its tokenizer is not known.
        clock: seconds since 1970.

    Attributes:
        owner: names this process: steps that another has left open were lost with it.
        style: of what models say.
    """

    def __init__(
        self,
        settings: Gateway,
        store: Store,
        decider: Decider,
        counters: Sequence[Counter | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.store, self._decider, self._clock = settings, store, decider, clock
        self._counters, self.owner, self.style = tuple(counters), store.owner.name, decider.style
        said = zip(Limits.of(settings.budget), decider.limits, strict=True)
        self.limits = Limits(*(learned if own is None else own for own, learned in said))
        self.daily = Limits.of(settings.daily)

    def admit(self, request: ChatRequest, key: str) -> Admitted | Known:
        """Let a request in, or say what is known of its step.

        Args:
            request: the request.
            key: whose it is.

        Raises:
            ApiError: 402 where nothing that may act fits what is left; 400 where its cost has no bound.
        """
        models, unbounded = self.settings.models, None
        try:
            check_bounded(request.body)
            usages = [worst_case(m, request, c) for m, c in zip(models, self._counters, strict=True)]
        except ApiError as error:  # which matters where tokens or money have a limit
            unbounded, usages = error, [Usage(request.size, model.max_tokens) for model in models]
        chain = request.chain(key)
        with self.store.transaction() as tx:
            return self._admit(tx, request, key, chain, usages, unbounded)

    def _admit(
        self,
        tx: Transaction,
        request: ChatRequest,
        key: str,
        chain: Sequence[str],
        usages: Sequence[Usage],
        unbounded: ApiError | None,
    ) -> Admitted | Known:
        now = self._clock()
        place = places.locate(tx, request, key, chain)
        session, known = place.session, place.known
        if session is not None and known is not None:
            left = session.limits.left(session.spent)
            found = Known(session.id, known.number, known.model, left, known.owner)
            if known.state == OPEN and tx.lives(known.owner):
                return found
            if known.state == ANSWERED and known.answer is not None:
                return replace(found, answer=bytes(known.answer))
            if known.state == ANSWERED:
                known = None  # its answer is kept no longer: this is a new step
        if session is None:
            limits = self.limits.tightened(place.limits).tightened(request.limits)
            first = 0 if place.after is None else place.after[1] + 1
            session = places.begin(tx, request, key, limits, place.base, now, self._content(request.goal), first)
            if place.after is not None and self._decider.reads_past:
                inherit(tx, session.id, *place.after)
        limits, today = places.tighten(tx, session, request.limits), _day(now)
        if unbounded is not None and any(cap is not None for cap in (*limits[1:], *self.daily[1:])):
            raise unbounded
        daily = Account(self.daily, tx.spent_on(key, today))
        account = SessionAccount(session.id, Account(limits, session.spent), key, today, daily)
        each = enumerate(zip(self.settings.models, usages, strict=True))
        offers = [offer(model, bool(n), request, usage, account) for n, (model, usage) in each]
        allowed = [made.fits for made in offers]
        self._check(request, allowed, account.left)
        step = session.steps if known is None else known.number
        if known is not None and allowed[known.model]:
            choice = Choice(known.model, known.probability)  # it was decided already
        else:
            left = getattr(account.left, self._decider.unit)
            past = None
            if self._decider.reads_past:
                past = past_of(tx, session.id, step, request.seen, self._decider.actions(request.messages))
            choice = self._choose(request, session.id, step, allowed, left, past)
        reservation = tx.reserve(account, step, offers[choice.number].amount, now)
        if reservation is None:
            raise _empty(account.left)
        asked = chain[-1] if request.session is None else None
        values = {"model": choice.number, "probability": choice.probability, "owner": self.owner, "state": OPEN}
        if known is not None:
            again = {f"{name}_": value for name, value in values.items()}
            tx.do(_AGAIN, session_=session.id, step_=step, ended_=None, **again)
        else:
            once, text = places.idempotency(request, key), self._content(request.observation)
            values |= {"fingerprint": request.fingerprint, "idempotency": once, "asked": asked, "observation": text}
            tx.put(steps, session=session.id, number=step, begun=now, **values)
        left = account.charged(reservation.amount).left
        seen = request.seen if self._decider.reads_past else None
        about = (choice.number, choice.probability, reservation, left, asked, seen, offers[choice.number].limit)
        return Admitted(session.id, step, *about)

    def _check(self, request: ChatRequest, allowed: Sequence[bool], left: Limits) -> None:
        only_quick = request.policy == "quick" or (request.policy == "londi" and self.settings.switch == "quick")
        refuse = self.settings.on_empty == "refuse" and not only_quick
        if not allowed[QUICK] or (refuse and not allowed[-1]):
            raise _empty(left)

    def _choose(
        self,
        request: ChatRequest,
        session: str,
        step: int,
        allowed: Sequence[bool],
        left: int | None,
        past: Past | None,
    ) -> Choice:
        text, share = f"{request.goal}\n{request.observation}", min(1.0, step / self.settings.max_steps)
        situation = Situation(text, shown(left, allowed), share, session, step, past=past)
        return self._decider.choose(request.policy, allowed, situation)

    def _content(self, text: str) -> str:
        kept = self.settings.record is not None and self.settings.record_content
        # databases take neither half of a surrogate pair nor, in PostgreSQL, a zero
        return text.encode("utf-8", "replace").decode().replace("\0", "?") if kept else ""

    def again(self, admitted: Admitted, key: str) -> Admitted | None:
        """A reservation for another attempt, where what the last one took is not known and stays spent.

        None: the budget does not allow it.
        """
        now = self._clock()
        with self.store.transaction() as tx:
            account = tx.account(admitted.session, key, _day(now), self.daily)
            reservation = tx.reserve(account, admitted.step, admitted.reserved, now)
        if reservation is None:
            return None
        return replace(admitted, reservation=reservation, left=account.charged(reservation.amount).left)

    def answered(self, admitted: Admitted, usage: Usage | None, message: dict[str, Any], answer: bytes) -> Limits:
        """Settle a step that was answered, and keep its answer; what is left of the session's budget.

        Args:
            admitted: the step.
            usage: what it took; None keeps the reservation.
            message: the assistant's, by which the conversation is known when it goes on.
            answer: all that a client gets of it.
        """
        now, model = self._clock(), self.settings.models[admitted.number]
        used = admitted.reserved if usage is None else cost(model, usage, bool(admitted.number))
        told = None if admitted.asked is None else link(admitted.asked, {**message, "role": "assistant"})
        values = {
            "state_": ANSWERED,
            "ended_": now,
            "answer_": answer,
            "action_": self._content(action_of(message)),
            "told_": told,
            "prompt_tokens_": usage.prompt if usage else None,
            "completion_tokens_": usage.completion if usage else None,
        }
        with self.store.transaction() as tx:
            left = tx.settle(admitted.reservation, used, now)
            tx.do(_ANSWERED, session_=admitted.session, step_=admitted.step, **values)
            if admitted.seen is not None:
                note_turn(tx, admitted.session, admitted.step, admitted.number, admitted.seen)
        return admitted.left if left is None else left

    def failed(self, admitted: Admitted, free: bool, over: bool = True) -> None:
        """Note that a step got no answer. ``free``: nothing was taken for it. ``over``: nobody tries it again."""
        now = self._clock()
        with self.store.transaction() as tx:
            if free:
                tx.settle(admitted.reservation, Amount(), now)
            if over:
                tx.do(_FAILED, session_=admitted.session, step_=admitted.step, state_=FAILED, ended_=now)

    def shadow(self, admitted: Admitted, request: ChatRequest, key: str) -> Reservation | None:
        """A reservation to ask QUICK the same after a step that DEEPTHINK took.

        None: this step is not among those that are drawn for it, a budget does not allow it, or its cost has no bound.
        """
        now, quick, bounded = self._clock(), self.settings.models[QUICK], True
        by_deepthink = admitted.number == len(self.settings.models) - 1
        if not by_deepthink or not self._decider.shadows(admitted.session, admitted.step):
            return None
        try:
            check_bounded(request.body)
            usage = worst_case(quick, request, self._counters[QUICK])
        except ApiError:
            usage, bounded = Usage(request.size, quick.max_tokens), False
        with self.store.transaction() as tx:
            account = tx.account(admitted.session, key, _day(now), self.daily)
            if not bounded and any(cap is not None for cap in (*account.own.limits[1:], *self.daily[1:])):
                return None
            return tx.reserve(account, admitted.step, cost(quick, usage, False), now)

    def shadowed(
        self, reservation: Reservation, usage: Usage | None, message: dict[str, Any], same: bool | None
    ) -> None:
        """Settle what QUICK said after a step of DEEPTHINK, and keep it for the record.

        Args:
            reservation: of :meth:`shadow`.
            usage: what it took; None keeps the reservation.
            message: QUICK's.
            same: whether it does what DEEPTHINK's does; None where nobody can tell.
        """
        session, step = reservation.session, reservation.step
        tokens = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion} if usage else {}
        with self.store.transaction() as tx:
            used = reservation.amount if usage is None else cost(self.settings.models[QUICK], usage, False)
            tx.settle(reservation, used, self._clock())
            tx.do(_SHADOW_GONE, session_=session, step_=step)  # of a gateway that was taken for dead
            said = "" if same is None else self._content(action_of(message))
            tx.put(shadows, session=session, number=step, same=same, action=said, **tokens)

    def return_unused(self, reservation: Reservation) -> None:
        """What was reserved for an attempt was not taken."""
        with self.store.transaction() as tx:
            tx.settle(reservation, Amount(), self._clock())

    def forget_answers(self) -> None:
        """Drop the answers that are kept no longer."""
        with self.store.transaction() as tx:
            tx.do(_FORGET, before_=self._clock() - self.settings.answers_kept)

    def remove_sessions(self) -> int:
        """Remove the sessions that are kept no longer; how many."""
        settings = self.settings
        if settings.keep_days is None:
            return 0
        before = self._clock() - 86_400 * settings.keep_days
        return remove_sessions(self.store, before, recorded=settings.record is not None)

    def check(self) -> None:
        """Raise where the store cannot be written to."""
        with self.store.transaction() as tx:
            tx.row(_ANY)

    def spending(self, session: str) -> tuple[Amount, Amount]:
        """What a session has spent by its row, and by adding up what its reservations came to, for tests."""
        with self.store.transaction() as tx:
            spent = tx.account(session, "", "", self.daily).spent
            return spent, tx.spent_until(session, 2**31 - 1)


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _empty(left: Limits) -> ApiError:
    return ApiError(
        402, f"the session's budget ({left} left) or the day's is less than this may cost", "budget_exceeded"
    )
