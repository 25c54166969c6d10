"""Which session a request belongs to, and whether its step was asked for before.

A session is named by a header. Without one it is known by its conversation: the longest known one that this one begins
with. An answer that a client changed on its way back still counts as that turn, unless several sessions may be meant.
Who goes on from a step from which another request has gone on before begins a session of its own, which has spent what
was spent until then: so no way through a conversation has more than one budget.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..switching.spending import NOTHING, UNLIMITED, Amount, Limits
from .replies import ApiError
from .requests import ChatRequest
from .store import Transaction
from .tables import ANSWERED, FAILED, OPEN, sessions, steps

_BATCH = 200
_s, _k, _p = sessions.c, steps.c, sa.bindparam
_FOUND = (
    *(_s.id, _s.steps, _s.limit_calls, _s.limit_tokens, _s.limit_usd, _s.spent_calls, _s.spent_tokens, _s.spent_usd),
    *(_k.number, _k.state, _k.owner, _k.model, _k.probability, _k.fingerprint, _k.answer),
)
_STEPS, _UNNAMED = sa.select(*_FOUND).join_from(sessions, steps, _k.session == _s.id), _s.name.is_(None)
_ONCE = _STEPS.where(_k.idempotency == _p("once_")).limit(1)
_SAME = sa.and_(_k.fingerprint == _p("same_"), sa.or_(_k.number == _s.steps - 1, _k.state == OPEN))
_NAMED = (
    sa.select(*_FOUND)
    .outerjoin_from(sessions, steps, sa.and_(_k.session == _s.id, _SAME))
    .where(_s.key == _p("key_"), _s.name == _p("name_"))
    .order_by(_k.begun.desc(), _k.number.desc())
    .limit(1)
)
# as plain columns they lead SQLite through all sessions of the key: it takes a missing name for one of an index
_KEY, _NO_NAME = sa.func.coalesce(_s.key, "") == _p("key_"), sa.func.coalesce(_s.name, "") == ""
_ASKED_LAST = (
    _STEPS.where(_k.fingerprint == _p("same_"), _KEY, _NO_NAME, _k.number == _s.steps - 1)
    .order_by(_k.begun.desc(), _k.number.desc())
    .limit(1)
)
_later = steps.alias("later")
_GONE_ON = sa.exists().where(_later.c.session == _k.session, _later.c.number > _k.number, _later.c.state != FAILED)
_TALKS = (
    sa.select(*_FOUND[:-1], _k.asked, _k.told, sa.not_(_GONE_ON).label("last"))
    .join_from(sessions, steps, _k.session == _s.id)
    .where(_UNNAMED)
    .order_by(_s.touched)
)
_ANSWERED_SO, _ASKED_SO = _TALKS.where(_k.told == _p("told_")), _TALKS.where(_k.asked == _p("asked_"))
_TURNS = _TALKS.where(
    sa.or_(_k.told.in_(_p("told_", expanding=True)), _k.asked.in_(_p("asked_", expanding=True)))
)  # fmt: skip
_TIGHTEN = (
    sessions.update()
    .where(_s.id == _p("session_"))
    .values(limit_calls=_p("calls"), limit_tokens=_p("tokens"), limit_usd=_p("usd"))
)


class Session(NamedTuple):
    """A session as the transaction has read it."""

    id: str
    steps: int
    limits: Limits
    spent: Amount

    @classmethod
    def of(cls, row: Any) -> Session:
        """What a row says."""
        return cls(row[0], row[1], Limits(*row[2:5]), Amount(*row[5:8]))


class KnownStep(NamedTuple):
    """A step that was asked for before."""

    number: int
    state: str
    owner: str
    model: int
    probability: float
    fingerprint: str
    answer: bytes | None

    @classmethod
    def of(cls, row: Any) -> KnownStep | None:
        """What a row says; None where there is no step in it."""
        return None if row[8] is None else cls(*row[8:])


class Place(NamedTuple):
    """Where a request stands.

    ``session``: None begins one, which has spent ``base`` already, under ``limits``; it has parted from another after
    a step of that one (``after``). ``known``: the step that it asks for again.
    """

    session: Session | None = None
    known: KnownStep | None = None
    base: Amount = NOTHING
    limits: Limits = UNLIMITED
    after: tuple[str, int] | None = None


def locate(tx: Transaction, request: ChatRequest, key: str, chain: Sequence[str]) -> Place:
    """Where a request stands.

    Args:
        tx: the transaction in which it is answered.
        request: the request.
        key: whose it is.
        chain: :meth:`ChatRequest.chain`.

    Raises:
        ApiError: its ``Idempotency-Key`` was given with another request.
    """
    same = request.fingerprint
    if (once := idempotency(request, key)) is not None and (row := tx.row(_ONCE, once_=once)) is not None:
        if row.fingerprint != same:
            raise ApiError(400, "this Idempotency-Key was given with another request", "idempotency_key_reused")
        return Place(Session.of(row), KnownStep.of(row))
    if request.session is not None:
        row = tx.row(_NAMED, key_=key, name_=request.session, same_=same)
        if row is None:
            return Place()
        return Place(Session.of(row), KnownStep.of(row) if once is None else None)
    if once is None:
        row = tx.row(_ASKED_LAST, key_=key, same_=same)
        if row is not None and (row.state != ANSWERED or row.answer is not None):
            return Place(Session.of(row), KnownStep.of(row))
    return _continued(tx, request, chain)


def idempotency(request: ChatRequest, key: str) -> str | None:
    """An ``Idempotency-Key`` as the store has it: each client has its own."""
    if request.idempotency is None:
        return None
    return hashlib.sha256(f"{key}\n{request.idempotency}".encode()).hexdigest()


def _continued(tx: Transaction, request: ChatRequest, chain: Sequence[str]) -> Place:
    for answered, asked in _ways(tx, request, chain):
        going_on = [row for row in answered or asked if row.last]
        if going_on and (answered or len(going_on) == 1):
            return Place(Session.of(going_on[-1]))
        last = (answered or asked)[-1]
        base = tx.spent_until(last.id, last.number)
        return Place(base=base, limits=Session.of(last).limits, after=(last.id, last.number))
    return Place()


def _ways(tx: Transaction, request: ChatRequest, chain: Sequence[str]) -> Iterator[tuple[list[Any], list[Any]]]:
    """From the last turn on, the steps that have known the conversation until then, with and without its answer."""
    turns = [n for n, message in enumerate(request.messages) if n and message["role"] == "assistant"]
    while turns:
        last, some, turns = turns[-1], turns[-_BATCH:-1], turns[:-_BATCH]
        # nearly always it is the last one as it was answered
        if answered := tx.rows(_ANSWERED_SO, told_=chain[last]):
            yield answered, []
        if before := tx.rows(_ASKED_SO, asked_=chain[last - 1]):
            yield [], before
        if not some:
            continue
        found = tx.rows(_TURNS, told_=[chain[n] for n in some], asked_=[chain[n - 1] for n in some])
        for n in reversed(some):
            answered = [row for row in found if row.told == chain[n]]
            before = [row for row in found if row.asked == chain[n - 1]]
            if answered or before:
                yield answered, before


def begin(
    tx: Transaction, request: ChatRequest, key: str, limits: Limits, base: Amount, now: float, goal: str, step: int = 0
) -> Session:
    """A new session, whose first step has this number."""
    made = uuid.uuid4().hex
    amounts = {f"limit_{name}": value for name, value in limits._asdict().items()}
    for prefix in ("base_", "spent_"):
        amounts |= {f"{prefix}{name}": value for name, value in base._asdict().items()}
    about = {"id": made, "key": key, "name": request.session, "goal": goal, "created": now, "touched": now}
    tx.put(sessions, **about, steps=step, recorded=0.0, **amounts)
    return Session(made, step, limits, base)


def tighten(tx: Transaction, session: Session, limits: Limits) -> Limits:
    """The limits of a session, made tighter where a client asks for that."""
    made = session.limits.tightened(limits)
    if made != session.limits:
        tx.do(_TIGHTEN, session_=session.id, **made._asdict())
    return made
