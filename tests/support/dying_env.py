"""A text environment whose process "dies" on cue, registered as ``dying_env:Dying/Doors-v0``."""

from __future__ import annotations

import gymnasium as gym

from atlas_ray import envs

DEATHS: dict[int, int] = {}
"""Seed -> how many more times its episode dies, at its second step."""


class Doors(envs.TextEnv):
    """Turn left ``variation % 3 + 2`` times."""

    splits = ("train", "dev", "test")

    def variations(self, task, split):
        return {None: range(60), "train": range(20), "dev": range(20, 40), "test": range(40, 60)}[split]

    def begin(self, variation):
        self.turned = 0
        return "turn left", f"room {variation}"

    def admissible(self):
        return ["turn left", "go forward"]

    def do(self, action):
        if len(self.history) == 1 and DEATHS.get(self.variation, 0):
            DEATHS[self.variation] -= 1
            raise envs.EnvironmentDiedError("the process is gone")
        self.turned += action == "turn left"
        won = self.turned > self.variation % 3 + 1
        return envs.Turn(f"room {self.variation}, turned {self.turned}", float(won), won, won)

    def expert(self, cpu_seconds=2.0):
        return envs.GoldPath(["turn left"] * (self.variation % 3 + 2))


gym.register("Dying/Doors-v0", entry_point="dying_env:Doors", kwargs={"task": "Doors-v0"})
