"""The protocol of engines: a batch in, a batch out, prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond continuing text.

    ``scores``: :meth:`Engine.score` gives exact log-probabilities. ``seeds``: a sample depends on its seed alone.
    ``adapters``: a LoRA adapter can be named.
    """

    scores: bool = True
    seeds: bool = True
    adapters: bool = False


class Engine(Protocol):
    """A causal language model that continues prompts and scores continuations.

    A *slot* is a place for one episode: an engine may keep what it computed for the last prompt of a slot and reuse
    the longest common prefix with the next one. Results never depend on slots, on batching or on what was kept.
    """

    capabilities: Capabilities
    tokenizer: Any
    slots: int
    context: int
    """Most tokens of prompt and continuation."""
    parameters: int
    """Number of weights, for compute estimates."""
    tokens_fed: list[int]
    """Tokens that went through the model so far, a count a slot, without padding."""

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
