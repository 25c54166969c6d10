"""The tables of the gateway's store. Needs ``sqlalchemy``.

A session is a row of ``sessions``, with its limits and what it has spent, reservations included. Of a step, ``asked``
and ``told`` are digests of the conversation without and with its answer; sessions that a header names have none.
A session that has parted from another goes on counting where that one was.
``turns`` holds for a switch that reads the past what was seen, as a digest, and who acted then, the turns before it
parted from another with it. ``shadows`` holds what QUICK would have done at a step that DEEPTHINK took.
``reservations`` holds what each attempt may have cost until it is settled,
``totals`` what a key has spent on a day.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

OPEN, ANSWERED, FAILED = "open", "answered", "failed"
"""States of a step: being answered (or lost with its gateway), answered, and one that got no answer."""
META = sa.MetaData()
_AMOUNT = [("calls", sa.BigInteger), ("tokens", sa.BigInteger), ("usd", sa.BigInteger)]


def _amounts(prefix: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(f"{prefix}{name}", kind, nullable=nullable) for name, kind in _AMOUNT]


sessions = sa.Table(
    "sessions",
    META,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200)),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("touched", sa.Float, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    *_amounts("limit_", nullable=True),
    *_amounts("base_"),
    *_amounts("spent_"),
    sa.Column("score", sa.Float),
    sa.Column("success", sa.Boolean),
    sa.Column("recorded", sa.Float, nullable=False),
    sa.UniqueConstraint("key", "name"),
)
UNRECORDED = sessions.c.touched > sessions.c.recorded
"""Of a session that has gone on since it was written down."""
sa.Index("ix_sessions_unrecorded", sessions.c.touched, sqlite_where=UNRECORDED, postgresql_where=UNRECORDED)
steps = sa.Table(
    "steps",
    META,
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("idempotency", sa.String(64), index=True),
    sa.Column("model", sa.Integer, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("asked", sa.String(64), index=True),
    sa.Column("told", sa.String(64), index=True),
    sa.Column("begun", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("observation", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("answer", sa.LargeBinary),
    sa.Index("ix_steps_same", "fingerprint", "session"),
)
_HELD = steps.c.answer.is_not(None)
sa.Index("ix_steps_held", steps.c.ended, sqlite_where=_HELD, postgresql_where=_HELD)
turns = sa.Table(
    "turns",
    META,
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Integer, nullable=False),
    sa.Column("seen", sa.String(64), nullable=False),
)
shadows = sa.Table(
    "shadows",
    META,
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("same", sa.Boolean),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
)
reservations = sa.Table(
    "reservations",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), nullable=False, index=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    *_amounts(""),
    sa.Column("settled", sa.Boolean, nullable=False),
)
totals = sa.Table(
    "totals",
    META,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    *_amounts(""),
)
