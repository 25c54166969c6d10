"""BabyAI-Text: the BabyAI levels of minigrid as text (Carta et al. 2023, arXiv 2302.02662, wording of their code).

``gym.make("atlas_ray.envs:BabyAIText/GoToLocal-v0")`` gives one; :func:`describe` words a view.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers the levels)
import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
from minigrid.envs.babyai.core import roomgrid_level

from .babyai_levels import LEVELS
from .core import SPLITS, Expert, TextEnv, Turn, UnknownEnvironmentError

ACTIONS: tuple[str, ...] = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
UNKNOWN_ACTION = "That is not an action. Actions: " + ", ".join(ACTIONS)
_SEEDS: dict[str | None, range] = {
    None: range(2**31),
    "train": range(10**9),
    "dev": range(10**9, 15 * 10**8),
    "test": range(15 * 10**8, 2**31),
}
_AGENT_X, _AGENT_Y = 3, 6
_UNSEEN, _EMPTY, _WALL, _DOOR = 0, 1, 2, 4
_DOOR_STATES = ("open", "closed", "locked")
# cells are numbered 7 * column + row, as they lie in memory
_RAYS = (
    ("forward", [7 * _AGENT_X + y for y in range(_AGENT_Y - 1, -1, -1)]),
    ("left", [7 * x + _AGENT_Y for x in range(_AGENT_X - 1, -1, -1)]),
    ("right", [7 * x + _AGENT_Y for x in range(_AGENT_X + 1, 7)]),
)
_THINGS = re.compile(bytes([*b"[^", _UNSEEN, _EMPTY, _WALL, *b"]"]), re.DOTALL)

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
    if view.dtype != np.uint8:
        if ((view < 0) | (view > 255)).any():
            raise ValueError("a BabyAI-Text view holds numbers that minigrid does not know: below 0 or above 255")
        view = view.astype(np.uint8)
    kinds = view[:, :, 0].tobytes()
    facts = [f"You carry a {carrying[0]} {carrying[1]}"] if carrying else []
    for direction, cells in _RAYS:
        for n, cell in enumerate(cells, start=1):
            kind = kinds[cell]
            if kind > _EMPTY:
                if kind == _WALL:
                    facts.append(f"You see a wall {_steps(n, direction)}")
                break
    for found in _THINGS.finditer(kinds):
        x, y = divmod(found.start(), 7)
        if x != _AGENT_X or y != _AGENT_Y:
            _, color, state = view[x, y].tolist()
            facts.append(_fact(x, y, kinds[7 * x + y], color, state))
    return facts


@cache
def _fact(x: int, y: int, kind: int, color: int, state: int) -> str:
    if kind not in IDX_TO_OBJECT or color not in IDX_TO_COLOR or (kind == _DOOR and state not in (0, 1, 2)):
        raise ValueError(f"cell ({x}, {y}) holds ({kind}, {color}, {state}), which minigrid does not know")
    thing = f"{IDX_TO_COLOR[color]} {IDX_TO_OBJECT[kind]}"
    if kind == _DOOR:
        thing = f"{_DOOR_STATES[state]} {thing}"
    return f"You see a {thing} {_where(x - _AGENT_X, _AGENT_Y - y)}"


def levels() -> dict[str, str]:
    """Every BabyAI level: its name here (``GoToLocal-v0``) -> its minigrid id."""
    return {name: f"BabyAI-{name}" for name in LEVELS}


class BabyAIText(TextEnv):
    """One BabyAI level as text.

    Args:
        task: name of the level, with its version (:func:`levels`).
        max_steps: own step limit; None keeps the level's.
        split: ``train``, ``dev`` or ``test`` take their seeds from ranges that do not meet (ours).

    A variation is minigrid's seed. The reward is minigrid's too: ``1 - 0.9 * steps / limit`` on success, else 0.
    ``info["score"]`` is 1.0 on success.
    """

    splits = SPLITS
    packages = ("minigrid",)
    unbounded_episodes = True

    def __init__(self, task: str, max_steps: int | None = None, split: str | None = None) -> None:
        super().__init__(task, max_steps, split)
        if task not in levels():
            raise UnknownEnvironmentError(f"no BabyAI level named {task!r}: envs.ids() lists them")
        self._grid_env = gym.make(levels()[task], disable_env_checker=True).unwrapped
        self._actions = {a: i for i, a in enumerate(ACTIONS)}

    @property
    def grid_env(self) -> Any:
        """The minigrid environment underneath (experts read its state; agents must not)."""
        return self._grid_env

    def variations(self, task: str, split: str | None) -> range:
        """Seeds of a split: without one all that minigrid takes."""
        return _SEEDS[split]

    def begin(self, variation: int) -> tuple[str, str]:
        """Mission and first view of minigrid's episode with this seed."""
        obs, _ = self._grid_env.reset(seed=variation)
        if self.max_steps is not None:
            self._grid_env.max_steps = self.max_steps
        self.limit = int(self._grid_env.max_steps)
        return str(obs["mission"]), self._text(obs)

    def do(self, action: str) -> Turn:
        """One of the six actions, in any case; another costs a step, so that an agent that never answers well ends."""
        index = self._actions.get(action.strip().lower())
        if index is None:
            self._grid_env.step_count += 1
            return Turn(UNKNOWN_ACTION, 0.0)
        obs, reward, terminated, _, _ = self._grid_env.step(index)
        success = bool(terminated and reward > 0)
        return Turn(self._text(obs), float(success), success, bool(terminated), float(reward))

    def _text(self, obs: dict[str, Any]) -> str:
        held = self._grid_env.carrying
        facts = describe(obs["image"], (held.color, held.type) if held else None)
        return ", ".join(facts) if facts else "You see nothing"

    def admissible(self) -> list[str]:
        """All six actions: BabyAI takes any of them in any state."""
        return list(ACTIONS)

    def expert(self, cpu_seconds: float = 2.0) -> Expert:
        """The BabyAI bot, bounded."""
        from .babyai_expert import BabyAIExpert

        return BabyAIExpert(self, cpu_seconds)
