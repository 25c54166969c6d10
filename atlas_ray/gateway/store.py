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
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa

from ..errors import InputError
from ..rundir.disk import writing
from ..switching.spending import Account, Amount, Limits, settlement
from .budget import SessionAccount
from .owners import FileOwner, Owner, SessionOwner
from .replies import ApiError
from .tables import META, reservations, sessions, shadows, steps, totals, turns

_log = logging.getLogger(__name__)
_LOCK = 0x61746C61730A
_NAMES = Amount._fields
_s, _r, _t, _p = sessions.c, reservations.c, totals.c, sa.bindparam
_LIMITS, _SPENT = ([_s[f"{prefix}{name}"] for name in _NAMES] for prefix in ("limit_", "spent_"))
_THIS_SESSION, _THIS_DAY = _s.id == _p("session_"), sa.and_(_t.key == _p("key_"), _t.day == _p("day_"))
# Statements are made once: to build one takes SQLAlchemy ten times as long as to execute it.
_ACCOUNT = sa.select(*_LIMITS, *_SPENT).where(_THIS_SESSION)
_TODAY = sa.select(_t.calls, _t.tokens, _t.usd).where(_THIS_DAY)
_BASE = sa.select(*(_s[f"base_{name}"] for name in _NAMES)).where(_THIS_SESSION)
_RESERVED_UNTIL = sa.select(*(sa.func.coalesce(sa.func.sum(_r[name]), 0) for name in _NAMES)).where(
    _r.session == _p("session_"), _r.step <= _p("step_")
)
_CHARGES = {f"spent_{name}": _s[f"spent_{name}"] + _p(f"more_{name}") for name in _NAMES}
_RESERVE = sessions.update().where(_THIS_SESSION).values(
    **_CHARGES, touched=_p("now_"), steps=sa.case((_s.steps > _p("step_"), _s.steps), else_=_p("step_") + 1)
)  # fmt: skip
_RETURN = sessions.update().where(_THIS_SESSION).values(**_CHARGES, touched=_p("now_")).returning(*_LIMITS, *_SPENT)
_CHARGE_DAY = totals.update().where(_THIS_DAY).values(**{name: _t[name] + _p(f"more_{name}") for name in _NAMES})
_SETTLE = (
    reservations.update()
    .where(_r.id == _p("id_"), _r.settled.is_(False))
    .values(settled=True, **{name: _p(f"used_{name}") for name in _NAMES})
)
_TAKE_LOCK = sa.select(sa.func.pg_advisory_xact_lock(_LOCK))
_PUT = {table: sa.insert(table) for table in (sessions, steps, turns, shadows, reservations, totals)}


class Store:
    """A database. Use it from one thread at a time.

    Args:
        place: a file, or the URL of a PostgreSQL database; without a password, which ``PGPASSWORD`` may give.

    Attributes:
        owner: names this gateway in the steps that it answers.

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
            with self._engine.begin() as connection:
                _take_lock(connection, local)
                META.create_all(connection)
                for index in (index for table in META.sorted_tables for index in table.indexes):
                    index.create(connection, checkfirst=True)  # a store that is there lacks those that came later
            self.owner: Owner = (
                FileOwner(place.with_name(f"{place.name}-owners"))
                if isinstance(place, Path)
                else SessionOwner(self._engine)
            )
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
                _take_lock(connection, self._local)
                yield Transaction(connection, self.owner)
        except sa.exc.SQLAlchemyError as error:
            _log.error("the store: %s", _said(error))
            raise ApiError(503, "the gateway's store cannot be used", "store_unavailable") from error

    def close(self) -> None:
        """End the connections."""
        self.owner.close()
        self._engine.dispose()


def _connected(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by hand
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _take_lock(connection: sa.Connection, local: bool) -> None:
    if local:  # a listener to transactions would make each statement dearer
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(_TAKE_LOCK)


def _said(error: sa.exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


class Reservation(NamedTuple):
    """What an attempt may cost, taken out of what a session and a key's day may spend."""

    id: int
    session: str
    step: int
    key: str
    day: str
    amount: Amount


class Transaction:
    """What is done to the store at once."""

    def __init__(self, connection: sa.Connection, owner: Owner) -> None:
        self.connection, self._owner = connection, owner

    def lives(self, owner: str) -> bool:
        """Whether the gateway of that name is there, so that its steps are being answered."""
        return self._owner.lives(owner, self.connection)

    def rows(self, query: Any, **values: Any) -> list[Any]:
        """What a query finds."""
        return list(self.connection.execute(query, values))

    def row(self, query: Any, **values: Any) -> Any:
        """The first that it finds; None where there is none."""
        return self.connection.execute(query, values).first()

    def do(self, statement: Any, **values: Any) -> int:
        """Change rows; how many there were."""
        return self.connection.execute(statement, values).rowcount

    def put(self, table: sa.Table, **values: Any) -> Any:
        """Insert a row; its primary key."""
        return self.connection.execute(_PUT[table], values).inserted_primary_key

    def spent_on(self, key: str, day: str) -> Amount:
        """What a key has spent on a day, reservations included."""
        return Amount(*(self.row(_TODAY, key_=key, day_=day) or ()))

    def spent_until(self, session: str, step: int) -> Amount:
        """What a session had spent once a step of it was answered."""
        base = Amount(*self.row(_BASE, session_=session))
        return base.plus(Amount(*map(int, self.row(_RESERVED_UNTIL, session_=session, step_=step))))

    def account(self, session: str, key: str, day: str, daily: Limits) -> SessionAccount:
        """What a session and a key's day may spend, and have spent."""
        own = _account(self.row(_ACCOUNT, session_=session))
        return SessionAccount(session, own, key, day, Account(daily, self.spent_on(key, day)))

    def reserve(self, account: SessionAccount, step: int, amount: Amount, now: float) -> Reservation | None:
        """Take an amount out of what may be spent; None where it does not fit, and nothing was taken.

        Args:
            account: as this transaction has read it.
            step: for which it is.
            amount: the worst case.
            now: seconds since 1970.
        """
        if not account.fits(amount):
            return None
        more, session, key, day = _more(amount), account.session, account.key, account.day
        self.do(_RESERVE, session_=session, step_=step, now_=now, **more)
        self._charge_day(key, day, amount)
        about = {"session": session, "step": step, "key": key, "day": day, "settled": False}
        number = int(self.put(reservations, **about, **amount._asdict())[0])
        return Reservation(number, session, step, key, day, amount)

    def settle(self, reservation: Reservation, used: Amount, now: float) -> Limits | None:
        """Make a reservation what was used; what is left to the session then. A second time changes nothing: None."""
        if not self.do(_SETTLE, id_=reservation.id, **{f"used_{name}": n for name, n in used._asdict().items()}):
            return None
        more = settlement(reservation.amount, used)
        found = self.row(_RETURN, session_=reservation.session, now_=now, **_more(more))
        if any(more):
            self._charge_day(reservation.key, reservation.day, more)
        return _account(found).left

    def _charge_day(self, key: str, day: str, amount: Amount) -> None:
        if not self.do(_CHARGE_DAY, key_=key, day_=day, **_more(amount)):
            self.put(totals, key=key, day=day, **amount._asdict())


def _more(amount: Amount) -> dict[str, int]:
    return {f"more_{name}": value for name, value in amount._asdict().items()}


def _account(row: Any) -> Account:
    return Account(Limits(*row[:3]), Amount(*row[3:]))
