"""Reading the answers of chat servers: what a model meant as its answer, or that there is none, and why.

Status 200 says little: servers send errors, streams and web pages with it, and answers that were filtered, cut off
before their first word, or lost. None of them is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.thinking import THINKING, split_thinking
from .chat_refusals import Said, error_in, plain, said, shown
from .http_transport import HttpResponse

_SURROGATE = re.compile("[\ud800-\udfff]")
_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")

# how servers say why an answer ends, in small letters
_DONE = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed"})
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_FULL = frozenset({"model_context_window_exceeded", "context_length_exceeded"})
_FAILED = frozenset(
    {"error", "abort", "aborted", "cancelled", "canceled", "network_error", "insufficient_system_resource"}
)
_FILTERED = re.compile(r"content_?filter|safety|sensitive|recitation|prohibited|blocklist|spii|refusal|guardrail")


@dataclass(frozen=True)
class Completion:
    """What a model wrote. Tokens are the server's counts, None where it gives none.

    ``text`` is what it meant as its answer; what it thought before, where the server tells that apart, is
    ``reasoning``. ``finish_reason`` is ``"stop"``, ``"length"`` (cut off), or what the server calls it; a text without
    characters always ends with ``"stop"``. ``failed``: requests that failed before it.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    reasoning: str | None = None
    failed: int = 0


class NoCompletionError(Exception):
    """An answer that is none.

    Args:
        message: why.
        kind: of an :class:`atlas_ray.errors.EndpointError`.
        retryable: whether the same request may be answered.
        said: an error that the answer holds, which says more.

    Attributes:
        tokens: read and written nevertheless, as far as the server counts them.
    """

    def __init__(self, message: str, kind: str = "error", retryable: bool = True, said: Said | None = None) -> None:
        super().__init__(message)
        self.kind, self.retryable, self.said = kind, retryable, said
        self.tokens = (0, 0)


def completion(
    answer: HttpResponse, limit: int, limit_name: str, secrets: Sequence[str] = (), thinking: Sequence[str] = THINKING
) -> Completion:
    """What an answer with status 2xx holds.

    Args:
        answer: what came.
        limit: most tokens that were asked for.
        limit_name: what the user calls that limit.
        secrets: what no message may hold.
        thinking: tags of thoughts within the text (:data:`atlas_ray.data.thinking.THINKING`).

    Raises:
        NoCompletionError: it holds no completion.
    """
    value = _json(answer, secrets)
    try:
        return _read(value, answer, limit, limit_name, secrets, thinking)
    except NoCompletionError as error:
        sent, written = _counts(value)
        error.tokens = sent or 0, written or 0
        raise


def _read(
    value: dict[str, Any],
    answer: HttpResponse,
    limit: int,
    limit_name: str,
    secrets: Sequence[str],
    thinking: Sequence[str],
) -> Completion:
    said_whole = shown(answer.body.decode("utf-8", "replace"), secrets)
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    errors = [inner["error"] for inner in (choice, message) if isinstance(inner, dict) and inner.get("error")]
    error = error_in(value) if value.get("error") or not choice else said(errors[0]) if errors else None
    if error is not None:
        raise NoCompletionError(f"the answer holds an error: {shown(error.text, secrets)}", said=error)
    if not isinstance(choice, dict):
        raise NoCompletionError(f"the answer holds no choices: {said_whole}")
    reason = choice.get("finish_reason")
    ended = reason.lower() if isinstance(reason, str) else None
    if ended in _FAILED:
        words = f"{choice.get('native_finish_reason') or ''} {_said_by(message)}".strip()
        raise NoCompletionError(f"the answer ended with {reason!r}: {shown(words, secrets) or said_whole}")
    if ended is not None and _FILTERED.match(ended):
        raise NoCompletionError(f"the answer was filtered ({reason})", "filtered", retryable=False)
    if not isinstance(message, dict):
        raise NoCompletionError(f"the answer holds no choices[0].message: {said_whole}")
    parts = _parts(message.get("content"))
    if parts is None:
        raise NoCompletionError(f"the answer holds no choices[0].message.content: {said_whole}")
    text, thought, refused = parts
    thought = _thinking(message) or thought
    sent, written = _counts(value)
    if ended in _CUT and not (split := split_thinking(text, thinking)).rest.strip():
        text, thought = "", thought or split.reasoning or ""  # its thoughts are in its text, and nothing else is
    if not text.strip():
        if refused := _text(message.get("refusal")) or refused:
            raise NoCompletionError(
                f"the model refused to answer: {shown(refused, secrets)}", "filtered", retryable=False
            )
        if ended in _FULL:
            raise NoCompletionError("the conversation fills the model's context", "context", retryable=False)
        if ended in _CUT or (written is not None and written >= limit and ended in {*_DONE, None}):
            who = "thinking" if thought or _thought_tokens(value) else "perhaps thinking that the server does not show"
            why = f"the answer is empty at its limit, {limit_name} = {limit}: {who} used it up"
            raise NoCompletionError(why, "empty", retryable=False)
        if called := _called(message):
            raise NoCompletionError(
                f"in place of an answer it calls the tool {shown(called, secrets)!r}", retryable=False
            )
        if ended not in _DONE:
            raise NoCompletionError(f"the answer is empty and ended with {reason!r}: {said_whole}")
    finish = "stop" if ended in _DONE else "length" if ended in _CUT | _FULL else reason
    return Completion(
        _SURROGATE.sub("�", text),
        sent,
        written,
        finish if isinstance(finish, str) else None,
        _SURROGATE.sub("�", thought) if thought else None,
    )


