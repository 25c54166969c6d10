"""POST requests to one URL through httpx, each within a total time and a size."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self
from urllib.parse import urlsplit

import httpcore
import httpx

from ..errors import InputError

LARGEST_ANSWER, LARGEST_REFUSAL = 8 * 2**20, 2**16
"""Bytes of an answer with status 2xx, which is refused when it is longer, and of any other, which is cut."""
IDLE = 4.0
"""Seconds that a connection is kept; uvicorn ends one that idles for 5 s."""


@dataclass(frozen=True)
class HttpResponse:
    """Status, headers by lower-case name, and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoResponseError(Exception):
    """No response came. ``retryable``: the next attempt may get one."""

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class Destination:
    """Where requests go.

    ``base``: the URL. ``encrypted``: whether it is https. ``may_send_keys``: whether requests are encrypted, or stay on
    this machine or a private network. ``proxied``: whether the proxies of the environment are used for it.
    """

    base: str
    encrypted: bool
    may_send_keys: bool
    proxied: bool

    @classmethod
    def of(cls, base_url: str) -> Self:
        """What a base URL says.

        Raises:
            InputError: it is no URL of http or https, or holds credentials, a query or a fragment.
        """
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError:  # its text may hold a password
            raise InputError("cannot be read as a URL", field="base_url") from None
        if parts.username is not None or parts.password is not None:
            raise InputError("must hold no credentials: a key belongs into an environment variable", field="base_url")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise InputError("must be http(s)://HOST:PORT/PATH, without query and fragment", field="base_url")
        if not re.fullmatch(r"[\x21-\x7e]*", parts.path) or not re.fullmatch(r"[^\x00-\x20\x7f]+", host):
            raise InputError("holds characters that no URL has", field="base_url")
        shown = f"[{host}]" if ":" in host else host
        base = f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
        encrypted, near = parts.scheme == "https", _is_private(host)
        return cls(base, encrypted, encrypted or near, not _is_loopback(host) and (encrypted or not near))

    @contextlib.contextmanager
    def options(self) -> Iterator[dict[str, Any]]:
        """What a client of httpx is made with in this block.

        Raises:
            InputError: a proxy or a file of certificates cannot be used.
        """
        certificates = _certificates() if self.encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            yield {
                "verify": certificates,
                "trust_env": self.proxied,
                "headers": {"Accept-Encoding": "identity"},  # so what is read is as long as what it says
                "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none are kept
            }
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # the last may hold a part of a password
            why = "its URL cannot be read" if isinstance(error, httpx.InvalidURL) else str(error)
            raise InputError(f"needs the proxy of the environment, which cannot be used: {why}", "base_url") from None


class HttpClient:
    """Sends POST requests to one URL, for many threads; connections are kept and shared.

    Redirects are not followed. Proxies of the environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``,
    ``NO_PROXY``) are used, but neither for this machine nor for http to a private address: a key may travel there
    unencrypted. Certificates are checked against ``REQUESTS_CA_BUNDLE``, else ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``,
    else those of the system.

    Args:
        base_url: http or https, without credentials, query and fragment.
        path: what is appended to its path.

    Attributes:
        destination: where requests go.
        base: the URL without ``path``.
        where: names a request in messages.
        may_send_keys: whether requests are encrypted, or stay on this machine or a private network.

    Raises:
        InputError: the URL, a proxy or a file of certificates cannot be used.
    """

    def __init__(self, base_url: str, path: str) -> None:
        self.destination = Destination.of(base_url)
        self.base, self.may_send_keys = self.destination.base, self.destination.may_send_keys
        self.where = f"POST {self.base}{path}"
        self._deadline = _Deadline()
        try:
            self._url = httpx.URL(self.base + path)
        except httpx.InvalidURL:
            raise InputError("cannot be read as a URL", field="base_url") from None
        with self.destination.options() as options:
            self._client = httpx.Client(**options, limits=httpx.Limits(keepalive_expiry=IDLE))
        self._deadline.watch(self._client)

    def post(self, body: bytes, headers: Mapping[str, str], limit: float) -> HttpResponse:
        """Send ``body`` and read the response, both within ``limit`` seconds.

        Raises:
            NoResponseError: no connection, nothing in time, half of it, one with status 2xx that is too long.
        """
        try:
            with self._deadline.within(limit):
                sent = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
                end = _End()
                with self._client.stream(
                    "POST", self._url, content=body, headers=sent, timeout=limit, extensions={"trace": end}
                ) as response:
                    end.response = response
                    most = LARGEST_ANSWER if response.is_success else LARGEST_REFUSAL
                    data = _read(response.iter_raw(), most)
                    named = {name.lower(): value for name, value in response.headers.items()}
        except httpx.TimeoutException:
            raise NoResponseError(f"no answer within {limit:g} s") from None
        except (httpx.HTTPError, UnicodeError) as error:
            cause = first_cause(error)
            retryable = not isinstance(cause, ssl.SSLCertVerificationError)
            raise NoResponseError(f"{type(cause).__name__}: {cause}", retryable) from None
        if response.is_success and len(data) > most:
            raise NoResponseError(f"the answer is longer than {most} bytes", retryable=False)
        return HttpResponse(response.status_code, named, data)

    def close(self) -> None:
        """End the connections."""
        self._client.close()


