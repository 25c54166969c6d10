"""Headers of requests to a chat server: the key, the recipe's own, and what of them is secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ..errors import InputError
from ..recipe.endpoint import filled, secret, variables
from .http_transport import Destination

_KEY = re.compile(r"[A-Za-z0-9._~+/:=-]+")


class RequestHeaders:
    """Makes the headers of a request anew each time: keys are read from the environment and kept nowhere.

    Args:
        destination: where they go; what is secret goes nowhere unencrypted.
        key_variable: the environment variable with the key; None or an empty text sends none.
        headers: of the recipe; ``$NAME`` in a value is the environment variable of that name.

    Raises:
        InputError: :meth:`sent` would.
    """

    def __init__(self, destination: Destination, key_variable: str | None, headers: Mapping[str, str]) -> None:
        self._destination, self._key_variable, self._headers = destination, key_variable or None, dict(headers)
        self.sent()

    @property
    def key_variable(self) -> str | None:
        """The environment variable with the key."""
        return self._key_variable

    @property
    def secrets_of(self) -> str | None:
        """The environment variables with what lets a request in."""
        named = [name for value in self._headers.values() for name in variables(value)]
        return ", ".join(named) or self._key_variable

    def sent(self) -> tuple[dict[str, str], list[str]]:
        """The headers of a request, and what in them is secret.

        Raises:
            InputError: a variable is not set or cannot be sent, or a secret would travel unencrypted; names the field.
        """
        headers, secrets = {"Content-Type": "application/json", "Accept": "application/json"}, list[str]()
        if not any(name.lower() == "authorization" for name in self._headers) and (key := self.key()):
            headers["Authorization"] = f"Bearer {key}"
            secrets.append(key)
            self._private("key_variable", self._key_variable)
        for name, value in self._headers.items():
            known = {variable: os.environ.get(variable, "").strip() for variable in variables(value)}
            for variable, held in known.items():
                if not _KEY.fullmatch(held):
                    holds = "holds what cannot be sent in a header" if held else "is not set"
                    raise InputError(f"the environment variable {variable} {holds}", field=f"headers.{name}")
            headers[name] = filled(value, known)
            if known or secret(name, value):
                secrets += known.values() or [value]
                self._private(f"headers.{name}", name)
        return headers, secrets

    def key(self) -> str | None:
        """The key, if its variable is set.

        Raises:
            InputError: it holds no key.
        """
        key = os.environ.get(self._key_variable, "").strip() if self._key_variable else ""
        if key and not _KEY.fullmatch(key):
            raise InputError(f"the environment variable {self._key_variable} holds no key", field="key_variable")
        return key or None

    def _private(self, field: str, what: str | None) -> None:
        if not self._destination.may_send_keys:
            instead = ", or key_variable=None to send no key" if field == "key_variable" else ""
            sent = "the key in " if field == "key_variable" else "the header "
            raise InputError(
                f"{self._destination.base} would send {sent}{what} unencrypted: use https{instead}", field="base_url"
            )
