"""TextWorld-Express (Jansen and Côté 2022, arXiv 2208.01174): eight fast games, by the simulator's own interface."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Self

from .core import SPLITS, EnvironmentDiedError, Turn
from .jvm import Interface, Simulator, said_error
from .jvm_env import JvmEnv

SIMULATOR = Simulator("TextWorldExpress", "textworld_express", "textworldexpress.runtime.PythonInterface")

GAMES = ("arithmetic", "coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "sorting", "twc")
_SEEDS = {"train": range(1000), "dev": range(10_000, 11_000), "test": range(20_000, 21_000)}
_SHARING = ("sorting",)
"""Games whose items are the same objects in every episode of a JVM: two at once would take each other's."""
_ALL = tuple(seed for split in SPLITS for seed in _SEEDS[split])

_FLAG = (0, 1)
_HOUSE = {"includeDoors": _FLAG, "limitInventorySize": _FLAG}
PARAMS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "arithmetic": {},
    "coin": {"numLocations": (1, 11), "numDistractorItems": (0, 10), **_HOUSE},
    "cookingworld": {"numLocations": (1, 11), "numDistractorItems": (0, 10), "numIngredients": (1, 5), **_HOUSE},
    "mapreader": {
        **{"numLocations": (1, 50), "maxDistractorItemsPerLocation": (0, 3), "maxDistanceApart": (1, 8)},
        **_HOUSE,
    },
    "peckingorder": {},
    "simonsays": {"gameLength": (1, 1000), "numDistractors": (0, 5), "memorization": _FLAG, "verbose": _FLAG},
    "sorting": {},
    "twc": {"numLocations": (1, 3), "numItemsToPutAway": (1, 4), **_HOUSE},
}
"""Game -> its settings and their least and largest values (checked against the jar by a test)."""


def game_params(game: str, params: object) -> str:
    """A game's settings ``name=number,...`` as the simulator reads them, without white space and empty entries.

    Of what it cannot read the simulator says nothing, and every episode then ends at once.

    Raises:
        ValueError: not so written, a name given twice, one that the game does not know, or a number out of its range.
    """
    if not isinstance(params, str):
        raise ValueError(f"params: {params!r} is no text: write name=number, joined by commas")
    known, found = PARAMS.get(game, {}), dict[str, str]()
    for entry in filter(None, (part.strip() for part in params.split(","))):
        name, _, number = (part.strip() for part in entry.partition("="))
        if name not in known:
            raise ValueError(f"params: {game} has no {name!r}; it has {', '.join(known) or 'none'}")
        low, high = known[name]
        if not re.fullmatch(r"-?[0-9]{1,10}", number) or not low <= int(number) <= high:
            raise ValueError(f"params: {entry!r}: give {name}=NUMBER, a whole number from {low} to {high}")
        if name in found:
            raise ValueError(f"params: {name} is given twice")
        found[name] = number
    return ",".join(f"{name}={number}" for name, number in found.items())


class TextWorldExpress(JvmEnv):
    """One of the eight games.

    Args:
        task: name of the game, ``cookingworld-v0``.
        max_steps: own step limit in actions. Default 100, as upstream.
        split: ``train``, ``dev`` or ``test``: the simulator's folds, a thousand seeds each.
        params: the game's settings as upstream writes them (``numLocations=3,includeDoors=0``), see :data:`PARAMS`.

    A variation is the simulator's seed; score is the simulator's normalised one, and so is ``progress``.
    """

    simulator = SIMULATOR
    packages = ("textworld-express",)
    splits = SPLITS

    def __init__(self, task: str, max_steps: int | None = None, split: str | None = None, params: str = "") -> None:
        self.params = game_params(task.removesuffix("-v0"), params)
        super().__init__(task, max_steps, split)
        self._valid: list[str] = []

    def _interface(self) -> Interface:
        alone = self.task in _SHARING
        if self._simulator is not None and alone != self._simulator.alone:
            self.close()
        if self._simulator is None:
            self._simulator = Interface(SIMULATOR, alone)
        wanted = self.task, game_params(self.task, self.params)
        if self._simulator.loaded != wanted:
            problem = self._simulator.call("load", *wanted)
            if problem:
                raise ValueError(f"params: {' '.join(str(problem).split())}")
            self._simulator.loaded = wanted
        return self._simulator

    def _answer(self, method: str, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._call(method, *arguments))
        sure = math.isfinite(found["score"])
        if said_error(found["observation"]) or not sure:
            self.close()
            problem = " ".join(_text(found).split()) if sure else f"its score is {found['score']}"
            raise EnvironmentDiedError(f"{SIMULATOR.title}: {method}: {problem}")
        self._valid = found["validActions"]
        return found

    def tasks(self) -> tuple[str, ...]:
        """All eight games."""
        return GAMES

    def variations(self, task: str, split: str | None) -> range | tuple[int, ...]:
        """Seeds of a fold."""
        return _SEEDS[split] if split else _ALL

    def begin(self, variation: int) -> tuple[str, str]:
        """Make the game of this seed."""
        return self._make(variation, gold=False)

    def _make(self, variation: int, gold: bool) -> tuple[str, str]:
        fold = next(split for split, seeds in _SEEDS.items() if variation in seeds)
        found = self._answer("generateNewGameJSON", variation, fold, gold)
        return str(self._call("getTaskDescription")).strip(), _text(found)

    def do(self, action: str) -> Turn:
        """One action; the game answers to what it does not understand."""
        found = self._answer("stepJSON", action)
        score = min(1.0, max(0.0, float(found["score"])))
        success, failure = bool(found["tasksuccess"]), bool(found["taskfailure"])
        more = {"raw_score": float(found["scoreRaw"])}
        return Turn(_text(found), score, success, success or failure, progress=score, more=more)

    def progress(self) -> float:
        """Nothing is reached at the start."""
        return 0.0

    def admissible(self) -> list[str]:
        """The game's valid actions, sorted; they come with every step."""
        return sorted(self._valid)

    def _gold(self) -> list[str]:
        # in coin and twc the simulator explores by chance: every call finds another path
        self._make(self.variation, gold=True)
        return self._interface().strings("getGoldActionSequence")

    def clone(self) -> Self:
        """The same episode, replayed."""
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split, self.params))


def _text(found: dict[str, Any]) -> str:
    return "\n".join(line.rstrip() for line in str(found["observation"]).splitlines()).strip()
