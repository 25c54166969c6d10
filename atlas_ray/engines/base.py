"""The protocol of engines: a batch in, a batch out, prompts as token ids."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ContextOverflowError, InputError
from ..models.config import longest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond continuing text.

    ``scores``: :meth:`Engine.score` gives exact log-probabilities. ``seeds``: a sample depends on its seed alone.
    ``adapters``: a LoRA adapter can be named. ``hidden``: entries of the states that :meth:`Engine.hidden` gives, 0
    where it gives none.
    """

    scores: bool = True
    seeds: bool = True
    adapters: bool = False
    hidden: int = 0


@dataclass(eq=False)
class GenerateRequest:
    """A request to continue a prompt. ``written`` is the continuation so far.

    ``ignore_cache`` uses nothing that was kept of its slot. ``computed_tokens`` counts the tokens that went through the
    model for it, ``cached_tokens`` those of the prompt that were kept.
    """

    prompt: Sequence[int]
    slot: int
    stop: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_cache: bool = False
    written: list[int] = field(default_factory=list)
    computed_tokens: int = 0
    cached_tokens: int = 0


@dataclass(eq=False)
class ScoreRequest:
    """A request for the log-probability of every candidate continuation; ``scores`` is ``[len(candidates)]``."""

    prompt: Sequence[int]
    slot: int
    candidates: Sequence[Sequence[int]]
    ignore_cache: bool = False
    scores: torch.Tensor | None = None
    computed_tokens: int = 0
    cached_tokens: int = 0


@dataclass(eq=False)
class HiddenStateRequest:
    """A request for the hidden state behind a prompt; ``hidden`` is ``[H]`` float32."""

    prompt: Sequence[int]
    slot: int
    ignore_cache: bool = False
    hidden: torch.Tensor | None = None
    computed_tokens: int = 0
    cached_tokens: int = 0


Request = GenerateRequest | ScoreRequest | HiddenStateRequest


