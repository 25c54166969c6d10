"""What every text environment of this package has in common.

Observation and action are text. ``info`` holds ``goal`` (str), ``score`` (float in 0..1), ``success`` (bool)
and ``admissible``, a callable that lists the actions which make sense now: it costs nothing until it is called.
An action that the environment does not know gives an observation that says so, never an exception.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import gymnasium as gym
from gymnasium import spaces

CHARSET = string.ascii_letters + string.digits + string.punctuation + " \n"


class UnknownEnvironmentError(ValueError):
    """An environment id, level or task that is not registered here."""


class ExpertGaveUpError(RuntimeError):
    """The scripted expert found no plan, or ran past its CPU limit. The episode is not usable."""


def text_space(max_length: int) -> spaces.Text:
    """Printable ASCII of at most ``max_length`` characters; the empty string is a member."""
    return spaces.Text(max_length=max_length, min_length=0, charset=CHARSET)


@dataclass(frozen=True)
class ExpertStep:
    """One move of an expert: what it wants (``thought``, the sub-goal in hand) and what it does (``action``)."""

    thought: str
    action: str


class TextEnv(gym.Env[str, str]):
    """Base of the text environments: seeded, cloneable, one string in, one string out."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    observation_space: spaces.Text
    action_space: spaces.Text

    def __init__(self) -> None:
        self.observation_space = text_space(8192)
        self.action_space = text_space(256)

    def clone(self) -> Self:
        """An independent copy in the same state: stepping one leaves the other as it was."""
        return copy.deepcopy(self)

    def admissible(self) -> list[str]:
        """Actions that make sense now."""
        raise NotImplementedError

    def info(
        self, *, goal: str, score: float, success: bool, admissible: Callable[[], list[str]], **more: Any
    ) -> dict[str, Any]:
        """The ``info`` dictionary in its one form."""
        return {"goal": goal, "score": score, "success": success, "admissible": admissible, **more}
