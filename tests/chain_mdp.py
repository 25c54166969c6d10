"""A chain of 12 states for which the best switch is known exactly.

QUICK fails in four hard states: there it goes on with the probability in ``HARD`` and else the episode ends with
nothing. DEEPTHINK goes on with 0.95 there. Elsewhere both always go on. Behind the last state lies the reward 1.
"""

from __future__ import annotations

import numpy as np

from atlas_ray.switching.environment import Outcome

LENGTH = 12
HARD = {2: 0.5, 5: 0.2, 7: 0.65, 10: 0.35}
DEEP = 0.95


def advances(state: int, call: bool) -> float:
    """Probability of going on from ``state``."""
    return (DEEP if call else HARD[state]) if state in HARD else 1.0


def optimum(gamma: float, cost: float = 0.0, budget: int | None = None) -> dict[tuple[int, int], float]:
    """Values of the best switch by dynamic programming, for every (state, calls left); without a budget left is 0."""
    values: dict[tuple[int, int], float] = {}
    for state in reversed(range(LENGTH + 1)):
        for left in range((budget or 0) + 1):
            if state == LENGTH:
                values[state, left] = 0.0
                continue
            options = [value_of(values, state, left, False, gamma, cost, budget)]
            if budget is None or left > 0:
                options.append(value_of(values, state, left, True, gamma, cost, budget))
            values[state, left] = max(options)
    return values


def value_of(values, state: int, left: int, call: bool, gamma: float, cost: float, budget: int | None) -> float:
    """One-step look-ahead."""
    after = left - 1 if call and budget is not None else left
    gain = 1.0 if state == LENGTH - 1 else gamma * values[state + 1, after]
    return advances(state, call) * gain - cost * call


def policy_value(policy, gamma: float, cost: float = 0.0, budget: int | None = None) -> float:
    """Exact value at the start of ``policy``: a function of features ``[N, F]`` to calls ``[N]``."""
    values: dict[tuple[int, int], float] = {}
    for left in range((budget or 0) + 1):
        values[LENGTH, left] = 0.0
    for state in reversed(range(LENGTH)):
        for left in range((budget or 0) + 1):
            share = 1.0 if budget is None else left / budget if budget else 0.0
            row = np.concatenate([one_hot(state), [share, state / LENGTH]]).astype(np.float32)
            call = bool(policy(row[None])[0])
            assert not (call and budget is not None and left == 0), "the mask must forbid this call"
            values[state, left] = value_of(values, state, left, call, gamma, cost, budget)
    return values[0, budget or 0]


def one_hot(state: int) -> np.ndarray:
    """``[12]`` float32; all zero behind the last state."""
    return (np.arange(LENGTH) == state).astype(np.float32)


class ChainGame:
    """The chain as a :class:`atlas_ray.switching.environment.Game`."""

    width = LENGTH
    models = 2

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.states = [0] * rows
        self.calls = [0] * rows
        self.generators = [np.random.default_rng(0)] * rows
        self.finished: list[int] = []  # calls that reached DEEPTHINK in each finished episode

    def begin(self, row: int, seed: int) -> None:
        self.states[row], self.calls[row] = 0, 0
        self.generators[row] = np.random.default_rng(seed)

    def observe(self, rows) -> np.ndarray:
        return np.stack([one_hot(self.states[row]) for row in rows])

    def step_share(self, row: int) -> float:
        return self.states[row] / LENGTH

    def advance(self, choices):
        outcomes = {}
        for row, call in choices.items():
            self.calls[row] += call
            if self.generators[row].random() < advances(self.states[row], call):
                self.states[row] += 1
                done = self.states[row] == LENGTH
                outcomes[row] = Outcome(float(done), ended=done, success=done)
            else:
                outcomes[row] = Outcome(0.0, ended=True)
            if outcomes[row].over:
                self.finished.append(self.calls[row])
        return outcomes
