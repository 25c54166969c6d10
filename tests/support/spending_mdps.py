"""The games of ``switch_mdps`` in which steps cost tokens, unlike ones, with the best switch under a budget of those.

``Spends[state][model]`` are (probability, tokens) of what the model may take there; the largest is its worst case. An
episode ends where the worst case of QUICK does not fit what is left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
from switch_mdps import END, MDP, MDPS, ROWS, TabularGame

from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.spending import PER_DOLLAR, Amount

CENT = PER_DOLLAR // 100
Spends = Sequence[Sequence[Sequence[tuple[float, int]]]]


def spends_of(mdp: MDP, most: int = 6, seed: str = "spends", quick: int = 1) -> Spends:
    """Unlike in every state, and by chance; QUICK takes 0 to ``quick``."""
    rng = random.Random(f"{mdp.name}/{seed}")

    def one(top: int) -> list[tuple[float, int]]:
        worst = rng.randint(0, top)
        return [(0.5, worst), (0.5, rng.randint(0, worst))]

    return [[one(quick), *(one(most) for _ in range(mdp.models - 1))] for _ in range(mdp.states)]


def worst(spends: Spends, state: int, model: int) -> int:
    return max(tokens for _, tokens in spends[state][model])


def values_of(mdp: MDP, spends: Spends, gamma: float, budget: int, choices: np.ndarray | None = None) -> np.ndarray:
    """Values ``[S, n + 1]`` of a table of models ``[S, n + 1]``, or of the best one; what does not fit is QUICK's."""
    return _solve(mdp, spends, gamma, budget, choices)[0]


def best_choices(mdp: MDP, spends: Spends, gamma: float, budget: int) -> np.ndarray:
    """The model that acts in each state with 0 to n tokens left; of equal ones the first."""
    return _solve(mdp, spends, gamma, budget, None)[1]


def _solve(mdp, spends, gamma, budget, choices):
    values = np.zeros((mdp.states, budget + 1))
    taken = np.zeros((mdp.states, budget + 1), int)
    for state in reversed(range(mdp.states)):
        for left in range(budget + 1):
            fit = [m for m in range(mdp.models) if worst(spends, state, m) <= left]
            if 0 not in fit:
                continue
            worth = {m: _worth(mdp, spends, gamma, values, state, left, m) for m in fit}
            if choices is None:
                model = max(fit, key=lambda m: (round(worth[m], 12), -m))
            else:
                model = int(choices[state, left]) if int(choices[state, left]) in fit else 0
            values[state, left], taken[state, left] = worth[model], model
    return values, taken


def _worth(mdp, spends, gamma, values, state, left, model):
    total = 0.0
    for chance, tokens in spends[state][model]:
        for b in mdp.branches[state][model]:
            following = 0.0 if b.to == END else values[b.to, left - tokens]
            total += chance * b.probability * (b.reward + gamma * following)
    return total


class PaidGame(TabularGame):
    """A game that says what its steps cost. ``silent``: share of the steps of which it does not say what they took.

    ``spent``: what every row was charged, at worst where it is silent; ``most``: in any episode so far.
    """

    def __init__(self, mdp: MDP, spends: Spends, rows: int = ROWS, silent: float = 0.0, scale: int = 1) -> None:
        super().__init__(mdp, rows)
        self.spends, self.silent, self.scale = spends, silent, scale
        self.spent, self.most, self.stopped = [0] * rows, 0, 0

    def begin(self, row: int, seed: int) -> None:
        super().begin(row, seed)
        self.spent[row] = 0

    def _amount(self, tokens: int, model: int) -> Amount:
        return Amount(int(model > 0), tokens, tokens * self.scale)

    def worst_cases(self, row: int) -> list[Amount]:
        return [self._amount(worst(self.spends, self.states[row], m), m) for m in range(self.models)]

    def stop(self, row: int) -> None:
        self.stopped += 1
        self.states[row] = END
        self.finished.append(self.calls[row])

    def advance(self, choices):
        states = list(self.states)
        outcomes = super().advance(choices)
        for row, model in choices.items():
            rng, options = self._random[row], self.spends[states[row]][model]
            tokens = rng.choices([t for _, t in options], [p for p, _ in options])[0]
            told = None if rng.random() < self.silent else self._amount(tokens, model)
            self.spent[row] += worst(self.spends, states[row], model) if told is None else tokens
            self.most = max(self.most, self.spent[row])
            outcomes[row] = outcomes[row].__class__(**{**vars(outcomes[row]), "spent": told})
        return outcomes


def make_paid_env(name: str, budget: int, rows: int, first_seed: int, stride: int = 1) -> SwitchingVectorEnv:
    """The game of that name under a budget of tokens."""
    mdp = MDPS[name]
    return SwitchingVectorEnv(
        PaidGame(mdp, spends_of(mdp), rows), first_seed, budget, 0.0, mdp.weights, stride, "tokens"
    )


def paid_maker(name: str, budget: int, rows: int = ROWS):
    """What :func:`atlas_ray.switching.train.train_switch` makes its environments with."""
    return partial(make_paid_env, name, budget, rows)
