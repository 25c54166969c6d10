"""TextWorld games (Côté et al. 2018, arXiv 1806.11532), made on this machine and played by their Z-machine files.

``gym.make("atlas_ray.envs:TextWorld/cooking-v0")`` gives one. Needs the extra ``textworld``.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .core import (
    SPLITS,
    EnvironmentDiedError,
    Expert,
    ExpertGaveUpError,
    GoldPath,
    MissingExtraError,
    TextEnv,
    Turn,
    UnknownEnvironmentError,
)

_COOKING = {"drop": False, "recipe_seed": 0}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "simple": ("tw-simple", {"rewards": "dense", "goal": "detailed"}),
    "simple-brief": ("tw-simple", {"rewards": "balanced", "goal": "brief"}),
    "coin-collector-5": ("tw-coin_collector", {"level": 5}),
    "coin-collector-20": ("tw-coin_collector", {"level": 20}),
    "coin-collector-110": ("tw-coin_collector", {"level": 110}),
    "treasure-hunter-5": ("tw-treasure_hunter", {"level": 5}),
    "treasure-hunter-15": ("tw-treasure_hunter", {"level": 15}),
    "treasure-hunter-25": ("tw-treasure_hunter", {"level": 25}),
    "cooking-easy": (
        "tw-cooking",
        {"recipe": 1, "take": 1, "go": 1, "open": False, "cook": False, "cut": False, **_COOKING},
    ),
    "cooking": (
        "tw-cooking",
        {"recipe": 2, "take": 2, "go": 6, "open": True, "cook": True, "cut": False, **_COOKING},
    ),
    "cooking-hard": (
        "tw-cooking",
        {"recipe": 3, "take": 3, "go": 12, "open": True, "cook": True, "cut": True, **_COOKING},
    ),
    "custom": ("custom", {"rooms": 5, "objects": 10, "quest_length": 5}),
    "custom-hard": ("custom", {"rooms": 10, "objects": 20, "quest_length": 10}),
}
"""Task -> textworld's maker and its settings; the number of a level is textworld's own."""

_SEEDS: dict[str | None, range] = {
    None: range(1400),
    "train": range(1000),
    "dev": range(1000, 1200),
    "test": range(1200, 1400),
}
_MAKER = """
import json, sys
import jericho, textworld, textworld.challenges, textworld.generator

kind, settings, seed, path = json.loads(sys.argv[1])
for attempt in range(20):
    options = textworld.GameOptions()
    options.seeds, options.path, options.file_ext = seed + 10**6 * attempt, path, ".z8"
    options.force_recompile = True
    options.grammar.only_last_action = kind in ("tw-coin_collector", "tw-treasure_hunter")
    try:
        if kind == "custom":
            options.nb_rooms, options.nb_objects = settings["rooms"], settings["objects"]
            quest = options.chaining
            quest.min_length = quest.max_length = quest.max_depth = settings["quest_length"]
            game = textworld.generator.make_game(options)
        else:
            game = textworld.challenges.CHALLENGES[kind][1](settings, options)
        textworld.generator.compile_game(game, options)
    except textworld.generator.QuestGenerationError:
        continue
    machine = jericho.FrotzEnv(path, 1)
    machine.reset()
    if any("*** The End ***" in machine.step(command)[0] for command in game.metadata["walkthrough"]):
        break
else:
    sys.exit("none of 20 games could be won by its own walkthrough")
