"""A replay buffer of single transitions in arrays.

RLlib's own buffers keep episode objects; drawing transitions from those and making a batch of them takes longer than
everything else in an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import SampleBatch


class TransitionBuffer:
    """The last ``capacity`` transitions, drawn uniformly.

    Args:
        capacity: transitions kept.
        width: entries of an observation.
        seed: seed of the draws.
    """

    def __init__(self, capacity: int, width: int, seed: int) -> None:
        self.capacity, self.count = capacity, 0
        self._arrays: dict[str, NDArray[Any]] = {
            Columns.OBS: np.zeros((capacity, width), np.float32),
            Columns.NEXT_OBS: np.zeros((capacity, width), np.float32),
            Columns.ACTIONS: np.zeros(capacity, np.int64),
            Columns.REWARDS: np.zeros(capacity, np.float32),
            Columns.TERMINATEDS: np.zeros(capacity, np.bool_),
        }
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def add(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        """Append the transitions of episode chunks as RLlib's environment runners return them."""
        for episode in episodes:
            length = len(episode)
            if not length:
                continue
            # negative indices would reach into what was sampled before this chunk
            observations = np.asarray(episode.get_observations(slice(0, length + 1)), np.float32)
            places = (self.count + np.arange(length)) % self.capacity
            self._arrays[Columns.OBS][places] = observations[:-1]
            self._arrays[Columns.NEXT_OBS][places] = observations[1:]
            self._arrays[Columns.ACTIONS][places] = np.asarray(episode.get_actions(slice(0, length)))
            self._arrays[Columns.REWARDS][places] = np.asarray(episode.get_rewards(slice(0, length)), np.float32)
            self._arrays[Columns.TERMINATEDS][places] = False
            self._arrays[Columns.TERMINATEDS][places[-1]] = episode.is_terminated
            self.count += length

    def sample(self, size: int) -> SampleBatch:
        """``size`` transitions in the columns that DQN's loss reads."""
        drawn = self._rng.integers(len(self), size=size)
        batch = {name: array[drawn] for name, array in self._arrays.items()}
        ones = np.ones(size, np.float32)
        return SampleBatch({**batch, "weights": ones, "n_step": ones})

    def get_state(self) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on drawing the same transitions."""
        used = {name: array[: len(self)].copy() for name, array in self._arrays.items()}
        return {"count": self.count, "arrays": used, "rng": self._rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a buffer of the same shape."""
        self.count = state["count"]
        for name, array in state["arrays"].items():
            self._arrays[name][: len(array)] = array
        self._rng.bit_generator.state = state["rng"]
