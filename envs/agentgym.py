"""Environments that an AgentGym server plays, over HTTP (Xi et al. 2024, arXiv 2406.04151).

What is said here of servers was read in the code of WooooDyy/AgentGym; its README does not agree everywhere.
The servers share a frame, POST ``create``, ``reset``, ``step`` and ``close`` with JSON bodies, and differ in the names
of fields; :data:`SERVERS` holds the differences. ``docs/agentgym.md`` tells the whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from .agentgym_dialect import parse_react, plain_action
from .agentgym_http import LARGEST_ANSWER, RefusedError, Wire, pause
from .core import EnvironmentDiedError, MissingExtraError, TextEnv, Turn, UnknownEnvironmentError
from .text_space import TextSpace

_NO_SUCH_ITEM = re.compile(r"out of range|the game -?\d+ is not valid", re.IGNORECASE)
_FENCED = re.compile(r"```(?:sql)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_LISTED = re.compile(r"\nAvailable actions: (\[.*\])\s*$")


def _tool_action(action: str) -> str:
    return f"Action: {action}"


def _strings(value: Any) -> list[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _sql_action(action: str) -> str:
    blocks = _FENCED.findall(action)
    return blocks[-1] if blocks else action


@dataclass(frozen=True)
class Server:
    """How one kind of AgentGym server differs from the others.

    ``items`` is how many episodes :meth:`AgentGym.variations` counts; ``rounds`` AgentGym's step limit in its
    evaluation; ``session`` and ``item`` the fields that carry the session's id and the episode's number; ``text`` and
    ``score`` the fields of a step's answer, the score in 0..``scale``; ``goal`` finds the goal in the first
    observation, else it is ``task``; ``prepare`` does to an action what AgentGym's client does.
    """

    items: int
    rounds: int
    task: str
    goal: str = ""
    session: str = "id"
    item: str = "data_idx"
    text: str = "observation"
    score: str = "reward"
    scale: float = 1.0
    create: Mapping[str, Any] = field(default_factory=dict)
    reset: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[str], str] = str


def _tool(items: int, rounds: int, task: str) -> Server:
    goal = r"(?s)accomplish the goal:\s*(.+?)\s*(?:\nGive me one action\.|\Z)"
    return Server(items, rounds, task, goal, "env_idx", "id", create={"id": 0}, prepare=_tool_action)


_MAZE_TASK = (
    "Reach the goal position of the maze. Actions: move up, move down, move left, move right. Down adds 1 to the first "
    "number of a position, right adds 1 to the second."
)
_WORDLE_TASK = (
    "Guess a hidden word of five letters in at most six tries. Write a guess with blanks between its letters, like "
    "s h i r e. The answer has a letter for each of yours: g is right, y is in the word but elsewhere, b is not in it."
)

SERVERS: dict[str, Server] = {
    "webshop": Server(
        6910,
        10,
        "Buy what the shop's page asks for: search[words], then click[button].",
        r"Instruction:\s*(?:\[SEP\]\s*)?(.+?)\s*(?:\[SEP\]|\Z)",
        "env_idx",
        "session_id",
        "state",
    ),
    "alfworld": Server(
        2620, 30, "Do the task in the house.", r"Your task is to:\s*(.+)", item="game", reset={"world_type": "Text"}
    ),
    "textcraft": Server(474, 20, "Craft the goal.", r"Goal:\s*(.+)", prepare=plain_action),
    "maze": Server(26, 15, _MAZE_TASK, item="game"),
    "wordle": Server(980, 8, _WORDLE_TASK, item="seed"),
    "sciworld": Server(4639, 30, "Do the task in the simulated world.", score="score", scale=100.0),
    "babyai": Server(900, 20, "Reach the goal.", r"Your goal:\s*(.+)", score="score", prepare=plain_action),
    "weather": _tool(343, 10, "Answer the question with the weather tools."),
    "movie": _tool(238, 12, "Answer the question with the film tools."),
    "todo": _tool(155, 15, "Do the task with the to-do list tools."),
    "academia": _tool(20, 12, "Answer the question with the academic graph's tools."),
    "sheet": _tool(20, 15, "Do the task with the spreadsheet tools."),
    "bird": Server(
        10962,
        1,
        "Answer the question with one SQL statement.",
        session="env_idx",
        item="item_id",
        text="state",
        prepare=_sql_action,
    ),
}
TASKS: tuple[str, ...] = tuple(f"{name}-v0" for name in SERVERS)


def variable(task: str) -> str:
    """Name of the environment variable that holds the URL of a task's server: ``AGENTGYM_WEBSHOP_URL``."""
    return f"AGENTGYM_{task.removesuffix('-v0').upper()}_URL"


