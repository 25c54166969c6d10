"""Replays recorded episodes, for the states before their steps, from which a model can go on.

What the recipe collected is replayed in the environment it came from. Of trajectories from a file only environment and
seed are known, so that they are replayed where that environment is at hand and shows what was recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym

from .. import envs
from ..agents.attempts import Attempts
from ..agents.rollout import EnvSpec, EpisodeStart, env_spec, failed_start, start_episode, train_specs
from ..data.records import Step, Trajectory
from ..recipe.loading import Recipe

Specs = Mapping[str, EnvSpec | tuple[EnvSpec, ...]]
"""By the id of an environment: how it is played, or how it may be: a file does not tell the split of its seeds."""
Begin = Callable[[EnvSpec, int, str | None], EpisodeStart]
"""Starts the episode of a seed, under an id."""


class ReplayError(RuntimeError):
    """The environment no longer answers the recorded actions as it did."""


class Unreplayable(str):
    """Why a trajectory cannot be replayed, where it or the recipe is at fault: another attempt would not help."""


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

    ``spec`` is how it was played, ``limit`` the most steps that it may have, ``success`` whether it ended in one.
    """

    states: Sequence[Restorable]
    rewards: tuple[float, ...]
    spec: EnvSpec
    limit: int
    success: bool = False


@dataclass(frozen=True)
class Ending:
    """How an episode ended: whether it is a success, and after how many steps in all."""

    success: bool
    steps: int

    def is_better_than(self, other: Ending) -> bool:
        """Whether only this one is a success, or one after fewer steps."""
        return self.success and (not other.success or self.steps < other.steps)


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
            if not env.tells_same(observation, step.observation):
                raise ReplayError(f"{trajectory.id}: step {index} shows another observation than the recorded one")
            states.append(env.clone() if env.cheap_clone else ReplayState(spec, trajectory.seed, actions[:index]))
            observation, reward, terminated, truncated, info = env.step(step.action)
            rewards.append(float(reward))
            over = terminated or truncated
    finally:
        envs.release(env)
    return Replay(states, tuple(rewards), spec, env.limit, bool(info["success"]))


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
    """Every trajectory that can be replayed, and why the others cannot, by id.

    A reason is :class:`Unreplayable` unless the environment died.
    """
    found: dict[str, Replay] = {}
    left_out: dict[str, str] = {}
    for trajectory in trajectories:
        try:
            found[trajectory.id] = replayed(trajectory, specs, begin)
        except (ReplayError, envs.EnvironmentDiedError) as error:
            why = str(error).removeprefix(f"{trajectory.id}: ")
            # an episode that the environment says it does not have is an error of the file, not a death
            amiss = isinstance(error, ReplayError) or isinstance(error.__cause__, ValueError | gym.error.Error)
            left_out[trajectory.id] = Unreplayable(why) if amiss else why
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


def start_behind(start: EpisodeStart, action: str, thought: str | None) -> EpisodeStart | Ending:
    """A start one step later, with this action made, or how its episode ended with that; a lost one stays as it is."""
    if start.lost:
        return start
    try:
        following, reward, terminated, truncated, info = start.env.step(action)
    except Exception as error:
        envs.release(start.env)
        return failed_start(start.id, str(error))
    if terminated or truncated:
        envs.release(start.env)
        return Ending(bool(info["success"]), len(start.steps) + 1)
    start.steps.append(Step(observation=start.observation, thought=thought, action=action, reward=reward))
    start.observation = following
    return start


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
            problems[name] = Unreplayable(
                f"its environment is of the module {module}: name {name!r} in [environments] to have it played"
            )
            continue
        if envs.adapted(name) and name not in named:  # nor whom this machine asks
            problems[name] = Unreplayable(f"its environment is {name}: name it in [environments] to have it played")
            continue
        try:
            found[name] = _ways(recipe, name)
            _first(found[name]).episodes()
            if why := _first(found[name]).lacks().get("replay"):
                raise ValueError(f"it cannot be replayed: {why}")
        except (envs.MissingExtraError, envs.EnvironmentDiedError, ValueError) as error:
            found.pop(name, None)
            problems[name] = Unreplayable(f"{name} cannot be played here: {error}")
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
