"""What chat servers say when they do not answer, and what it means: try again, end the conversation, or mend a field.

There is no standard for it. The codes and wordings below are those of OpenAI, Azure, Anthropic, Gemini, Mistral,
DeepSeek, OpenRouter, vLLM, SGLang, TGI, llama.cpp, LM Studio and Ollama as their documents, sources and users show
them; ours is the reading. Only what a server says of itself is searched, never a request that it repeats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from .chat_request import Part

LONGEST_SAID = 200
"""Characters of a server's text in a message."""

_AGAIN = frozenset({408, 409, 429})
_NO_WORDS_ABOUT_US = frozenset({401, 402, 429})

_FILTERED = re.compile(
    r"content[ _-]?(?:filter|polic|management|moderation)|responsible ?ai|data_inspection_failed|inappropriate content"
    r"|moderation|flagged|(?:usage|safety) polic"
    r"|safety[^.]{0,40}block|block[^.]{0,40}safety|prohibited[ _]content|safety (?:system|filter|setting)"
    r"|sensitive (?:content|information|words)|不安全或敏感",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)[ _]exceeded|exceed_context_size|maximum (?:context|model|prompt) length"
    r"|(?:context|input|prompt) (?:length|size|window|limit|tokens?(?: count)?)\b[^.]{0,60}\bexceed"
    r"|exceed\w*[^.]{0,60}\b(?:context (?:length|size|window|limit)|(?:input|context) token)"
    r"|(?:longer|larger|greater|more) than[^.]{0,60}(?:context|maximum (?:model )?length)"
    r"|(?:prompt|input)s? (?:is |are )?too (?:long|large)|too large for model with"
    r"|inputs?\W+(?:tokens )?must have less than|tokens\W+\+\W+max_new_tokens|string_above_max_length"
    r"|reduce the length of the (?:messages|prompt|input)|context the overflows|context length of only"
    r"|context window (?:is|of|full)|exceed\w*[^.]{0,30}token limit|maximum number of (?:input )?tokens"
    r"|expected a string with maximum length|reached (?:the )?context length"
    r"|too many (?:input )?tokens\b|request(?: entity)? too large|payload too large",
    re.IGNORECASE,
)
_NEVER_FITS = re.compile(r"request too large", re.IGNORECASE)
_NO_QUOTA = re.compile(r"insufficient[ _](?:quota|balance|credits?)|exceeded your current quota", re.IGNORECASE)

_PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    (
        "system",
        re.compile(
            r"system[ _](?:role|message|prompt|instruction)s?\b[^.]{0,60}(?:not|n't|un)\W*(?:support|allow|enable)"
            r"|(?:not|n't|un)\W*support[^.]{0,60}\bsystem\b|developer instruction|alternat\w+[^.]{0,60}\brole"
            r"|roles?\b[^.]{0,60}\balternat|only user(?:,| and) \w+(?: and \w+)? roles"
            r"|(?:unexpected|invalid|unknown|unsupported)\W+(?:message )?role|messages?\W*\d+\W*role\b",
            re.IGNORECASE,
        ),
    ),
    (
        "schema",
        re.compile(
            r"response[ _]?format|json[ _]?schema|structured[ _]outputs?|guided[ _](?:json|decoding|grammar)|grammar",
            re.IGNORECASE,
        ),
    ),
    ("seed", re.compile(r"\bseed\b", re.IGNORECASE)),
)
_UNKNOWN = re.compile(
    r"unsupported[ _]parameter|not (?:supported|permitted|allowed|recogni)|does not support|unknown|unrecogni"
    r"|unexpected|extra (?:input|field)|extra_forbidden|use\W+max_completion_tokens",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Said:
    """What a server says is wrong.

    ``text`` is for a message, ``words`` (with its codes) is what is searched, ``parameter`` the field of the request
    that it names, ``code`` an HTTP status that it gives inside an answer.
    """

    text: str
    words: str
    parameter: str = ""
    code: int | None = None


def shown(text: str, secrets: Sequence[str] = ()) -> str:
    """A server's text for a message: one printable line of at most 200 characters, without what is secret."""
    for key in secrets:
        text = text.replace(key, "[key]").replace(key.replace("/", "\\/"), "[key]")
    text = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return text if len(text) <= LONGEST_SAID else f"{text[:LONGEST_SAID]}..."


def plain(data: bytes) -> str:
    """A body as text, a web page without its tags."""
    text = data.decode("utf-8", "replace")
    if not text.lstrip("\ufeff \r\n\t").startswith("<"):
        return text
    text = re.sub(r"<(script|style)\b.*?</\1\s*>", " ", text[:20_000], flags=re.DOTALL | re.IGNORECASE)
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def said_in(data: bytes) -> Said:
    """What the body of a refusal says."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    found = said(value) if isinstance(value, str) else error_in(value)
    return found or Said(plain(data), plain(data)[:2000] if value is None else "")


def error_in(value: Any) -> Said | None:
    """The error that a JSON object holds, or is; Gemini's stands in a list."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        return None
    for name in ("error", "errors", "detail"):
        if value.get(name):
            beside = value.get("message") if name == "error" and isinstance(value[name], str) else None
            found = said(value[name], beside)
            return found if found.code else replace(found, code=_status(value))
    if isinstance(value.get("message"), str) and value["message"]:
        return said(value)
    return None


def said(error: Any, beside: Any = None) -> Said:
    """An error, which may be a text, an object or a list of such."""
    texts, codes, parameter, code = list[str](), list[str](), "", None
    for one in error if isinstance(error, list) else [error]:
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, Mapping):
            texts += _texts(one)
            codes += _codes(one)
            parameter = parameter or _parameter(one)
            code = code or _status(one)
    texts += [beside] if isinstance(beside, str) else []
    text = ": ".join(dict.fromkeys(" ".join(t.split()) for t in texts if t.strip()))
    told = ", ".join(dict.fromkeys(codes))
    both = f"{text} ({told})" if text and told else text or told or json.dumps(error, ensure_ascii=False)
    return Said(both, f"{text[:2000]} {told} {parameter}", parameter, code)