"""
_MAKE_SECONDS = 600
_parser = threading.Lock()  # textworld has one a process

_UNKNOWN_VERB = "That's not a verb I recognise."
# These end or rewind the game, write files named by the player into the working directory, read another player's
# saved game, change how everything after is worded, or show what textworld itself asks for. Inform runs commands after
# "." "," and "then" too, compares nine letters of a word, and "oops WORD" repairs an unknown one.
_META = re.compile(
    r"(?:^|[.,]|\bthen\b)\s*(?:tw-|transcrip|superbrie|(?:q|quit|restart|restore|save|script|verify|version|notify|"
    r"short|normal|brief|long|verbose|pronouns|nouns|restrict|oops|o)(?![a-z]))",
    re.IGNORECASE,
)
_SCORE = re.compile(r"<score>\s*(-?\d+)\s*</score>")
_EVENT = re.compile(r"\[([^]]+)\]\n?")
_NOISE = re.compile(r"<(score|moves)>.*?</\1>|Would you like to RESTART.*", re.DOTALL)
_STATUS_LINE = re.compile(r"\s*>?\s*-=[^\n]*=-\s*-?\d+/\d+\s*\Z")
_WON, _LOST = "*** The End ***", "*** You lost! ***"


def tasks() -> tuple[str, ...]:
    """Names of the tasks."""
    return tuple(TASKS)


def missing() -> str | None:
    """Why TextWorld cannot run here and what to do about it; None if it can."""
    if all(importlib.util.find_spec(name) for name in ("textworld", "jericho")):
        return None
    return "TextWorld needs the extra 'textworld': pip install 'atlas-ray[textworld]'"


def make_game(task: str, seed: int, cache: str | Path | None = None) -> Path:
    """The file of a game, made if it is not there yet (2 to 5 seconds, deep treasure hunts 10; 450 KB).

    Games are kept by textworld's and Python's version, settings and seed. Any number of processes may ask for the same
    one: each makes it in a directory of its own, and the first to finish provides it.

    Args:
        task: one of :data:`TASKS`.
        seed: from 0 to 1399; it says the split, too.
        cache: directory to keep games in; None is ``$ATLAS_RAY_CACHE/textworld`` or ``~/.cache/atlas-ray/textworld``.

    Returns:
        A ``.z8`` file, beside it textworld's ``.json``.

    Raises:
        EnvironmentDiedError: textworld could not make it.
    """
    kind, settings = TASKS[task]
    if kind == "tw-cooking":
        settings = {**settings, "split": {"dev": "valid"}.get(_split_of(seed), _split_of(seed))}
    elif kind == "tw-simple":
        settings = {**settings, "test": _split_of(seed) == "test"}
    version = [importlib.metadata.version("textworld"), *sys.version_info[:2]]
    recipe = json.dumps([_MAKER, version, kind, settings, seed], sort_keys=True)
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    root = Path(cache) if cache is not None else _default_cache()
    home = root / f"{kind}-{seed}-{key}"
    if not home.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            _make([kind, settings, seed, str(draft / "game.z8")])
            (draft / "game.ni").unlink()
            os.rename(draft, home)
        except OSError:
            if not home.is_dir():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return home / "game.z8"


def _split_of(seed: int) -> str:
    return next(split for split in SPLITS if seed in _SEEDS[split])


def _default_cache() -> Path:
    return Path(os.environ.get("ATLAS_RAY_CACHE") or Path.home() / ".cache" / "atlas-ray") / "textworld"


def _make(order: list[Any]) -> None:
    # In a process of its own: textworld walks through sets of strings, so that without a fixed hash seed the same
    # cooking game comes out differently each time. -P, for this file is named textworld as well.
    command = [sys.executable, "-P", "-c", _MAKER, json.dumps(order)]
    what = f"TextWorld: {order[0]} with seed {order[2]}"
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MAKE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentDiedError(f"{what} was not made within {_MAKE_SECONDS} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise EnvironmentDiedError(f"{what} could not be made: {said}")


def _clean(raw: str) -> str:
    """What the game says, without its status line, the events and scores asked for, and spare blank lines."""
    text = _EVENT.sub("", _STATUS_LINE.sub("", _NOISE.sub("", raw)))
    lines = [line.strip() if "***" in line else line.rstrip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n> ")


class _Game:
    """A game in play: the Z-machine, and what it takes to list the admissible commands once somebody asks.

    ``copy.deepcopy`` gives a second machine in the same state.
    """

    def __init__(self, path: Path) -> None:
        import jericho
        import textworld

        warnings.simplefilter("ignore", jericho.UnsupportedGameWarning)
        with _parser:
            self.data = textworld.Game.load(str(path.with_suffix(".json")))
        self.machine = jericho.FrotzEnv(str(path), 1)
        self.points = 0
        self._progression: Any = None
        self._events: list[str] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = copy.copy(self)
        twin.machine = self.machine.copy()
        twin._events = list(self._events)
        twin._progression = None if self._progression is None else self._progression.copy()
        return twin

    def begin(self) -> str:
        """Start over: what the player sees first, which is what ``look`` would say."""
        text = _clean(self.machine.reset()[0])
        for command in ("tw-extra-infos score", "tw-trace-actions"):
            self.machine.step(command)
        return text[max(0, text.find("-= ")) :]

    def do(self, command: str) -> str:
        """Type a command (printable ASCII without brackets, at most 198 characters) and read the answer."""
        raw: str = self.machine.step(command)[0]
        self._events += [e.removesuffix(" - succeeded") for e in _EVENT.findall(raw) if e.endswith(" - succeeded")]
        scores = _SCORE.findall(raw)
        self.points = int(scores[-1]) if scores else self.points
        return _clean(raw)

    def admissible(self) -> list[str]:
        """Commands that textworld's own logic holds possible now, after all that happened since it was last asked."""
        from textworld.generator.game import GameProgression
        from textworld.generator.inform7 import Inform7Game

        inform = Inform7Game(self.data)
        if self._progression is None:
            self._progression = GameProgression(self.data, track_quests=False)
        for event in self._events:
            action = None if set(event) & set("()") else inform.detect_action(event, self._progression.valid_actions)
            if action is not None:
                self._progression.update(action)
        self._events.clear()
        return sorted(set(inform.gen_commands_from_actions(self._progression.valid_actions)))


