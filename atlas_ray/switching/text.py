"""Text episodes in which either of two agents acts at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import envs

from ..agents import Agent, Decision
from ..rollout import EnvSpec, decision_seed, fresh
from ..trajectory import Step
from .environment import Outcome
from .features import Vector, encode

_MOST_DEATHS = 3


@dataclass
class Episode:
    """A text episode in play. ``acted`` tells for every step whether DEEPTHINK took it."""

    spec: EnvSpec
    seed: int
    own_seed: int
    env: envs.TextEnv
    goal: str
    observation: str
    fed_before: tuple[int, int]
    steps: list[Step] = field(default_factory=list)
    acted: list[bool] = field(default_factory=list)
    success: bool = False
    deaths: int = 0

    @property
    def id(self) -> str:
        """The same for the same environment and seed, wherever it is played."""
        return f"{self.spec.id}/{self.seed}"

    @property
    def text(self) -> str:
        """What a switch reads: goal and observation."""
        return f"{self.goal}\n{self.observation}"


class TextGame:
    """Implements :class:`atlas_ray.switching.environment.Game` for text environments and two agents.

    Both agents hold the true history, whoever acted; the key-value cache of one that was not asked for some steps
    catches up at its next call, so an episode costs each model the tokens it really had to read. Every vector step asks
    each agent once, for all of its rows.

    Args:
        specs: drawn in turn: seed s plays ``specs[s % len(specs)]``.
        quick, deepthink: agents with at least ``rows`` slots.
        rows: episodes side by side.
        width: entries of the encoded text.
    """

    def __init__(self, specs: Sequence[EnvSpec], quick: Agent, deepthink: Agent, rows: int, width: int) -> None:
        if min(quick.engine.slots, deepthink.engine.slots) < rows:
            raise ValueError(f"{rows} episodes side by side need as many slots in both engines")
        self.specs = list(specs)
        self.agents = (quick, deepthink)
        self.rows, self.width = rows, width
        self.episodes: dict[int, Episode] = {}

    def begin(self, row: int, seed: int) -> None:
        """Start the episode of ``seed``, with both agents."""
        if row in self.episodes:
            envs.release(self.episodes[row].env)
        spec = self.specs[seed % len(self.specs)]
        # the seeds of one of several environments are len(specs) apart, and would skip episodes where they are few
        own = seed if spec.endless else seed // len(self.specs)
        start = fresh(spec, own, f"{spec.id}/{seed}")
        for agent in self.agents:
            # or an episode's compute would depend on what was played in this row before
            agent.engine.forget(row)
            agent.start(row, start.instruction, [], start.observation)
        self.episodes[row] = Episode(spec, seed, own, start.env, start.instruction, start.observation, self._fed(row))

    def encoded(self, row: int) -> Vector:
        """Goal and observation as ``[width]``."""
        return encode(self.episodes[row].text, self.width)

    def step_share(self, row: int) -> float:
        """Steps taken over the step limit."""
        episode = self.episodes[row]
        return len(episode.steps) / episode.env.limit

    def advance(self, calls: Mapping[int, bool]) -> dict[int, Outcome]:
        """One step of every row in ``calls``; one batch for each agent."""
        outcomes = {}
        for row, decision in self._decide(calls).items():
            episode = self.episodes[row]
            following, reward, terminated, truncated, info = self._step(episode, decision.action)
            step = Step(
                observation=episode.observation, thought=decision.thought, action=decision.action, reward=reward
            )
            episode.steps.append(step)
            episode.acted.append(calls[row])
            episode.observation, episode.success = following, info["success"]
            for agent in self.agents:
                agent.advance(row, step, following)
            full = not all(agent.fits(row) for agent in self.agents)
            outcomes[row] = Outcome(reward, terminated, truncated, full, info["success"])
        return outcomes

    def _step(self, episode: Episode, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Step the episode; one whose environment dies is replayed to the same state, or the models' answers are lost.

        Raises:
            envs.EnvironmentDiedError: it died ``_MOST_DEATHS`` times, or its replay went another way.
        """
        while True:
            try:
                return episode.env.step(action)
            except envs.EnvironmentDiedError:
                episode.deaths += 1
                if episode.deaths >= _MOST_DEATHS:
                    raise
                episode.env = fresh(episode.spec, episode.own_seed).env
                observation = episode.observation
                for step in episode.steps:
                    observation = episode.env.step(step.action)[0]
                if observation != episode.observation:
                    raise

    def _decide(self, calls: Mapping[int, bool]) -> dict[int, Decision]:
        decisions: dict[int, Decision] = {}
        for deep, agent in enumerate(self.agents):
            rows = sorted(r for r, called in calls.items() if called == bool(deep))
            offered = [self.episodes[r].env.admissible() for r in rows]
            seeds = [decision_seed(self.episodes[r].id, len(self.episodes[r].steps)) for r in rows]
            decisions |= dict(zip(rows, agent.act(rows, offered, seeds), strict=True))
        return decisions

    def tokens(self, row: int) -> tuple[int, int]:
        """Fed to (QUICK, DEEPTHINK) in this episode."""
        now, before = self._fed(row), self.episodes[row].fed_before
        return now[0] - before[0], now[1] - before[1]

    def _fed(self, row: int) -> tuple[int, int]:
        quick, deepthink = (agent.engine.tokens_fed[row] for agent in self.agents)
        return quick, deepthink
