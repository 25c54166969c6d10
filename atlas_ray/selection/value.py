"""Critical steps by value: where counterfactual roll-outs of a model say that the expert's move helped.

ATLaS (section on selectors, as read in our notes) finds such a selector on a par with its oracle, with 5 roll-outs a
step and a critical step where the value jumps. Threshold, horizon and ties are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import envs

from ..agents import Agent
from ..rollout import EnvSpec, Start, fresh, play
from ..trajectory import Annotation, Trajectory, cap


@dataclass(frozen=True)
class ValueConfig:
    """How values are estimated. ``specs`` are the environments of the trajectories, by id."""

    rollouts: int
    horizon: int
    specs: Mapping[str, EnvSpec]


class ReplayError(RuntimeError):
    """The environment no longer answers the recorded actions as it did."""


class Clonable(Protocol):
    """Something that gives independent environments in one state."""

    def clone(self) -> envs.TextEnv:
        """One more."""
        ...


@dataclass(frozen=True)
class Prefix:
    """The state behind some actions of an episode, for environments that are replayed rather than copied."""

    spec: EnvSpec
    seed: int
    actions: tuple[str, ...]

    def clone(self) -> envs.TextEnv:
        """An environment brought to this state."""
        for attempt in range(3):
            env = fresh(self.spec, self.seed).env
            try:
                for action in self.actions:
                    env.step(action)
                break
            except envs.EnvironmentDiedError:
                envs.release(env)
                if attempt == 2:
                    raise
        return env


def snapshots(trajectory: Trajectory, spec: EnvSpec) -> Sequence[Clonable]:
    """The environment before every step of the trajectory, to be cloned.

    Raises:
        ReplayError: an observation differs from the recorded one.
    """
    start = fresh(spec, trajectory.seed)
    env, observation = start.env, start.observation
    actions = tuple(step.action for step in trajectory.steps)
    found: list[Clonable] = []
    try:
        for index, step in enumerate(trajectory.steps):
            if observation != step.observation:
                raise ReplayError(f"{trajectory.id}: step {index} shows another observation than the recorded one")
            found.append(env.clone() if env.cheap_clone else Prefix(spec, trajectory.seed, actions[:index]))
            observation, _, _, _, _ = env.step(step.action)
    finally:
        envs.release(env)
    return found


def replayed(trajectory: Trajectory, specs: Mapping[str, EnvSpec]) -> Sequence[Clonable]:
    """:func:`snapshots` in the environment of the trajectory, one of ``specs`` by id.

    Raises:
        ReplayError: the environment is none of them, or an observation differs from the recorded one.
    """
    if trajectory.env not in specs:
        raise ReplayError(
            f"{trajectory.id}: the recipe collects nothing from {trajectory.env}, so its steps cannot be replayed"
        )
    return snapshots(trajectory, specs[trajectory.env])


def _lane(trajectory: Trajectory, states: Sequence[Clonable], k: int) -> Iterator[Start]:
    """The k-th roll-out from every state in turn: each one's history is a prefix of the next one's."""
    for index, state in enumerate(states):
        yield Start(
            id=f"{trajectory.id}@{index}#{k}",
            env=state.clone(),
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
        state (lost ones left out), and 0.0 for the state behind the last step; what could not be replayed or was lost;
        environment steps spent.
    """
    problems: list[str] = []
    returns: dict[str, list[list[float]]] = {}

    def lanes() -> Iterator[Iterator[Start]]:
        for trajectory in trajectories:
            try:
                states = replayed(trajectory, config.specs)
            except (ReplayError, envs.EnvironmentDiedError) as error:
                problems.append(str(error))
                continue
            returns[trajectory.id] = [[] for _ in trajectory.steps]
            yield from (_lane(trajectory, states, k) for k in range(config.rollouts))

    spent = 0
    for finished in play(agent, lanes(), config.horizon):
        spent += len(finished.steps)
        trajectory_id, _, rest = finished.start.id.rpartition("@")
        if finished.error:
            problems.append(f"{finished.start.id}: {finished.error}")
        if not finished.lost:
            returns[trajectory_id][int(rest.split("#")[0])].append(finished.reward)
    values = {}
    for name, found in returns.items():
        if all(found):
            values[name] = [*(sum(state) / len(state) for state in found), 0.0]
        else:
            problems.append(f"{name}: every roll-out from a state was lost")
    return values, problems, spent


def gains(trajectory: Trajectory, values: Sequence[float]) -> list[float]:
    """What each step of the expert added: ``r_t + V(s_{t+1}) - V(s_t)``, undiscounted."""
    return [step.reward + values[t + 1] - values[t] for t, step in enumerate(trajectory.steps)]


def select_by_value(
    trajectory: Trajectory, values: Sequence[float], fraction: float, model: str, threshold: float = 0.0
) -> Annotation:
    """At most ``cap(fraction, T)`` steps of the largest gain above the threshold, at least the best one.

    The earlier wins ties.
    """
    gain = gains(trajectory, values)
    ranked = sorted(range(len(gain)), key=lambda t: (-gain[t], t))
    helpful = [t for t in ranked[: cap(fraction, len(gain))] if gain[t] > threshold]
    critical = sorted(helpful or ranked[:1])
    return Annotation(
        trajectory_id=trajectory.id,
        selector="value",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: f"value {values[t]:.2f} -> {trajectory.steps[t].reward + values[t + 1]:.2f}" for t in critical},
        model=model,
    )
