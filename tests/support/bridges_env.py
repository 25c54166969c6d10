"""Bridges, of which one breaks, so that it is known which step is fatal: ``bridges_env:Bridges/Bridges-v0``."""

from __future__ import annotations

import gymnasium as gym

from atlas_ray import envs

COUNT, LIMIT = 4, 7
DEATHS: dict[tuple[int, int, str], int] = {}
"""Variation, bridge and action -> how many more times the environment dies of it."""


def fatal(variation):
    """The bridge whose left side breaks; everywhere else both sides lead across."""
    return variation % COUNT


class Bridges(envs.TextEnv):
    """Cross all bridges; who has fallen into the river stays there."""

    def variations(self, task, split):
        return range(40)

    def begin(self, variation):
        self.at, self.fallen, self.limit = 0, False, LIMIT
        return "cross the bridges", self.shown

    @property
    def shown(self):
        return f"{'in the river' if self.fallen else f'bridge {self.at}'} of {self.variation}"

    def admissible(self):
        return ["left", "right"]

    def do(self, action):
        if DEATHS.get((self.variation, self.at, action), 0) and not self.fallen:
            DEATHS[self.variation, self.at, action] -= 1
            raise envs.EnvironmentDiedError("the process is gone")
        self.fallen |= self.at == fatal(self.variation) and action == "left"
        self.at += action in ("left", "right") and not self.fallen
        won = self.at == COUNT
        return envs.Turn(self.shown, float(won), won, won)

    def expert(self, cpu_seconds=2.0):
        return KeepsRight()


class KeepsRight:
    """Never falls."""

    def act(self):
        return envs.ExpertStep("keep right", "right")

    def follow(self, action):
        pass


gym.register("Bridges/Bridges-v0", entry_point="bridges_env:Bridges", kwargs={"task": "Bridges-v0"})
