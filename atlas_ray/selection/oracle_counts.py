"""Settings of the oracle, and counts of what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.thinking import THINKING
from ..errors import InputError
from .oracle_answer import GOAL_TOKENS, MOST_GOALS, STEP_TOKENS


@dataclass(frozen=True)
class OracleConfig:
    """Settings of the oracle.

    Args:
        fraction: m; at most ``max_critical_steps(fraction, T)`` steps are marked.
        context: most tokens of a conversation and its answer. What does not fit is asked in windows.
        max_tokens: most tokens of an answer, thoughts of a reasoning model included.
        temperature: None leaves it to the server; OpenAI's reasoning models take nothing else.
        max_reprompts: how often an answer that is not valid is asked for again.
        batch: trajectories asked about at a time; their answers are lost when the run is killed meanwhile.
        send_schema: False where the server refuses a JSON schema; answers are checked in any case.
        stop_after: so many failures of one kind in a row end it (:class:`.oracle_stop.FailureStreak`); 0 never.
        thinking: tags of what is thought before an answer (:data:`atlas_ray.data.thinking.THINKING`).

    Raises:
        InputError: names the field.
    """

    fraction: float = 0.3
    context: int = 32_768
    max_tokens: int = 4096
    temperature: float | None = 0.0
    max_reprompts: int = 2
    batch: int = 16
    send_schema: bool = True
    stop_after: int = 5
    thinking: tuple[str, ...] = THINKING

    def __post_init__(self) -> None:
        least = GOAL_TOKENS * MOST_GOALS + STEP_TOKENS
        for name, holds, message in (
            ("fraction", 0 < self.fraction <= 1, "must be above 0 and at most 1"),
            ("max_tokens", self.max_tokens >= least, f"must be at least {least}, to hold a plan and a mark"),
            ("context", self.context > self.max_tokens, "must be more than max_tokens"),
            ("temperature", self.temperature is None or self.temperature >= 0, "must be 0 or more"),
            ("max_reprompts", self.max_reprompts >= 0, "must be 0 or more"),
            ("batch", self.batch >= 1, "must be 1 or more"),
            ("stop_after", self.stop_after >= 0, "must be 0 or more"),
        ):
            if not holds:
                raise InputError(message, field=name)


class Unannotated(NamedTuple):
    """A trajectory that got no annotation, and why."""

    trajectory_id: str
    reason: str
    kind: str = ""
    """Of the last refusal, ``"too long"``, or why there was no answer (:data:`.oracle_stop.NoAnswer`)."""


@dataclass
class OracleUsage:
    """What was asked and what came of it.

    ``requests``: conversations sent, of which ``reasked`` followed a refused answer; what an endpoint repeats by itself
    is in its own counts. ``refused``: answers not taken, by kind. ``failed``: conversations without any answer.
    ``unannotated``: trajectories, by :attr:`Unannotated.kind`. Tokens are the backend's counts, of
    refused answers and of those that are none too; ``uncounted`` answers came without.
    """

    annotated: int = 0
    unannotated: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    reasked: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


@dataclass
class Estimate:
    """What a run would ask if no answer were refused.

    ``calls``: conversations, beside the ``cache_hits`` that are answered already. ``prompt_tokens`` as counted,
    ``completion_tokens`` at most. ``too_long``: trajectories that no window holds. How a long trajectory falls into
    windows depends on its plan; while that is not known, sub-goals of equal length are assumed.
    """

    trajectories: int = 0
    calls: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    too_long: int = 0
