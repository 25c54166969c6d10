"""ALFWorld (Shridhar et al. 2021, arXiv 2010.03768): its text games, played by textworld's PDDL logic.

``gym.make("atlas_ray.envs:ALFWorld/pick_and_place_simple-v0")`` gives one. Needs the extra ``alfworld`` and the games,
which ``alfworld-download`` puts under ``$ALFWORLD_DATA``. textworld evaluates parts of a game file's grammar as Python
code: play files from a source that you trust.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from .alfworld_expert import Guide
from .core import Expert, ExpertGaveUpError, MissingExtraError, TextEnv, Turn, UnknownEnvironmentError

TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
TASKS = (*TYPES, "all")
FOLDERS = {"train": "train", "dev": "valid_seen", "test": "valid_unseen"}
"""Split here -> the folder that ALFWorld keeps it in; ``dev`` plays in rooms that training knows, ``test`` does not."""

_GAMES = "json_2.1.1"
_GET_GAMES = "run 'alfworld-download', and set ALFWORLD_DATA if it puts them elsewhere than ~/.cache/alfworld"
_NOTHING = "Nothing happens."
_TRIAL = re.compile(r"(?:^|/)([a-z_]+)-[^/]+/trial_T\d\d(\d{6})_(\d{6})_(\d{6})(?:/|$)")
_FIRST_TRIAL = 10**16
_PUT, _MOVE = re.compile(r"put (.+) in/on (.+)"), re.compile(r"move (.+) to (.+)")
# what players of ALFWorld leave out of its texts, or add to them
_BESIDE = re.compile(
    r"^(?:-= Welcome to TextWorld, ALFRED! =-|Your task is to: .*|AVAILABLE ACTIONS: .*)$", re.MULTILINE
)
_ARRIVED = re.compile(r"^You arrive at [\w ]+\. ")
_PUT_SAID = re.compile(r"^You put the (.+) in/on the (.+)\.$")
_SOLVABLE = re.compile(rb'"solvable":\s*true')
_TAIL_BYTES = 1 << 16
# textworld has one parser a process, and fast-downward's translator swaps sys.stdout and sys.argv while it works
_lock = threading.Lock()


def tasks() -> tuple[str, ...]:
    """Names of the tasks: ALFWorld's six types, and all of them together."""
    return TASKS


