"""Environments behind OpenEnv's protocol: ``openenv:http://HOST:PORT``, a server that runs already."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from .core import EnvironmentDiedError, Turn
from .foreign import ForeignEnv, no_seeds, no_success
from .openenv_wire import InvalidMessageError, OpenEnvSession

_TOOLS = ("Action", "CallToolAction", "ListToolsAction")
_AROUND = ("metadata", "done", "reward")


class OpenEnv(ForeignEnv):
    """An environment on an OpenEnv server. Every episode is played in a session of the server's.

    The action goes into the one text field that the server's schema of actions requires; where it requires others, an
    action is a JSON object. The observation is the one text field of its schema, or all of it as JSON.

    Args:
        task: ``openenv:URL``.
        max_steps: own step limit; None is 100.
        split: there is none.
        goal: ``info["goal"]`` where observations have no ``goal``.
        success_at: see :class:`ForeignEnv`; without it a field ``success`` of observations says it.
        action_field: of the action that the text goes into.
        observation_field: of the observation that is shown.
        timeout: seconds that connecting, and an answer, may take.

    Raises:
        MissingExtraError: the extra is not installed.
        ValueError: an argument is not valid.
    """

    reusable: ClassVar[bool] = True

    def __init__(
        self,
        task: str,
        max_steps: int | None = None,
        split: str | None = None,
        goal: str = "",
        success_at: float | None = None,
        action_field: str = "",
        observation_field: str = "",
        timeout: float = 60.0,
    ) -> None:
        super().__init__(task, max_steps, split, goal, success_at)
        self._settings = (goal, success_at, action_field, observation_field, timeout)
        self._session = OpenEnvSession(task.removeprefix("openenv:"), timeout)
        self._closer = weakref.finalize(self, self._session.close)
        self._action_field, self._observation_field = action_field, observation_field
        self._known = False
        self._lacks: dict[str, str] | None = None

    def _learn(self) -> None:
        """Ask once which fields actions and observations have."""
        if self._known:
            return
        schema = self._session.schema()
        if schema["action"].get("title") in _TOOLS:
            raise ValueError(f"{self.home_task}: its actions are calls of tools, which cannot be played")
        self._action_field = _chosen(
            self._action_field, schema["action"], self.home_task, "action_field", required=True
        )
        self._observation_field = _chosen(
            self._observation_field, schema["observation"], self.home_task, "observation_field"
        )
        self._known = True

    def begin(self, variation: int) -> tuple[str, str]:
        """Reset with this seed, in a new session where the old one is gone.

        Raises:
            ValueError: the server refuses the seed, or takes only calls of tools.
            EnvironmentDiedError: the server cannot be used.
        """
        self._learn()
        old = self._session.is_open
        try:
            said = self._session.ask("reset", {"seed": variation})
        except EnvironmentDiedError:
            if not old:
                raise
            said = self._session.ask("reset", {"seed": variation})
        return self.begun(self._shown(said), _said(said))

    def do(self, action: str) -> Turn:
        """Send an action; one that the server does not take is answered here and costs a step."""
        if not self._session.is_open:
            raise EnvironmentDiedError(f"{self.home_task}: the session is closed")
        data: Any = {self._action_field: action}
        if not self._action_field:
            try:
                data = json.loads(action)
            except (ValueError, RecursionError):
                data = None
            if not isinstance(data, dict):
                return self._no_action("An action is a JSON object.")
        try:
            said = self._session.ask("step", data)
        except InvalidMessageError:
            return self._no_action("That is no action here.")
        more = _said(said)
        truncated = more.get("truncated") is True
        return self.turn(self._shown(said), said.get("reward"), said["done"] and not truncated, truncated, more)

    def _no_action(self, text: str) -> Turn:
        return Turn(text, self.score, reward=0.0)

    def _shown(self, said: Mapping[str, Any]) -> str:
        observation = said["observation"]
        if self._observation_field:
            return self._text(observation.get(self._observation_field))
        rest = {k: v for k, v in observation.items() if k not in _AROUND}
        return json.dumps(rest, ensure_ascii=False, sort_keys=True)

    def lacks(self) -> Mapping[str, str]:
        """Seeds, where two episodes of one differ; success, where observations have no ``success``."""
        if self._lacks is None:
            shown: list[Any] = []
            said: dict[str, Any] = {}
            other = self.again()
            try:
                for _ in range(2):
                    goal, observation = other.begin(0)
                    turn = other.do("look")
                    shown.append((goal, observation, turn.observation, turn.reward, turn.over))
                schema = other._session.schema()["observation"].get("properties")
                said = {"success": True} if isinstance(schema, dict) and "success" in schema else {}
            finally:
                other.close()
            self._lacks = no_seeds(*shown) | no_success(said, self._success_at)
        return self._lacks

    def again(self) -> Self:
        """Another environment like this one, in no episode."""
        made = type(self)(self.home_task, self.max_steps, self.split, *self._settings)
        made._lacks = self._lacks
        return made

    def close(self) -> None:
        """End the session at the server, once."""
        self._session.close()
        self._done = True


def _said(data: Mapping[str, Any]) -> dict[str, Any]:
    """All that an answer says beside the observation's text, its metadata first."""
    observation = data["observation"]
    more = [part for part in (data.get("metadata"), observation.get("metadata")) if isinstance(part, dict)]
    return {k: v for part in (*more, observation) for k, v in part.items()}


def _chosen(given: str, schema: Mapping[str, Any], name: str, setting: str, required: bool = False) -> str:
    """The text field of a schema that is meant; empty where the whole is."""
    fields = schema.get("properties")
    fields = fields if isinstance(fields, dict) else {}
    if given:
        if fields and given not in fields:
            raise ValueError(f"{setting}: {name} has no {given!r}; it has {', '.join(sorted(fields)) or 'none'}")
        return given
    texts = [k for k, v in fields.items() if k not in _AROUND and isinstance(v, dict) and v.get("type") == "string"]
    if required:
        needed = schema.get("required")
        needed = [k for k in needed if isinstance(k, str)] if isinstance(needed, list) else []
        return needed[0] if len(needed) == 1 and needed[0] in texts else ""
    return texts[0] if len(texts) == 1 else "text" if "text" in texts else ""
