"""Logged episodes as arrays: what a switch saw at each step, who acted, how likely that was, and how it ended.

What a model does to a state does not depend on the calls left, and what is left follows exactly from the budget and the
calls so far. So the arrays hold no budget: whoever reads them sets its entry, and one log teaches every budget [ours;
:class:`atlas_ray.switching.replay_buffer.TransitionBuffer` does the same online]. That holds for logs of another budget
too, where steps without a choice have the probability 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..models.encoders import Encoder
from ..models.hashed_words import Vector
from ..rundir.files import replacing
from .features import DISCOUNTS, with_shares
from .logs import LoggedEpisode
from .past import Past
from .signals import NOT_FITTED, Weights, of_episode

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Transitions:
    """N steps of E episodes, one episode after the other.

    Attributes:
        encoded: what the encoder makes of each state, then its signals, ``[N, width]``.
        step_share: share of the steps that was used before it, ``[N]``.
        actions: number of the model that acted, ``[N]``.
        probabilities: with which it was chosen, ``[N]``.
        money: dollars, NaN where they are not known, ``[N]``.
        starts: each episode's first step, and N behind the last, ``[E + 1]``.
        outcome: what was reported of each end, ``[E]``.
        success: 1 or 0, NaN where it is not known, ``[E]``.
    """

    encoded: Vector
    step_share: Floats
    actions: NDArray[np.int64]
    probabilities: Floats
    money: Floats
    starts: NDArray[np.int64]
    outcome: Floats
    success: Floats

    @classmethod
    def of(
        cls,
        episodes: Sequence[LoggedEpisode],
        encoder: Encoder,
        max_steps: int | Sequence[int],
        signals: Sequence[str] = (),
        weights: Weights = NOT_FITTED,
    ) -> Transitions:
        """Those of some episodes.

        Args:
            episodes: as they were logged.
            encoder: of texts.
            max_steps: what a share of the steps is of, in all of them or in each.
            signals: of the past.
            weights: of those that are fitted.
        """
        texts = [text for episode in episodes for text in episode.texts]
        seen = [encoder(texts), *(_of_past(name, episodes, weights) for name in signals)]
        lengths = np.array([len(episode.actors) for episode in episodes])
        nothing = [(np.nan,) * n for n in lengths]
        limits = np.repeat(np.broadcast_to(max_steps, lengths.shape), lengths)
        numbers = np.array([n for e in episodes for n in e.numbers or range(len(e.actors))])
        return cls(
            encoded=np.concatenate(seen, axis=1),
            step_share=np.minimum(1.0, numbers / limits),
            actions=np.array([a for episode in episodes for a in episode.actors], np.int64),
            probabilities=np.array([p for episode in episodes for p in episode.probabilities]),
            money=np.array([m for e, none in zip(episodes, nothing, strict=True) for m in e.money or none]),
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            outcome=np.array([episode.outcome for episode in episodes]),
            success=np.array([np.nan if e.success is None else float(e.success) for e in episodes]),
        )

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.outcome)

    @property
    def lasts(self) -> NDArray[np.int64]:
        """Each episode's last step, ``[E]``."""
        return self.starts[1:] - 1

    def features(self, budget_share: Floats | float = 1.0) -> Vector:
        """What a switch sees, ``[N, width + 2]``, with such a share of its budget left."""
        shares = np.broadcast_to(budget_share, self.step_share.shape)
        return with_shares(self.encoded, shares.tolist(), self.step_share.tolist())

    def calls_before(self) -> NDArray[np.int64]:
        """Calls that each step's episode had made before it, ``[N]``."""
        called = np.concatenate([[0], np.cumsum(self.actions > 0)])
        return called[:-1] - np.repeat(called[self.starts[:-1]], np.diff(self.starts))

    def rewards(self) -> Floats:
        """The outcome at each episode's last step, without costs, ``[N]``."""
        found = np.zeros(len(self.actions))
        found[self.lasts] = self.outcome
        return found

    def columns(
        self, models: int, run: int = 1, gamma: float = 1.0, rewards: Floats | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """What learning reads, by RLlib's names, with :func:`uncertainty`. Behind the last step all entries are 0.

        Args:
            models: how many there are.
            run: steps of a call. With more than one the rows are decisions, as
                :class:`atlas_ray.switching.replay_buffer.TransitionBuffer` has them: discounted rewards up to the next,
                its discount (``DISCOUNTS``), and the discounted number of its steps (``DURATIONS``).
            gamma: discount of a step within a run.
            rewards: of each step, ``[N]``; without it the outcomes.
        """
        rewards = self.rewards() if rewards is None else rewards
        first = self._decisions(run)
        behind = np.append(first[1:], len(self.actions))
        lengths, episode_ends = behind - first, np.isin(behind, self.starts[1:])
        within = gamma ** (np.arange(len(self.actions)) - np.repeat(first, lengths))
        obs = self.features()
        following = np.concatenate([obs, np.zeros_like(obs[:1])])[behind]
        following[episode_ends] = 0
        runs = {DISCOUNTS: gamma**lengths, DURATIONS: np.add.reduceat(within, first)} if run > 1 else {}
        return {
            "obs": obs[first],
            "new_obs": following,
            "actions": self.actions[first],
            "rewards": np.add.reduceat(within * rewards, first).astype(np.float32),
            "terminateds": episode_ends,
            UNCERTAINTY: uncertainty(self.encoded[first], self.encoded[first], self.actions[first], models),
            **{name: column.astype(np.float32) for name, column in runs.items()},
        }

    def _decisions(self, run: int) -> NDArray[np.int64]:
        """The steps at which a model was chosen: all but those within a call of so many steps."""
        if run == 1:
            return np.arange(len(self.actions))
        found = []
        for start, end in pairwise(self.starts.tolist()):
            at = start
            while at < end:
                found.append(at)
                at += run if self.actions[at] else 1
        return np.array(found)


def write_transitions(path: Path, columns: Mapping[str, NDArray[np.generic]]) -> None:
    """Write :meth:`Transitions.columns` as a Parquet file for Ray Data, atomically; rows know their place."""
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {INDEX: pa.array(np.arange(len(columns["actions"])))}
    for name, column in columns.items():
        flat = pa.array(column.ravel())
        arrays[name] = flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    with replacing(path) as temporary:
        parquet.write_table(pa.table(arrays), temporary)


UNCERTAINTY, INDEX, DURATIONS = "uncertainty", "index", "durations"


def _of_past(name: str, episodes: Sequence[LoggedEpisode], weights: Weights) -> Vector:
    """A signal of each state's past, ``[N, 1]``."""
    values = [of_episode(name, weights, e.texts[n], past) for e in episodes for n, past in enumerate(pasts(e))]
    return np.array(values, np.float32)[:, None]


def pasts(episode: LoggedEpisode) -> list[Past]:
    """What was before each step; one goal throughout, so a text stands for what was seen."""
    whole = Past(episode.texts, episode.actions, episode.actors)
    return [whole.until(n) for n in range(len(episode.actors))]


def split(episodes: Sequence[LoggedEpisode], share: float) -> tuple[list[LoggedEpisode], list[LoggedEpisode]]:
    """Episodes to learn from, and a ``share`` of them, by their ids, that is kept from learning."""
    order = sorted(range(len(episodes)), key=lambda n: (crc32(episodes[n].id.encode()), n))
    held = set(order[: round(share * len(episodes))])
    return [e for n, e in enumerate(episodes) if n not in held], [e for n, e in enumerate(episodes) if n in held]


def uncertainty(states: Vector, encoded: Vector, actions: NDArray[np.int64], models: int) -> Vector:
    r"""How little is known of each model in each state, ``[M, models]``, 0 (much) to 1 (nothing).

    :math:`x^T (I + \sum_i x_i x_i^T)^{-1} x` over the logged steps i of that model, for unit vectors x: the elliptical
    bonus of pessimistic value iteration (Jin et al. 2021), squared. Where no two states share an entry it is ``1 / (1 +
    n)`` for n such steps.

    Args:
        states: encoded states to judge, ``[M, width]``.
        encoded: those of the logs, ``[N, width]``.
        actions: who acted there, ``[N]``.
        models: how many there are.
    """
    asked, known = _unit(states), _unit(encoded)
    found = []
    for number in range(models):
        own = known[actions == number]
        inverse = np.linalg.inv(np.eye(known.shape[1]) + own.T @ own)
        found.append(((asked @ inverse) * asked).sum(1))
    return np.stack(found, axis=1).clip(0, 1).astype(np.float32)


def _unit(vectors: Vector) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float64) / np.where(lengths, lengths, 1)
