"""What switches are worth whose calls come in runs, on the games of ``switch_mdps.py``, by dynamic programming."""

from __future__ import annotations

import numpy as np
from switch_mdps import END, MDP

from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.features import with_shares


def run_values(
    mdp: MDP,
    gamma: float,
    run: int,
    cost: float = 0.0,
    budget: int | None = None,
    choices: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[S, n + 1]`` where a decision is due, and the choices ``[S, n + 1]`` that are best, or those given.

    A call is of the second model, for ``run`` steps or to the end; under a budget it takes the whole run of it.
    """
    lefts = (budget or 0) + 1
    values, best = np.zeros((mdp.states, lefts)), np.zeros((mdp.states, lefts), int)

    def after(state: int, model: int, steps: int, left: int, price: float) -> float:
        """Worth of so many steps of a model from a state, and of what is decided then."""
        total = -price
        for branch in mdp.branches[state][model]:
            ahead = 0.0
            if branch.to != END:
                ahead = values[branch.to, left] if steps == 1 else after(branch.to, model, steps - 1, left, price)
            total += branch.probability * (branch.reward + gamma * ahead)
        return total

    for state in reversed(range(mdp.states)):
        for left in range(lefts):
            worth = [after(state, 0, 1, left, 0.0)]
            if budget is None or left >= run:
                worth.append(after(state, 1, run, left if budget is None else left - run, cost))
            best[state, left] = int(np.argmax(np.round(worth, 12))) if choices is None else choices[state, left]
            if best[state, left] >= len(worth):
                best[state, left] = 0
            values[state, left] = worth[best[state, left]]
    return values, best


def run_choices(mdp: MDP, policy: SwitchPolicy, run: int, budget: int | None = None) -> np.ndarray:
    """``[S, n + 1]``: what a switch decides in every state with every number of calls left, as it is shown them."""
    left = np.arange((budget or 0) + 1)
    shares = np.ones(1) if budget is None else np.where(left >= run, left, 0) / budget
    depth = np.repeat(np.array(mdp.depth) / mdp.longest, len(left))
    seen = with_shares(np.repeat(mdp.code, len(left), axis=0), np.tile(shares, mdp.states).tolist(), depth.tolist())
    return np.array(policy.greedy(seen)).reshape(mdp.states, -1)
