"""Critical steps by value: where counterfactual roll-outs of a model say that the expert's move helped.

ATLaS (section on selectors, as read in our notes) finds such a selector on a par with its oracle, with 5 roll-outs a
step and a critical step where the value jumps. Threshold, horizon and ties are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import envs

from ..agents import Agent
from ..rollout import Start, play
from ..trajectory import Annotation, Trajectory, cap


@dataclass(frozen=True)
class ValueConfig:
    """How values are estimated."""

    rollouts: int
    horizon: int
    max_steps: int | None


class ReplayError(RuntimeError):
    """The environment no longer answers the recorded actions as it did."""


def snapshots(trajectory: Trajectory, max_steps: int | None) -> list[envs.TextEnv]:
    """Clones of the environment before every step of the trajectory.

    Raises:
        ReplayError: an observation differs from the recorded one.
    """
    env = envs.make(trajectory.env, max_steps=max_steps)
    observation, _ = env.reset(seed=trajectory.seed)
    clones: list[envs.TextEnv] = []
    for index, step in enumerate(trajectory.steps):
        if observation != step.observation:
            raise ReplayError(f"{trajectory.id}: step {index} shows another observation than the recorded one")
        clones.append(env.clone())
        observation, _, _, _, _ = env.step(step.action)
    return clones


def _lane(trajectory: Trajectory, clones: Sequence[envs.TextEnv], k: int) -> Iterator[Start]:
    """The k-th roll-out from every state in turn: each one's history is a prefix of the next one's."""
    for index, env in enumerate(clones):
        yield Start(
            id=f"{trajectory.id}@{index}#{k}",
            env=env.clone(),
            instruction=trajectory.instruction,
            observation=trajectory.steps[index].observation,
            steps=list(trajectory.steps[:index]),
        )


def estimate_values(
    agent: Agent, trajectories: Sequence[Trajectory], config: ValueConfig
) -> tuple[dict[str, list[float]], list[str], int]:
    """Monte-Carlo values of the agent from every state that the expert visited.

    Returns:
        (values, problems, steps): for each trajectory id T + 1 values, the mean return of the roll-outs from each
        state, and 0.0 for the state behind the last step; what could not be replayed; environment steps spent.
    """
    problems: list[str] = []
    sums: dict[str, list[float]] = {}

    def lanes() -> Iterator[Iterator[Start]]:
        for trajectory in trajectories:
            try:
                clones = snapshots(trajectory, config.max_steps)
            except ReplayError as error:
                problems.append(str(error))
                continue
            sums[trajectory.id] = [0.0] * (len(trajectory.steps) + 1)
            yield from (_lane(trajectory, clones, k) for k in range(config.rollouts))

    spent = 0
    for finished in play(agent, lanes(), config.horizon):
        spent += len(finished.steps)
        trajectory_id, _, rest = finished.start.id.rpartition("@")
        if finished.error:
            problems.append(f"{finished.start.id}: {finished.error}")
        sums[trajectory_id][int(rest.split("#")[0])] += finished.reward
    return {i: [v / config.rollouts for v in values] for i, values in sums.items()}, problems, spent


def gains(trajectory: Trajectory, values: Sequence[float]) -> list[float]:
    """What each step of the expert added: ``r_t + V(s_{t+1}) - V(s_t)``, undiscounted."""
    return [step.reward + values[t + 1] - values[t] for t, step in enumerate(trajectory.steps)]


def select_by_value(trajectory: Trajectory, values: Sequence[float], fraction: float, model: str) -> Annotation:
    """At most ``cap(fraction, T)`` steps of the largest gain above 0, at least the best one; the earlier wins ties."""
    gain = gains(trajectory, values)
    ranked = sorted(range(len(gain)), key=lambda t: (-gain[t], t))
    helpful = [t for t in ranked[: cap(fraction, len(gain))] if gain[t] > 0]
    critical = sorted(helpful or ranked[:1])
    return Annotation(
        trajectory_id=trajectory.id,
        selector="value",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: f"value {values[t]:.2f} -> {trajectory.steps[t].reward + values[t + 1]:.2f}" for t in critical},
        model=model,
    )