@dataclass
class EngineCounters:
    """What an engine did so far.

    ``busy``: seconds at work. ``answered``: requests. ``prompt_tokens``: of their prompts, of which ``cached_tokens``
    were kept from before. ``computed_tokens`` went through the model. ``written_tokens``: of continuations. ``id``
    tells engines apart.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    busy: float = 0.0
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    written_tokens: int = 0

    def note(self, answered: Sequence[Request], seconds: float) -> None:
        """Count a pass of so many seconds."""
        self.busy += seconds
        self.answered += len(answered)
        for request in answered:
            self.prompt_tokens += len(request.prompt)
            self.cached_tokens += request.cached_tokens
            self.computed_tokens += request.computed_tokens
            self.written_tokens += len(request.written) if isinstance(request, GenerateRequest) else 0


class Engine(Protocol):
    """A causal language model that continues prompts and scores continuations.

    A *slot* is a place for one episode: an engine may keep what it computed for the last prompt of a slot and reuse
    the longest common prefix with the next one. Results never depend on slots, on batching or on what was kept.
    :meth:`generate` and :meth:`score` answer a whole batch.
    """

    capabilities: Capabilities
    tokenizer: Any
    slots: int
    context: int
    """Most tokens of prompt and continuation."""
    parameters: int
    """Number of weights, for compute estimates."""
    computed_tokens: list[int]
    """Tokens that went through the model so far, a count a slot, without padding."""
    counters: EngineCounters
    """Totals of the model, whoever asked."""

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        ...

    def forget(self, slot: int) -> None:
        """Drop what was kept of a slot, so that the next prompt in it is fed from its first token."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        stop: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt until a ``stop`` token (left out) or ``max_tokens``.

        With ``temperature`` above 0, row i is sampled from ``seeds[i]`` alone.
        """
        ...

    def score(
        self, prompts: Sequence[Sequence[int]], slots: Sequence[int], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """Log-probability of every candidate continuation, ``[len(candidates[i])]`` for row i."""
        ...

    def hidden(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """What goes into the LM head at the last token of each prompt, ``[len(prompts), H]`` float32.

        It is the last layer's hidden state behind the final norm; H is ``capabilities.hidden``.
        """
        ...


class LocalEngine(Engine, Protocol):
    """An engine with the model in this process. Requests may come and go while others are on their way."""

    def submit(self, request: Request) -> None:
        """Take a request, which waits while its slot is busy with another.

        Raises:
            ContextOverflowError: it does not fit the model's context.
            ValueError: it is malformed.
        """
        ...

    def step(self) -> list[Request]:
        """Do one pass for what was taken; the requests that are answered now. Nothing taken, nothing done."""
        ...


def check(request: Request, context: int) -> None:
    """Refuse what no engine can answer.

    Raises:
        ContextOverflowError: the request does not fit ``context``.
        ValueError: it is malformed.
    """
    if isinstance(request, GenerateRequest):
        more, what = request.max_tokens, f" and {request.max_tokens} to write"
    elif isinstance(request, HiddenStateRequest):
        more, what = 0, ""
    else:
        if not all(request.candidates):
            raise ValueError("a candidate without tokens has no probability")
        more, what = max(map(len, request.candidates), default=0), " and its candidates"
    if not request.prompt:
        raise ValueError("an empty prompt cannot be continued")
    if len(request.prompt) + more > context:
        raise ContextOverflowError(f"a prompt of {len(request.prompt)} tokens{what} do not fit the model's {context}")


class Batches:
    """:meth:`Engine.generate`, :meth:`Engine.score` and :meth:`Engine.hidden` for an engine that answers requests."""

    capabilities: Capabilities

    def answer(self, requests: Sequence[Request]) -> Sequence[Request]:
        """The requests with their answers, in their order.

        Raises:
            ContextOverflowError: one does not fit the model's context.
            ValueError: one is malformed.
        """
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        stop: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """See :meth:`Engine.generate`. The samples of a seed differ between kinds of engines.

        Raises:
            ContextOverflowError: a prompt leaves no room for ``max_tokens``.
        """
        if temperature and (seeds is None or len(seeds) != len(prompts)):
            raise ValueError("sampling at a temperature needs a seed for every row")
        drawn = seeds if temperature and seeds is not None else [0] * len(prompts)
        requests = [
            GenerateRequest(prompt, slot, stop, max_tokens, temperature, seed)
            for prompt, slot, seed in zip(prompts, slots, drawn, strict=True)
        ]
        return [answer.written for answer in self.answer(requests) if isinstance(answer, GenerateRequest)]

    def score(
        self, prompts: Sequence[Sequence[int]], slots: Sequence[int], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """See :meth:`Engine.score`.

        Raises:
            ContextOverflowError: a prompt and its longest candidate do not fit.
        """
        requests = [ScoreRequest(p, s, c) for p, s, c in zip(prompts, slots, candidates, strict=True)]
        answers = self.answer(requests)
        return [a.scores for a in answers if isinstance(a, ScoreRequest) and a.scores is not None]

    def hidden(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """See :meth:`Engine.hidden`.

        Raises:
            ContextOverflowError: a prompt does not fit.
            InputError: this kind of engine has no hidden states.
        """
        answers = self.answer([HiddenStateRequest(p, s) for p, s in zip(prompts, slots, strict=True)])
        states = [a.hidden for a in answers if isinstance(a, HiddenStateRequest) and a.hidden is not None]
        import torch  # most processes that ask an engine hold none

        return torch.stack(states) if states else torch.zeros(0, self.capabilities.hidden)


def finish(engine: LocalEngine, requests: Sequence[Request]) -> Sequence[Request]:
    """Take the requests, step until all of them are answered, and give them back. Nothing else may be on its way."""
    for request in requests:
        check(request, engine.context)
    for request in requests:
        engine.submit(request)
    left = len(requests)
    while left:
        left -= len(advance(engine))
    return requests


def advance(engine: LocalEngine) -> list[Request]:
    """Do one :meth:`LocalEngine.step` and count it."""
    begun = time.perf_counter()
    answered = engine.step()
    engine.counters.note(answered, time.perf_counter() - begun)
    return answered


def own_context(asked: int | None, config: Any) -> int:
    """Most tokens of an engine whose model has this configuration.

    Raises:
        InputError: more are asked for than the model takes, or nobody says how many that are.
    """
    own = longest(config, asked, "engine.context")
    if asked is not None and asked > own:
        raise InputError(f"the model takes at most {own} tokens", field="engine.context")
    return own if asked is None else asked
