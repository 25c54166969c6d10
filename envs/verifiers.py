"""Environments of verifiers: ``verifiers:ID``, an installed package whose taskset is played."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .core import EnvironmentDiedError, MissingExtraError, Turn
from .foreign import ForeignEnv

if TYPE_CHECKING:
    from .verifiers_player import Game

UNENDING = 1000
"""Tasks that are played of a taskset without an end."""
_SEEDS = "a task is chosen, not what chance does in it"
_SUCCESS = (
    "only a metric `success` says it, at the end; without one no episode counts: set success_at, a sum of rewards"
)


class Verifiers(ForeignEnv):
    """The tasks of a verifiers package, one an episode; what the package says is the observation, a reply the action.

    The score is the trace's reward, at the end. The package plays in this process, in a thread of its own.

    Args:
        task: ``verifiers:ID``.
        max_steps: own step limit; None is 100.
        split: there is none: the package's own settings choose.
        goal: ``info["goal"]``; None takes the system prompt.
        success_at: the reward from which on an episode is a success; None leaves it to a metric ``success`` of 1.
        taskset: settings of the package's taskset, as a JSON object.
        timeout: seconds that its next word may take.

    Raises:
        MissingExtraError: the extra is not installed.
        ValueError: the package is not installed, or cannot be played: see :class:`verifiers_player.Game`.
    """

    unbounded_episodes: ClassVar[bool] = False

    def __init__(
        self,
        task: str,
        max_steps: int | None = None,
        split: str | None = None,
        goal: str = "",
        success_at: float | None = None,
        taskset: str = "{}",
        timeout: float = 120.0,
    ) -> None:
        super().__init__(task, max_steps, split, goal, success_at)
        try:
            settings = json.loads(taskset)
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise ValueError('taskset: must be a JSON object of settings, \'{"split": "test"}\'')
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError("timeout must be above 0")
        try:
            from .verifiers_player import Game
        except ImportError as error:
            if (error.name or "").split(".")[0] not in ("verifiers", "aiohttp", "httpx"):
                raise
            raise MissingExtraError(
                "verifiers: needs the extra 'verifiers': pip install 'atlas-ray[verifiers]'"
            ) from None
        self._new = lambda: Game(task.removeprefix("verifiers:"), settings, timeout)
        self._game: Game | None = None
        self._closer: weakref.finalize[..., Any] | None = None

    def _opened(self) -> Game:
        if self._game is None:
            self._game = self._new()
            self._closer = weakref.finalize(self, self._game.close)
        return self._game

    def variations(self, task: str, split: str | None) -> range:
        """Numbers of its tasks, in their order; the first :data:`UNENDING` where they have no end."""
        game = self._opened()
        return range(game.tasks(UNENDING if game.unending else 2**31))

    def begin(self, variation: int) -> tuple[str, str]:
        """Start the episode of a task."""
        messages = self._opened().begin(variation)
        system = next((m["content"] for m in messages if m.get("role") == "system"), None)
        said = {"goal": system} if isinstance(system, str) and not self._goal else {}
        return self.begun("\n\n".join(texts([m for m in messages if m.get("role") != "system"])), said)

    def do(self, action: str) -> Turn:
        """Say this; the answer, or the episode's outcome."""
        if self._game is None:
            raise EnvironmentDiedError(f"{self.home_task}: it was closed")
        said = self._game.act(action)
        if isinstance(said, list):
            return self.turn("\n\n".join(texts(said)), 0.0, False, False, {})
        metrics: Mapping[str, Any] = said.metrics
        success = {"success": metrics["success"] == 1.0} if metrics.get("success") is not None else {}
        return self.turn("The episode is over.", said.reward, True, False, success)

    def lacks(self) -> Mapping[str, str]:
        """Seeds and replays; success, unless ``success_at`` says it."""
        success = {} if self._success_at is not None else {"success": _SUCCESS}
        return {"seeds": _SEEDS, "replay": _SEEDS, **success}

    def again(self) -> Self:
        """There is none: it cannot be replayed."""
        raise NotImplementedError

    def close(self) -> None:
        """End the package's thread, once."""
        if self._closer is not None:
            self._closer()
        self._game = self._closer = None
        self._done = True


def outcome(episode: Any, role: str) -> tuple[str, Any]:
    """The finished trace of the player, or why there is none; an episode with an error has no outcome."""
    trace = next((t for t in reversed(episode.traces) if t.agent.name in (role, None, "")), None)
    errors = [*episode.errors, *(trace.errors if trace is not None else ())]
    if trace is None or not episode.ok or not trace.ok:
        said = "; ".join(f"{error.type}: {error.message}" for error in errors) or "the episode did not end well"
        return "lost", said
    if any(reward is None for reward in trace.rewards.values()):
        return "lost", "a reward was not computed"
    return "trace", trace


def texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was said since the player's last turn.

    Raises:
        EnvironmentDiedError: an image, or a call of a tool.
    """
    found: list[str] = []
    for message in reversed(messages):
        if message.get("role") == "assistant":
            break
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if message.get("role") == "tool" or any(part.get("type") != "text" for part in parts):
            raise EnvironmentDiedError("verifiers: the player is shown more than texts")
        found.insert(0, "\n".join(str(part.get("text") or "") for part in parts))
    return [text for text in found if text.strip()]
