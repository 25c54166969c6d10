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
    """Decides for a batch of situations: 1 calls DEEPTHINK, 0 lets QUICK act."""

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """One decision for each situation."""
        ...


@dataclass(frozen=True)
class Always:
    """QUICK everywhere (0) or DEEPTHINK everywhere (1)."""

    action: int

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """The same for all."""
        return [self.action] * len(situations)


@dataclass(frozen=True)
class Random:
    """A call with probability ``rate``; the draw depends on episode and step alone."""

    rate: float
    seed: int = 0

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """A draw for each."""
        draws = (random.Random(decision_seed(f"switch{self.seed}/{s.episode}", s.step)).random() for s in situations)
        return [int(draw < self.rate) for draw in draws]


def play_switching(
    policy: Policy,
    quick: Agent,
    deepthink: Agent,
    specs: Sequence[EnvSpec],
    seeds: Sequence[int],
    budget: int | None = None,
    cost: float = 0.0,
    record: bool = False,
) -> list[dict[str, Any]]:
    """Play the episodes of ``seeds``, as many side by side as the engines have slots.

    Args:
        policy: who acts when.
        quick, deepthink: the two agents.
        specs: seed s plays ``specs[s % len(specs)]``.
        seeds: one episode each.
        budget: calls an episode may make; the guard turns down what is over it.
        cost: c, for ``objective`` only.
        record: also keep the steps.

    Returns:
        A row an episode, in the order of ``seeds``: ``level``, ``seed``, ``success``, ``return`` (of the environment),
        ``objective`` (return less c a call), ``calls``, ``steps``, ``overrides``, ``violations`` (calls over the
        budget: 0, or the guard is broken), ``quick_tokens``, ``deepthink_tokens``, ``flops`` (2 x weights x
        tokens, of both models), and with ``record`` the ``episode``
        itself: ``env``, ``instruction`` and the ``steps`` with the ``actor`` of each.
    """
    rows = min(quick.engine.slots, deepthink.engine.slots, len(seeds))
    game = TextGame(specs, quick, deepthink, rows, 0)
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
        calls = {row: guard.grant(row, bool(g)) for row, g in zip(playing, wanted, strict=True)}
        for row, called in calls.items():
            if called:
                guard.record(row)
        for row, outcome in game.advance(calls).items():
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
    episode, (quick, deepthink) = game.episodes[row], game.tokens(row)
    reward, calls = sum(s.reward for s in episode.steps), sum(episode.acted)
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
        "quick_tokens": quick,
        "deepthink_tokens": deepthink,
        "flops": 2 * (weights[0] * quick + weights[1] * deepthink),
    }


def _replay(episode: Episode) -> dict[str, Any]:
    actors = ("quick", "deepthink")
    return {
        "env": episode.spec.id,
        "instruction": episode.goal,
        "steps": [
            {**step.model_dump(), "actor": actors[deep]}
            for step, deep in zip(episode.steps, episode.acted, strict=True)
        ],
    }
