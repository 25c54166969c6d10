"""Small games of which the best switch is known exactly, by dynamic programming.

In every state each model goes on to one of a few states with fixed probabilities. States are numbered so that all
successors of a state have larger numbers, and no state is reached in two numbers of steps. ``MDPS`` holds the games by
name; their numbers are fixed. A policy is a function of features ``[N, F]`` to choices ``[N]``; once evaluated in every
state it is a table ``[S, n + 1]``: the model that acts in each state with 0 to n calls left (without a budget n is 0).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from atlas_ray.switching.environment import Outcome, SwitchingVectorEnv
from atlas_ray.switching.features import with_shares

END = -1
DEEP = 0.95
ROWS = 16


class Branch(NamedTuple):
    """One of the things that may follow: with a probability, for a reward, another state or the end."""

    probability: float
    reward: float = 0.0
    to: int = END


@dataclass(frozen=True)
class MDP:
    """``branches[state][model]``. ``code[state]`` is what is seen of a state; ``depth[state]`` the steps before it."""

    name: str
    branches: Sequence[Sequence[Sequence[Branch]]]
    code: np.ndarray
    depth: Sequence[int]
    weights: Sequence[float] = (0.0, 1.0)
    cumulative: list[list[list[float]]] = field(init=False, repr=False)

    def __post_init__(self):
        sums = [[list(accumulate(b.probability for b in option)) for option in state] for state in self.branches]
        for state, options in enumerate(self.branches):
            assert len(options) == len(self.weights)
            for option, sum_ in zip(options, sums[state], strict=True):
                assert abs(sum_[-1] - 1) < 1e-9
                assert all(b.to == END or self.depth[b.to] == self.depth[state] + 1 for b in option)
                assert all(b.to == END or b.to > state for b in option)
        object.__setattr__(self, "cumulative", sums)

    @property
    def states(self) -> int:
        return len(self.branches)

    @property
    def models(self) -> int:
        return len(self.weights)

    @property
    def longest(self) -> int:
        """Steps of the longest episode."""
        return max(self.depth) + 1


def chain(name: str, length: int, hard: Mapping[int, Sequence[float]], dead_end: int = 0, weights=(0.0, 1.0)) -> MDP:
    """Reward 1 lies behind the last state. ``hard``: each model's probability of going on, by state; elsewhere it is 1.

    Who does not go on is at the end, or on a way of ``dead_end`` steps to it that are worth nothing.
    """
    branches: list[list[list[Branch]]] = []
    depth = list(range(length))
    ways = {state: length + dead_end * i for i, state in enumerate(hard)}
    for state in range(length):
        on = Branch(1.0, 1.0) if state == length - 1 else Branch(1.0, 0.0, state + 1)
        off = ways[state] if dead_end and state in hard else END
        chances = hard.get(state, [1.0] * len(weights))
        branches.append([[on._replace(probability=p), Branch(1 - p, 0.0, off)] for p in chances])
    for state, first in ways.items():
        for step in range(dead_end):
            branches.append([[Branch(1.0, 0.0, first + step + 1 if step < dead_end - 1 else END)]] * len(weights))
            depth.append(state + 1 + step)
    return MDP(name, branches, np.eye(len(branches), dtype=np.float32), depth, weights)


def tree(name: str, depth: int, width: int | None = None) -> MDP:
    """A binary tree of that many decisions, of which each leads to its good child or else to the other.

    Half of the decisions are easy: QUICK takes them as well as DEEPTHINK. Leaves are worth more the more good children
    lead to them. ``width``: of a dense code of the states; without it the code is one-hot.
    """
    rng = random.Random(name)
    states = 2**depth - 1
    branches = []
    for state in range(states):
        quick = rng.choice([0.25, 0.4, 0.55, 0.7] + [DEEP] * 4)
        children = (2 * state + 1, 2 * state + 2)
        if children[0] < states:
            good, other = (Branch(0.0, 0.0, c) for c in children)
        else:
            share = (1 + bin(state + 1)[3:].count("0")) / depth  # bits below the first are the way from the root
            good = Branch(0.0, round(share**2 * rng.uniform(0.7, 1.0), 2))
            other = Branch(0.0, round((share - 1 / depth) ** 2 * rng.uniform(0.7, 1.0), 2))
        branches.append([[good._replace(probability=p), other._replace(probability=1 - p)] for p in (quick, DEEP)])
    code = np.eye(states, dtype=np.float32)
    if width:
        code = np.array([[rng.choice([-1.0, 1.0]) for _ in range(width)] for _ in range(states)], np.float32)
        assert len(np.unique(code, axis=0)) == states
    return MDP(name, branches, code, [(state + 1).bit_length() - 1 for state in range(states)])


def _pairs(quick: Mapping[int, float]) -> dict[int, list[float]]:
    return {state: [p, DEEP] for state, p in quick.items()}


MDPS = {
    mdp.name: mdp
    for mdp in (
        chain("chain-6", 6, _pairs({1: 0.6, 2: 0.3, 4: 0.8})),
        chain("chain-12", 12, _pairs({2: 0.5, 5: 0.2, 7: 0.65, 10: 0.35})),
        chain("chain-20", 20, _pairs({1: 0.8, 4: 0.4, 8: 0.6, 11: 0.9, 15: 0.3, 18: 0.7})),
        chain("dead-ends-12", 12, _pairs({2: 0.5, 5: 0.2, 7: 0.65, 10: 0.35}), dead_end=4),
        tree("tree-4", 4),
        tree("tree-5", 5, width=16),
        chain(
            "three-12",
            12,
            {2: [0.5, 0.9, 0.95], 5: [0.2, 0.4, 0.95], 7: [0.65, 0.9, 0.95], 10: [0.35, 0.5, 0.95]},
            weights=(0.0, 0.3, 1.0),
        ),
    )
}
"""``three-12`` has three models, of which the second costs 0.3 c a call."""

Policy = Callable[[np.ndarray], Sequence[int]]


def features(mdp: MDP, budget: int | None = None) -> np.ndarray:
    """``[S * (n + 1), width + 2]``: every state with every number of calls left, as the environment shows it."""
    lefts = range((budget or 0) + 1)
    share = [1.0] if budget is None else [left / budget if budget else 0.0 for left in lefts]
    steps = [depth / mdp.longest for depth in mdp.depth for _ in lefts]
    return with_shares(np.repeat(mdp.code, len(lefts), axis=0), share * mdp.states, steps)


def action_values(
    mdp: MDP, following: np.ndarray, state: int, gamma: float, cost: float, budget: int | None
) -> np.ndarray:
    """``[models, n + 1]`` in ``state``, given the values ``[S, n + 1]`` of all later states."""
    rows = []
    for model, option in enumerate(mdp.branches[state]):
        gain = sum(b.probability * (b.reward + gamma * (following[b.to] if b.to != END else 0.0)) for b in option)
        gain = np.broadcast_to(gain, following.shape[1:]) - cost * mdp.weights[model]
        rows.append(gain if not model or budget is None else np.concatenate([[-np.inf], gain[:-1]]))
    return np.stack(rows)


def optimum(mdp: MDP, gamma: float, cost: float = 0.0, budget: int | None = None) -> np.ndarray:
    """Values ``[S, n + 1]`` of the best switch; ``[0, -1]`` is the start's."""
    values = np.zeros((mdp.states, (budget or 0) + 1))
    for state in reversed(range(mdp.states)):
        values[state] = action_values(mdp, values, state, gamma, cost, budget).max(0)
    return values