def _json(answer: HttpResponse, secrets: Sequence[str]) -> dict[str, Any]:
    """The object that a body is."""
    data = answer.body
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    text = shown(plain(data), secrets)
    if value is not None:
        raise NoCompletionError(f"the answer is no JSON object: {text}", said=error_in(value))
    if "event-stream" in answer.headers.get("content-type", "") or _STREAM.match(data):
        error = _streamed(data)
        words = "" if error is None else shown(error.text, secrets)
        raise NoCompletionError(
            f"the answer is a stream of events, which was not asked for: {words or text}", said=error
        )
    if data.lstrip().startswith(b"<"):
        raise NoCompletionError(f"the answer is a web page (base_url usually ends with /v1): {text}")
    raise NoCompletionError(f"the answer is not JSON: {text or 'it is empty'}")


def _streamed(data: bytes) -> Said | None:
    """The first error among the events of a stream."""
    for line in data[: 2**20].splitlines():
        if line.startswith(b"data:"):
            try:
                event = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and not event.get("choices") and (error := error_in(event)) is not None:
                return error
    return None


def _parts(content: Any) -> tuple[str, str, str] | None:
    """Text, thoughts and refusal of a message's content; None where it is none."""
    if content is None or isinstance(content, str):
        return content or "", "", ""
    found: dict[str, list[str]] = {"text": [], "thought": [], "refusal": []}
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            found["text"].append(part)
            continue
        if not isinstance(part, Mapping):
            return None
        kind = part.get("type", "text")
        if kind in ("text", "output_text"):
            found["text"].append(_text(part.get("text")))
        elif kind == "refusal":
            found["refusal"].append(_text(part.get("refusal")))
        elif kind in ("thinking", "reasoning", "redacted_thinking"):
            found["thought"].append(_text(part.get("thinking") or part.get("reasoning") or part.get("text")) or "…")
        # anything else, such as a reference or an image, is no text
    return "".join(found["text"]), "".join(found["thought"]), "".join(found["refusal"])


def _text(value: Any) -> str:
    """A text, however it is wrapped."""
    if isinstance(value, list):
        return "".join(_text(inner) for inner in value)
    if isinstance(value, Mapping):
        return _text(value.get("text", value.get("value")))
    return value if isinstance(value, str) else ""


def _thinking(message: Mapping[str, Any]) -> str:
    """What a server tells apart as thoughts, beside the content."""
    return next((t for n in ("reasoning_content", "reasoning", "thinking") if (t := _text(message.get(n)))), "")


def _said_by(message: Any) -> str:
    parts = _parts(message.get("content")) if isinstance(message, dict) else None
    return parts[0] if parts else ""


def _called(message: Mapping[str, Any]) -> str:
    """The name of the tool that a message calls."""
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else {"function": message.get("function_call")}
    function = call.get("function") if isinstance(call, Mapping) else None
    return str(function.get("name", "?")) if isinstance(function, Mapping) else ""


def _counts(value: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens read and written, where the server counts them."""
    counts = value.get("usage")
    read = [counts.get(n) if isinstance(counts, dict) else None for n in ("prompt_tokens", "completion_tokens")]
    sent, written = (n if type(n) is int and n >= 0 else None for n in read)
    return sent, written


def _thought_tokens(value: Mapping[str, Any]) -> bool:
    """Whether a server that hides thoughts counts some."""
    counts = value.get("usage")
    details = counts.get("completion_tokens_details") if isinstance(counts, dict) else None
    return isinstance(details, dict) and bool(details.get("reasoning_tokens"))
