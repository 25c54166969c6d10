"""A session's past as a switch reads it, from the turns in the store, which outlive a gateway and which replicas share.

Only what was answered is a turn. A turn is written where the switch reads the past, and holds a digest of what was
seen: whether two observations are the same is all that signals of the past ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from ..data.parsing import Style, action_in
from ..switching.past import Past
from .requests import action_of
from .store import Transaction
from .tables import turns

_t, _p = turns.c, sa.bindparam
_BEFORE = sa.select(_t.seen, _t.model).where(_t.session == _p("session_"), _t.number < _p("step_")).order_by(_t.number)
_INHERIT = sa.insert(turns).from_select(
    list(_t),
    sa.select(_p("to_", type_=sa.String), _t.number, _t.model, _t.seen).where(
        _t.session == _p("from_"), _t.number <= _p("last_")
    ),
)
_AGAIN = (
    turns.update()
    .where(_t.session == _p("session_"), _t.number == _p("step_"))
    .values(model=_p("model_"), seen=_p("seen_"))
)


def past_of(tx: Transaction, session: str, step: int, seen: str, actions: Sequence[str] = ()) -> Past:
    """The episode until a step; its observations are digests.

    Args:
        tx: the transaction.
        session: whose.
        step: that is about to be taken.
        seen: :attr:`ChatRequest.seen` of its request.
        actions: of the conversation, see :func:`actions_of`. Before the session's own turns examples may stand.
    """
    before = tx.rows(_BEFORE, session_=session, step_=step)
    done = tuple(actions)[-len(before) :] if before else ()
    return Past((*(row.seen for row in before), seen), done, tuple(row.model for row in before))


def actions_of(messages: Sequence[Mapping[str, Any]], style: Style) -> tuple[str, ...]:
    """What the assistant's turns did, from a conversation as it was sent: what was said is not kept for this."""
    turns = (message for message in messages if message["role"] == "assistant")
    return tuple(_action(action_of(turn), style) for turn in turns)


_action = lru_cache(maxsize=10_000)(action_in)


def note_turn(tx: Transaction, session: str, step: int, model: int, seen: str) -> None:
    """A step was answered; a second time, by a gateway that was taken for dead, in place of the first."""
    if not tx.do(_AGAIN, session_=session, step_=step, model_=model, seen_=seen):
        tx.put(turns, session=session, number=step, model=model, seen=seen)


def inherit(tx: Transaction, session: str, parent: str, last: int) -> None:
    """Give a new session the past of another until the step ``last``, after which it has parted."""
    tx.do(_INHERIT, to_=session, from_=parent, last_=last)
