"""One session of an OpenEnv server: a WebSocket, a question and an answer at a time, with bounded patience.

Read in the package ``openenv`` 0.10.0 (``core/env_client.py``, ``core/env_server``, BSD-3-Clause), which is not needed.
"""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .agentgym_http import LARGEST_ANSWER, Wire, certificates, is_loopback
from .core import EnvironmentDiedError, MissingExtraError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class InvalidMessageError(ValueError):
    """The server says that an action, or a parameter of reset, is none of its own; the session goes on."""


class OpenEnvSession:
    """A session, opened when it is first asked.

    Args:
        url: of the server, ``http://HOST:PORT``.
        timeout: seconds that connecting, and an answer, may take.

    Raises:
        ValueError: the URL, or the timeout, is none.
        MissingExtraError: the extra is not installed.
    """

    def __init__(self, url: str, timeout: float) -> None:
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError("timeout must be above 0")
        try:
            from websockets.sync.client import connect
        except ImportError:
            raise MissingExtraError("openenv: needs the extra 'openenv': pip install 'atlas-ray[openenv]'") from None
        self._connect, self._timeout = connect, timeout
        self._http = Wire(url, timeout, 2)
        self.shown = self._http.shown
        self._where = f"ws{self.shown.removeprefix('http')}/ws"
        self._socket: ClientConnection | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server has a session for this one, as far as is known."""
        return self._socket is not None

    def schema(self) -> Mapping[str, Any]:
        """The JSON schemas of ``action`` and ``observation``.

        Raises:
            EnvironmentDiedError: no answer, or one that is no schema.
        """
        answer, where = self._http.call("GET", "schema", {}, repeat=True)
        self._http.hang_up()
        if not isinstance(answer, dict) or not all(isinstance(answer.get(k), dict) for k in ("action", "observation")):
            raise EnvironmentDiedError(f"{where}: the answer has no schema of action and observation")
        return answer

    def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data of the observation that answers ``reset`` or ``step``. Never asks twice.

        Raises:
            InvalidMessageError: the server does not take this ``data``.
            EnvironmentDiedError: no answer, or one that is not usable; the session is closed.
        """
        try:
            return self._asked(kind, data)
        except EnvironmentDiedError:
            self.close()
            raise

    def _asked(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import WebSocketException

        where = f"{kind} at {self._where}"
        try:
            socket = self._opened()
            socket.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(socket.recv(timeout=self._timeout))
        except (OSError, WebSocketException) as error:  # (a time-out is an OSError)
            raise EnvironmentDiedError(f"{where}: no answer: {type(error).__name__}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise EnvironmentDiedError(f"{where}: the answer is not JSON: {error}") from None
        said = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(said, dict):
            raise EnvironmentDiedError(f"{where}: the answer has no data")
        if answer.get("type") == "error":
            message = f"{where}: the server says: {said.get('message')!s:.300} ({said.get('code')!s:.40})"
            if said.get("code") == "VALIDATION_ERROR":
                raise InvalidMessageError(message)
            raise EnvironmentDiedError(message)
        if answer.get("type") != "observation" or not isinstance(said.get("observation"), dict):
            raise EnvironmentDiedError(f"{where}: the answer is no observation")
        if not isinstance(said.get("done"), bool):
            raise EnvironmentDiedError(f"{where}: done is {said.get('done')!r:.40}, neither true nor false")
        return said

    def _opened(self) -> ClientConnection:
        if self._socket is None:
            host = urlsplit(self._where).hostname or ""
            secure = {"ssl": certificates()} if self._where.startswith("wss:") else {}
            # a proxy of the environment is used, but not for this machine
            proxy: dict[str, Any] = {"proxy": None} if is_loopback(host) else {}
            self._socket = self._connect(
                self._where,
                open_timeout=self._timeout,
                close_timeout=1,
                max_size=LARGEST_ANSWER,
                compression=None,
                **secure,
                **proxy,
            )
        return self._socket

    def close(self) -> None:
        """End the session, if there is one; a server that is gone is no error."""
        from websockets.exceptions import WebSocketException

        socket, self._socket = self._socket, None
        self._http.hang_up()
        if socket is not None:
            try:
                socket.send('{"type": "close"}')
                socket.close()
            except (OSError, WebSocketException, ssl.SSLError):
                pass
