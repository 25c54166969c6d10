"""One kept-alive HTTP connection to an AgentGym server, with bounded patience and typed errors."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from .core import EnvironmentDiedError

LARGEST_ANSWER = 4 * 2**20
"""Bytes; a longer answer is refused."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the first repetition and before any."""
_IDLE = 1.0


class RefusedError(EnvironmentDiedError):
    """The server answered, and its answer is an error of its own (``{"error": ...}`` with status 200)."""


class Wire:
    """One kept-alive connection to one server. Timeouts are seconds for connecting, sending and each wait."""

    def __init__(self, url: str, timeout: float, retries: int) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its text may hold a part of the password
            raise ValueError("url: cannot be read as a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("url: must be http://HOST:PORT/PATH or https://..., without query and fragment")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(parts.hostname, port, timeout=timeout)
        except http.client.InvalidURL:
            raise ValueError("url: holds characters that no host has") from None
        self._connection.auto_open = 0
        self._path = parts.path.rstrip("/")
        self.shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}{self._path}"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        self._timeout, self._retries, self._used = timeout, retries, 0.0

    def call(
        self, verb: str, path: str, fields: Mapping[str, Any], repeat: bool, patient: bool = True
    ) -> tuple[Any, str]:
        """The JSON value that the server answers, and a name of the request for messages.

        ``repeat``: the request may be sent again after it may have reached the server. ``patient``: try more than once.

        Raises:
            RefusedError: the answer is ``{"error": ...}``.
            EnvironmentDiedError: no answer, or one that is not usable.
        """
        where = f"{verb} {self.shown}/{path}"
        target = f"{self._path}/{path}" + (f"?{urlencode(fields)}" if verb == "GET" else "")
        body = None if verb == "GET" else json.dumps(fields).encode()
        problem = ""
        for attempt in range(self._retries + 1 if patient else 1):
            pause(attempt)
            try:
                self._connect(self._timeout if patient else min(self._timeout, 5.0))
            except (OSError, UnicodeError) as error:
                problem = f"no connection: {error or type(error).__name__}"
                continue
            try:
                status, kind, answer = self._exchange(where, verb, target, body)
            except (OSError, http.client.HTTPException) as error:
                self.hang_up()
                problem = f"no answer: {type(error).__name__}: {error}"
            else:
                if status < 500:
                    return _value(where, status, kind, answer), where
                problem = f"HTTP {status}: {_short(answer)}"
            if not repeat:
                break
        raise EnvironmentDiedError(f"{where}: {problem}")

    def _connect(self, timeout: float) -> None:
        # servers end connections that idle for seconds, and an action sent into such an end may or may not arrive
        if time.monotonic() - self._used > _IDLE:
            self.hang_up()
        self._connection.timeout = timeout
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.settimeout(timeout)

    def _exchange(self, where: str, verb: str, target: str, body: bytes | None) -> tuple[int, str, bytes]:
        self._connection.request(verb, target, body, self._headers)
        response = self._connection.getresponse()
        deadline = time.monotonic() + self._timeout
        parts: list[bytes] = []
        size = 0
        while part := response.read1(65536):
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER:
                self.hang_up()
                raise EnvironmentDiedError(f"{where}: the answer is longer than {LARGEST_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer takes too long")
        if response.length:
            raise http.client.IncompleteRead(b"".join(parts), response.length)
        response.close()  # read1 leaves it open, and the connection refuses its next request
        self._used = time.monotonic()
        return response.status, response.getheader("Content-Type", ""), b"".join(parts)

    def hang_up(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()


def pause(attempt: int) -> None:
    """Wait before attempt number ``attempt``, counted from 0: twice as long each time, up to 4 s."""
    if attempt:
        time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))


def _short(answer: bytes | str) -> str:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _value(where: str, status: int, kind: str, answer: bytes) -> Any:
    if 300 <= status < 400:
        raise EnvironmentDiedError(f"{where}: HTTP {status}: redirects are not followed")
    if status != 200:
        raise EnvironmentDiedError(f"{where}: HTTP {status}: {_short(answer)}")
    try:
        value = json.loads(answer, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EnvironmentDiedError(f"{where}: the answer ({kind or 'no type'}) is not JSON: {error}") from None
    if isinstance(value, dict) and value.get("error") not in (None, "", False):
        raise RefusedError(f"{where}: the server says: {_short(str(value['error']))}")
    return value
