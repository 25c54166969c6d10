"""Critical steps by value: where counterfactual roll-outs of a model say that the expert's move helped.

ATLaS (section on selectors, as read in our notes) finds such a selector on a par with its oracle, with 5 roll-outs a
step and a critical step where the value jumps. Threshold, horizon and ties are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .. import envs
from ..agents.rollout import EpisodeStart, EpisodeStarter, rollout, start_episode
from ..agents.token_agent import Agent
from ..data.records import Annotation, Trajectory, max_critical_steps
from ..data.replies import Replies
from .replays import Begin, Replay, ReplayError, Restorable, Specs, replayed, start_at


@dataclass(frozen=True)
class ValueConfig:
    """How values are estimated.

    ``specs`` are the environments of the trajectories by id, ``replays`` what is replayed already, by trajectory.
    ``replies`` takes what became of those that the agent's model wrote, by trajectory.
    """

    rollouts: int
    horizon: int
    specs: Specs
    replays: Mapping[str, Replay] = field(default_factory=dict)
    replies: dict[str, Replies] = field(default_factory=dict)


def _prefix_group(
    trajectory: Trajectory, states: Sequence[Restorable], k: int, begin: Begin = start_episode
) -> Iterator[EpisodeStart]:
    """The k-th roll-out from every state in turn: each one's history is a prefix of the next one's."""
    for index, state in enumerate(states):
        yield start_at(trajectory, state, index, f"{trajectory.id}@{index}#{k}", begin)


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
    begin = EpisodeStarter().begin

    def prefix_groups() -> Iterator[Iterator[EpisodeStart]]:
        for trajectory in trajectories:
            try:
                replay = config.replays.get(trajectory.id) or replayed(trajectory, config.specs, begin)
            except (ReplayError, envs.EnvironmentDiedError) as error:
                problems.append(str(error))
                continue
            returns[trajectory.id] = [[] for _ in trajectory.steps]
            yield from (_prefix_group(trajectory, replay.states, k, begin) for k in range(config.rollouts))

    spent = 0
    for finished in rollout(agent, prefix_groups(), config.horizon):
        spent += len(finished.steps)
        trajectory_id, _, rest = finished.start.id.rpartition("@")
        if finished.replies:
            config.replies.setdefault(trajectory_id, Replies()).add(finished.replies)
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
    """At most ``max_critical_steps(fraction, T)`` steps of the largest gain above the threshold, at least the best one.

    The earlier wins ties.
    """
    gain = gains(trajectory, values)
    ranked = sorted(range(len(gain)), key=lambda t: (-gain[t], t))
    helpful = [t for t in ranked[: max_critical_steps(fraction, len(gain))] if gain[t] > threshold]
    critical = sorted(helpful or ranked[:1])
    return Annotation(
        trajectory_id=trajectory.id,
        selector="value",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: f"value {values[t]:.2f} -> {trajectory.steps[t].reward + values[t + 1]:.2f}" for t in critical},
        model=model,
    )
