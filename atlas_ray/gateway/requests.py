"""A request for a chat completion: what of it the gateway reads; all else goes on untouched."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..switching.spending import UNLIMITED, Limits, picodollars
from .replies import ApiError

LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
SESSION_HEADERS = ("x-atlas-session", "x-litellm-trace-id", "x-session-id")
"""Which name a session, the first that is there."""
MOST_MESSAGES, MOST_CHOICES = 10_000, 128
_LONGEST_NAME = 200
_NAME = re.compile(r"[\x20-\x7e]+")
_DEARER = ("audio", "prediction", "web_search_options")
"""Fields that may cost more than the tokens that are asked for."""
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_plain = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
_TIERS = (None, "auto", "default", "flex")


@dataclass(frozen=True)
class ChatRequest:
    """A body that was read.

    ``body``: all of it. ``policy``: ``londi``, ``quick`` or ``deepthink``. ``limits``: the client's own, tighter
    ones. ``session``: its name by a header. ``idempotency``: its ``Idempotency-Key``. ``most``: tokens of each answer
    for which there is a budget.
    """

    body: Mapping[str, Any]
    policy: str
    limits: Limits = UNLIMITED
    session: str | None = None
    idempotency: str | None = None
    size: int = field(default=0)
    most: int | None = None

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The conversation."""
        found: Sequence[Mapping[str, Any]] = self.body["messages"]
        return found

    @property
    def stream(self) -> bool:
        """Whether the answer is to come in pieces."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def choices(self) -> int:
        """How many answers the client wants to choose from: all are one step, and one call."""
        return self.body.get("n") or 1

    @property
    def limit(self) -> int | None:
        """Most tokens of each answer that the client wants, or for which there is a budget."""
        asked = [self.body[name] for name in LIMIT_FIELDS if self.body.get(name) is not None]
        asked += [] if self.most is None else [self.most]
        return min(asked) if asked else None

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same request."""
        return _hashed(_plain(self.body))

    @cached_property
    def has_media(self) -> bool:
        """Whether something else than text is asked about, whose tokens cannot be counted."""
        return any(map(_media, self.messages))

    @cached_property
    def goal(self) -> str:
        """What the first user message says; without one the first message."""
        return text_of(self.messages[self._goal])

    @cached_property
    def observation(self) -> str:
        """What came since the last assistant turn, without the goal unless that is all."""
        return "\n".join(map(text_of, self._since))

    @cached_property
    def seen(self) -> str:
        """The same for the same observation: of images and the like, all that is said of them."""
        media = [part for message in self._since for part in _media(message)]
        return _hashed(self.observation + (_plain(media) if media else ""))

    @cached_property
    def _since(self) -> list[Mapping[str, Any]]:
        turns = [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]
        since = range(turns[-1] + 1 if turns else 0, len(self.messages))
        seen = [n for n in since if n != self._goal and self.messages[n]["role"] in ("user", "tool", "function")]
        return [self.messages[n] for n in (seen or [n for n in since if n == self._goal])]

    @cached_property
    def _goal(self) -> int:
        return next((n for n, message in enumerate(self.messages) if message["role"] == "user"), 0)

    def chain(self, key: str) -> list[str]:
        """A digest of the conversation up to and with each message, of the tools, and of whose it is."""
        made = _hashed(_plain([key, self.body.get("tools"), self.body.get("functions")]))
        return [made := link(made, message) for message in self.messages]


def link(before: str, message: Mapping[str, Any]) -> str:
    """The digest of a conversation, ``before`` a message, with it."""
    if message.get("role") != "assistant":
        return _hashed(before + _plain(message))
    # clients leave out, or add, what is null or empty, and fields that they do not know
    calls = [
        [call.get("id"), function.get("name"), function.get("arguments")]
        for call in message.get("tool_calls") or ()
        if isinstance(call, Mapping) and isinstance(function := call.get("function") or {}, Mapping)
    ]
    return _hashed(before + _plain(["assistant", text_of(message), calls]))


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, its parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def action_of(message: Mapping[str, Any]) -> str:
    """What an assistant's message does: its text, then its tool calls, each as ``name(arguments)`` on a line."""
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    lines = [f"{call.get('name')}({call.get('arguments') or ''})" for call in calls]
    return "\n".join([*([text] if (text := text_of(message)) else []), *lines])


