"""Environments that others made, in our dialect: what they say of score and success, and what they cannot do (ours).

An outcome that an environment does not state is never a success. ``success_at`` states it in its place: the sum of
rewards from which on an episode counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from .core import EnvironmentDiedError, TextEnv, Turn
from .text_space import TextSpace

LONGEST_TEXT = 2**18
"""Characters of an observation; a longer one loses the episode."""
SEEDS = range(2**31)
"""Episodes of an environment that takes any seed."""
_LISTED = ("actions", "admissible", "admissible_commands", "available_actions")
_GOAL = "Do what the environment asks for."


class ForeignEnv(TextEnv):
    """Base of the adapters.

    Args:
        task: what is played.
        max_steps: own step limit of an episode; None is 100.
        split: there is none.
        goal: ``info["goal"]`` where the environment states none.
        success_at: the sum of rewards from which on an episode is a success, and its score 1; None leaves success to
            the environment.
    """

    cheap_clone: ClassVar[bool] = False
    cheap_list: ClassVar[bool] = False
    unbounded_episodes: ClassVar[bool] = True

    def __init__(
        self,
        task: str,
        max_steps: int | None = None,
        split: str | None = None,
        goal: str = "",
        success_at: float | None = None,
    ) -> None:
        super().__init__(task, max_steps, split)
        if success_at is not None and not (success_at > 0 and math.isfinite(success_at)):
            raise ValueError(f"success_at: {success_at!r} must be a number above 0")
        self.observation_space, self.action_space = TextSpace(LONGEST_TEXT), TextSpace(2**12)
        self._goal, self._success_at = goal, success_at
        self._return = 0.0
        self._actions: list[str] = []

    def variations(self, task: str, split: str | None) -> range:
        """Any seed."""
        return SEEDS

    def admissible(self) -> list[str]:
        """What the environment lists with its observation; empty where it lists nothing."""
        return [] if self._done else list(self._actions)

    def begun(self, observation: str, said: Mapping[str, Any]) -> tuple[str, str]:
        """Goal and first observation of an episode that begins.

        Args:
            observation: the first one.
            said: what the environment says with it: ``goal``, a list of actions.
        """
        self._return = 0.0
        self._take_actions(said)
        goal = said.get("goal")
        return (goal if isinstance(goal, str) and goal.strip() else self._goal or _GOAL), self._text(observation)

    def turn(self, observation: Any, reward: Any, over: bool, truncated: bool, said: Mapping[str, Any]) -> Turn:
        """What an action led to.

        Args:
            observation: the next one.
            reward: of the step; None where the environment gives none.
            over: it ended the task.
            truncated: a limit ended it.
            said: what else the environment says: ``success`` or ``is_success``, ``score`` (0..1), a list of actions.

        Raises:
            EnvironmentDiedError: the observation is no text, or the reward no finite number.
        """
        gain = 0.0 if reward is None else _number(reward)
        if gain is None:
            raise EnvironmentDiedError(f"{self.home_task}: the reward is {reward!r:.80}, not a finite number")
        self._return += gain
        self._take_actions(said)
        score = _number(said.get("score"))
        if score is None or not 0 <= score <= 1:
            score = min(max(self._return / (self._success_at or 1.0), 0.0), 1.0)
        text = self._text(observation)
        return Turn(text, score, self._succeeds(said), over, gain, truncated=truncated)

    def _succeeds(self, said: Mapping[str, Any]) -> bool:
        if self._success_at is not None:
            return self._return >= self._success_at
        return flag(said) is True

    def _take_actions(self, said: Mapping[str, Any]) -> None:
        listed = next((said[key] for key in _LISTED if isinstance(said.get(key), list | tuple)), ())
        self._actions = [action for action in listed if isinstance(action, str)]

    def _text(self, observation: Any) -> str:
        if not isinstance(observation, str):
            raise EnvironmentDiedError(f"{self.home_task}: the observation is a {type(observation).__name__}, no text")
        if len(observation) > LONGEST_TEXT:
            raise EnvironmentDiedError(f"{self.home_task}: an observation is longer than {LONGEST_TEXT} characters")
        return observation or "(nothing)"

    def again(self) -> Self:
        """Another environment like this one, in no episode."""
        raise NotImplementedError

    def clone(self) -> Self:
        """The same episode, replayed in another environment.

        Raises:
            NotImplementedError: it cannot be replayed.
        """
        if why := self.lacks().get("replay"):
            raise NotImplementedError(f"it cannot be replayed: {why}")
        return self.replay_into(self.again())


def flag(said: Mapping[str, Any]) -> bool | None:
    """Whether an environment says that the episode is a success; None where it does not say."""
    for key in ("success", "is_success"):
        value = said.get(key)
        if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):  # numpy's, without numpy
            return bool(value)
    return None


def no_success(said: Mapping[str, Any], success_at: float | None) -> dict[str, str]:
    """The part of :meth:`TextEnv.lacks` about success, from what is said at the beginning of an episode."""
    if success_at is not None or flag(said) is not None:
        return {}
    return {"success": "it says nothing of success, so no episode counts as one: set success_at, a sum of rewards"}


def no_seeds(first: object, second: object) -> dict[str, str]:
    """The part of :meth:`TextEnv.lacks` about seeds, from what two episodes of one seed showed."""
    if first == second:
        return {}
    why = "two episodes of one seed differ"
    return {"seeds": why, "replay": why}


def _number(value: Any) -> float | None:
    """A finite number as a float; None where it is none."""
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
