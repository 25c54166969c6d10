"""One kept-alive HTTP connection to an AgentGym server, with bounded patience and typed errors."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import ssl
import time
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit

from .core import EnvironmentDiedError

if TYPE_CHECKING:
    import httpx

LARGEST_ANSWER = 4 * 2**20
"""Bytes; a longer answer is refused."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the first repetition and before any."""
_IDLE = 1.0


class RefusedError(EnvironmentDiedError):
    """The server answered, and its answer is an error of its own (``{"error": ...}`` with status 200)."""


class Wire:
    """One kept-alive connection to one server. Timeouts are seconds for connecting, sending and each wait.

    Proxies of the environment are used, but not for this machine. Certificates are checked against
    ``REQUESTS_CA_BUNDLE``, else ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, else those of the system.
    """

    def __init__(self, url: str, timeout: float, retries: int) -> None:
        import httpx  # late: listing the environments must stay quick

        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its text may hold a part of the password
            raise ValueError("url: cannot be read as a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("url: must be http://HOST:PORT/PATH or https://..., without query and fragment")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
        try:
            self._base = httpx.URL(self.shown)
        except httpx.InvalidURL:
            raise ValueError("url: holds characters that no host has") from None
        self._headers = {
            **{"Content-Type": "application/json", "Accept": "application/json"},
            "Accept-Encoding": "identity",  # so what is read is as long as what it says
        }
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        self._timeout, self._retries = timeout, retries
        self._verify = certificates() if parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client: httpx.Client | None = None
        try:
            self._opened()
        except (ImportError, ValueError, httpx.InvalidURL):  # their text may hold a part of a password
            raise ValueError("url: the environment names a proxy for it that cannot be used") from None

    def _opened(self) -> httpx.Client:
        import httpx

        self._client = self._client or httpx.Client(
            verify=self._verify,
            trust_env=not is_loopback(self._base.host),
            headers=self._headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none are kept
            # servers end connections that idle for seconds, and an action sent into such an end may or may not arrive
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_IDLE),
        )
        return self._client

    def call(
        self, verb: str, path: str, fields: Mapping[str, Any], repeat: bool, patient: bool = True
    ) -> tuple[Any, str]:
        """The JSON value that the server answers, and a name of the request for messages.

        ``repeat``: the request may be sent again after it may have reached the server. ``patient``: try more than once.

        Raises:
            RefusedError: the answer is ``{"error": ...}``.
            EnvironmentDiedError: no answer, or one that is not usable.
        """
        import httpx

        where = f"{verb} {self.shown}/{path}"
        target = f"{self._base}/{path}" + (f"?{urlencode(fields)}" if verb == "GET" else "")
        body = None if verb == "GET" else json.dumps(fields).encode()
        limit = self._timeout if patient else min(self._timeout, 5.0)
        problem = ""
        for attempt in range(self._retries + 1 if patient else 1):
            pause(attempt)
            try:
                status, kind, answer = self._exchange(where, verb, target, body, limit)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                problem = f"no connection: {error or type(error).__name__}"
                continue
            except (OSError, httpx.HTTPError) as error:
                cause = _first_cause(error)
                problem = f"no answer: {type(cause).__name__}: {cause}"
            else:
                if status < 500:
                    return _value(where, status, kind, answer), where
                problem = f"HTTP {status}: {_short(answer)}"
            if not repeat:
                break
        raise EnvironmentDiedError(f"{where}: {problem}")

    def _exchange(self, where: str, verb: str, target: str, body: bytes | None, limit: float) -> tuple[int, str, bytes]:
        with self._opened().stream(verb, target, content=body, timeout=limit) as response:
            deadline = time.monotonic() + self._timeout
            answer = bytearray()
            for part in response.iter_raw():
                answer += part
                if len(answer) > LARGEST_ANSWER:
                    raise EnvironmentDiedError(f"{where}: the answer is longer than {LARGEST_ANSWER} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer takes too long")
            return response.status_code, response.headers.get("Content-Type", ""), bytes(answer)

    def hang_up(self) -> None:
        """Close the connection; the next call opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None


def certificates() -> ssl.SSLContext:
    """Of ``REQUESTS_CA_BUNDLE``, else what OpenSSL takes.

    Raises:
        ValueError: it names no file of certificates.
    """
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or None
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise ValueError(f"url: REQUESTS_CA_BUNDLE names no file of certificates: {bundle}: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _first_cause(error: BaseException) -> BaseException:
    """What the operating system said, where an error of httpx comes from it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__  # httpcore raises some "from None"
    return cause or error


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