def _media(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") not in ("text", "refusal")]


def _hashed(text: str) -> str:
    # what a model wrote may hold half of a surrogate pair
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_request(data: bytes, headers: Mapping[str, str]) -> ChatRequest:
    """The request for a chat completion.

    Args:
        data: the body as it came.
        headers: by lower-case name.

    Raises:
        ApiError: it is no such request: 415, 400, or 404 where the model is none.
    """
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ApiError(415, "the content type must be application/json", "unsupported_media_type")
    body = read_json(data)
    _check(body)
    policy, limits = read_model(body["model"])
    named = next((headers[name] for name in SESSION_HEADERS if headers.get(name)), None)
    once = headers.get("idempotency-key") or None
    for value, what in ((named, "the session's name"), (once, "Idempotency-Key")):
        if value is not None and not (_NAME.fullmatch(value) and len(value) <= _LONGEST_NAME):
            raise ApiError(400, f"{what} must be 1 to {_LONGEST_NAME} printable ASCII characters", "invalid_header")
    return ChatRequest(body, policy, limits, named, once, len(data))


def read_json(data: bytes) -> dict[str, Any]:
    """A JSON object, without what JSON does not have.

    Raises:
        ApiError: it is none, or holds NaN, an infinity, half of a surrogate pair or one name twice.
    """
    try:
        value = json.loads(data, object_pairs_hook=_object, parse_constant=_no_number, parse_float=finite)
        if _ESCAPED_HALF.search(data):  # which is read as a character, whether the other half follows or not
            json.dumps(value, ensure_ascii=False).encode()
    except ApiError:
        raise
    except UnicodeDecodeError:
        raise _no_json("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise _no_json("it holds half of a surrogate pair") from None
    except RecursionError:
        raise _no_json("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg}, character {error.pos}") from None
    except ValueError:
        raise _no_json("it holds a number that is none") from None
    if not isinstance(value, dict):
        raise _no_json("it is no object")
    return value


def _no_json(why: str) -> ApiError:
    return ApiError(400, f"the body is no JSON that can be used: {why}", "invalid_json")


def _no_number(_: str) -> None:
    raise ValueError


def finite(text: str) -> float:
    """A number in JSON.

    Raises:
        ValueError: it is none of floating point, such as 1e400.
    """
    if math.isinf(number := float(text)):
        raise ValueError
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _no_json("a name stands twice in an object")
    return made


def _check(body: Mapping[str, Any]) -> None:
    def wrong(name: str, what: str) -> ApiError:
        return ApiError(400, f"{name} {what}", "invalid_value", name)

    if not isinstance(body.get("model"), str):
        raise wrong("model", "must be a text: londi, quick or deepthink")
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise wrong("messages", f"must be a list of 1 to {MOST_MESSAGES} messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(f"messages.{number}", "must be an object with a role")
    if not isinstance(body.get("stream"), bool | None):
        raise wrong("stream", "must be true or false")
    if not isinstance(body.get("stream_options"), dict | None):
        raise wrong("stream_options", "must be an object")
    n = body.get("n")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= MOST_CHOICES):
        raise wrong("n", f"must be a whole number from 1 to {MOST_CHOICES}")
    for name in LIMIT_FIELDS:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9):
            raise wrong(name, "must be a whole number of at least 1")


def check_bounded(body: Mapping[str, Any]) -> None:
    """Refuse what may cost more than tokens say, where tokens or money have a limit.

    Raises:
        ApiError: names the field.
    """
    found = next((name for name in _DEARER if body.get(name) is not None), None)
    if found is None and body.get("service_tier") not in _TIERS:
        found = "service_tier"
    if found is None and body.get("modalities") not in (None, ["text"]):
        found = "modalities"
    if found:
        raise ApiError(400, f"{found} may cost more than can be reserved for it", "unbounded_cost", found)


def read_model(name: str) -> tuple[str, Limits]:
    """Policy and tighter budget of a model's name: ``londi@calls=5,usd=0.2``.

    Raises:
        ApiError: 404 where it names no policy, 400 where the budget cannot be read.
    """
    policy, _, terms = name.partition("@")
    if policy not in ("londi", "quick", "deepthink"):
        known = "londi, quick and deepthink, each perhaps with @calls=N, @tokens=N or @usd=X behind it"
        raise ApiError(404, f"no such model: there are {known}", "model_not_found", "model")
    found: dict[str, int] = {}
    for term in re.split("[,@]", terms) if terms or "@" in name else ():
        kind, _, value = term.partition("=")
        if kind in found or kind not in Limits._fields or not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", value):
            raise _bad_terms()
        if kind != "usd" and "." in value:
            raise _bad_terms()
        found[kind] = picodollars(value) if kind == "usd" else int(value)
    return policy, Limits(**found)


def _bad_terms() -> ApiError:
    return ApiError(400, "behind @ stand calls=N, tokens=N or usd=X, each once", "invalid_value", "model")
