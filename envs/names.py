"""Names of environments behind protocols of others: ``openenv:URL``, ``verifiers:ID``."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from .core import UnknownEnvironmentError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def openenv(name: str) -> str:
    """``openenv:http://HOST:PORT`` without a slash at its end.

    Raises:
        UnknownEnvironmentError: what stands behind the colon is no URL of a server, or holds a password.
    """
    kind, _, url = name.partition(":")
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        valid, plain = valid and parts.port != 0, parts.username is None
    except ValueError:  # its text may hold a part of the password
        valid, plain = False, True
    if not valid:
        raise UnknownEnvironmentError(f"{kind}: give the URL of a server, {kind}:http://HOST:PORT")
    if not plain:
        raise UnknownEnvironmentError(f"{kind}: the URL holds a name or a password, and a recipe is written out")
    return f"{kind}:{url}"


def verifiers(name: str) -> str:
    """``verifiers:ID``, the ID of an installed package.

    Raises:
        UnknownEnvironmentError: what stands behind the colon is no id.
    """
    kind, _, found = name.partition(":")
    if not _ID.fullmatch(found):
        raise UnknownEnvironmentError(f"{kind}: {found!r:.80} is no id of a package: {kind}:NAME, or {kind}:OWNER/NAME")
    return name