def _texts(error: Mapping[str, Any]) -> list[str]:
    found = [error.get(name) for name in ("message", "msg", "detail", "title", "reason")]
    inner = error.get("metadata")  # OpenRouter's: the words of the provider behind it
    if isinstance(inner, Mapping):
        found += [inner.get("raw"), *_strings(inner.get("reasons"))]
    nested = error.get("error")
    found += [nested] if isinstance(nested, str) else _texts(nested) if isinstance(nested, Mapping) else []
    return [text for text in found if isinstance(text, str)]


def _codes(error: Mapping[str, Any]) -> list[str]:
    inner = error.get("innererror")  # Azure's
    more = inner.get("code") if isinstance(inner, Mapping) else None
    found = [error.get("code"), error.get("type"), error.get("status"), more]
    return [str(c) for c in found if isinstance(c, str | int) and not isinstance(c, bool) and c != "error" and c != ""]


def _strings(value: Any) -> Iterable[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _parameter(error: Mapping[str, Any]) -> str:
    named = error.get("param")
    if isinstance(named, str):
        return named
    place = error.get("loc")  # FastAPI's
    return ".".join(str(p) for p in place if p != "body") if isinstance(place, list) else ""


def _status(error: Mapping[str, Any]) -> int | None:
    for name in ("code", "status", "status_code", "http_code"):
        given = error.get(name)
        if isinstance(given, str) and re.fullmatch(r"[1-5]\d\d", given):
            given = int(given)
        if type(given) is int and 400 <= given <= 599:
            return given
    return None


@dataclass(frozen=True)
class Verdict:
    """What to do: ask again (``retryable``), leave a ``part`` out, or give up (``kind`` of an :class:`EndpointError`).

    ``fields``: what a recipe calls what the server does not take.
    """

    retryable: bool
    kind: str = ""
    part: Part | None = None
    field: str = ""


def judge(status: int, words: Said, sent: Set[Part], extra: Iterable[str] = ()) -> Verdict:
    """What a refusal means.

    Args:
        status: of the answer, or the one that it gives inside; 0 where that is none.
        words: what it says.
        sent: the parts that the request had.
        extra: fields of the user's own that it had.
    """
    if status == 429:
        if _NEVER_FITS.search(words.words):
            return Verdict(False, "context")
        return Verdict(False, "refused") if _NO_QUOTA.search(words.words) else Verdict(True)
    if _TOO_LONG.search(words.words) or status == 413:
        return Verdict(False, "context")
    if _FILTERED.search(words.words) and (status < 500):
        return Verdict(False, "filtered")
    if status not in _NO_WORDS_ABOUT_US:
        about = _about(words)
        if about is not None and about in sent:
            return Verdict(False, "refused", about)
    if status in _AGAIN or status >= 500 or not status:
        return Verdict(True)
    return Verdict(False, "refused", field=_field(words, extra))


def _about(words: Said) -> Part | None:
    """The part of a request that a server does not take."""
    if words.parameter in ("temperature", "max_tokens", "max_completion_tokens", "model", "stop"):
        return None
    return next((part for part, pattern in _PARTS if pattern.search(words.words)), None)


def _field(words: Said, extra: Iterable[str]) -> str:
    """What a recipe calls the field that a server does not take; "" where it does not say."""
    parameter, text = words.parameter, words.words
    if any(re.search(rf"\b{re.escape(name)}\b", text) for name in extra):
        return "extra"
    if parameter == "temperature" or re.search(r"\btemperature\b", text, re.IGNORECASE):
        return "temperature"
    if re.search(r"\bmax_(?:completion_)?tokens\b", text):
        return "limit_field" if _UNKNOWN.search(text) else "max_tokens"
    if parameter == "model" or re.search(r"model[ _]not[ _]found|\bmodel\b[^.]{0,80}(?:not exist|not found)", text):
        return "model"
    return "stop" if parameter == "stop" or re.search(r"'stop'", text) else ""


def named(field: str, where: str) -> str:
    """What the user calls a field: with the recipe's table ``where`` in front, or as it is in Python."""
    return f"{where}.{field}" if where else field


def advice(verdict: Verdict, where: str, limit_field: str) -> str:
    """How a request becomes one that the server takes; "" where nobody knows.

    Args:
        verdict: what was refused.
        where: dotted name of the recipe's table, "" from Python.
        limit_field: how the limit of tokens was called.
    """
    if verdict.kind == "context":
        return f"conversation and {named('max_tokens', where)} do not fit: {named('context', where)} ends it before"
    if verdict.kind == "filtered":
        return "the server's filter"
    other = "max_tokens" if limit_field == "max_completion_tokens" else "max_completion_tokens"
    field = named(verdict.field, where)
    known = {
        "temperature": f'set {field} = "unset"' if where else "set temperature to None",
        "limit_field": f'set {field} = "{other}"',
        "max_tokens": f"lower {field}",
    }
    return known.get(verdict.field, f"look at {field}") if verdict.field else ""
