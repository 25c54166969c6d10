"""A linear model of what follows when a policy goes on: fitted Q evaluation, for the doubly robust estimate.

For each model that may act, ridge regression on the encoded state, the share of the steps, the share of the budget and
its product with the state (Le, Voloshin and Yue 2019, fitted Q evaluation; the features are ours). Its errors cost the
estimate precision, not its truth, as the correction is weighted by known probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..models.hashed_words import Vector
from .features import BUDGET_ENTRY
from .transitions import Floats, Transitions

Decide = Callable[[Vector], NDArray[np.int64]]
"""Features ``[N, F]`` to the number of the model that acts in each."""

_RIDGE = 1.0
_MOST_SWEEPS = 200
_BUDGETS_SHOWN = 4
"""Numbers of calls left, at most, with which each logged step is shown to the fit."""


class FittedValues:
    """What an episode still brings, by state and model, when a policy acts from the next step on.

    Args:
        logs: steps to fit to, other than those that are to be judged.
        decide: the policy.
        rewards: of each step, ``[N, M]``: M sums are fitted side by side.
        most: the largest value of each sum, ``[M]``; none is below 0.
        models: how many may act.
        budget: most calls of an episode; None for no limit.
        seed: of the numbers of calls left that are shown.
    """

    def __init__(
        self,
        logs: Transitions,
        decide: Decide,
        rewards: Floats,
        most: Floats,
        models: int,
        budget: int | None,
        seed: int = 0,
    ) -> None:
        self._most, self._budgeted = most, bool(budget)
        obs, following, actions, last, index = _shown(logs, budget, np.random.default_rng(seed))
        self._weights = np.zeros((models, _design(obs[:1], self._budgeted).shape[1], len(most)))
        chosen = decide(following)
        own = [actions == number for number in range(models)]
        here = [_design(obs[rows], self._budgeted) for rows in own]
        ahead = _design(following, self._budgeted)
        inverses = [np.linalg.inv(x.T @ x + _RIDGE * np.eye(x.shape[1])) for x in here]
        gains = rewards[index]
        for _ in range(min(_MOST_SWEEPS, int(np.diff(logs.starts).max()))):
            aims = gains + np.where(last[:, None], 0.0, self._of(ahead, chosen))
            before = self._weights
            fits = [inv @ (x.T @ aims[rows]) for inv, x, rows in zip(inverses, here, own, strict=True)]
            self._weights = np.stack(fits)
            if np.abs(self._weights - before).max() < 1e-6:
                break

    def __call__(self, features: Vector, actions: NDArray[np.int64]) -> Floats:
        """``[N, M]``: what still comes after these models' steps in these states, within its bounds."""
        return self._of(_design(features, self._budgeted), actions)

    def _of(self, design: Floats, actions: NDArray[np.int64]) -> Floats:
        found = np.zeros((len(actions), len(self._most)))
        for number, weights in enumerate(self._weights):
            rows = actions == number
            found[rows] = design[rows] @ weights
        return found.clip(0.0, self._most)


def _shown(
    logs: Transitions, budget: int | None, rng: np.random.Generator
) -> tuple[Vector, Vector, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Features of logged steps and of the steps behind them, who acted, whether that was the last, and which it was."""
    count = len(logs.actions)
    index = np.tile(np.arange(count), min(budget, _BUDGETS_SHOWN) if budget else 1)
    obs, actions = logs.features(0.0 if budget == 0 else 1.0)[index], logs.actions[index]
    following = np.roll(obs, -1, axis=0)
    last = np.zeros(count, np.bool_)
    last[logs.lasts] = True
    if budget:
        called = actions > 0
        left = rng.integers(called, budget + 1)
        obs[:, BUDGET_ENTRY], following[:, BUDGET_ENTRY] = left / budget, (left - called) / budget
    return obs, following, actions, last[index], index


def _design(features: Vector, budgeted: bool) -> Floats:
    x = features.astype(np.float64)
    parts = [x, np.ones((len(x), 1))]
    if budgeted:
        parts.append(np.delete(x, BUDGET_ENTRY, axis=1) * x[:, BUDGET_ENTRY, None])
    return np.concatenate(parts, axis=1)
