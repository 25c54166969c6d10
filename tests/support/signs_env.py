"""Roads whose signs say where a scripted QUICK fails, as ``signs_env:Signs/Roads-v0``, and that QUICK."""

from __future__ import annotations

import gymnasium as gym

from atlas_ray import envs
from atlas_ray.agents.token_agent import Decision
from atlas_ray.switching.players import ExpertPlayer

JUNCTIONS = 6


def signs(variation):
    """Of each junction: an odd variation is a hard road with red signs, an even one has none; the first is green."""
    reds = variation // 2 % 31 + 1 if variation % 2 else 0
    return ["green", *("red" if reds >> n & 1 else "green" for n in range(JUNCTIONS - 1))]


class Roads(envs.TextEnv):
    """Go left at a green sign and right at a red one; the other way leads back to the same junction."""

    splits = ("train", "dev", "test")

    def variations(self, task, split):
        return {None: range(186), "train": range(62), "dev": range(62, 124), "test": range(124, 186)}[split]

    def begin(self, variation):
        self.signs, self.at, self.limit = signs(variation), 0, 3 * JUNCTIONS
        return "go to the end", self.shown

    @property
    def shown(self):
        road = "hard" if "red" in self.signs else "easy"
        sign = f"a {self.signs[self.at]} sign" if self.at < JUNCTIONS else "the end"
        return f"a {road} road, junction {self.at}, {sign}"

    def admissible(self):
        return ["left", "right"]

    @property
    def right_way(self):
        return "right" if self.signs[self.at] == "red" else "left"

    def do(self, action):
        self.at += action == self.right_way
        won = self.at == JUNCTIONS
        return envs.Turn(self.shown, float(won), won, won)

    def expert(self, cpu_seconds=2.0):
        return Knowing(self)


class Knowing:
    """Reads the signs."""

    def __init__(self, env):
        self.env = env

    def act(self):
        return envs.ExpertStep("", self.env.right_way)

    def follow(self, action):
        pass


class AlwaysLeft(ExpertPlayer):
    """A QUICK that never reads the signs."""

    def fork(self):
        return AlwaysLeft(self.engine.slots)

    def act(self, slots, actions, seeds):
        return [Decision(None, "left") for _ in slots]


gym.register("Signs/Roads-v0", entry_point="signs_env:Roads", kwargs={"task": "Roads-v0"})
