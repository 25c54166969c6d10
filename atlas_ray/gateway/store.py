"""Where sessions, steps and what they cost are kept: SQLite in WAL mode, or PostgreSQL by URL. Needs ``sqlalchemy``.

Every change is one transaction, and transactions go one after the other, also those of several gateways on one
database: SQLite takes its write lock when one begins, PostgreSQL an advisory lock. A killed process leaves its last
transaction done or not begun. SQLite does not wait for the disk, so a machine that loses power may lose the last ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from ..errors import InputError
from ..rundir.disk import writing
from .budget import Amount, Limits
from .replies import ApiError

OPEN, ANSWERED, FAILED = "open", "answered", "failed"
"""States of a step: being answered (or lost with its gateway), answered, and one that got no answer."""
ASKED, ANSWER = "asked", "answer"
"""Kinds of a known conversation: without and with the answer to it."""
_log = logging.getLogger(__name__)
_LOCK = 0x61746C61730A
_META = sa.MetaData()
_AMOUNT = [("calls", sa.BigInteger), ("tokens", sa.BigInteger), ("usd", sa.BigInteger)]


def _amounts(prefix: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(f"{prefix}{name}", kind, nullable=nullable) for name, kind in _AMOUNT]


sessions = sa.Table(
    "sessions",
    _META,
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
steps = sa.Table(
    "steps",
    _META,
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False, index=True),
    sa.Column("idempotency", sa.String(64), index=True),
    sa.Column("model", sa.Integer, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("asked", sa.String(64), nullable=False),
    sa.Column("begun", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("observation", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("answer", sa.LargeBinary),
)
conversations = sa.Table(
    "conversations",
    _META,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(6), primary_key=True),
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
)
reservations = sa.Table(
    "reservations",
    _META,
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
    _META,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    *_amounts(""),
)


class Store:
    """A database. Use it from one thread at a time.

    Args:
        place: a file, or the URL of a PostgreSQL database; without a password, which ``PGPASSWORD`` may give.

    Raises:
        InputError: it cannot be opened.
        StorageError: the file cannot be made.
    """

    def __init__(self, place: Path | str) -> None:
        local = isinstance(place, Path)
        if isinstance(place, Path):
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch(mode=0o600)  # it holds what was said
            url = sa.URL.create("sqlite", database=str(place))
        else:
            if urlsplit(place).password is not None:
                raise InputError("holds a password, and a recipe is written out: use PGPASSWORD", field="gateway.store")
            url = sa.make_url(place).set(drivername="postgresql+psycopg")
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=not local, **({} if local else {"pool_size": 2}))
            if local:
                sa.event.listen(self._engine, "connect", _connected)
                sa.event.listen(self._engine, "begin", _begun)
            with self._engine.begin() as connection:
                if not local:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                _META.create_all(connection)
        except ModuleNotFoundError:
            message = "a store in PostgreSQL needs the extra 'postgres': pip install 'atlas-ray[postgres]'"
            raise InputError(message, field="gateway.store") from None
        except sa.exc.SQLAlchemyError as error:
            raise InputError(f"the store cannot be opened: {_said(error)}", str(place), field="gateway.store") from None
        self._local = local

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction, which is undone where the block raises.

        Raises:
            ApiError: the database cannot be used.
        """
        try:
            with self._engine.begin() as connection:
                if not self._local:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                yield Transaction(connection)
        except sa.exc.SQLAlchemyError as error:
            _log.error("the store: %s", _said(error))
            raise ApiError(503, "the gateway's store cannot be used", "store_unavailable") from error

    def close(self) -> None:
        """End the connections."""
        self._engine.dispose()


def _connected(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begun(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _said(error: sa.exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


class Transaction:
    """What is done to the store at once."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds."""
        return list(self.connection.execute(query))

    def row(self, query: sa.Select[Any]) -> Any:
        """The first that it finds; None where there is none."""
        return self.connection.execute(query.limit(1)).first()

    def put(self, table: sa.Table, **values: Any) -> Any:
        """Insert a row; its primary key."""
        return self.connection.execute(table.insert().values(**values)).inserted_primary_key

    def change(self, table: sa.Table, where: Any, **values: Any) -> int:
        """Change rows; how many there were."""
        return self.connection.execute(table.update().where(where).values(**values)).rowcount

    def spent(self, session: str) -> Amount:
        """What a session has spent, reservations included."""
        c = sessions.c
        found = self.row(sa.select(c.spent_calls, c.spent_tokens, c.spent_usd).where(c.id == session))
        return Amount(*found)

    def limits(self, session: str) -> Limits:
        """Of a session."""
        c = sessions.c
        return Limits(*self.row(sa.select(c.limit_calls, c.limit_tokens, c.limit_usd).where(c.id == session)))

    def spent_on(self, key: str, day: str) -> Amount:
        """What a key has spent on a day."""
        c = totals.c
        found = self.row(sa.select(c.calls, c.tokens, c.usd).where(c.key == key, c.day == day))
        return Amount(*found) if found else Amount()

    def spent_until(self, session: str, step: int) -> Amount:
        """What a session had spent once a step of it was answered."""
        c, r = sessions.c, reservations.c
        base = Amount(*self.row(sa.select(c.base_calls, c.base_tokens, c.base_usd).where(c.id == session)))
        sums = (sa.func.coalesce(sa.func.sum(column), 0) for column in (r.calls, r.tokens, r.usd))
        return base.plus(Amount(*map(int, self.row(sa.select(*sums).where(r.session == session, r.step <= step)))))

    def reserve(self, session: str, step: int, key: str, day: str, amount: Amount, daily: Limits) -> int | None:
        """Take an amount out of what a session and a key's day may spend; the number of the reservation.

        None: a limit would be exceeded, and nothing was taken.
        """
        if not self.limits(session).fit(self.spent(session), amount):
            return None
        if not daily.fit(self.spent_on(key, day), amount):
            return None
        self._charge(session, key, day, amount)
        values = {"session": session, "step": step, "key": key, "day": day, "settled": False}
        return int(self.put(reservations, **values, **amount._asdict())[0])

    def settle(self, reservation: int, used: Amount) -> None:
        """Make a reservation what was used. A second time changes nothing."""
        c = reservations.c
        found = self.row(sa.select(reservations).where(c.id == reservation))
        if found is None or found.settled:
            return
        reserved = Amount(found.calls, found.tokens, found.usd)
        self._charge(found.session, found.key, found.day, used.minus(reserved))
        self.change(reservations, c.id == reservation, settled=True, **used._asdict())

    def _charge(self, session: str, key: str, day: str, amount: Amount) -> None:
        c, t = sessions.c, totals.c
        self.change(
            sessions,
            c.id == session,
            spent_calls=c.spent_calls + amount.calls,
            spent_tokens=c.spent_tokens + amount.tokens,
            spent_usd=c.spent_usd + amount.usd,
        )
        sums = {name: t[name] + value for name, value in amount._asdict().items()}
        if not self.change(totals, sa.and_(t.key == key, t.day == day), **sums):
            self.put(totals, key=key, day=day, **amount._asdict())
