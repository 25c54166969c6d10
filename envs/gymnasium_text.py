"""Any Gymnasium environment whose observations and actions are texts, by ``module:id`` (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import gymnasium as gym
from gymnasium import spaces

from .core import Turn
from .foreign import ForeignEnv, no_seeds, no_success

_NO_ACTION = "That is no action here."
_TRIED = "look"


class GymnasiumText(ForeignEnv):
    """A registered environment of text, made by ``gym.make``.

    Its ``info`` may hold ``goal``, ``score`` (0..1), ``success`` or ``is_success``, and ``admissible_commands``. An
    action outside its action space is not handed on; it costs a step.

    Args:
        task: its id, with its module.
        max_steps: own step limit; None leaves 100, or the environment's own where that is shorter.
        split: there is none.
        goal: ``info["goal"]`` where its ``info`` has none.
        success_at: see :class:`ForeignEnv`.
        settings: of the environment.

    Raises:
        ValueError: its spaces hold no texts.
    """

    wraps: ClassVar[bool] = True

    def __init__(
        self,
        task: str,
        max_steps: int | None = None,
        split: str | None = None,
        goal: str = "",
        success_at: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(task, max_steps, split, goal, success_at)
        self._settings = settings
        self._env = gym.make(task, disable_env_checker=True, **settings)
        for name in ("observation_space", "action_space"):
            space = getattr(self._env, name, None)
            if not isinstance(space, spaces.Text):
                self._env.close()
                raise ValueError(f"{task}: its {name} is {space!r:.80}; only texts can be played")
        self._lacks: dict[str, str] | None = None

    def begin(self, variation: int) -> tuple[str, str]:
        """Reset it with this seed."""
        observation, info = self._env.reset(seed=variation)
        return self.begun(observation, info)

    def do(self, action: str) -> Turn:
        """Carry out an action that its action space holds."""
        if action not in self._env.action_space:
            return Turn(_NO_ACTION, self.score, reward=0.0)
        observation, reward, terminated, truncated, info = self._env.step(action)
        return self.turn(observation, reward, bool(terminated), bool(truncated) and not terminated, info)

    def lacks(self) -> Mapping[str, str]:
        """Seeds, where two episodes of one differ; success, where ``info`` says nothing of it."""
        if self._lacks is None:
            other = self.again()
            try:
                (first, info), (second, _) = (_tried(other._env) for _ in range(2))
            finally:
                other.close()
            self._lacks = no_seeds(first, second) | no_success(info, self._success_at)
        return self._lacks

    def again(self) -> Self:
        """Another environment like this one, in no episode."""
        made = type(self)(self.home_task, self.max_steps, self.split, self._goal, self._success_at, **self._settings)
        made._lacks = self._lacks
        return made

    def close(self) -> None:
        """Close it."""
        self._env.close()
        self._done = True


def _tried(env: gym.Env[Any, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What an episode of seed 0 shows, and all that it says."""
    observation, info = env.reset(seed=0)
    shown, said = [observation], dict(info)
    if _TRIED in env.action_space:
        observation, reward, terminated, truncated, info = env.step(_TRIED)
        shown += [observation, reward, terminated, truncated]
        said |= info
    return shown, said
