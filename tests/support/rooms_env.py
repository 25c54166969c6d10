"""Rooms joined at random, in which the best way is known: ``rooms_env:Rooms/Rooms-v0``."""

from __future__ import annotations

import random
from collections import deque

import gymnasium as gym

from atlas_ray import envs

ACTIONS = ("blue", "green", "red")
COUNT = 9
GOAL, END, PIT = COUNT - 1, COUNT - 2, COUNT - 3
"""The goal; a room that ends the episode without success; one that nobody leaves."""
LIMIT = 9


def doors(variation):
    """Where each door of each room leads, from which room one starts, and the moves from each room to the goal."""
    rng = random.Random(variation)
    while True:
        leads = [[rng.randrange(COUNT) for _ in ACTIONS] for _ in range(COUNT)]
        leads[PIT] = [PIT] * len(ACTIONS)
        away = {GOAL: 0}
        waiting = deque([GOAL])
        while waiting:
            room = waiting.popleft()
            for other in range(COUNT):
                if room in leads[other] and other not in (*away, END):
                    away[other] = away[room] + 1
                    waiting.append(other)
        if starts := [room for room in range(PIT) if 3 <= away.get(room, 0) <= 5]:
            return leads, starts[0], away


class Knowing:
    """Goes the shortest way from wherever it stands; where there is none, it goes on through the first door."""

    def __init__(self, env):
        self.env = env

    def act(self):
        env = self.env
        action = min(ACTIONS, key=lambda a: env.away.get(env.leads[env.room][ACTIONS.index(a)], 99))
        return envs.ExpertStep(f"leave room {env.room}", action)

    def follow(self, action):
        pass


class Rooms(envs.TextEnv):
    """Find the goal."""

    guide = "knowing"
    """``path``: its expert knows the way from the start only."""

    def variations(self, task, split):
        return range(100)

    def begin(self, variation):
        self.leads, self.room, self.away = doors(variation)
        self.limit = LIMIT
        return "find the goal", self.shown

    @property
    def shown(self):
        return f"room {self.room} of {self.variation}"

    def admissible(self):
        return list(ACTIONS)

    def do(self, action):
        self.room = self.leads[self.room][ACTIONS.index(action)]
        won = self.room == GOAL
        return envs.Turn(self.shown, float(won), won, self.room in (GOAL, END))

    def expert(self, cpu_seconds=2.0):
        if self.guide == "knowing":
            return Knowing(self)
        twin, path = self.clone(), []
        while twin.room != GOAL:
            path.append(Knowing(twin).act().action)
            twin.do(path[-1])
        return envs.GoldPath(path)


gym.register("Rooms/Rooms-v0", entry_point="rooms_env:Rooms", kwargs={"task": "Rooms-v0"})
