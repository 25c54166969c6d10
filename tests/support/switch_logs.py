"""Logs of the games of ``switch_mdps.py``: a random mix of the models, with who acted and how likely that was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from switch_mdps import END, MDP, MDPS

from atlas_ray.data.records import actor
from atlas_ray.switching.logs import LoggedEpisode
from atlas_ray.switching.transitions import Transitions


class CodeEncoder:
    """Reads the number of a state, which is the last word of its text."""

    def __init__(self, mdp: MDP) -> None:
        self.mdp, self.width = mdp, mdp.code.shape[1]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.mdp.code[[int(text.split()[-1]) for text in texts]]


def simulate(name: str, episodes: int, seed: int, call: float = 0.5, budget: int | None = None, run: int = 1):
    """Steps in the order of their episodes: (episode, state, model, its probability), and the episodes' outcomes.

    The large model is called with a probability, as far as a budget allows, and then acts for ``run`` steps.
    """
    mdp, rng = MDPS[name], np.random.default_rng(seed)
    most = max(len(option) for options in mdp.branches for option in options)
    chances, rewards = np.zeros((mdp.states, 2, most)), np.zeros((mdp.states, 2, most))
    targets = np.full((mdp.states, 2, most), END)
    for state, options in enumerate(mdp.branches):
        for model, option in enumerate(options):
            for n, branch in enumerate(option):
                chances[state, model, n], rewards[state, model, n] = branch.probability, branch.reward
                targets[state, model, n] = branch.to
    sums = chances.cumsum(-1)
    states, made = np.zeros(episodes, int), np.zeros(episodes, int)
    outcome, live, taken, goes_on = np.zeros(episodes), np.arange(episodes), [], np.zeros(episodes, int)
    while len(live):
        here = states[live]
        may = np.full(len(live), True) if budget is None else made[live] < budget
        drawn, within = rng.random(len(live)) < call, goes_on[live] > 0
        models = ((drawn | within) & may).astype(int)
        likely = np.where(may & ~within, np.where(models, call, 1 - call), 1.0)
        goes_on[live] = np.where(within, goes_on[live] - 1, (run - 1) * models)
        drawn = (rng.random(len(live))[:, None] >= sums[here, models]).sum(1).clip(max=most - 1)
        taken.append((live, here, models, likely))
        outcome[live] = rewards[here, models, drawn]
        made[live] += models
        states[live] = targets[here, models, drawn]
        live = live[states[live] != END]
    rows, *others = (np.concatenate(part) for part in zip(*taken, strict=True))
    order = np.argsort(rows, kind="stable")
    return (rows[order], *(part[order] for part in others)), outcome


def arrays(
    name: str, episodes: int, seed: int, call: float = 0.5, budget: int | None = None, run: int = 1
) -> Transitions:
    """The same as what learning and estimates read."""
    (rows, states, models, likely), outcome = simulate(name, episodes, seed, call, budget, run)
    mdp = MDPS[name]
    return Transitions(
        encoded=mdp.code[states],
        step_share=np.array(mdp.depth)[states] / mdp.longest,
        actions=models,
        probabilities=likely,
        money=np.full(len(rows), np.nan),
        starts=np.concatenate([[0], np.cumsum(np.bincount(rows))]),
        outcome=outcome,
        success=(outcome > 0).astype(float),
    )


def play(
    name: str, episodes: int, seed: int, call: float = 0.5, budget: int | None = None, money: bool = False
) -> list[LoggedEpisode]:
    """The same as logged episodes."""
    (rows, states, models, likely), outcome = simulate(name, episodes, seed, call, budget)
    seen: list[list[tuple[int, int, float]]] = [[] for _ in range(episodes)]
    for row, *step in zip(rows.tolist(), states.tolist(), models.tolist(), likely.tolist(), strict=True):
        seen[row].append(tuple(step))
    return [
        LoggedEpisode(
            id=f"{name}/{seed}/{n}",
            texts=tuple(f"play\nstate {state}" for state, _, _ in steps),
            actors=tuple(model for _, model, _ in steps),
            probabilities=tuple(likely for _, _, likely in steps),
            outcome=float(outcome[n]),
            success=bool(outcome[n] > 0),
            money=tuple(0.001 + 0.01 * model for _, model, _ in steps) if money else None,
            actions=("a",) * len(steps),
            same=(None,) * len(steps),
        )
        for n, steps in enumerate(seen)
    ]


def trajectory(episode: LoggedEpisode, models: int = 2) -> dict[str, object]:
    """The episode as a line of our format."""
    steps = [
        {"observation": text.partition("\n")[2], "action": "a", "actor": actor(who, models), "probability": likely}
        for text, who, likely in zip(episode.texts, episode.actors, episode.probabilities, strict=True)
    ]
    about = {"id": episode.id, "env": "game", "task": "random", "seed": 0, "instruction": "play", "steps": steps}
    return {**about, "score": episode.outcome, "success": episode.success, "source": "game"}


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """Lines of trajectories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
