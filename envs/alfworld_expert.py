"""The expert of an ALFWorld game: its walkthrough, else straight rules for the six types (ours), else the planner.

The planner takes minutes for some kitchens and cannot be stopped. The rules look at the state alone, so they go on from
whatever was done: fetch a thing of the kind, treat it where the goal says so, bring it where it belongs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .core import ExpertGaveUpError, ExpertStep

_TREATMENTS = {
    "isclean": ("cleanobject", "sinkbasintype", "cleanable"),
    "ishot": ("heatobject", "microwavetype", "heatable"),
    "iscool": ("coolobject", "fridgetype", "coolable"),
}
"""By what is to hold: the action that does it, the type of receptacle it takes, and which things can be treated so."""


class Game(Protocol):
    """What an expert asks of a game."""

    walkthrough: list[str]
    problem: str

    def commands(self) -> dict[str, Any]:
        """Every command that can be carried out now, with its action."""

    def facts(self) -> Iterable[Any]:
        """What holds now: propositions with ``name`` and ``arguments``."""

    def meant(self, command: str) -> str:
        """A command in this game's words."""

    def plan(self) -> list[str]:
        """The planner's commands from here to the goal; empty if there is none."""


@dataclass(frozen=True)
class Goal:
    """What a game asks for: things of a kind, perhaps treated, in a receptacle of a type, or one held beside a lamp."""

    kind: str
    count: int
    receptacle: str | None
    treatment: str | None
    lamp: str | None

    @classmethod
    def of(cls, problem: str) -> Goal | None:
        """The goal of a PDDL problem, if it is one of the six types'."""
        goal = problem.partition("(:goal")[2].lower()
        kinds = re.findall(r"\(objecttype \?o\d? (\w+)\)", goal)
        receptacle = re.search(r"\(receptacletype \?r (\w+)\)", goal)
        lamp = re.search(r"\(objecttype \?ot (\w+)\)", goal)
        if len(set(kinds)) != 1 or "isreceptacleobject" in goal or bool(receptacle) == bool(lamp):
            return None
        treatment = next((name for name in _TREATMENTS if f"({name} " in goal), None)
        return cls(kinds[0], len(kinds), receptacle and receptacle[1], treatment, lamp and lamp[1])


class _Scene:
    """What holds in a game, looked at once."""

    def __init__(self, game: Game) -> None:
        self._holds = defaultdict[str, set[tuple[str, ...]]](set)
        for fact in game.facts():
            self._holds[fact.name].add(tuple(argument.name for argument in fact.arguments))
        self.commands = game.commands()
        # sorted, so that what stands twice is taken alike in every process
        self.place_of = {name: place for name, place in sorted(self._holds["receptacleatlocation"])}
        self.inside = {thing: name for thing, name in sorted(self._holds["inreceptacle"])}
        self.here = next((place for _, place in self._holds["atlocation"]), "")
        self.held = next((thing for _, thing in self._holds["holds"]), None)

    def is_so(self, name: str, *arguments: str) -> bool:
        return arguments in self._holds[name]

    def of_type(self, relation: str, kind: str) -> Sequence[str]:
        return sorted(name for name, type_ in self._holds[relation] if type_ == kind)

    def do(self, action: str, **wanted: str) -> str | None:
        """The command of an action with these arguments, if it can be carried out now."""
        for command, found in self.commands.items():
            if found.name == action:
                given = {placeholder.name: v.name for placeholder, v in found.mapping.items()}
                if wanted.items() <= given.items():
                    return command
        return None

    def at(self, receptacle: str, action: str, **wanted: str) -> str | None:
        """The next command on the way to an action at a receptacle: go there, open it, do it."""
        if self.place_of.get(receptacle) != self.here:
            return self.do("gotolocation", r=receptacle)
        return self.do(action, **wanted) or self.do("openobject", r=receptacle)


def next_command(game: Game, goal: Goal) -> str | None:
    """What to do next towards a goal; None where the rules know nothing."""
    scene = _Scene(game)
    if scene.held is not None and not scene.is_so("objecttype", scene.held, goal.kind):
        return _first(scene.at(r, "putobject", o=scene.held) for r in sorted(scene.place_of, key=_here_first(scene)))
    if goal.lamp is not None:
        return _beside_lamp(scene, goal, goal.lamp)
    assert goal.receptacle is not None
    targets = scene.of_type("receptacletype", goal.receptacle)
    for target in sorted(targets, key=lambda r: -sum(_is_done(scene, goal, o, r) for o in scene.inside)):
        if scene.held is None:
            found = _fetch(scene, goal, target)
        elif goal.treatment and not scene.is_so(goal.treatment, scene.held):
            action, type_, _ = _TREATMENTS[goal.treatment]
            places = scene.of_type("receptacletype", type_)
            found = _first(scene.at(r, action, o=scene.held) for r in places)
        else:
            found = scene.at(target, "putobject", o=scene.held, r=target)
        if found is not None:
            return found
    return None


def _beside_lamp(scene: _Scene, goal: Goal, lamp: str) -> str | None:
    if scene.held is None:
        return _fetch(scene, goal, None)
    lamps = [o for o in scene.of_type("objecttype", lamp) if o in scene.inside and scene.is_so("toggleable", o)]
    return _first(scene.at(scene.inside[o], "toggleobject", o=o) for o in lamps)


def _fetch(scene: _Scene, goal: Goal, target: str | None) -> str | None:
    able = _TREATMENTS[goal.treatment][2] if goal.treatment else "pickupable"
    for thing in scene.of_type("objecttype", goal.kind):
        place = scene.inside.get(thing)
        if place is None or not scene.is_so(able, thing) or (target and _is_done(scene, goal, thing, target)):
            continue
        if (found := scene.at(place, "pickupobject", o=thing, r=place)) is not None:
            return found
    return None


def _is_done(scene: _Scene, goal: Goal, thing: str, target: str) -> bool:
    there = scene.inside.get(thing) == target and scene.is_so("objecttype", thing, goal.kind)
    return there and (goal.treatment is None or scene.is_so(goal.treatment, thing))


def _here_first(scene: _Scene) -> Any:
    return lambda receptacle: (scene.place_of[receptacle] != scene.here, receptacle)


def _first(commands: Iterator[str | None]) -> str | None:
    return next((command for command in commands if command is not None), None)


class Guide:
    """Follows the walkthrough of a game; where there is none, or it does not fit, the rules, and then the planner."""

    def __init__(self, game: Game) -> None:
        self._game, self._left = game, game.walkthrough[::-1]
        self._goal = Goal.of(game.problem)
        self._said: str | None = None

    def act(self) -> ExpertStep:
        """The next command.

        Raises:
            ExpertGaveUpError: the planner finds no way to the goal from here.
        """
        if not self._left or self._game.meant(self._left[-1]) not in self._game.commands():
            known = next_command(self._game, self._goal) if self._goal else None
            self._left = [known] if known else self._game.plan()[::-1]
        if not self._left:
            raise ExpertGaveUpError("ALFWorld: the planner finds no way to the goal")
        self._said = self._game.meant(self._left.pop())
        return ExpertStep(thought=None, action=self._said)

    def follow(self, action: str) -> None:
        """See :meth:`Expert.follow`: after any other action than its own it plans again."""
        expected = self._said if self._said is not None else self._left.pop() if self._left else None
        self._said = None
        if expected is None or self._game.meant(action) != self._game.meant(expected):
            self._left = []
