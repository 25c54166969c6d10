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
from ray.rllib.utils.replay_buffers.replay_buffer import ReplayBufferInterface

from .features import BUDGET_ENTRY


class TransitionBuffer(ReplayBufferInterface):
    """The last ``capacity`` transitions, drawn uniformly. Implements RLlib's interface of replay buffers.

    Args:
        capacity: transitions kept.
        width: entries of an observation.
        seed: seed of the draws.
        budget: most calls of an episode. What a model does to a state does not depend on the calls left, so whatever is
            drawn is shown with any number of them that allows it, and one episode teaches every budget [ours; the idea
            is that of counterfactual experience for reward machines, Toro Icarte et al. 2022].

    Attributes:
        count: transitions that were ever added.
        ended: episodes that ended.
        charge: what an action costs, ``[actions]``; it is taken from the rewards of whatever is drawn, so that a price
            that changes holds for old transitions too.
    """

    def __init__(self, capacity: int, width: int, seed: int, budget: int | None = None) -> None:
        self.capacity, self.budget = capacity, budget
        self.count = self.ended = 0
        self._first = 0  # transitions before this one were not kept
        self.charge: NDArray[np.float32] | None = None
        self._arrays: dict[str, NDArray[Any]] = {
            Columns.OBS: np.zeros((capacity, width), np.float32),
            Columns.NEXT_OBS: np.zeros((capacity, width), np.float32),
            Columns.ACTIONS: np.zeros(capacity, np.int64),
            Columns.REWARDS: np.zeros(capacity, np.float32),
            Columns.TERMINATEDS: np.zeros(capacity, np.bool_),
        }
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.count - self._first, self.capacity)

    def add(self, episodes: Sequence[SingleAgentEpisode], **kwargs: Any) -> None:
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
            self.ended += bool(episode.is_done)

    def sample(self, num_items: int, **kwargs: Any) -> SampleBatch:
        """``num_items`` transitions, in columns."""
        drawn = (self.count - 1 - self._rng.integers(len(self), size=num_items)) % self.capacity
        if self.budget:
            kept = (self.count - 1 - np.arange(len(self))) % self.capacity
            calls = kept[self._arrays[Columns.ACTIONS][kept] > 0]
            if len(calls):
                half = self._rng.random(num_items) < 0.5
                drawn = np.where(half, calls[self._rng.integers(len(calls), size=num_items)], drawn)
        batch = {name: array[drawn] for name, array in self._arrays.items()}
        if self.charge is not None:
            batch[Columns.REWARDS] -= self.charge[batch[Columns.ACTIONS]]
        if self.budget:
            called = batch[Columns.ACTIONS] > 0
            left = self._rng.integers(called, self.budget + 1)
            batch[Columns.OBS][:, BUDGET_ENTRY] = left / self.budget
            batch[Columns.NEXT_OBS][:, BUDGET_ENTRY] = (left - called) / self.budget
        return SampleBatch(batch)

    def get_state(self, transitions: bool = True) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on drawing the same transitions; without them only the counts."""
        state = {"count": self.count, "ended": self.ended, "rng": self._rng.bit_generator.state}
        if transitions:
            used = min(self.count, self.capacity)
            state |= {"first": self._first, "arrays": {name: a[:used].copy() for name, a in self._arrays.items()}}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a buffer of the same shape."""
        self.count, self.ended = state["count"], state["ended"]
        self._first = state.get("first", self.count)
        for name, array in state.get("arrays", {}).items():
            self._arrays[name][: len(array)] = array
        self._rng.bit_generator.state = state["rng"]
