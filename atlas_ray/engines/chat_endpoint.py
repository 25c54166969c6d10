"""OpenAI-compatible servers as a source of text: ``POST {base_url}/chat/completions``, and nothing else of theirs.

The key is read from the environment whenever it is needed and kept nowhere. Redirects are not followed, answers are not
streamed; :class:`atlas_ray.engines.http_transport.HttpClient` says which proxies and certificates are used.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from ..data.thinking import THINKING
from ..errors import EndpointError, InputError
from ..recipe.endpoint import secret, variables
from . import retry
from .base import Capabilities
from .chat_answers import Completion, NoCompletionError, completion
from .chat_refusals import Verdict, advice, judge, named, said_in, shown
from .chat_request import Batch, Part, Request
from .http_transport import HttpClient, NoResponseError
from .request_headers import RequestHeaders

__all__ = ["ChatEndpoint", "Completion", "Usage"]

_LEFT_OUT: dict[Part, str] = {
    "schema": "no JSON schema: none is sent from now on (send_schema = false sends none at all)",
    "system": "no system message, or wants user and assistant to take turns: the first user message begins with it "
    "from now on (send_system = false does so at once)",
    "seed": "no seed: none is sent from now on",
}
_log = logging.getLogger(__name__)


@dataclass
class Usage:
    """What was asked of an endpoint so far.

    ``requests``: sent, repetitions included. ``retried``: of them, repetitions. ``failed``: conversations that were
    given up. Tokens are those of all answers, as far as they are counted; ``uncounted`` that were used came without.
    """

    requests: int = 0
    retried: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


class _RequestFailed(Exception):
    """One attempt failed. ``retry_after``: seconds the server wants to be left alone; ``part``: what it does not know.

    ``tokens``: read and written for it nevertheless.
    """

    tokens = (0, 0)

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retryable: bool = True,
        retry_after: float = 0.0,
        kind: str = "",
        part: Part | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retryable, self.retry_after = status, retryable, retry_after
        self.kind, self.part = kind, part


class ChatEndpoint:
    """A model behind an OpenAI-compatible server (OpenAI, vLLM, llama.cpp, Ollama, ...), for many threads.

    A request is repeated after 408, 409, 429, 5xx, an answer that is none, a lost connection and a timeout; the pauses
    double, and follow ``Retry-After`` up to 60 s. Other statuses end it at once, and so do an answer that was filtered
    and one that is empty at its limit. A JSON schema, a system message or a seed that the server does not know is left
    out from then on, which is logged and noted.

    Args:
        base_url: what stands before ``/chat/completions``, usually ending with ``/v1``.
        model: the name by which the server knows it.
        key_variable: the environment variable with the key; None sends no key. Where it is not set, none is sent.
            With a key, ``http`` is refused but for localhost and loopback or private addresses.
        timeout: seconds for one request, from connecting to the last byte.
        deadline: seconds for one conversation with all its repetitions and pauses, from its first request on.
        retries: most repetitions.
        rate: most requests a second, repetitions included; None is no limit.
        concurrency: most requests at a time, and the slots of an agent.
        limit_field: how ``max_tokens`` is called in a request; OpenAI's reasoning models know only the second.
        extra: fields to add to every request, such as ``{"reasoning_effort": "low"}``.
        headers: to add to every request; ``$NAME`` in a value is the environment variable of that name.
        send_system: False puts a system message in front of the first user message, and joins neighbours of one role.
        thinking: tags of thoughts in an answer's text; one that holds nothing else at its limit is none.
        where: dotted name of the recipe's table, for messages.

    Attributes:
        notes: what the server does not know and was left out, a line each.

    Raises:
        InputError: an argument or the key cannot be used; names the field.
    """

    capabilities = Capabilities(scores=False, seeds=False)

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = "OPENAI_API_KEY",
        timeout: float = 60.0,
        deadline: float = 300.0,
        retries: int = 4,
        rate: float | None = None,
        concurrency: int = 8,
        limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        send_system: bool = True,
        thinking: Sequence[str] = THINKING,
        where: str = "",
    ) -> None:
        wrong = [
            n for n, v in (("timeout", timeout), ("deadline", deadline), ("rate", rate)) if v is not None and v <= 0
        ]
        wrong += ["retries"] * (retries < 0) + ["concurrency"] * (concurrency < 1)
        if wrong:
            raise InputError("is too small", field=wrong[0])
        self._http = HttpClient(base_url, "/chat/completions")
        self.model, self.key_variable, self.slots = model, key_variable or None, concurrency
        self.timeout, self.deadline, self.retries = timeout, deadline, retries
        self.limit_field, self.extra = limit_field, dict(extra or {})
        self.send_system, self._headers, self._where = send_system, dict(headers or {}), where
        self._thinking = tuple(thinking)
        self._unknown: set[Part] = set() if send_system else {"system"}
        self.notes: tuple[str, ...] = ()
        self._rate_limiter, self._usage, self._lock = retry.RateLimiter(rate), Usage(), threading.Lock()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="endpoint")
        self._request_headers = RequestHeaders(self._http.destination, self.key_variable, self._headers)

    def __repr__(self) -> str:
        # decisions are kept by it: headers may choose how a server answers
        own = {n: v if variables(v) or not secret(n, v) else "..." for n, v in self._headers.items()}
        return f"ChatEndpoint({self._http.base!r}, {self.model!r}{f', headers={own!r}' if own else ''})"

    @property
    def usage(self) -> Usage:
        """The counts so far, as a copy."""
        with self._lock:
            return replace(self._usage)

    def close(self) -> None:
        """End the connections; the endpoint cannot be used any more."""
        self._pool.shutdown()
        self._http.close()

    @overload
    def complete(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[Completion]: ...

    @overload
    def complete(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        return_exceptions: bool,
    ) -> list[Completion | EndpointError]: ...

    def complete(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        return_exceptions: bool = False,
    ) -> Sequence[Completion | EndpointError]:
        """One completion for each conversation, in their order.

        Args:
            conversations: messages ``{"role", "content"}``.
            max_tokens: most tokens of each completion.
            temperature: None leaves it to the server; OpenAI's reasoning models take nothing else.
            seeds: one each, cut to 31 bits (llama.cpp takes 32), not sent at temperature 0. Servers promise little.
            stop: texts that end a completion.
            json_schema: what the text has to be; not every server obeys, so check the text.
            return_exceptions: a failure takes the place of its completion and leaves the others alone, as with
                :func:`asyncio.gather`. What fails them all (401, 403, 404) is sent once: those not yet sent get the
                same error.

        Raises:
            EndpointError: the first failure, unless they are returned; conversations not yet sent are left out.
            InputError: the key cannot be used.
        """
        self._request_headers.sent()
        shared: dict[str, Any] = {**self.extra, "model": self.model, self.limit_field: max_tokens}
        if temperature is not None:
            shared["temperature"] = temperature
        if stop:
            shared["stop"] = list(stop)
        drawn = [None] * len(conversations) if seeds is None or temperature == 0 else seeds
        asked = [
            Request(shared, talk, max_tokens, seed, json_schema)
            for talk, seed in zip(conversations, drawn, strict=True)
        ]
        batch = Batch(fail_fast=not return_exceptions)
        jobs = [self._pool.submit(self._one, request, batch) for request in asked]
        try:
            answers = [job.result() for job in jobs]
        except BaseException:
            batch.stop.set()
            for job in jobs:
                job.cancel()
            raise
        if batch.error is not None and not return_exceptions:
            raise batch.error
        return answers

    def complete_each(self, *args: Any, **kwargs: Any) -> list[Completion | EndpointError]:  # the old name
        """The old name of ``complete(..., return_exceptions=True)``, for one release."""
        warnings.warn("complete_each is now complete(..., return_exceptions=True)", DeprecationWarning, stacklevel=2)
        return self.complete(*args, **kwargs, return_exceptions=True)

    def _one(self, request: Request, batch: Batch) -> Completion | EndpointError:
        if batch.error is not None:
            return batch.error
        try:
            made = self._with_retries(request, batch)
        except EndpointError as error:
            with self._lock:
                self._usage.failed += 1
                if batch.error is None and (batch.fail_fast or error.for_all):
                    batch.error = error
                    batch.stop.set()
            return error
        with self._lock:
            usage = self._usage
            usage.prompt_tokens += made.prompt_tokens or 0
            usage.completion_tokens += made.completion_tokens or 0
            usage.uncounted += made.completion_tokens is None
        return made

    def _with_retries(self, request: Request, batch: Batch) -> Completion:
        """Try until there is an answer, within the retries and the deadline."""
        until, attempt, sent, spent = None, 0, 0, (0, 0)
        while True:
            batch.sleep(self._rate_limiter.reserve())
            until = retry.now() + self.deadline if until is None else until
            with self._lock:
                self._usage.requests += 1
                self._usage.retried += sent > 0
                parts = request.parts() - self._unknown
            sent += 1
            try:
                made = self._attempt(request, parts, min(self.timeout, max(until - retry.now(), 0.01)))
                return replace(made, failed=sent - 1) if sent > 1 else made
            except _RequestFailed as error:
                trouble, times = error, f" (attempt {attempt + 1} of {self.retries + 1})" if error.retryable else ""
            read, written = trouble.tokens
            spent = spent[0] + read, spent[1] + written
            with self._lock:
                self._usage.prompt_tokens += read
                self._usage.completion_tokens += written
            if trouble.part is not None:  # at most once each, and it costs nothing: it was refused
                self._leave_out(trouble.part, str(trouble))
                continue
            if not trouble.retryable or attempt == self.retries:
                break
            seconds = retry.backoff(attempt, trouble.retry_after)
            if retry.now() + seconds >= until:
                times += f"; another would end after the deadline of {self.deadline:g} s"
                break
            _log.info("%s: %s%s; again in %.1f s", self._http.where, trouble, times, seconds)
            batch.sleep(seconds)
            attempt += 1
        raise EndpointError(f"{self._http.where}: {trouble}{times}", trouble.status, trouble.kind, spent)

    def _leave_out(self, part: Part, why: str) -> None:
        note = f"{self._where or self._http.where}: {self.model} takes {_LEFT_OUT[part]}; it said {why}"
        with self._lock:
            if part in self._unknown:
                return
            self._unknown.add(part)
            self.notes += (note,)
        _log.warning("%s", note)

    def _attempt(self, request: Request, parts: set[Part], limit: float) -> Completion:
        headers, secrets = self._request_headers.sent()
        try:
            answer = self._http.post(request.body(parts), headers, limit)
        except NoResponseError as error:
            raise _RequestFailed(shown(str(error), secrets), retryable=error.retryable) from None
        status = answer.status
        if not 200 <= status < 300:
            said = said_in(answer.body)
            verdict = judge(status, said, parts, self.extra)
            text = shown(said.text, secrets)
            raise self._refusal(f"HTTP {status}: {text}" if text else f"HTTP {status}", status, verdict, answer.headers)
        try:
            return completion(answer, request.limit, named("max_tokens", self._where), secrets, self._thinking)
        except NoCompletionError as error:
            none, text = error, str(error)
        if none.said is None:
            trouble = _RequestFailed(text, status, none.retryable, kind=none.kind)
        else:
            status = none.said.code or status
            verdict = judge(none.said.code or 0, none.said, parts, self.extra)
            trouble = self._refusal(text, status, verdict, answer.headers, inside=True)
        trouble.tokens = none.tokens
        raise trouble

    def _refusal(
        self, said: str, status: int, verdict: Verdict, headers: Mapping[str, str], inside: bool = False
    ) -> _RequestFailed:
        """``inside``: the words stood in an answer with status 200."""
        if verdict.retryable:
            return _RequestFailed(said, status, retry_after=retry.retry_after(headers), kind="error" if inside else "")
        if verdict.kind == "refused" and verdict.part is None:
            if status == 401:  # not the server's text: OpenAI's repeats a part of the key
                said = f"HTTP 401: {self._key_advice()}"
            elif status == 403:
                where = self._request_headers.secrets_of
                said += f" (the key in {where} may not use the model {self.model}, or not from here)"
            elif status == 404:
                said += f" (base_url usually ends with /v1; {self._http.base}/models lists the names a model may have)"
            elif status == 429:
                said += " (the account has no quota left: waiting does not help)"
            elif 300 <= status < 400:
                said = f"HTTP {status}: redirects are not followed: give the final address as base_url"
        told = advice(verdict, self._where, self.limit_field)
        said += f" ({told})" if told else ""
        return _RequestFailed(said, status, retryable=False, kind=verdict.kind, part=verdict.part)

    def _key_advice(self) -> str:
        where = self._request_headers.secrets_of
        if where is None:
            return "a key is needed: set key_variable to the name of the environment variable that holds it"
        there = self._request_headers.key() or where != self.key_variable
        where = f"the environment variable {where}"
        return f"the key in {where} is refused" if there else f"{where} is not set, and a key is needed"
