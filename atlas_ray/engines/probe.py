"""Whether an engine computes with the weights that it should: log-probabilities of a probe text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..models.loading import load_model, load_tokenizer
from .base import LocalEngine, ScoreRequest, finish

TEXT = (
    "Goal: go to the red ball\nObservation: You see a wall 3 steps forward. You see a red ball 2 steps left.\n"
    "Thought: The ball is to my left, so I turn.\nAction: turn left\n"
)
MOST_TOKENS = 48
TOLERANCE = {"float32": 0.005, "float16": 0.1, "bfloat16": 0.1}
"""Mean difference that vLLM and transformers may have per token, by the type of the weights (docs/engines.md)."""


def _tokens(tokenizer: Any, context: int) -> list[int]:
    found: list[int] = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return found[: min(MOST_TOKENS, context)]


def expected(model: str, dtype: str, context: int) -> list[float]:
    """What a model gives by transformers, on the CPU: the log-probability of each token but the first, ``[T - 1]``.

    The weights are in memory once meanwhile.

    Args:
        model: shipped name, directory (an adapter's too) or Hugging Face id.
        dtype: of the weights, a name of torch.
        context: most tokens.
    """
    import torch

    network = load_model(model, getattr(torch, dtype)).eval()
    tokens = torch.tensor(_tokens(load_tokenizer(model), context))
    with torch.inference_mode():
        logits = network(tokens[None]).logits[0, :-1].float()
    found: list[float] = logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].tolist()
    return found


def given(engine: LocalEngine) -> list[float]:
    """What an engine gives for the same, ``[T - 1]``. Nothing may be on its way, and nothing of it is counted."""
    counted = engine.counters, list(engine.computed_tokens)
    engine.counters = replace(engine.counters)
    tokens = _tokens(engine.tokenizer, engine.context)
    requests = [ScoreRequest(tokens[:i], 0, [[tokens[i]]]) for i in range(1, len(tokens))]
    finish(engine, requests)
    engine.counters, engine.computed_tokens = counted
    return [float(request.scores[0]) for request in requests if request.scores is not None]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Mean absolute difference per token."""
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
