"""A replay buffer of single transitions in arrays.

RLlib's own buffers keep episode objects; drawing transitions from those and making a batch of them takes longer than
everything else in an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.replay_buffers.replay_buffer import ReplayBufferInterface

from ..data.replies import Replies
from .environment import RUN_LEFT
from .features import BUDGET_ENTRY, DISCOUNTS


@dataclass
class _Run:
    """Steps of a run so far: the state in which it was decided, the model, and their discounted rewards."""

    state: NDArray[np.float32]
    action: int
    reward: float = 0.0
    steps: int = 0


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
        run: steps of a call. Those of a run are one transition, from the state of one decision to that of the next,
            with their discounted rewards and a discount of its own (``DISCOUNTS``): a semi-Markov decision process
            (Sutton, Precup and Singh 1999).
        gamma: discount of a step within a run.

    A step whose model gave no answer (``info["lost"]`` says why) was none: it is left out, what came before it in the
    episode is kept, and its state is bootstrapped from like that of any cut [ours].

    Attributes:
        count: transitions that were ever added.
        dropped: steps that were left out.
        merged: steps that are in the transition of another.
        ended: episodes that ended.
        replies: of each model in all steps, by ``info["replies"]``; nothing where no model writes.
        reasons: of each model's last answer that was none.
        charge: what an action costs, ``[actions]``; it is taken from the rewards of whatever is drawn, so that a price
            that changes holds for old transitions too.
    """

    def __init__(
        self,
        capacity: int,
        width: int,
        seed: int,
        budget: int | None = None,
        counts_calls: bool = True,
        run: int = 1,
        gamma: float = 1.0,
    ) -> None:
        self.capacity, self.budget, self.counts_calls = capacity, budget, counts_calls
        self.run, self.gamma = run, gamma
        self.count = self.dropped = self.merged = self.ended = 0
        self._begun: dict[str, _Run] = {}  # by episode
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
        if run > 1:
            self._arrays[DISCOUNTS] = np.zeros(capacity, np.float32)
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
            if self.run > 1:
                self._add_runs(episode, observations, length, lost)
                continue
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

    def _add_runs(
        self, episode: SingleAgentEpisode, observations: NDArray[np.float32], length: int, lost: bool
    ) -> None:
        """Append the steps of a chunk, those of a run as one; a run may go on in the episode's next chunk."""
        actions, rewards = episode.get_actions(slice(0, length)), episode.get_rewards(slice(0, length))
        infos, begun = episode.get_infos(slice(0, length + 1)), self._begun.pop(episode.id_, None)
        for t in range(length):
            last = lost and t == length - 1
            if not last:
                begun = begun or _Run(observations[t], int(actions[t]))
                begun.reward += self.gamma**begun.steps * float(rewards[t])
                begun.steps += 1
            if begun is None or (infos[t + 1][RUN_LEFT] and not last):
                continue
            ended = episode.is_terminated and t == length - 1
            self._arrays[DISCOUNTS][self.count % self.capacity] = self.gamma**begun.steps
            self.add_arrays(
                np.stack([begun.state, observations[t + 1]]), np.array([begun.action]), [begun.reward], ended
            )
            self.merged += begun.steps - 1
            begun = None
        if begun is not None:
            self._begun[episode.id_] = begun

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
            used = self.run * (batch[Columns.ACTIONS] > 0)
            left = self._rng.integers(used, self.budget + 1)
            for name, z in ((Columns.OBS, left), (Columns.NEXT_OBS, left - used)):
                # what allows no whole run is nothing, as BudgetGuard shows it
                batch[name][:, BUDGET_ENTRY] = np.where(z < self.run, 0, z) / self.budget
        return SampleBatch(batch)

    def get_state(self, transitions: bool = True) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on drawing the same transitions; without them only the counts."""
        state = {"count": self.count, "ended": self.ended, "rng": self._rng.bit_generator.state}
        state |= {
            "dropped": self.dropped,
            "merged": self.merged,
            "replies": {n: r.row() for n, r in self.replies.items()},
        }
        if transitions:
            used = min(self.count, self.capacity)
            state |= {"first": self._first, "arrays": {name: a[:used].copy() for name, a in self._arrays.items()}}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a buffer of the same shape."""
        self.count, self.ended = state["count"], state["ended"]
        self.dropped, self.merged = state.get("dropped", 0), state.get("merged", 0)
        self.replies = {number: Replies(row) for number, row in state.get("replies", {}).items()}
        self._first = state.get("first", self.count)
        for name, array in state.get("arrays", {}).items():
            self._arrays[name][: len(array)] = array
        self._rng.bit_generator.state = state["rng"]