def _read(parts: Iterable[bytes], most: int) -> bytes:
    """At most ``most + 1`` bytes of a body; the rest is left unread, and its connection is not used again."""
    data = bytearray()
    for part in parts:
        data += part
        if len(data) > most:
            break
    return bytes(data[: most + 1])


def left_over(response: httpx.Response) -> bytes:
    """What a server has sent behind the end of its answer: the next request would get it for its own.

    httpx does not tell, so this looks into it; nothing where another version of it looks different.
    """
    found: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state"):
        found = getattr(found, name, None)
    return b"" if found is None else bytes(found.trailing_data[0])


class _End:
    """Is told by httpcore what becomes of a request, and ends a connection that has more than its answer."""

    response: httpx.Response | None = None

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        # before another thread can have the connection
        if event == "http11.response_closed.started" and self.response is not None and left_over(self.response):
            self.response.extensions["network_stream"].close()


class _Deadline(threading.local):
    """When the exchange of a thread has to be over.

    The timeouts of httpx begin anew with every read from a socket, so a trickle of bytes would never end.
    """

    until = math.inf

    @contextlib.contextmanager
    def within(self, limit: float) -> Iterator[None]:
        self.until = time.monotonic() + limit
        try:
            yield
        finally:
            self.until = math.inf

    def left(self, timeout: float | None, error: type[Exception]) -> float:
        """Seconds that one operation of a socket may take."""
        left = min(self.until - time.monotonic(), math.inf if timeout is None else timeout)
        if left <= 0:
            raise error("timed out")
        return left

    def watch(self, client: httpx.Client) -> None:
        """Keep all connections of a client to the deadline of the thread that uses them."""
        # httpx has no public way to a network backend of one's own; test_chat_endpoint.py fails if this stops working
        for transport in (client._transport, *client._mounts.values()):
            if transport is not None:
                pool: Any = transport._pool  # type: ignore[attr-defined]
                pool._network_backend = _Backend(pool._network_backend, self)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, deadline: _Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, *args, **kwargs), self._deadline)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), 2**16):
            left = self._deadline.left(timeout, httpcore.WriteTimeout)
            self._inner.write(buffer[start : start + 2**16], left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _certificates() -> ssl.SSLContext:
    """Checks servers against the certificates of the environment, else of the system."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or None
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise InputError(f"REQUESTS_CA_BUNDLE names no file of certificates: {bundle}: {error}") from None


def first_cause(error: BaseException) -> BaseException:
    """What the operating system or TLS said, where an error of httpx comes from it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__  # httpcore raises some "from None"
    return cause or error


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_private(host: str) -> bool:
    """Whether a name or address is of this machine or of a private network. Names are not looked up."""
    address = _address(host)
    return _is_loopback(host) or (address is not None and address.is_private and not address.is_link_local)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