def missing(task: str | None = None) -> str | None:
    """Why a task (None: every task) cannot be played here and how to change that; None when it can."""
    wanted = [variable(t) for t in (TASKS if task is None else (task,))]
    if any(os.environ.get(name) for name in wanted):
        return None
    named = wanted[0] if task else "AGENTGYM_<NAME>_URL"
    return f"no AgentGym server is known: start one and give its url, or set {named} to it"


class _Session:
    """What the server keeps for one environment. Knows nothing of it, so that it can be closed when that is gone."""

    def __init__(self, wire: Wire, server: Server) -> None:
        answer, where = wire.call("POST", "create", server.create, repeat=True)
        number = answer.get("id") if isinstance(answer, dict) else answer
        if not isinstance(number, int) or isinstance(number, bool):
            raise EnvironmentDiedError(f"{where}: the answer has no id")
        self._wire, self._number, self._field = wire, number, server.session

    def post(self, path: str, **fields: Any) -> tuple[Any, str]:
        # never repeated: a reset that was only slow would begin the episode anew under the agent's feet
        return self._wire.call("POST", path, {self._field: self._number, **fields}, repeat=False)

    def get(self, path: str) -> tuple[Any, str]:
        return self._wire.call("GET", path, {self._field: self._number}, repeat=True)

    def close(self) -> None:
        try:
            self._wire.call("POST", "close", {self._field: self._number}, repeat=False, patient=False)
        except EnvironmentDiedError:
            pass  # most kinds of server cannot close sessions, and one that is gone has none
        finally:
            self._wire.hang_up()