def data_folder() -> Path:
    """Where ALFWorld keeps its data: ``$ALFWORLD_DATA`` or ``~/.cache/alfworld``."""
    return Path(os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache" / "alfworld").expanduser()


def missing() -> str | None:
    """Why ALFWorld cannot run here and what to do about it; None if it can."""
    if not all(importlib.util.find_spec(name) for name in ("textworld", "fast_downward")):
        return f"ALFWorld needs the extra 'alfworld': pip install 'atlas-ray[alfworld]', then {_GET_GAMES}"
    root = data_folder()
    if not root.is_dir():
        return f"ALFWorld: there is no folder {root} to take games from: {_GET_GAMES}"
    if not (root / _GAMES).is_dir():
        if any((root / folder).is_dir() for folder in FOLDERS.values()):
            return f"ALFWorld: ALFWORLD_DATA is {root}, it must be the folder above: the one that holds {_GAMES}"
        return f"ALFWorld: {root} holds no {_GAMES}: {_GET_GAMES}"
    if not any(next((root / _GAMES / folder).glob("*/*/game.tw-pddl"), None) for folder in FOLDERS.values()):
        return f"ALFWorld: there are no games (game.tw-pddl) under {root / _GAMES}: {_GET_GAMES}"
    return None


def game_of(path: str) -> tuple[str, int] | None:
    """(type, seed) of the game that a path of ALFWorld's data names, wherever that data lies; None if it names none.

    The seed is the time in the name of the trial: 190909012406369460 for ``trial_T20190909_012406_369460``.
    """
    found = _TRIAL.search(path)
    return (found[1], int(found[2] + found[3] + found[4])) if found and found[1] in TYPES else None


@functools.lru_cache(maxsize=32)
def game_files(root: Path, split: str) -> tuple[Path, ...]:
    """The playable games of a split, sorted by path: those that ALFWorld marks as solvable, as its own loader does.

    Args:
        root: ALFWorld's data folder.
        split: ``train``, ``dev`` or ``test``.
    """
    folder = root / _GAMES / FOLDERS[split]
    found = (p for p in folder.glob("*/*/game.tw-pddl") if "movable" not in str(p) and "Sliced" not in str(p))
    return tuple(sorted(p for p in found if _solvable(p)))


def _solvable(path: Path) -> bool:
    with path.open("rb") as file:
        # the mark stands after the long texts; a file is 100 KB and more, and there are thousands
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        if _SOLVABLE.search(file.read()):
            return True
        file.seek(0)
        return bool(_SOLVABLE.search(file.read()))


def _names(identifiers: set[str]) -> dict[str, str]:
    """Names as ALFWorld gives them: ``mug_bar__plus_00_dot_50...`` is ``mug 1``, counted against the alphabet."""
    names, counts = {}, Counter[str]()
    for identifier in sorted(identifiers, reverse=True):
        kind, mark, _ = identifier.partition("_bar_")
        if mark:
            kind += "basin" if "basin" in identifier else ""
            counts[kind] += 1
            kind = f"{kind} {counts[kind]}"
        names[identifier] = kind
    return names


def _told(text: str) -> str:
    return _PUT_SAID.sub(r"You move the \1 to the \2.", _ARRIVED.sub("", _BESIDE.sub("", text).strip()))


class _Planner:
    """A copy of fast-downward's library, which holds the state of one game at a time."""

    # 34 MB each, handed on for ever: the process crashes some time after one was unloaded
    _idle: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        import fast_downward

        try:
            self.library = self._idle.pop()
        except IndexError:
            self.library = fast_downward.load_lib()
        self.leave = weakref.finalize(self, self._idle.append, self.library)
        self.leave.atexit = False


class _Game:
    """A game in play, on textworld's PDDL logic.

    textworld's own environment translates the problem twice, and words every applicable action after every step by its
    grammar (48 ms a step in a kitchen); here an action is worded once a game.
    """

    def __init__(self, path: Path, planner: _Planner) -> None:
        from textworld.envs.pddl.logic import GameLogic, PddlState
        from textworld.generator.game import EntityInfo

        data = json.loads(path.read_text(encoding="utf-8"))
        self.walkthrough: list[str] = data.get("walkthrough") or []
        self.problem: str = data["pddl_problem"]
        self._planner = planner
        with _lock:
            arguments = sys.argv
            try:
                self._logic = GameLogic(domain=data["pddl_domain"], grammar=data["grammar"])
                self._state: Any = PddlState(planner.library, data["pddl_problem"], self._logic)
            finally:
                sys.argv = arguments
        types = {v.name: v.type for fact in self._state.facts for v in fact.arguments}
        self._infos = {identifier: EntityInfo(identifier, kind) for identifier, kind in types.items()}
        for identifier, name in _names(set(types)).items():
            info = self._infos[identifier]
            info.name, info.definite, info.indefinite = name, "the", "a"
        self._worded: dict[tuple[Any, ...], str] = {}
        self._applicable: dict[str, Any] | None = None

    @property
    def won(self) -> bool:
        """Whether the goal holds."""
        return bool(self._state.check_goal())

    def facts(self) -> Iterable[Any]:
        """What holds now."""
        return self._state.facts

    def say(self, rule: str, mapping: Any = None) -> str:
        """Text that the grammar derives in this state."""
        mapping = mapping or {}
        context = {
            "state": self._state,
            "facts": list(self._state.facts),
            "variables": {placeholder.name: self._infos[v.name] for placeholder, v in mapping.items()},
            "mapping": mapping,
            "entity_infos": self._infos,
        }
        with _lock:
            return str(self._logic.grammar.derive(rule, context)).strip()

    def commands(self) -> dict[str, Any]:
        """Every command that can be carried out now, with its action; the first of two with the same words."""
        if self._applicable is None:
            self._applicable = {}
            for action in self._state.all_applicable_actions():
                self._applicable.setdefault(self._command(action), action)
        return self._applicable

    def _command(self, action: Any) -> str:
        template = action.command_template
        words = set(re.findall(r"\w+", template))
        key = (template, *((p.name, v.name) for p, v in action.mapping.items() if p.name in words))
        if key not in self._worded:
            action.command_template = self.say(template, action.mapping)
            self._worded[key] = action.format_command({i: info.name for i, info in self._infos.items()})
        return self._worded[key]

    def meant(self, command: str) -> str:
        """A command in this game's words: until ALFWorld 0.4 they were ``put a in/on b``, and are ``move a to b``."""
        if command not in self.commands():
            for said, other in ((_PUT, r"move \1 to \2"), (_MOVE, r"put \1 in/on \2")):
                if (found := said.fullmatch(command)) and found.expand(other) in self.commands():
                    return found.expand(other)
        return command

    def do(self, command: str) -> str:
        """Carry out a command, in either wording of putting something somewhere."""
        action = self.commands().get(self.meant(command))
        if action is None:
            return _NOTHING
        self._state.apply(action)
        self._applicable = None
        return self.say(action.feedback_rule, action.mapping)

    def leave(self) -> None:
        """End the game: textworld's parser remembers its last call, and would keep the planner from the next game."""
        self._state = None
        self._planner.leave()

    def plan(self) -> list[str]:
        """The planner's commands from here to the goal; empty if there is none."""
        return list(self._state.replan(self._infos))


class ALFWorld(TextEnv):
    """An ALFWorld household task as text.

    A variation is the place of a game among all those of its type, sorted by path: first the games of train, then of
    dev (``valid_seen``), then of test (``valid_unseen``). A seed that :func:`game_of` gives names that very game, in
    whatever split, if it is here. The score is 1 when the goal is reached, else 0: the games do
    not tell how much of it is. What is in the room is told in the first observation only, the goal in ``info`` only.

    Args:
        task: one of ALFWorld's six types or ``all``, with its version: ``pick_two_obj_and_place-v0``.
        max_steps: own step limit of an episode; None is 50, as in ALFWorld.
        split: ``train``, ``dev`` or ``test``; None is all games.

    Raises:
        MissingExtraError: the packages or the games are not there; the message says how to get them.
        UnknownEnvironmentError: there is no such task.
    """

    splits = tuple(FOLDERS)
    packages = ("textworld",)
    cheap_clone: ClassVar[bool] = False

    def __init__(self, task: str = "all-v0", max_steps: int | None = None, split: str | None = None) -> None:
        if task.removesuffix("-v0") not in TASKS:
            raise UnknownEnvironmentError(f"ALFWorld has no task {task!r}; known are {', '.join(TASKS)}")
        if (why := missing()) is not None:
            raise MissingExtraError(why)
        super().__init__(task.removesuffix("-v0"), max_steps, split)
        self.limit = max_steps or 50
        self._root = data_folder()
        self._planner: _Planner | None = None
        self._game: _Game | None = None

    def tasks(self) -> Sequence[str]:
        """The six types, and ``all``."""
        return TASKS

    def variations(self, task: str, split: str | None) -> range:
        """Numbers of the games of a type in a split."""
        counts = {s: len(self._files(task, s)) for s in FOLDERS}
        if split is None:
            return range(sum(counts.values()))
        first = sum(counts[s] for s in list(FOLDERS)[: list(FOLDERS).index(split)])
        return range(first, first + counts[split])

    def _files(self, task: str, split: str) -> list[Path]:
        return [p for p in game_files(self._root, split) if task == "all" or p.parts[-3].startswith(f"{task}-")]

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Of textworld, and which games are here, since variations are places among them."""
        root, found = data_folder(), super().versions()
        if (root / _GAMES).is_dir():
            games = [path for split in FOLDERS for path in game_files(root, split)]
            listed = "".join(f"{path.relative_to(root)} {path.stat().st_size}\n" for path in games)
            found["games"] = f"{len(games)} ({hashlib.sha256(listed.encode()).hexdigest()[:12]})"
        return found

    def variation_of(self, seed: int, choices: Sequence[int]) -> int:
        """See :meth:`TextEnv.variation_of`; of a seed that names a game, that game.

        Raises:
            ValueError: that game is not here.
        """
        if seed < _FIRST_TRIAL:
            return super().variation_of(seed, choices)
        for variation, path in enumerate(self._all_files()):
            if (game := game_of(path.as_posix())) and game[1] == seed:
                return variation
        raise ValueError(f"seed: the game {seed} of {self.task} is not under {self._root / _GAMES}, or is not playable")

    def tells_same(self, shown: str, recorded: str) -> bool:
        """Also where one text has what players add or leave out: the task, where they arrived, the actions there are.

        And where one says ``put ... in/on`` of what the other says ``move ... to``.
        """
        return super().tells_same(_told(shown), _told(recorded))

    def _all_files(self) -> list[Path]:
        return [path for split in FOLDERS for path in self._files(self.task, split)]

    def begin(self, variation: int) -> tuple[str, str]:
        """Load a game (0.6 seconds for a kitchen)."""
        self._planner = self._planner or _Planner()
        self._game = _Game(self._all_files()[variation], self._planner)
        room, _, goal = self._game.say("#intro#").partition("Your task is to:")
        return " ".join(goal.split()), room.partition("=-")[2].strip() or room.strip()

    def do(self, action: str) -> Turn:
        """One of ALFWorld's commands, in any case, of old or new wording; of another it says that nothing happens."""
        game = self._playing()
        text = game.do(" ".join(action.lower().split()))
        won = game.won
        return Turn(text, float(won), success=won, over=won)

    def admissible(self) -> list[str]:
        """Every command that can be carried out now, in alphabetical order."""
        return sorted(self._playing().commands())

    def expert(self, cpu_seconds: float = 2.0) -> Expert:
        """The walkthrough that comes with the game; where it does not fit, rules and a planner that know the state."""
        if self.history:
            raise ExpertGaveUpError("the walkthrough starts at the first step: ask for it right after reset()")
        return Guide(self._playing())

    def clone(self) -> Self:
        """The same episode, replayed."""
        return self.replay_into(type(self)(self.home_task, self.max_steps, self.split))

    def close(self) -> None:
        """Leave the game, and the planner to the next environment; ``reset`` begins anew."""
        if self._game is not None:
            self._game.leave()
        self._game, self._planner, self._done = None, None, True

    def _playing(self) -> _Game:
        if self._game is None:
            raise RuntimeError("no game is loaded: call reset() first")
        return self._game
