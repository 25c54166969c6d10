"""What an agent answers when it is asked what to do: a decision, or that there is none; and what it took."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenCost:
    """Token cost of one decision, computed from the prompt, independent of engine caching.

    Of an :class:`Agent`: ``written`` went through the model to continue the prompt, and ``read`` besides it and the
    prompt (a thought that is read again, the tree of candidates); ``tail`` is then kept behind the prompt. Of an
    endpoint: ``read`` and ``written`` are the server's counts of prompts and completions, what was asked again
    included, ``first`` is that of the first prompt, ``counted`` tells whether the server counted all of them, and
    ``failed`` how many requests failed before, which may be billed.
    """

    read: int = 0
    written: int = 0
    tail: tuple[int, ...] = ()
    first: int | None = None
    counted: bool = True
    failed: int = 0


@dataclass(frozen=True)
class Decision:
    """What an agent does: its thought, if it has one, and its action, by which decisions compare.

    Where the action is the likeliest of those offered: ``entropy`` of their probabilities over its largest value,
    0..1, and ``margin``, the probability of the likeliest less that of the next, 0..1. Where the model writes,
    ``replies`` are counted as :class:`atlas_ray.data.replies.Replies` does.
    """

    thought: str | None
    action: str
    entropy: float | None = field(default=None, compare=False)
    margin: float | None = field(default=None, compare=False)
    token_cost: TokenCost = field(default=TokenCost(), compare=False, repr=False)
    replies: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class LostAnswer:
    """A model gave no answer. That is no decision: its episode ends and says nothing of the model.

    Args:
        reason: a line that names the field which would help, if there is one.
        kind: of an :class:`atlas_ray.errors.EndpointError`; ``"blank"`` where the model wrote nothing, even when asked
            again.
        token_cost: what it took nevertheless.
        replies: what came before it was given up, itself ``lost``.
    """

    reason: str
    kind: str = ""
    token_cost: TokenCost = field(default=TokenCost(), repr=False)
    replies: Mapping[str, int] = field(default_factory=lambda: {"lost": 1}, repr=False)

    @property
    def passing(self) -> bool:
        """Whether there may be an answer at another time."""
        return self.kind in ("", "error")


def confidence(logprobs: Sequence[float]) -> tuple[float, float]:
    """Entropy and margin of a :class:`Decision` from the log-probabilities of its candidates; of one alone 0 and 1."""
    if len(logprobs) == 1:
        return 0.0, 1.0
    top = max(logprobs)
    weights = sorted((math.exp(x - top) for x in logprobs), reverse=True)
    total = sum(weights)
    shares = [w / total for w in weights]
    entropy = -sum(p * math.log(p) for p in shares if p) / math.log(len(shares))
    return min(1.0, max(0.0, entropy)), shares[0] - shares[1]


def digest(*parts: Any) -> bytes:
    """16 bytes that tell what was asked apart; of each part its ``repr`` counts, of an array its bytes."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.tobytes() if isinstance(part, array) else repr(part).encode("utf-8", "backslashreplace")
        hashed.update(len(data).to_bytes(8, "big") + data)
    return hashed.digest()