class AgentGym(TextEnv):
    """One kind of AgentGym environment, on a server that runs already.

    Args:
        task: name of the environment (:data:`TASKS`).
        max_steps: own step limit; None takes the limit of AgentGym's evaluation.
        split: AgentGym has none.
        url: where ``create`` lives, ``http://HOST:PORT`` (maze and wordle: with ``/maze`` or ``/wordle``); None reads
            it from :func:`variable`.
        items: how many episodes there are; None takes :data:`SERVERS`.
        timeout: seconds a connection, an answer's begin and an answer's rest may take each.
        retries: how often a request is repeated where that is safe. An action that may have reached the server is
            never repeated.

    A variation is AgentGym's item index. The first observation is what AgentGym's own client shows, but for the rules
    that it writes itself for maze and wordle. ``info["raw_score"]`` is the server's number. Score: the last reward;
    sciworld's is its cumulative score / 100, babyai's its cumulative score. Success: a score of 1, as AgentGym counts;
    in babyai, where 1 cannot be reached, a finished task.

    Raises:
        MissingExtraError: no URL.
        UnknownEnvironmentError: no such task.
        ValueError: an argument or the URL is not valid.
    """

    cheap_clone: ClassVar[bool] = False
    cheap_list: ClassVar[bool] = False
    reusable: ClassVar[bool] = True

    def __init__(
        self,
        task: str = "webshop-v0",
        max_steps: int | None = None,
        split: str | None = None,
        url: str | None = None,
        items: int | None = None,
        timeout: float = 30.0,
        retries: int = 3,
    ) -> None:
        super().__init__(task.removesuffix("-v0"), max_steps, split)
        if self.task not in SERVERS:
            raise UnknownEnvironmentError(f"no AgentGym task named {task!r}; known are {', '.join(SERVERS)}")
        if items is not None and items < 1:
            raise ValueError(f"items is {items}, it must be at least 1")
        if not (timeout > 0 and math.isfinite(timeout)) or retries < 0:
            raise ValueError("timeout must be above 0 and retries not below 0")
        found = url or os.environ.get(variable(task))
        if not found:
            raise MissingExtraError(missing(task))
        self.observation_space, self.action_space = TextSpace(LARGEST_ANSWER), TextSpace(2**16)
        self._server = SERVERS[self.task]
        self.limit = max_steps or self._server.rounds
        self._settings = (url, items, timeout, retries)
        self._items, self._retries = items or self._server.items, retries
        self._wire = Wire(found, timeout, retries)
        self._session: _Session | None = None
        self._closer: weakref.finalize[..., Any] | None = None
        self._actions: list[str] = []

    def variations(self, task: str, split: str | None) -> range:
        """Item indices, from 0."""
        return range(self._items)

    def begin(self, variation: int) -> tuple[str, str]:
        """Reset the session, in a new one where the old one is gone.

        Raises:
            ValueError: the server has no such item.
            EnvironmentDiedError: the server cannot be used.
        """
        answer, where = self._reset(variation)
        description = answer.get("task_description") if isinstance(answer, dict) else None
        self._actions = []
        observation = self._observation(answer, where)
        if isinstance(description, str):
            return description, f"{description}\n{observation}"
        if self.task == "alfworld":
            observation += f"\nAVAILABLE ACTIONS: {','.join(self._actions)}"
        found = re.search(self._server.goal, observation) if self._server.goal else None
        return found[1].strip() if found else self._server.task, observation

    def _reset(self, variation: int) -> tuple[Any, str]:
        for attempt in range(self._retries + 2):
            pause(attempt)
            old = self._session is not None
            if self._session is None:
                self._session = _Session(self._wire, self._server)
                self._closer = weakref.finalize(self, self._session.close)
            try:
                return self._session.post("reset", **{self._server.item: variation}, **self._server.reset)
            except EnvironmentDiedError as error:
                refused = isinstance(error, RefusedError)
                if refused and _NO_SUCH_ITEM.search(str(error)):
                    raise ValueError(f"variation: {variation}: {error}") from None
                self._end()
                if not old and (refused or attempt >= self._retries):
                    raise
        raise AssertionError("unreachable")

    def do(self, action: str) -> Turn:
        """Send an action; of a reply with ``Thought:`` and ``Action:`` the action only."""
        if self._session is None:
            raise EnvironmentDiedError("the environment was closed")
        try:
            answer, where = self._session.post("step", action=self._server.prepare(parse_react(action)[1]))
            if not isinstance(answer, dict):
                raise EnvironmentDiedError(f"{where}: the answer is no JSON object")
            observation = self._observation(answer, where)
            raw, over = answer.get(self._server.score), answer.get("done")
            if isinstance(raw, bool) or not isinstance(raw, int | float) or not abs(raw) < 1e12:
                raise EnvironmentDiedError(f"{where}: {self._server.score} is {raw!r}, not a finite number")
            if not isinstance(over, bool):
                raise EnvironmentDiedError(f"{where}: done is {over!r}, neither true nor false")
        except EnvironmentDiedError:
            self._end()
            raise
        score = min(max(raw / self._server.scale, 0.0), 1.0)
        success = over and score > 0 if self.task == "babyai" else score == 1
        return Turn(observation, score, success, over, more={"raw_score": float(raw)})

    def _observation(self, answer: Any, where: str) -> str:
        text = answer
        if isinstance(answer, dict):
            text = answer.get(self._server.text)
            self._actions = _strings(answer.get("available_actions"))
        elif isinstance(answer, list) and answer:
            text = answer[0]
        if not isinstance(text, str):
            self._end()
            raise EnvironmentDiedError(f"{where}: the answer has no {self._server.text}")
        if listed := _LISTED.search(text):
            with contextlib.suppress(ValueError, RecursionError):
                self._actions = _strings(json.loads(listed[1]))
        return text

    def admissible(self) -> list[str]:
        """Actions that the server lists. Empty where it lists none: the agent has to write its own.

        alfworld and babyai list theirs in every answer. webshop (buttons, and a search for the goal) and wordle (words
        that agree with the answers so far) are asked when this is called.

        Raises:
            EnvironmentDiedError: the server does not answer.
        """
        if self.task == "maze":
            return ["move left", "move right", "move up", "move down"]
        if self._session is None or self._done:
            return []
        if self.task == "webshop":
            answer, _ = self._session.get("available_actions")
            found = answer if isinstance(answer, dict) else {}
            search = [f"search[{self.goal}]"] if found.get("has_search_bar") else []
            return search + [f"click[{c}]" for c in _strings(found.get("clickables")) if c != "search"]
        if self.task == "wordle":
            words, _ = self._session.get("filtered_vocab")
            return [" ".join(word) for word in _strings(words)]
        return list(self._actions)

    def clone(self) -> Self:
        """The same episode, replayed in a session of its own."""
        url, items, timeout, retries = self._settings
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split, url, items, timeout, retries))

    def _end(self) -> None:
        if self._closer is not None:
            self._closer()
        self._session = self._closer = None

    def close(self) -> None:
        """Close the session at the server, once; a server that is gone or cannot close sessions is no error."""
        self._end()
        self._done = True