def best_table(mdp: MDP, gamma: float, cost: float = 0.0, budget: int | None = None) -> np.ndarray:
    """The best switch; where models are worth the same, the first of them."""
    values = optimum(mdp, gamma, cost, budget)
    # rounded, or a tie would be broken by the last bit
    numbers = [action_values(mdp, values, s, gamma, cost, budget).round(12) for s in range(mdp.states)]
    return np.stack([q.argmax(0) for q in numbers])


def table(mdp: MDP, policy: Policy, budget: int | None = None) -> np.ndarray:
    """``policy`` in every state; a call where none is left is QUICK's step, as behind the guard."""
    choices = np.array(policy(features(mdp, budget)), int).reshape(mdp.states, -1)
    if budget is not None:
        choices[:, 0] = 0
    return choices


def table_values(
    mdp: MDP, choices: np.ndarray, gamma: float, cost: float = 0.0, budget: int | None = None
) -> np.ndarray:
    """Values ``[S, n + 1]`` of a table."""
    values = np.zeros(choices.shape)
    for state in reversed(range(mdp.states)):
        numbers = action_values(mdp, values, state, gamma, cost, budget)
        values[state] = numbers[choices[state], np.arange(choices.shape[1])]
    return values


def value(mdp: MDP, policy: Policy, gamma: float, cost: float = 0.0, budget: int | None = None) -> float:
    """Exact value of ``policy`` at the start."""
    return float(table_values(mdp, table(mdp, policy, budget), gamma, cost, budget)[0, -1])


