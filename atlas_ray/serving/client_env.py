"""The environment of a client, as the game of the switch plays it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import envs
from ..agents.rollout import EnvSpec
from .messages import ActRequest


class ClientEnv(envs.TextEnv):
    """An episode that a client plays: its next observation and its actions are what the client says."""

    unbounded_episodes = True

    def __init__(self, instruction: str, request: ActRequest, limit: int) -> None:
        super().__init__("outside", limit)
        self.instruction, self.request = instruction, request

    def variations(self, task: str, split: str | None) -> Sequence[int]:
        """The one that goes on."""
        return (0,)

    def begin(self, variation: int) -> tuple[str, str]:
        """What the client said first."""
        return self.instruction, self.request.observation

    def do(self, action: str) -> envs.Turn:
        """What the client saw after the action."""
        return envs.Turn(self.request.observation, 0.0)

    def admissible(self) -> list[str]:
        """What the client offers."""
        return list(self.request.actions)


@dataclass(frozen=True)
class ClientEnvSpec(EnvSpec):
    """Gives the environment of the episode that begins next."""

    starting: list[ClientEnv] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its name: it is registered nowhere."""
        return self.name

    @property
    def unbounded_episodes(self) -> bool:
        """There are always more."""
        return True

    def lease(self) -> envs.TextEnv:
        """The episode that begins."""
        return self.starting.pop()
