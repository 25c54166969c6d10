"""Which gateways of a store still live: each holds a lock that ends with its process, or its connection.

So a step that a gateway was answering when it was killed is known as lost at once, and one that another gateway is
answering is waited for. No clock is compared, and a gateway that is merely slow is never taken for dead (ours).
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from ..rundir.disk import writing


class Owner(Protocol):
    """This gateway, as it signs the steps that it answers.

    Attributes:
        name: of 32 letters.
    """

    name: str

    def lives(self, name: str, connection: sa.Connection) -> bool:
        """Whether a gateway is there; ``connection`` is that of a transaction."""
        ...

    def renew(self) -> None:
        """Take the lock again if it was lost."""
        ...

    def close(self) -> None:
        """Be gone."""
        ...


class FileOwner:
    """A gateway of this machine, by a lock on a file of its own.

    Args:
        folder: where these files lie.

    Raises:
        StorageError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = uuid.uuid4().hex, folder
        with writing(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            for other in folder.glob("[!.]*"):
                self.lives(other.name)  # what killed ones have left is taken away
            hidden = folder / f".{self.name}"
            self._file = hidden.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            hidden.rename(folder / self.name)  # locked: one that starts now would take it for what a killed one left

    def lives(self, name: str, connection: sa.Connection | None = None) -> bool:
        """See :class:`Owner`."""
        if name == self.name:
            return True
        try:
            with (self._folder / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()
        return False

    def renew(self) -> None:
        """See :class:`Owner`: a file's lock is not lost."""

    def close(self) -> None:
        """See :class:`Owner`."""
        with contextlib.suppress(OSError):
            (self._folder / self.name).unlink()
        self._file.close()


class SessionOwner:
    """A gateway on a PostgreSQL, by an advisory lock of a connection of its own.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.name, self._engine = uuid.uuid4().hex, engine
        self._connection: sa.Connection | None = None
        self.renew()

    def lives(self, name: str, connection: sa.Connection) -> bool:
        """See :class:`Owner`."""
        taken = sa.select(sa.func.pg_try_advisory_xact_lock_shared(_number(name)))
        return name == self.name or not connection.execute(taken).scalar()

    def renew(self) -> None:
        """See :class:`Owner`."""
        if self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.execute(sa.select(1))
                return
            self.close()
        connection: Any = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # so that the server comes to know within half a minute that a machine is gone
        for name, value in (("idle", 10), ("interval", 5), ("count", 4)):
            connection.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
        connection.execute(sa.select(sa.func.pg_advisory_lock(_number(self.name))))
        self._connection = connection

    def close(self) -> None:
        """See :class:`Owner`."""
        if self._connection is not None:
            # not back into the pool, where it would keep the lock
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _number(name: str) -> int:
    """The number of a gateway's advisory lock."""
    return int(name[:15], 16)
