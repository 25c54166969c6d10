"""A replay buffer of single transitions in arrays.

RLlib's own buffers keep episode objects; drawing transitions from those and making a batch of them takes longer than
everything else in an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.replay_buffers.replay_buffer import ReplayBufferInterface

from ..data.replies import Replies
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
        counts_calls: whether the budget is in calls; in tokens or money nothing says what another budget would have
            allowed, and a transition is shown as it was.

    A step whose model gave no answer (``info["lost"]`` says why) was none: it is left out, what came before it in the
    episode is kept, and its state is bootstrapped from like that of any cut [ours].

    Attributes:
        count: transitions that were ever added.
        dropped: steps that were left out.
        ended: episodes that ended.
        replies: of each model in all steps, by ``info["replies"]``; nothing where no model writes.
        reasons: of each model's last answer that was none.
        charge: what an action costs, ``[actions]``; it is taken from the rewards of whatever is drawn, so that a price
            that changes holds for old transitions too.
    """

    def __init__(
        self, capacity: int, width: int, seed: int, budget: int | None = None, counts_calls: bool = True
    ) -> None:
        self.capacity, self.budget, self.counts_calls = capacity, budget, counts_calls
        self.count = self.dropped = self.ended = 0
        self.replies: dict[int, Replies] = {}
        self.reasons: dict[int, str] = {}
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
            lost = self._take_infos(episode, length)
            self.ended += bool(episode.is_done)
            self.dropped += lost
            length -= lost
            if not length:
                continue
            actions, rewards = (np.asarray(get(slice(0, length))) for get in (episode.get_actions, episode.get_rewards))
            self.add_arrays(observations[: length + 1], actions, rewards, episode.is_terminated)

    def add_arrays(
        self, observations: NDArray[np.float32], actions: NDArray[Any], rewards: ArrayLike, terminated: bool
    ) -> None:
        """Append steps ``[T]`` that follow each other, with observations ``[T + 1, F]``; the last may end it."""
        length = len(actions)
        if not length:
            return
        places = (self.count + np.arange(length)) % self.capacity
        self._arrays[Columns.OBS][places] = observations[:-1]
        self._arrays[Columns.NEXT_OBS][places] = observations[1:]
        self._arrays[Columns.ACTIONS][places] = actions
        self._arrays[Columns.REWARDS][places] = np.asarray(rewards, np.float32)
        self._arrays[Columns.TERMINATEDS][places] = False
        self._arrays[Columns.TERMINATEDS][places[-1]] = terminated
        self.count += length

    def fill(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Hold these transitions, as many as there is room for, in place of all others; further columns come along."""
        self._arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
        self.count = self.capacity

    def _take_infos(self, episode: SingleAgentEpisode, length: int) -> bool:
        """Count what the models wrote in the steps of a chunk; whether the last of these is none."""
        infos = episode.get_infos(slice(0, length + 1))
        for info in infos[1:]:
            for number, replies in enumerate(info.get("replies", ())):
                self.replies.setdefault(number, Replies()).add(replies)
                if info["lost"] is not None and replies.get("lost"):
                    self.reasons[number] = info["lost"]
        return infos[-1].get("lost") is not None

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
        if self.budget and self.counts_calls:
            called = batch[Columns.ACTIONS] > 0
            left = self._rng.integers(called, self.budget + 1)
            batch[Columns.OBS][:, BUDGET_ENTRY] = left / self.budget
            batch[Columns.NEXT_OBS][:, BUDGET_ENTRY] = (left - called) / self.budget
        return SampleBatch(batch)

    def get_state(self, transitions: bool = True) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on drawing the same transitions; without them only the counts."""
        state = {"count": self.count, "ended": self.ended, "rng": self._rng.bit_generator.state}
        state |= {"dropped": self.dropped, "replies": {n: r.row() for n, r in self.replies.items()}}
        if transitions:
            used = min(self.count, self.capacity)
            state |= {"first": self._first, "arrays": {name: a[:used].copy() for name, a in self._arrays.items()}}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a buffer of the same shape."""
        self.count, self.ended = state["count"], state["ended"]
        self.dropped = state.get("dropped", 0)
        self.replies = {number: Replies(row) for number, row in state.get("replies", {}).items()}
        self._first = state.get("first", self.count)
        for name, array in state.get("arrays", {}).items():
            self._arrays[name][: len(array)] = array
        self._rng.bit_generator.state = state["rng"]
