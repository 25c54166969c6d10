"""BabyAI-Text: the BabyAI levels of minigrid as text (Carta et al. 2023, arXiv 2302.02662, wording of their code).

``gym.make("envs:BabyAIText/GoToLocal-v0")`` gives one; :func:`describe` words a view.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers the levels)
import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
from minigrid.envs.babyai.core import roomgrid_level

from .core import TextEnv, UnknownEnvironmentError

ACTIONS: tuple[str, ...] = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
UNKNOWN_ACTION = "That is not an action. Actions: " + ", ".join(ACTIONS)
_PREFIX, _NAMESPACE = "BabyAI-", "BabyAIText/"
_AGENT_X, _AGENT_Y = 3, 6
_UNSEEN, _EMPTY, _WALL, _DOOR = 0, 1, 2, 4
_DOOR_STATES = ("open", "closed", "locked")

# minigrid prints "Sampling rejected". redirect_stdout is no way out: it swaps the standard output of every thread,
# and two resets at a time leave it swapped.
vars(roomgrid_level)["print"] = lambda *_args, **_kwargs: None


def _steps(n: int, direction: str) -> str:
    return f"{n} step{'s' if n > 1 else ''} {direction}"


def _where(x: int, y: int) -> str:
    """Wording of the offset ``x`` (right is positive) and ``y`` (forward is positive), in cells."""
    side = _steps(abs(x), "right" if x > 0 else "left")
    if x == 0:
        return _steps(y, "forward")
    return side if y == 0 else f"{side} and {_steps(y, 'forward')}"


def describe(image: np.ndarray | Sequence[Any], carrying: tuple[str, str] | None = None) -> list[str]:
    """Word a 7x7x3 minigrid view by the BabyAI-Text convention, one string a fact.

    Args:
        image: ``[7, 7, 3]`` integers, indexed column, row, (type, colour, state); the agent stands at (3, 6).
        carrying: (colour, type) of the carried object, or None.

    Returns:
        The carried object first, then walls straight forward, left and right, then every visible object by view
        column from the left and, within a column, from far to near.

    Raises:
        ValueError: the view is not 7x7x3, or holds a type, colour or door state that minigrid does not know.
    """
    view = np.asarray(image)
    if view.shape != (7, 7, 3):
        raise ValueError(f"a BabyAI-Text view is 7x7x3, this one is {'x'.join(map(str, view.shape))}")
    kinds: list[list[int]] = view[:, :, 0].tolist()
    facts = [f"You carry a {carrying[0]} {carrying[1]}"] if carrying else []

    rays = (
        ("forward", [(_AGENT_X, y) for y in range(_AGENT_Y - 1, -1, -1)]),
        ("left", [(x, _AGENT_Y) for x in range(_AGENT_X - 1, -1, -1)]),
        ("right", [(x, _AGENT_Y) for x in range(_AGENT_X + 1, 7)]),
    )
    for direction, cells in rays:
        for n, (x, y) in enumerate(cells, start=1):
            if kinds[x][y] not in (_UNSEEN, _EMPTY):
                if kinds[x][y] == _WALL:
                    facts.append(f"You see a wall {_steps(n, direction)}")
                break

    for x in range(7):
        for y in range(7):
            kind = kinds[x][y]
            if kind in (_UNSEEN, _EMPTY, _WALL) or (x, y) == (_AGENT_X, _AGENT_Y):
                continue
            color, state = int(view[x, y, 1]), int(view[x, y, 2])
            if kind not in IDX_TO_OBJECT or color not in IDX_TO_COLOR or (kind == _DOOR and state not in (0, 1, 2)):
                raise ValueError(f"cell ({x}, {y}) holds ({kind}, {color}, {state}), which minigrid does not know")
            thing = f"{IDX_TO_COLOR[color]} {IDX_TO_OBJECT[kind]}"
            if kind == _DOOR:
                thing = f"{_DOOR_STATES[state]} {thing}"
            facts.append(f"You see a {thing} {_where(x - _AGENT_X, _AGENT_Y - y)}")
    return facts


def levels() -> dict[str, str]:
    """Every BabyAI level: its name here (``GoToLocal-v0``) -> its minigrid id."""
    return {i.removeprefix(_PREFIX): i for i in gym.registry if i.startswith(_PREFIX)}


def resolve_level(name: str) -> str:
    """Full name of a level given as ``GoToLocal``, ``GoToLocal-v0`` or ``BabyAIText/GoToLocal-v0``.

    Raises:
        UnknownEnvironmentError: no such level; the message names the nearest ones.
    """

    known = levels()
    bare = name.removeprefix("envs:").removeprefix(_NAMESPACE)
    for candidate in (bare, f"{bare}-v0", f"{bare}-v1"):
        if candidate in known:
            return candidate
    near = difflib.get_close_matches(bare, [k.rsplit("-", 1)[0] for k in known], n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UnknownEnvironmentError(f"no BabyAI level named {bare!r}{hint}")


class BabyAIText(TextEnv):
    """One BabyAI level as text.

    Args:
        level: name of the level (:func:`resolve_level`).
        max_steps: own step limit; None keeps the level's.

    The reward is minigrid's: ``1 - 0.9 * steps / limit`` on success, else 0. ``info["score"]`` is 1.0 on success.
    """

    def __init__(self, level: str, max_steps: int | None = None) -> None:
        super().__init__()
        self.level = resolve_level(level)
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, it must be at least 1")
        self._grid_env = gym.make(levels()[self.level], disable_env_checker=True).unwrapped
        self._max_steps = max_steps
        self._actions = {a: i for i, a in enumerate(ACTIONS)}
        self._goal = ""
        self._done = True

    @property
    def grid_env(self) -> Any:
        """The minigrid environment underneath (experts read its state; agents must not)."""
        return self._grid_env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; without ``seed`` the environment's own generator goes on. Options are refused."""
        if options:
            raise ValueError(f"BabyAIText takes no reset options, got {sorted(options)}")
        super().reset(seed=seed)
        # minigrid draws from its own generator, seeded from ours when no seed is given
        inner_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        obs, _ = self._grid_env.reset(seed=inner_seed)
        self._goal = str(obs["mission"])
        if self._max_steps is not None:
            self._grid_env.max_steps = self._max_steps
        self._done = False
        return self._text(obs), self._info(success=False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do ``action``; one that is not known costs a step and is answered by a text that says so.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over, or none was begun.
        """
        if self._done:
            raise gym.error.ResetNeeded("the episode is over: call reset() first")
        index = self._actions.get(action.strip().lower() if isinstance(action, str) else "")
        if index is None:
            # a bad action costs a step, so that an agent that never answers well still ends
            self._grid_env.step_count += 1
            truncated = bool(self._grid_env.step_count >= self._grid_env.max_steps)
            self._done = truncated
            return UNKNOWN_ACTION, 0.0, False, truncated, self._info(success=False)
        obs, reward, terminated, truncated, _ = self._grid_env.step(index)
        success = bool(terminated and reward > 0)
        self._done = bool(terminated or truncated)
        return self._text(obs), float(reward), bool(terminated), bool(truncated), self._info(success=success)

    def _text(self, obs: dict[str, Any]) -> str:
        held = self._grid_env.carrying
        facts = describe(obs["image"], (held.color, held.type) if held else None)
        return ", ".join(facts) if facts else "You see nothing"

    def _info(self, *, success: bool) -> dict[str, Any]:
        return self.info(goal=self._goal, score=float(success), success=success, admissible=self.admissible)

    def admissible(self) -> list[str]:
        """All six actions: BabyAI takes any of them in any state."""
        return list(ACTIONS)
