"""Sessions that nobody has touched for long are removed from the store. What their keys have spent on a day stays."""

from __future__ import annotations

import sqlalchemy as sa

from .store import Store, Transaction
from .tables import OPEN, reservations, sessions, shadows, steps, turns

AT_A_TIME = 200
"""Sessions of one transaction, so that no request waits long."""
_p = sa.bindparam
_OLD = (
    sa.select(sessions.c.id)
    .where(sessions.c.touched < _p("before_"), sa.or_(_p("any_"), sessions.c.recorded >= sessions.c.touched))
    .where(sessions.c.id > _p("after_"))
    .order_by(sessions.c.id)
    .limit(AT_A_TIME)
)
_OWNERS = sa.select(steps.c.session, steps.c.owner).where(steps.c.state == OPEN)


def remove_sessions(store: Store, before: float, recorded: bool) -> int:
    """Remove sessions, with their steps and reservations; how many.

    One with a step that a gateway is answering stays: what is reserved for it is not settled yet.

    Args:
        store: in which they are.
        before: seconds since 1970; what was touched later stays.
        recorded: whether what was not written down yet stays too.
    """
    removed, after = 0, ""
    while True:
        with store.transaction() as tx:
            found = [row.id for row in tx.rows(_OLD, before_=before, any_=not recorded, after_=after)]
            if not found:
                return removed
            removed, after = removed + _remove(tx, found), found[-1]


def _remove(tx: Transaction, found: list[str]) -> int:
    alive: dict[str, bool] = {}
    answered: set[str] = set()
    for session, owner in tx.rows(_OWNERS.where(steps.c.session.in_(found))):
        if owner not in alive:
            alive[owner] = tx.lives(owner)
        if alive[owner]:
            answered.add(session)
    going = [session for session in found if session not in answered]
    for table in (steps, turns, shadows, reservations):
        tx.do(sa.delete(table).where(table.c.session.in_(going)))
    tx.do(sa.delete(sessions).where(sessions.c.id.in_(going)))
    return len(going)
