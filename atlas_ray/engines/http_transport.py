"""POST requests to one address over kept-alive connections, each within a time and a size."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import InputError

LARGEST_ANSWER, LARGEST_REFUSAL = 8 * 2**20, 2**16
"""Bytes of an answer with status 2xx, which is refused when it is longer, and of any other, which is cut."""
_IDLE = 4.0  # uvicorn ends a connection that idles for 5 s


@dataclass(frozen=True)
class Answer:
    """Status, headers by lower-case name, and body."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class NoAnswerError(Exception):
    """There is no answer. ``again``: the next attempt may get one."""

    def __init__(self, message: str, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


class Lines:
    """Connections to one address; each call takes an idle one or opens another.

    Args:
        base_url: http or https, without credentials, query and fragment.
        path: what is appended to its path.

    Raises:
        InputError: the URL cannot be used.
    """

    def __init__(self, base_url: str, path: str) -> None:
        try:
            parts = urlsplit(base_url)
            self._host, self._port = parts.hostname or "", parts.port
            self._host.encode("idna")
        except ValueError:  # its text may hold a password
            raise InputError("cannot be read as a URL", field="base_url") from None
        if parts.username is not None or parts.password is not None:
            raise InputError("must hold no credentials: a key belongs into an environment variable", field="base_url")
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise InputError("must be http(s)://HOST:PORT/PATH, without query and fragment", field="base_url")
        if not re.fullmatch(r"[\x21-\x7e]*", parts.path) or not re.fullmatch(r"[^\x00-\x20\x7f]+", self._host):
            raise InputError("holds characters that no URL has", field="base_url")
        self._tls = parts.scheme == "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.base = f"{parts.scheme}://{host}{f':{self._port}' if self._port else ''}{parts.path.rstrip('/')}"
        self._target = parts.path.rstrip("/") + path
        self.where = f"POST {self.base}{path}"
        self.private = self._tls or _near(self._host)
        self._idle: list[tuple[http.client.HTTPConnection, float]] = []
        self._lock = threading.Lock()

    def post(self, body: bytes, headers: Mapping[str, str], limit: float) -> Answer:
        """Send ``body`` and read the answer, both within ``limit`` seconds.

        Raises:
            NoAnswerError: no connection, no answer in time, a broken one, one with status 2xx that is too long.
        """
        connection, late = self._take(), threading.Event()
        sockets: list[socket.socket] = []  # http.client forgets its own where an answer ends the connection

        def cut() -> None:
            # timeouts of a socket begin anew with every byte, so a trickle would never end; and it is the plain
            # socket's shutdown, because TLS's takes the session from under the reader
            late.set()
            for used in sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(used, socket.SHUT_RDWR)

        guard = threading.Timer(limit, cut)
        guard.daemon = True
        guard.start()
        try:
            connection.timeout = limit
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(limit)
            sockets.append(connection.sock)
            answer, whole = self._exchange(connection, body, headers)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            connection.close()
            if late.is_set() or isinstance(error, TimeoutError):
                raise NoAnswerError(f"no answer within {limit:g} s") from None
            again = not isinstance(error, ssl.SSLCertVerificationError)
            raise NoAnswerError(f"{type(error).__name__}: {error}", again) from None
        except BaseException:
            connection.close()
            raise
        finally:
            guard.cancel()
        if late.is_set():  # an answer without a length ends wherever it was cut
            connection.close()
            raise NoAnswerError(f"no answer within {limit:g} s")
        if whole:
            with self._lock:
                self._idle.append((connection, time.monotonic()))
        else:
            connection.close()
        if 200 <= answer.status < 300 and len(answer.data) > LARGEST_ANSWER:
            raise NoAnswerError(f"the answer is longer than {LARGEST_ANSWER} bytes", again=False)
        return answer

    def close(self) -> None:
        """End the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _take(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                connection, since = self._idle.pop() if self._idle else (None, 0.0)
            if connection is None:
                kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
                # without a port, http.client takes the end of an IPv6 address for one
                return kind(self._host, self._port or kind.default_port)
            if time.monotonic() - since < _IDLE:
                return connection
            connection.close()

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Answer, bool]:
        """The answer, and whether the connection can carry another."""
        connection.request("POST", self._target, body, dict(headers))
        with connection.getresponse() as response:
            most = LARGEST_ANSWER if 200 <= response.status < 300 else LARGEST_REFUSAL
            data = response.read(most + 1)
            if response.length and len(data) <= most:  # read(n) takes an answer's early end for its end
                raise http.client.IncompleteRead(data, response.length)
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, data), len(data) <= most and not response.will_close


def _near(host: str) -> bool:
    """Whether a name or address is of this machine or of a private network. Names are not looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or (address.is_private and not address.is_link_local)
