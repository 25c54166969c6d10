"""Text episodes in which one of several agents acts at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import envs

from ..agents import Agent, Decision
from ..rollout import EnvSpec, decision_seed, fresh
from ..trajectory import Step
from .encoders import Encoder
from .environment import Outcome
from .features import Vector

_MOST_DEATHS = 3


@dataclass
class Episode:
    """A text episode in play. ``acted`` tells for every step which model took it."""

    spec: EnvSpec
    seed: int
    own_seed: int
    env: envs.TextEnv
    goal: str
    observation: str
    fed_before: tuple[int, ...]
    steps: list[Step] = field(default_factory=list)
    acted: list[int] = field(default_factory=list)
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
    """Implements :class:`atlas_ray.switching.environment.Game` for text environments and two agents or more.

    All agents hold the true history, whoever acted; the key-value cache of one that was not asked for some steps
    catches up at its next call, so an episode costs each model the tokens it really had to read. Every vector step asks
    each agent once, for all of its rows.

    Args:
        specs: drawn in turn: seed s plays ``specs[s % len(specs)]``.
        agents: from QUICK to DEEPTHINK, with at least ``rows`` slots.
        rows: episodes side by side.
        encoder: what a switch reads them with.
    """

    def __init__(
        self, specs: Sequence[EnvSpec], agents: Sequence[Agent], rows: int, encoder: Encoder | None = None
    ) -> None:
        if min(agent.engine.slots for agent in agents) < rows:
            raise ValueError(f"{rows} episodes side by side need as many slots in all engines")
        self.specs = list(specs)
        self.agents = tuple(agents)
        self.rows, self.models = rows, len(self.agents)
        self.encoder = encoder
        self.width = encoder.width if encoder else 0
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

    def observe(self, rows: Sequence[int]) -> Vector:
        """Goal and observation as ``[len(rows), width]``."""
        texts = [self.episodes[row].text for row in rows]
        return self.encoder(texts) if self.encoder else np.zeros((len(rows), 0), np.float32)

    def step_share(self, row: int) -> float:
        """Steps taken over the step limit."""
        episode = self.episodes[row]
        return len(episode.steps) / episode.env.limit

    def advance(self, choices: Mapping[int, int]) -> dict[int, Outcome]:
        """One step of every row in ``choices``; one batch for each agent."""
        outcomes = {}
        for row, decision in self._decide(choices).items():
            episode = self.episodes[row]
            following, reward, terminated, truncated, info = self._step(episode, decision.action)
            step = Step(
                observation=episode.observation, thought=decision.thought, action=decision.action, reward=reward
            )
            episode.steps.append(step)
            episode.acted.append(choices[row])
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

    def _decide(self, choices: Mapping[int, int]) -> dict[int, Decision]:
        decisions: dict[int, Decision] = {}
        for number, agent in enumerate(self.agents):
            rows = sorted(r for r, choice in choices.items() if choice == number)
            offered = [self.episodes[r].env.admissible() for r in rows]
            seeds = [decision_seed(self.episodes[r].id, len(self.episodes[r].steps)) for r in rows]
            decisions |= dict(zip(rows, agent.act(rows, offered, seeds), strict=True))
        return decisions

    def tokens(self, row: int) -> tuple[int, ...]:
        """Fed to each model in this episode."""
        return tuple(n - b for n, b in zip(self._fed(row), self.episodes[row].fed_before, strict=True))

    def _fed(self, row: int) -> tuple[int, ...]:
        return tuple(agent.engine.tokens_fed[row] for agent in self.agents)
