"""BabyAI in AgentGym's wording, without a server."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from .agentgym_dialect import BABYAI_LEVELS, BABYAI_ROUNDS, INSTRUCTIONS, parse_react, plain_action
from .agentgym_macros import MacroGame
from .babyai_text import levels
from .core import TextEnv, Turn, UnknownEnvironmentError
from .text_space import TextSpace


class BabyAIAgentGym(TextEnv):
    """BabyAI as AgentGym plays it, without a server.

    Args:
        task: ``babyai-v0``.
        max_steps: own step limit in macro actions; None takes AgentGym's.
        split: AgentGym has none.
        instructions: turn 0 of the conversation (:func:`instructions_from`), which becomes the goal as it is: the
            mission stands in the first observation. None takes ours, with the mission.

    A variation is AgentGym's item (:data:`BABYAI_LEVELS`). Of the items 0 to 899, all but 155 and 156, whose missions
    minigrid 3 words otherwise, are the same episodes as on AgentGym's server with minigrid 2.3.1. Actions may come as
    ``Thought: ... Action: ...``. Score: the sum of AgentGym's rewards, ``1 - 0.9 * moves / limit`` for a mission
    fulfilled, up to 1; ``info["raw_score"]`` is not cut. Success: AgentGym ended the episode.
    """

    packages = ("minigrid",)

    def __init__(
        self,
        task: str = "babyai-v0",
        max_steps: int | None = None,
        split: str | None = None,
        instructions: str | None = None,
    ) -> None:
        super().__init__(task, max_steps, split)
        if task.removesuffix("-v0") != "babyai":
            raise UnknownEnvironmentError(f"no task named {task!r}; known is babyai-v0")
        self.limit, self.action_space = max_steps or BABYAI_ROUNDS, TextSpace(2**14)
        self._instructions = instructions
        self._game: MacroGame | None = None

    def variations(self, task: str, split: str | None) -> range:
        """AgentGym's items: 40 levels for every seed of minigrid."""
        return range(len(BABYAI_LEVELS) * 2**31)

    def begin(self, variation: int) -> tuple[str, str]:
        """The level and seed that the item names."""
        seed, level = divmod(variation, len(BABYAI_LEVELS))
        grid_env: Any = gym.make(levels()[f"{BABYAI_LEVELS[level]}-v0"], disable_env_checker=True).unwrapped
        first, _ = grid_env.reset(seed=seed)
        self._game = MacroGame(grid_env, first)
        goal = f"Your goal: {self._game.goal}"
        return self._instructions or f"{INSTRUCTIONS['babyai']}\n{goal}", f"{goal}\n{self._game.observation}"

    def do(self, action: str) -> Turn:
        """One macro action."""
        assert self._game is not None
        over = self._game.act(plain_action(parse_react(action)[1]))
        raw = self._game.total
        return Turn(self._game.observation, min(raw, 1.0), over, over, more={"raw_score": raw})

    def admissible(self) -> list[str]:
        """The macro actions of this moment."""
        return list(self._game.actions) if self._game else []
