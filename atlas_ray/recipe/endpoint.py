"""The fields of an endpoint, the same wherever a recipe names one: of the oracle and of a model of the switch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, PlainValidator

from .base import ConfigModel, Positive

REACHING = ("headers", "key_variable", "limit_field", "rate", "retries", "send_system", "timeout")
"""What of :class:`EndpointFields` says how a model is reached and not what it answers: a run goes on with others."""
UNSET = "unset"
"""A temperature of this name is not sent."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_]\w*)\}|(?P<plain>[A-Za-z_]\w*))")
_SECRET_HEADER = re.compile(r"auth(?!or)|key|token|secret|passw|credential|cookie", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\s*(?:(?:bearer|basic|token)\s|sk-|gsk_|hf_|xox|eyj)", re.IGNORECASE)
_SECRET_FIELD = re.compile(r"(?:.*[_-])?(?:api[_-]?key|authorization|password|secret|access[_-]?token)", re.IGNORECASE)
_OWN_HEADERS = ("accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding")
_OWN_FIELDS = ("max_completion_tokens", "max_tokens", "messages", "model", "n", "stream", "temperature")


def variables(value: str) -> list[str]:
    """The environment variables that a header's value names, ``$NAME`` or ``${NAME}``, in their order."""
    return [found["braced"] or found["plain"] for found in _VARIABLE.finditer(value)]


def filled(value: str, known: dict[str, str]) -> str:
    """A header's value with what its variables hold."""
    return _VARIABLE.sub(lambda found: known[found["braced"] or found["plain"]], value)


def secret(name: str, value: str) -> bool:
    """Whether a header seems to hold a secret, by its name or by what it says."""
    return bool(_SECRET_HEADER.search(name) or _SECRET_VALUE.match(value))


def _temperature(given: Any) -> float | str | None:
    if given is None or given == UNSET:
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < float("inf"):
        return float(given)
    raise ValueError(f"must be a number of at least 0, or {UNSET!r} (got {given!r})")


def _variable(given: str | None) -> str | None:
    if given and (not re.fullmatch(r"[A-Za-z_]\w*", given) or _SECRET_VALUE.match(given)):
        raise ValueError("must be the name of an environment variable; a key itself does not belong into a recipe")
    return given


def _headers(given: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name, value in given.items():
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ValueError(f"{name!r} cannot be sent as a header: printable ASCII only")
        if name.lower() in _OWN_HEADERS or name.lower() in seen:
            raise ValueError(f"{name} is set by us" if name.lower() in _OWN_HEADERS else f"{name} stands twice")
        seen.add(name.lower())
        if not variables(value) and secret(name, value):
            raise ValueError(
                f"{name} seems to hold a secret, and a recipe is written out: put it into an environment variable, and "
                f'name that here ({name} = "$VARIABLE") or, where it is sent as a bearer token, in key_variable'
            )
    return given


def _extra(given: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in given:
        if name in _OWN_FIELDS:
            raise ValueError(f"{name} is no field to add: requests have it already, or must not")
    _refuse_secrets(given)
    return given


def _refuse_secrets(value: JsonValue) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if _SECRET_FIELD.fullmatch(name) and isinstance(inner, str):
                raise ValueError(f"{name} seems to hold a secret, and a recipe is written out: use key_variable")
            _refuse_secrets(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_secrets(inner)


Temperature = Annotated[float | str | None, PlainValidator(_temperature)]
Variable = Annotated[str | None, AfterValidator(_variable)]
Headers = Annotated[dict[str, str], AfterValidator(_headers)]
Extra = Annotated[dict[str, JsonValue], AfterValidator(_extra)]


class EndpointFields(ConfigModel):
    """A model that may be behind an OpenAI-compatible server."""

    model: str
    """A shipped name, a directory or a hub id; with `base_url` the name by which the server knows it."""
    base_url: str | None = None
    """An OpenAI-compatible server, up to what stands before `/chat/completions`."""
    key_variable: Variable = "OPENAI_API_KEY"
    """The environment variable that holds the server's key; an empty text sends none."""
    rate: float | None = Field(default=None, gt=0)
    """Most requests a second, of each process that asks."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds for a request."""
    retries: int = Field(default=4, ge=0)
    """How often a request is repeated."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the server calls the limit of an answer; OpenAI's reasoning models know only the second."""
    context: Positive | None = None
    """Most tokens of a conversation and its answer."""
    max_tokens: Positive = 256
    """Most tokens of an answer, thoughts of a reasoning model included."""
    temperature: Temperature = 0.0
    """0 is greedy; `unset` leaves it to the server, since OpenAI's reasoning models take no other."""
    send_system: bool = True
    """False where the model takes no system message, or where user and assistant must take turns: the system message
    then begins the first user message, and neighbours of one role are one message."""
    headers: Headers = {}
    """Headers to add to every request. What is secret is named, not written: `api-key = "$VARIABLE"`."""
    extra: Extra = {}
    """Fields to add to every request, such as `{ reasoning_effort = "low" }`."""
    price_prompt: float = Field(default=0.0, ge=0)
    """Money for a million prompt tokens."""
    price_completion: float = Field(default=0.0, ge=0)
    """Money for a million written tokens."""

    @property
    def warmth(self) -> float | None:
        """The temperature; None is not sent."""
        return None if isinstance(self.temperature, str) else self.temperature
