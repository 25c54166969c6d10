"""AgentGym's BabyAI: its observation, its macro actions and what they lead to, on our minigrid.

Wording, order, routes, messages, reward and end follow the server agentenv-babyai of the public repository
WooooDyy/AgentGym, oddities included, as agents trained on AgentTraj-L know them; the code is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from minigrid.core.constants import DIR_TO_VEC, IDX_TO_COLOR, IDX_TO_OBJECT

_LEFT, _RIGHT, _FORWARD, _PICKUP, _DROP, _TOGGLE = range(6)
_VIEW = 7
_SOLID = ("wall", "box", "lava", "ball", "key")


@dataclass(frozen=True)
class _Thing:
    """Something in view: ``ahead`` and ``right`` of the agent in cells, ``at`` in the grid."""

    name: str
    kind: str
    ahead: int
    right: int
    at: tuple[int, int]


class MacroGame:
    """AgentGym's BabyAI on a minigrid episode that was just begun.

    ``observation`` is the text for the agent without the goal, ``actions`` the macro actions with their moves.

    Args:
        grid_env: a BabyAI environment without wrappers, just reset.
        first: the observation of that reset.
    """

    def __init__(self, grid_env: Any, first: Mapping[str, Any]) -> None:
        self._grid_env, self._image = grid_env, first["image"]
        self.goal = str(grid_env.mission).replace("then", "and").replace("after you", "and")
        self.total = 0.0
        self._reward = 0.0
        self._look()
        self.observation = self._view + self._offer()

    def act(self, action: str) -> bool:
        """Do an action, in any case; ``observation`` and ``total``, the sum of rewards so far, change.

        AgentGym adds the last reward once more for every action that does not move the agent, and a mission fulfilled
        late, for a reward of 0.5 or less, is not over; nor is one that has failed.

        Returns:
            Whether the episode is over.
        """
        action, over = action.lower().strip(), False
        moves = self.actions.get(action, [])
        if "check" in action:
            text = "You can take the following actions: " + ", ".join(self.actions)
        elif moves:
            text, over = self._move(moves)
        elif action in self.actions or not action:
            text = "No change in state."
        else:
            text = self._refusals.get(action, "The action is not recognized. Please check valid actions.")
        self.total += self._reward
        self.observation = text + self._offer()
        return over

    def _move(self, moves: Sequence[int]) -> tuple[str, bool]:
        ended = False
        for move in moves:
            # no stop at the end of the mission: what a move after it earns is what counts, as in AgentGym
            seen, reward, ended, _, _ = self._grid_env.step(move)
            self._reward = float(reward)
            if np.array_equal(seen["image"], self._image):
                break
            self._image = seen["image"]
        self._look()
        return self._view + ("\n The task is completed." if ended else ""), ended and self._reward > 0.5

    def _offer(self) -> str:
        return "\nAvailable actions: [" + ", ".join(f'"{a}"' for a in self.actions) + "]"

    def _look(self) -> None:
        env = self._grid_env
        self._at, self._facing = (int(env.agent_pos[0]), int(env.agent_pos[1])), int(env.agent_dir)
        self._things = self._seen()
        self._routes: dict[tuple[tuple[int, int], bool], list[int] | None] = {}
        facing = (t for t in self._things if t.kind in ("wall", "box") and t.right == 0)
        self._barrier = next(facing, None)
        self._view = self._words()
        self.actions: dict[str, list[int]] = {"turn left": [_LEFT], "turn right": [_RIGHT]}
        self._refusals: dict[str, str] = {}
        if self._barrier is None or self._barrier.ahead > 1:
            self.actions["move forward"] = [_FORWARD]
        else:
            self._refusals["move forward"] = "There is a barrier in front of you, you can't move forward."
        if env.carrying is None:
            self._number("pickup", "You cannot pickup", lambda t: t.kind not in ("wall", "door", "goal"), [_PICKUP])
        self._offer_drop()
        self._offer_doors()
        for thing in self._things:
            if thing.kind == "goal":
                self._add("go to goal", self._route(thing.at, arrive=True), "You cannot go to the goal")
        self._number("go to", "You cannot go to", lambda t: t.kind not in ("wall", "goal"), [])
        self.actions["check available actions"] = []

    def _seen(self) -> list[_Thing]:
        forward, right = DIR_TO_VEC[self._facing], DIR_TO_VEC[(self._facing + 1) % 4]
        found = []
        for row in range(_VIEW):
            for column in range(_VIEW):
                index, color, state = (int(v) for v in self._image[column, row])
                kind, ahead, aside = IDX_TO_OBJECT[index], _VIEW - 1 - row, column - _VIEW // 2
                x, y = (int(v) for v in np.array(self._at) + forward * ahead + right * aside)
                if kind in (*_SOLID, "door", "goal") and min(x, y) >= 0 and (ahead or aside):
                    words = [IDX_TO_COLOR[color], ("open", "closed", "locked")[state] if kind == "door" else "", kind]
                    found.append(_Thing(" ".join(filter(None, words)), kind, ahead, aside, (x, y)))
        return sorted(found, key=lambda t: t.ahead + abs(t.right))

    def _words(self) -> str:
        said = ["In front of you in this room, you can see several objects: "]
        if not self._things:
            said = ["You cannot see any objects within sight."]
        count: dict[str, int] = {}
        for thing in self._things:
            if thing.kind == "wall":
                continue
            count[thing.name] = count.get(thing.name, 0) + 1
            where = f"right in front of you {thing.ahead} steps away. "
            if thing.right:
                side = "right" if thing.right > 0 else "left"
                where = f"{thing.ahead} steps in front of you and {abs(thing.right)} steps to your {side}. "
            said.append(f"There is a {thing.name} {count[thing.name]} {where} ")
        said.append("The room has walls around you. ")
        if self._barrier is not None:
            said.append(f"You are facing a {self._barrier.kind} {self._barrier.ahead} steps away. ")
        held = self._grid_env.carrying
        said.append(f"You are carrying a {held.color} {held.type}." if held else "You are not carrying anything.")
        return "".join(said)

    def _add(self, action: str, moves: list[int] | None, sorry: str) -> None:
        if moves is None:
            self._refusals[action] = f"{sorry}, as there is no path leading to it."
        else:
            self.actions[action] = moves

    def _number(self, verb: str, sorry: str, wanted: Callable[[_Thing], bool], last: list[int]) -> None:
        # things that cannot be reached get no number here, but they have one in the description
        count: dict[str, int] = {}
        for thing in filter(wanted, self._things):
            route, name = self._route(thing.at), f"{thing.name} {count.get(thing.name, 0) + 1}"
            self._add(f"{verb} {name}", None if route is None else route + last, f"{sorry} {name}")
            if route is not None:
                count[thing.name] = count.get(thing.name, 0) + 1

    def _offer_drop(self) -> None:
        (x, y), (dx, dy) = self._at, DIR_TO_VEC[self._facing]
        if self._grid_env.carrying is None:
            self._refusals["drop"] = "You cannot drop the object, as you are not carrying anything."
        elif any(t.at == (x + dx, y + dy) and t.kind in _SOLID for t in self._things):
            self._refusals["drop"] = "You cannot drop the object, as there is already an object in front of you."
        else:
            self.actions["drop"] = [_DROP]

    def _offer_doors(self) -> None:
        held, count = self._grid_env.carrying, dict[str, int]()
        for door in (t for t in self._things if t.kind == "door"):
            count[door.name] = count.get(door.name, 0) + 1
            name, (color, state, _) = f"{door.name} {count[door.name]}", door.name.split()
            through, toggle = f"go through {name}", f"toggle and go through {name}"
            if state == "open":
                self._add(through, self._route(door.at, arrive=True), f"You cannot {through}")
                continue
            if state == "locked" and (held is None or held.type != "key"):
                self._refusals[toggle] = f"You cannot {toggle}, as you are not carrying a key."
                continue
            if state == "locked" and held.color != color:
                why = "the color of the key you are carrying does not match the color of door"
                self._refusals[toggle] = f"You cannot {toggle}, as {why}."
                continue
            route = self._route(door.at)
            # AgentGym prints its count of all doors where the number belongs
            sorry = f"You cannot toggle and go through {door.name} {count}"
            self._add(toggle, None if route is None else [*route, _TOGGLE, _FORWARD], sorry)
            if route == []:
                self.actions["toggle"] = [_TOGGLE]
            if state == "closed":
                self._refusals[through] = f"You cannot {through}, as it is closed. You should toggle it first."

    def _route(self, goal: tuple[int, int], arrive: bool = False) -> list[int] | None:
        """Moves to a cell, or until the agent faces it. Doors are no obstacle, closed or not."""
        if (goal, arrive) not in self._routes:
            self._routes[goal, arrive] = self._search(goal, arrive)
        return self._routes[goal, arrive]

    def _search(self, goal: tuple[int, int], arrive: bool) -> list[int] | None:
        forward, right = DIR_TO_VEC[self._facing], DIR_TO_VEC[(self._facing + 1) % 4]
        corners = [np.array(self._at) + forward * a + right * r for a, r in ((6, -3), (-1, 4))]
        # AgentGym's bounds: on an axis that falls from the view's far left corner they hold one cell more
        bounds = [
            range(b, a + 1) if b < a else range(a, b) for a, b in zip(*(c.tolist() for c in corners), strict=True)
        ]
        solid = {t.at for t in self._things if t.kind in _SOLID}
        start = (self._at, self._facing)
        came: dict[tuple[tuple[int, int], int], tuple[tuple[tuple[int, int], int], int]] = {}
        queue, taken = deque([start]), set()
        while queue:
            place = queue.popleft()
            taken.add(place)
            (x, y), facing = place
            ahead = (x + int(DIR_TO_VEC[facing][0]), y + int(DIR_TO_VEC[facing][1]))
            if goal == ((x, y) if arrive else ahead):
                moves = []
                while place != start:
                    place, move = came[place]
                    moves.append(move)
                return moves[::-1]
            turns = (
                (_FORWARD, (ahead, facing)),
                (_LEFT, ((x, y), (facing - 1) % 4)),
                (_RIGHT, ((x, y), (facing + 1) % 4)),
            )
            for move, step in turns:
                # a place is done when it leaves the queue, not when it enters: routes are not always the shortest
                if (
                    step not in taken
                    and step[0] not in solid
                    and all(v in b for v, b in zip(step[0], bounds, strict=True))
                ):
                    queue.append(step)
                    came[step] = place, move
        return None
