"""Environments that somebody else steps, as the game of the switch plays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import envs
from ..agents.rollout import EnvSpec
from .asking import Asked


class Outside(envs.TextEnv):
    """An episode somewhere else: its next observation and its actions are what its owner says."""

    endless = True

    def __init__(self, instruction: str, asked: Asked, limit: int) -> None:
        super().__init__("outside", limit)
        self.instruction, self.asked = instruction, asked

    def variations(self, task: str, split: str | None) -> Sequence[int]:
        """The one that goes on."""
        return (0,)

    def begin(self, variation: int) -> tuple[str, str]:
        """What its owner said first."""
        return self.instruction, self.asked.observation

    def do(self, action: str) -> envs.Turn:
        """What its owner saw after the action."""
        return envs.Turn(self.asked.observation, 0.0)

    def admissible(self) -> list[str]:
        """What its owner offers."""
        return list(self.asked.actions)


@dataclass(frozen=True)
class Coming(EnvSpec):
    """Leads to the episode that begins next."""

    coming: list[Outside] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its name: it is registered nowhere."""
        return self.name

    @property
    def endless(self) -> bool:
        """There are always more."""
        return True

    def lease(self) -> envs.TextEnv:
        """The episode that begins."""
        return self.coming.pop()
