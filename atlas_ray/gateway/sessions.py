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
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .budget import NOTHING, UNLIMITED, Amount, Limits
from .replies import ApiError
from .requests import ChatRequest
from .store import ANSWER, ANSWERED, ASKED, OPEN, Transaction, conversations, sessions, steps

_BATCH = 200


@dataclass(frozen=True)
class Place:
    """Where a request stands.

    ``session``: its row; None begins one, which has spent ``base`` already, under ``limits``. ``known``: the row of the
    step that it asks for again.
    """

    session: Any = None
    known: Any = None
    base: Amount = NOTHING
    limits: Limits = UNLIMITED


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
    if (once := idempotency(request, key)) is not None:
        known = tx.row(sa.select(steps).where(steps.c.idempotency == once))
        if known is not None:
            if known.fingerprint != request.fingerprint:
                raise ApiError(400, "this Idempotency-Key was given with another request", "idempotency_key_reused")
            return Place(by_id(tx, known.session), known)
    if request.session is not None:
        session = tx.row(sa.select(sessions).where(sessions.c.key == key, sessions.c.name == request.session))
        if session is None or once is not None:
            return Place(session)
        last = sa.or_(steps.c.number == session.steps - 1, steps.c.state == OPEN)
        return Place(session, tx.row(_same(request).where(steps.c.session == session.id, last)))
    if once is None:
        joined = _same(request).join(sessions, sessions.c.id == steps.c.session)
        mine = joined.where(sessions.c.key == key, sessions.c.name.is_(None), steps.c.number == sessions.c.steps - 1)
        if (known := tx.row(mine)) is not None and (known.state != ANSWERED or known.answer is not None):
            return Place(by_id(tx, known.session), known)
    return _continued(tx, request, chain)


def idempotency(request: ChatRequest, key: str) -> str | None:
    """An ``Idempotency-Key`` as the store has it: each client has its own."""
    if request.idempotency is None:
        return None
    return hashlib.sha256(f"{key}\n{request.idempotency}".encode()).hexdigest()


def by_id(tx: Transaction, session: str) -> Any:
    """The row of a session."""
    return tx.row(sa.select(sessions).where(sessions.c.id == session))


def limits_of(session: Any) -> Limits:
    """The limits in the row of a session."""
    return Limits(session.limit_calls, session.limit_tokens, session.limit_usd)


def spent_by(session: Any) -> Amount:
    """What a session had spent when its row was read, reservations included."""
    return Amount(session.spent_calls, session.spent_tokens, session.spent_usd)


def _same(request: ChatRequest) -> sa.Select[Any]:
    same = steps.c.fingerprint == request.fingerprint
    return sa.select(steps).where(same).order_by(steps.c.begun.desc(), steps.c.number.desc())


def _continued(tx: Transaction, request: ChatRequest, chain: Sequence[str]) -> Place:
    for answer, asked in _ways(tx, request, chain):
        going_on = [row for row in answer if row.step == row.steps - 1] or (
            [] if answer else [row for row in asked if row.step == row.steps - 1]
        )
        if answer and going_on:
            return Place(by_id(tx, going_on[-1].session))
        if len(going_on) == 1:
            return Place(by_id(tx, going_on[0].session))
        last = (answer or asked)[-1]
        return Place(base=tx.spent_until(last.session, last.step), limits=tx.limits(last.session))
    return Place()


def _ways(tx: Transaction, request: ChatRequest, chain: Sequence[str]) -> Iterator[tuple[list[Any], list[Any]]]:
    """From the last turn on, the sessions that have known the conversation until then, with and without its answer."""
    turns = [n for n, message in enumerate(request.messages) if n and message["role"] == "assistant"]
    c = conversations.c
    for start in range(len(turns), 0, -_BATCH):
        some = turns[max(0, start - _BATCH) : start]
        digests = {chain[n] for n in some} | {chain[n - 1] for n in some}
        found: dict[tuple[str, str], list[Any]] = {}
        query = sa.select(c.digest, c.kind, c.session, c.step, sessions.c.steps)
        query = query.join(sessions, sessions.c.id == c.session).where(sessions.c.name.is_(None))
        for row in tx.rows(query.where(c.digest.in_(digests)).order_by(sessions.c.touched)):
            found.setdefault((row.digest, row.kind), []).append(row)
        for n in reversed(some):
            answer, asked = found.get((chain[n], ANSWER), []), found.get((chain[n - 1], ASKED), [])
            if answer or asked:
                yield answer, asked


def begin(tx: Transaction, request: ChatRequest, key: str, limits: Limits, base: Amount, now: float, goal: str) -> Any:
    """A new session; its row."""
    made = uuid.uuid4().hex
    amounts = {f"limit_{name}": value for name, value in limits._asdict().items()}
    for prefix in ("base_", "spent_"):
        amounts |= {f"{prefix}{name}": value for name, value in base._asdict().items()}
    about = {"id": made, "key": key, "name": request.session, "goal": goal, "created": now, "touched": now}
    tx.put(sessions, **about, steps=0, recorded=0.0, **amounts)
    return by_id(tx, made)


def tighten(tx: Transaction, session: Any, limits: Limits) -> Limits:
    """The limits of a session, made tighter where a client asks for that."""
    own = limits_of(session)
    made = own.tightened(limits)
    if made != own:
        changed = {f"limit_{name}": value for name, value in made._asdict().items()}
        tx.change(sessions, sessions.c.id == session.id, **changed)
    return made


def know(tx: Transaction, digest: str, kind: str, session: str, step: int) -> None:
    """Note a conversation that a session has known at a step."""
    c = conversations.c
    where = (c.digest == digest, c.kind == kind, c.session == session, c.step == step)
    if tx.row(sa.select(c.step).where(*where)) is None:
        tx.put(conversations, digest=digest, kind=kind, session=session, step=step)
