"""Playing with a switch, or with one of the baselines it has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..agents import Agent
from ..rollout import EnvSpec, decision_seed
from .budget import Budget
from .policy import Situation
from .text import Episode, TextGame


class Policy(Protocol):
    """Decides for a batch of situations: the number of the model that acts, 0 for QUICK."""

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """One decision for each situation."""
        ...


@dataclass(frozen=True)
class Always:
    """One model everywhere, by its number: 0 is QUICK."""

    action: int

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """The same for all."""
        return [self.action] * len(situations)


@dataclass(frozen=True)
class Random:
    """A call of model ``action`` with probability ``rate``; the draw depends on episode and step alone."""

    rate: float
    seed: int = 0
    action: int = 1

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """A draw for each."""
        draws = (random.Random(decision_seed(f"switch{self.seed}/{s.episode}", s.step)).random() for s in situations)
        return [self.action * (draw < self.rate) for draw in draws]


def play_switching(
    policy: Policy,
    agents: Sequence[Agent],
    specs: Sequence[EnvSpec],
    seeds: Sequence[int],
    budget: int | None = None,
    cost: float = 0.0,
    record: bool = False,
) -> list[dict[str, Any]]:
    """Play the episodes of ``seeds``, as many side by side as the engines have slots.

    Args:
        policy: who acts when.
        agents: from QUICK to DEEPTHINK.
        specs: seed s plays ``specs[s % len(specs)]``.
        seeds: one episode each.
        budget: calls an episode may make; the guard turns down what is over it.
        cost: c, for ``objective`` only.
        record: also keep the steps.

    Returns:
        A row an episode, in the order of ``seeds``: ``level``, ``seed``, ``success``, ``return`` (of the environment),
        ``objective`` (return less c a call), ``calls``, ``steps``, ``overrides``, ``violations`` (calls over the
        budget: 0, or the guard is broken), ``tokens`` (fed to each model), ``flops`` (2 x weights x tokens, of
        all models), and with ``record`` the ``episode``
        itself: ``env``, ``instruction`` and the ``steps`` with the ``actor`` of each.
    """
    rows = min(*(agent.engine.slots for agent in agents), len(seeds))
    game = TextGame(specs, agents, rows)
    guard = Budget(budget, rows)
    waiting = list(seeds)[::-1]
    results: dict[int, dict[str, Any]] = {}
    playing: list[int] = []
    for row in range(rows):
        game.begin(row, waiting.pop())
        guard.start(row)
        playing.append(row)
    while playing:
        wanted = policy.decide([_situation(game, guard, row) for row in playing])
        choices = {row: guard.grant(row, g) for row, g in zip(playing, wanted, strict=True)}
        for row, choice in choices.items():
            if choice:
                guard.record(row)
        for row, outcome in game.advance(choices).items():
            if not outcome.over:
                continue
            episode = game.episodes[row]
            results[episode.seed] = _result(game, guard, row, cost) | ({"episode": _replay(episode)} if record else {})
            if waiting:
                game.begin(row, waiting.pop())
                guard.start(row)
            else:
                playing.remove(row)
    return [results[s] for s in seeds]


def _situation(game: TextGame, guard: Budget, row: int) -> Situation:
    episode = game.episodes[row]
    return Situation(episode.text, guard.left[row], game.step_share(row), episode.id, len(episode.steps))


def _result(game: TextGame, guard: Budget, row: int, cost: float) -> dict[str, Any]:
    episode, tokens = game.episodes[row], game.tokens(row)
    reward, calls = sum(s.reward for s in episode.steps), sum(map(bool, episode.acted))
    weights = [agent.engine.parameters for agent in game.agents]
    return {
        "level": episode.spec.name,
        "seed": episode.seed,
        "success": episode.success,
        "return": reward,
        "objective": reward - cost * calls,
        "calls": calls,
        "steps": len(episode.steps),
        "overrides": guard.overrides[row],
        "violations": 0 if guard.calls is None else max(0, calls - guard.calls),
        "tokens": list(tokens),
        "flops": sum(2 * w * t for w, t in zip(weights, tokens, strict=True)),
    }


def _replay(episode: Episode) -> dict[str, Any]:
    return {
        "env": episode.spec.id,
        "instruction": episode.goal,
        "steps": [
            {**step.model_dump(), "actor": "deepthink" if number else "quick"}
            for step, number in zip(episode.steps, episode.acted, strict=True)
        ],
    }
