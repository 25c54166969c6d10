"""One session of OpenEnv's protocol: an environment of ours, as the messages of a client play it.

Read in the package ``openenv`` 0.10.0 (``core/env_server``, BSD-3-Clause); the fields of actions and observations are
ours, as each OpenEnv environment has its own.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from .. import envs

LONGEST_MESSAGE = 2**16
"""Bytes that a client may send at once."""
_RESET = {"seed", "episode_id", "split", "variation", "task"}

ACTION_SCHEMA: dict[str, Any] = {
    "title": "TextAction",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "action": {"type": "string", "title": "Action", "description": "What to do, in words."},
        "metadata": {"type": "object", "title": "Metadata", "additionalProperties": True},
    },
    "required": ["action"],
}
OBSERVATION_SCHEMA: dict[str, Any] = {
    "title": "TextObservation",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "What the agent sees."},
        "goal": {"type": "string", "description": "What the episode is about."},
        "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "Of the episode so far."},
        "success": {"type": "boolean", "description": "Whether the goal is reached."},
        "truncated": {"type": "boolean", "description": "Whether the step limit ended the episode."},
        "actions": {
            "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
            "description": "What makes sense now; null where listing costs more than a step.",
        },
        "done": {"type": "boolean"},
        "reward": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "metadata": {"type": "object", "additionalProperties": True},
    },
    "required": ["text", "goal", "score", "success", "truncated"],
}
STATE_SCHEMA: dict[str, Any] = {
    "title": "TextState",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "episode_id": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "step_count": {"type": "integer", "minimum": 0},
        "env": {"type": "string"},
        "task": {"type": "string"},
        "variation": {"type": "integer"},
    },
}


class MessageError(Exception):
    """What OpenEnv calls an error: a message and one of its codes; the session goes on."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def error(message: str, code: str, **more: Any) -> dict[str, Any]:
    """The answer to a message that cannot be followed."""
    return {"type": "error", "data": {"message": message, "code": code, **more}}


def read(text: str) -> dict[str, Any]:
    """A client's message.

    Raises:
        MessageError: it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise MessageError(f"Invalid JSON: {problem}", "INVALID_JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError("a message is an object with a type", "VALIDATION_ERROR")
    if unknown := sorted(set(message) - {"type", "data"}):
        raise MessageError(f"unknown field {unknown[0]!r}", "VALIDATION_ERROR")
    if not isinstance(message.setdefault("data", {}), dict):
        raise MessageError("data is no object", "VALIDATION_ERROR")
    return message


class Session:
    """An environment and the episode that a client plays in it.

    Args:
        name: of the environment, as for :func:`envs.make`.
        settings: of it.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._id = envs.full_id(name)
        self._env = envs.lease(name, **settings)
        self._episode: str | None = None
        self._begun = False

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What to send back.

        Raises:
            MessageError: the message cannot be followed.
        """
        kind, data = message["type"], message["data"]
        try:
            if kind == "reset":
                return self._observation(*self._reset(data))
            if kind == "step":
                return self._observation(*self._step(data))
        except (envs.EnvironmentDiedError, gym.error.ResetNeeded) as problem:
            raise MessageError(str(problem), "EXECUTION_ERROR") from None
        if kind == "state":
            return {"type": "state", "data": self._state()}
        raise MessageError(f"Unknown message type: {kind:.80}", "UNKNOWN_TYPE")

    def _reset(self, data: Mapping[str, Any]) -> tuple[str, float | None, bool, bool, dict[str, Any]]:
        if unknown := sorted(set(data) - _RESET):
            raise MessageError(
                f"unknown reset parameter {unknown[0]!r}; known are {', '.join(sorted(_RESET))}", "VALIDATION_ERROR"
            )
        seed, episode = data.get("seed"), data.get("episode_id")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise MessageError("seed is no integer of 0 or more", "VALIDATION_ERROR")
        if episode is not None and not (isinstance(episode, str) and len(episode) <= 255):
            raise MessageError("episode_id is no text of at most 255 characters", "VALIDATION_ERROR")
        options = {k: data[k] for k in ("split", "variation", "task") if data.get(k) is not None}
        self._begun = False
        try:
            observation, info = self._env.reset(seed=seed, options=options)
        except (ValueError, TypeError) as problem:
            raise MessageError(str(problem), "VALIDATION_ERROR") from None
        self._episode, self._begun = episode or uuid.uuid4().hex, True
        return observation, None, False, False, info

    def _step(self, data: Mapping[str, Any]) -> tuple[str, float | None, bool, bool, dict[str, Any]]:
        action = data.get("action")
        if set(data) - {"action", "metadata"} or not isinstance(action, str):
            raise MessageError('an action is {"action": TEXT}', "VALIDATION_ERROR")
        return self._env.step(action)

    def _observation(
        self, text: str, reward: float | None, terminated: bool, truncated: bool, info: Mapping[str, Any]
    ) -> dict[str, Any]:
        over = terminated or truncated
        observation = {
            "text": text,
            "goal": info["goal"],
            "score": float(info["score"]),
            "success": bool(info["success"]),
            "truncated": truncated,
            "actions": None if over or not self._env.cheap_list else self._env.admissible(),
            "metadata": {},
        }
        data = {"observation": observation, "reward": None if reward is None else float(reward), "done": over}
        return {"type": "observation", "data": data}

    def _state(self) -> dict[str, Any]:
        begun = {"task": self._env.task, "variation": self._env.variation} if self._begun else {}
        steps = len(self._env.history) if self._begun else 0
        return {"episode_id": self._episode, "step_count": steps, "env": self._id, **begun}

    def close(self) -> None:
        """Give the environment back."""
        envs.release(self._env)
