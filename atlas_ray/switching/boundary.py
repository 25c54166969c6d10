"""Training begins with both ends: QUICK alone and DEEPTHINK alone on the same seeds, and where they differ (ours).

Budget-aware agentic routing (arXiv 2602.21227) sorts tasks by such runs and trains relative to them. Here their steps
fill the replay buffer, since what a model does to a state is the same whoever chose it; and seeds at which one succeeds
and the other does not are where a call decides: more of the training episodes are of these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .budget import QUICK, BudgetGuard
from .environment import Outcome, SwitchingVectorEnv, features

if TYPE_CHECKING:
    from .env_runners import EnvCreator


class Transitions(NamedTuple):
    """Of an episode of one model: ``observations`` ``[T + 1, F]``, ``rewards`` ``[T]``, and whether it ended there.

    ``success`` is None where the episode was lost.
    """

    seed: int
    model: int
    observations: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    rewards: list[float]
    terminated: bool
    success: bool | None


def play_boundary(env: SwitchingVectorEnv, seeds: Sequence[int]) -> list[Transitions]:
    """Play the episodes of ``seeds`` by QUICK alone, then by the last model alone, without any budget.

    Args:
        env: its game plays, at its costs; it has to be reset before it is used again.
        seeds: of training episodes.
    """
    return [played for model in (QUICK, env.game.models - 1) for played in _play(env, model, seeds)]


def differing(played: Sequence[Transitions]) -> tuple[int, ...]:
    """Seeds at which one of the models succeeds and the other does not, in order. Lost episodes say nothing."""
    ends: dict[int, set[bool]] = {}
    lost = {episode.seed for episode in played if episode.success is None}
    for episode in played:
        if episode.success is not None:
            ends.setdefault(episode.seed, set()).add(episode.success)
    return tuple(sorted(seed for seed, found in ends.items() if len(found) > 1 and seed not in lost))


def _play(env: SwitchingVectorEnv, model: int, seeds: Sequence[int]) -> list[Transitions]:
    game, unlimited = env.game, BudgetGuard(None, env.game.rows)
    waiting, playing = deque(seeds), dict[int, int]()
    seen: dict[int, list[np.ndarray]] = {}
    rewards: dict[int, list[float]] = {}
    found = []
    while waiting or playing:
        for row in range(game.rows):
            if row not in playing and waiting:
                playing[row] = waiting.popleft()
                game.begin(row, playing[row])
                seen[row], rewards[row] = [features(game, unlimited, [row])[0]], []
        outcomes = game.advance(dict.fromkeys(playing, model))
        observed = features(game, unlimited, list(outcomes))
        for (row, outcome), now in zip(outcomes.items(), observed, strict=True):
            if outcome.lost is None:
                seen[row].append(now)
                rewards[row].append(env.reward(outcome, model))
            if outcome.over:
                found.append(_transitions(playing.pop(row), model, seen[row], rewards[row], outcome))
    return sorted(found, key=lambda episode: episode.seed)


def _transitions(
    seed: int, model: int, seen: Sequence[np.ndarray], rewards: list[float], outcome: Outcome
) -> Transitions:
    success = None if outcome.lost is not None else outcome.success
    ended = outcome.lost is None and (outcome.ended or outcome.timeout)
    return Transitions(seed, model, np.stack(seen), rewards, ended, success)


@dataclass(frozen=True)
class Repeating:
    """Makes environments in which a ``share`` of the episodes has seeds of ``seeds``."""

    make_env: EnvCreator
    seeds: tuple[int, ...]
    share: float

    def __call__(self, first_seed: int, stride: int) -> SwitchingVectorEnv:
        """One whose first episode has this number, and the others lie ``stride`` apart."""
        env = self.make_env(first_seed, stride)
        env.repeated, env.repeated_share = self.seeds, self.share
        return env
