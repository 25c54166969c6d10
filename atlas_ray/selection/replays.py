"""Replays recorded episodes, for the states before their steps, from which a model can go on.

What the recipe collected is replayed in the environment it came from. Of trajectories from a file only environment and
seed are known, so that they are replayed where that environment is at hand and shows what was recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .. import envs
from ..agents.attempts import Attempts
from ..agents.rollout import EnvSpec, EpisodeStart, env_spec, failed_start, start_episode, train_specs
from ..data.records import Trajectory
from ..recipe.loading import Recipe

Specs = Mapping[str, EnvSpec | tuple[EnvSpec, ...]]
"""By the id of an environment: how it is played, or how it may be: a file does not tell the split of its seeds."""
Begin = Callable[[EnvSpec, int, str | None], EpisodeStart]
"""Starts the episode of a seed, under an id."""


class ReplayError(RuntimeError):
    """The environment no longer answers the recorded actions as it did."""


class Restorable(Protocol):
    """A state of an episode, from which any number of independent environments can be made."""

    def clone(self) -> envs.TextEnv:
        """A new environment in this state."""
        ...


@dataclass(frozen=True)
class ReplayState:
    """The state behind some actions of an episode, for environments that are replayed rather than copied."""

    spec: EnvSpec
    seed: int
    actions: tuple[str, ...]

    def clone(self, begin: Begin = start_episode, episode_id: str | None = None) -> envs.TextEnv:
        """An environment brought to this state.

        Raises:
            envs.EnvironmentDiedError: it cannot be, in several attempts.
        """
        for attempt in Attempts():
            env = begin(self.spec, self.seed, episode_id).env
            with attempt:
                try:
                    for action in self.actions:
                        env.step(action)
                except envs.EnvironmentDiedError:
                    envs.release(env)
                    raise
        return env


@dataclass(frozen=True)
class Replay:
    """A replayed episode: the environment before every step, to be cloned, and the reward of every step.

    ``spec`` is how it was played, ``limit`` the most steps that it may have.
    """

    states: Sequence[Restorable]
    rewards: tuple[float, ...]
    spec: EnvSpec
    limit: int


def _same(shown: str, recorded: str) -> bool:
    """White space does not tell states apart, and files lose some of it."""
    return shown == recorded or shown.split() == recorded.split()


def _replay(trajectory: Trajectory, spec: EnvSpec, begin: Begin) -> Replay:
    start = begin(spec, trajectory.seed, trajectory.id)
    env, observation, over = start.env, start.observation, False
    actions = tuple(step.action for step in trajectory.steps)
    states: list[Restorable] = []
    rewards: list[float] = []
    try:
        for index, step in enumerate(trajectory.steps):
            if over:
                most = " (collect.max_steps raises the limit)" if len(env.history) >= env.limit else ""
                raise ReplayError(f"{trajectory.id}: is over after {index} of its {len(actions)} steps here{most}")
            if not _same(observation, step.observation):
                raise ReplayError(f"{trajectory.id}: step {index} shows another observation than the recorded one")
            states.append(env.clone() if env.cheap_clone else ReplayState(spec, trajectory.seed, actions[:index]))
            observation, reward, terminated, truncated, _ = env.step(step.action)
            rewards.append(float(reward))
            over = terminated or truncated
    finally:
        envs.release(env)
    return Replay(states, tuple(rewards), spec, env.limit)


def checkpoint_states(trajectory: Trajectory, spec: EnvSpec) -> Sequence[Restorable]:
    """The environment before every step of the trajectory, to be cloned.

    Raises:
        ReplayError: an observation differs from the recorded one.
    """
    return _replay(trajectory, spec, start_episode).states


def replayed(trajectory: Trajectory, specs: Specs, begin: Begin = start_episode) -> Replay:
    """The trajectory in its environment, one of ``specs`` by id; of several ways to play it the first that agrees.

    Raises:
        ReplayError: the environment is none of them, or an observation differs from the recorded one.
        envs.EnvironmentDiedError: the environment died.
    """
    ways = specs.get(trajectory.env, ())
    if not ways:
        raise ReplayError(
            f"{trajectory.id}: the recipe collects nothing from {trajectory.env}, so its steps cannot be replayed"
        )
    problems: list[ReplayError] = []
    for spec in (ways,) if isinstance(ways, EnvSpec) else ways:
        try:
            return _replay(trajectory, spec, begin)
        except ReplayError as error:
            problems.append(error)
    raise problems[0]


def replay_all(
    trajectories: Iterable[Trajectory], specs: Specs, begin: Begin
) -> tuple[dict[str, Replay], dict[str, str]]:
    """Every trajectory that can be replayed, and why the others cannot, by id."""
    found: dict[str, Replay] = {}
    left_out: dict[str, str] = {}
    for trajectory in trajectories:
        try:
            found[trajectory.id] = replayed(trajectory, specs, begin)
        except (ReplayError, envs.EnvironmentDiedError) as error:
            left_out[trajectory.id] = str(error).removeprefix(f"{trajectory.id}: ")
    return found, left_out


def start_at(trajectory: Trajectory, state: Restorable, index: int, episode_id: str, begin: Begin) -> EpisodeStart:
    """Before step ``index`` of a trajectory; lost already where its environment cannot be brought there."""
    try:
        env = state.clone(begin, episode_id) if isinstance(state, ReplayState) else state.clone()
    except envs.EnvironmentDiedError as error:
        return failed_start(episode_id, str(error))
    return EpisodeStart(
        id=episode_id,
        env=env,
        instruction=trajectory.instruction,
        observation=trajectory.steps[index].observation,
        steps=list(trajectory.steps[:index]),
    )


def rewarded(trajectory: Trajectory, rewards: Sequence[float] | None) -> Trajectory:
    """The trajectory with the rewards of its environment; None leaves the recorded ones."""
    if rewards is None:
        return trajectory
    steps = [step.model_copy(update={"reward": r}) for step, r in zip(trajectory.steps, rewards, strict=True)]
    return trajectory.model_copy(update={"steps": tuple(steps)})


def replay_specs(recipe: Recipe, trajectories: Iterable[Trajectory]) -> tuple[Specs, dict[str, str]]:
    """How each environment of the trajectories is played here, and why some cannot be, by id.

    Settings are the recipe's ``[environments]``, the step limit ``collect.max_steps``. A file does not tell the split
    that its seeds count in: an environment with splits is tried in ``train`` first, as the collect stage plays it.
    """
    assert recipe.collect is not None
    if recipe.collect.levels:
        return train_specs(recipe), {}
    named = _named(recipe)
    found: dict[str, EnvSpec | tuple[EnvSpec, ...]] = {}
    problems: dict[str, str] = {}
    for name in dict.fromkeys(t.env for t in trajectories):
        module = envs.foreign_module(name)
        if module and module not in sys.modules and name not in named:
            # a file of data must not choose what is imported
            problems[name] = (
                f"its environment is of the module {module}: name {name!r} in [environments] to have it played"
            )
            continue
        try:
            found[name] = _ways(recipe, name)
            _first(found[name]).episodes()
        except (envs.MissingExtraError, ValueError) as error:
            found.pop(name, None)
            problems[name] = f"{name} cannot be played here: {error}"
    return found, problems


def _first(ways: EnvSpec | tuple[EnvSpec, ...]) -> EnvSpec:
    return ways if isinstance(ways, EnvSpec) else ways[0]


def _ways(recipe: Recipe, name: str) -> tuple[EnvSpec, ...]:
    assert recipe.collect is not None
    spec = env_spec(recipe, name, recipe.collect.max_steps, "train")
    if "split" not in spec.options:
        return (spec,)
    others: list[dict[str, Any]] = [{"split": s} for s in (None, "test", "dev")]
    return (spec, *(EnvSpec(name, spec.options | other) for other in others))


def _named(recipe: Recipe) -> set[str]:
    return {envs.full_id(name) for name in recipe.environments}