class TextWorld(TextEnv):
    """A TextWorld game.

    A variation is the seed the game is made with: 1,000 for training, 200 for development, 200 for the test. Cooking
    games of the three splits also draw their food and its preparation from textworld's train, valid and test sets, and
    ``simple`` from its test set for the test. The score is the share of the points to be had, and so is ``progress``;
    a game that is lost is over. A step takes about 1.5 ms, the list of admissible commands up to 2 ms for each step
    since it was last asked for. The first observation is that of ``look``: the goal stands in ``info`` only.

    Args:
        task: one of :data:`TASKS`, with its version.
        max_steps: own step limit of an episode; None is 100.
        split: ``train``, ``dev`` or ``test``; None is all games.
        cache: directory to keep games in; None is ``$ATLAS_RAY_CACHE/textworld`` or ``~/.cache/atlas-ray/textworld``.

    Raises:
        MissingExtraError: textworld is not installed.
        UnknownEnvironmentError: there is no such task.
    """

    splits = SPLITS
    packages = ("textworld",)

    def __init__(
        self,
        task: str = "cooking-v0",
        max_steps: int | None = None,
        split: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if task.removesuffix("-v0") not in TASKS:
            raise UnknownEnvironmentError(f"TextWorld has no task {task!r}; known are {', '.join(TASKS)}")
        if (why := missing()) is not None:
            raise MissingExtraError(why)
        super().__init__(task.removesuffix("-v0"), max_steps, split)
        self.cache = cache
        self._game: _Game | None = None

    def tasks(self) -> Sequence[str]:
        """All of :data:`TASKS`."""
        return tasks()

    def variations(self, task: str, split: str | None) -> range:
        """Seeds of a split."""
        return _SEEDS[split]

    def begin(self, variation: int) -> tuple[str, str]:
        """Objective and first room of the game made with this seed, which is made now if it never was."""
        self._game = _Game(make_game(self.task, variation, self.cache))
        return " ".join(self._game.data.objective.split()), self._game.begin()

    def do(self, action: str) -> Turn:
        """Any English command; the game says so itself when it does not understand."""
        game = self._playing()
        plain = action.encode("ascii", "replace").decode()
        # brackets could forge the events and scores that the machine prints
        command = " ".join(re.sub(r"[\x00-\x1f\x7f\[\]<>]", " ", plain).split())[:180]
        if _META.search(command):
            return Turn(_UNKNOWN_VERB, self.score, progress=self.score)
        text = game.do(command)
        score = min(1.0, max(0.0, game.points / max(1, game.data.max_score)))
        won, lost = _WON in text, _LOST in text
        return Turn(text, score, success=won, over=won or lost, progress=score)

    def admissible(self) -> list[str]:
        """Commands that textworld lists for this state, in alphabetical order."""
        return self._playing().admissible()

    def progress(self) -> float:
        """No points yet."""
        return 0.0

    def expert(self, cpu_seconds: float = 2.0) -> Expert:
        """The walkthrough that came with the game and was seen to win it."""
        if self.history:
            raise ExpertGaveUpError("the walkthrough starts at the first step: ask for it right after reset()")
        return GoldPath(self._playing().data.metadata["walkthrough"], self)

    def close(self) -> None:
        """Unload the game; ``reset`` loads another one."""
        self._game, self._done = None, True

    def _playing(self) -> _Game:
        if self._game is None:
            raise RuntimeError("no game is loaded: call reset() first")
        return self._game