def reached(mdp: MDP, choices: np.ndarray, budget: int | None = None) -> set[tuple[int, int]]:
    """(state, calls left) that occur under a table; without a budget none is left."""
    open_, seen = [(0, choices.shape[1] - 1)], set()
    while open_:
        state, left = place = open_.pop()
        if place in seen:
            continue
        seen.add(place)
        model = int(choices[place])
        after = left - 1 if model and budget is not None else left
        open_ += [(b.to, after) for b in mdp.branches[state][model] if b.to != END and b.probability > 0]
    return seen


def switch_set(mdp: MDP, choices: np.ndarray, budget: int | None = None) -> dict[tuple[int, int], int]:
    """The model that is called, by (state, calls left), wherever a table that is followed from the start calls one."""
    return {place: int(choices[place]) for place in sorted(reached(mdp, choices, budget)) if choices[place]}


def mistakes(
    mdp: MDP, choices: np.ndarray, gamma: float, cost: float = 0.0, budget: int | None = None
) -> dict[tuple[int, int], float]:
    """What each step is worth less than the best, by (state, calls left), where a table is not optimal and gets to."""
    best = optimum(mdp, gamma, cost, budget)
    lost = {}
    for state, left in sorted(reached(mdp, choices, budget)):
        number = action_values(mdp, best, state, gamma, cost, budget)[choices[state, left], left]
        if best[state, left] - number > 1e-9:
            lost[state, left] = float(best[state, left] - number)
    return lost


class TabularGame:
    """An :class:`MDP` as a :class:`atlas_ray.switching.environment.Game`."""

    def __init__(self, mdp: MDP, rows: int = ROWS) -> None:
        self.mdp, self.rows = mdp, rows
        self.models, self.width = mdp.models, mdp.code.shape[1]
        self.states = [END] * rows
        self.calls = [0] * rows
        self.steps = 0
        self.finished: list[int] = []
        """Calls that reached a model in each episode that is over or was given up."""
        self._random = [random.Random()] * rows

    def begin(self, row: int, seed: int) -> None:
        if self.states[row] != END:
            self.finished.append(self.calls[row])
        self.states[row], self.calls[row] = 0, 0
        self._random[row] = random.Random(seed)

    def observe(self, rows: Sequence[int]) -> np.ndarray:
        """Of the end: nothing but zeros."""
        states = np.array([self.states[row] for row in rows])
        return np.where((states != END)[:, None], self.mdp.code[states], np.float32(0))

    def step_share(self, row: int) -> float:
        return self.mdp.depth[self.states[row]] / self.mdp.longest if self.states[row] != END else 1.0

    def advance(self, choices: Mapping[int, int]) -> dict[int, Outcome]:
        outcomes = {}
        for row, model in choices.items():
            state = self.states[row]
            drawn = bisect(self.mdp.cumulative[state][model], self._random[row].random())
            branch = self.mdp.branches[state][model][min(drawn, len(self.mdp.branches[state][model]) - 1)]
            self.calls[row] += model != 0
            self.steps += 1
            self.states[row] = branch.to
            ended = branch.to == END
            outcomes[row] = Outcome(
                branch.reward, ended=ended, success=ended and branch.reward > 0, used=self.mdp.weights[model]
            )
            if ended:
                self.finished.append(self.calls[row])
        return outcomes


def make_env(
    name: str, budget: int | None, cost: float, rows: int, first_seed: int, stride: int = 1
) -> SwitchingVectorEnv:
    """The game of that name."""
    mdp = MDPS[name]
    return SwitchingVectorEnv(TabularGame(mdp, rows), first_seed, budget, cost, mdp.weights, stride)


def maker(name: str, budget: int | None = None, cost: float = 0.0, rows: int = ROWS) -> Callable:
    """What :func:`atlas_ray.switching.train.train_switch` makes its environments with; it can be pickled."""
    return partial(make_env, name, budget, cost, rows)
