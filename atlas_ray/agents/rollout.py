"""Playing episodes: many side by side in one process, an empty place filled as soon as an episode ends."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from .. import envs
from ..data.records import Step
from ..data.replies import Replies
from ..errors import EnvironmentGoneError
from ..recipe.loading import Recipe
from .attempts import MOST_ATTEMPTS, Attempts
from .token_agent import CountsTokens, LostAnswer, Player

# Seeds of a run lie in blocks that never meet: training, evaluation, the switch, validation, rounds, and so on.
TRAIN, EVALUATE, SWITCH_TRAIN, SWITCH_SELECT, SWITCH_TEST = range(5)
VALIDATE, SWITCH_JUDGE, SWITCH_PLAYOFF, SWITCH_RANDOM = range(5, 9)

MAX_FAILED_STARTS = 5
"""Different episodes of an environment that do not begin, one after the other, after which it is taken for gone."""


def seed_block(run_seed: int, use: int) -> int:
    """First environment seed for a use (``TRAIN``, ``EVALUATE``, ...) of a run with seed ``run_seed`` below 1000."""
    return (use * 1000 + run_seed) * 100_000


def decision_seed(episode: str, step: int) -> int:
    """Seed of one sampled decision: the same wherever and beside whatever the episode is played."""
    return int.from_bytes(hashlib.sha256(f"{episode}/{step}".encode()).digest()[:7], "big")


_RENAMED = {"play": "rollout", "fresh": "start_episode"}

if not TYPE_CHECKING:  # or any name would do for a type checker

    def __getattr__(name: str) -> Any:
        """Give what the documents named otherwise before, for one release."""
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(f"{__name__}.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return globals()[_RENAMED[name]]


UNANSWERED = "the model gave no answer"
"""So begins the error of an episode that was lost for want of one."""


@dataclass(frozen=True)
class EnvSpec:
    """An environment and its settings, as it travels to the workers."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its registered id."""
        return envs.full_id(self.name)

    @property
    def unbounded_episodes(self) -> bool:
        """Whether it has more episodes than a run can play."""
        return envs.environment_class(self.name).unbounded_episodes

    def lease(self) -> envs.TextEnv:
        """One to play; give it back with ``envs.release``."""
        return envs.lease(self.name, **self.options)

    def episodes(self) -> int:
        """How many different episodes there are."""
        env = envs.make(self.name, **self.options)
        return len(env.variations(env.task, env.split))

    def lacks(self) -> Mapping[str, str]:
        """What it cannot do, with the reason: see :meth:`envs.TextEnv.lacks`."""
        if envs.environment_class(self.name).lacks is envs.TextEnv.lacks:
            return {}
        env = envs.make(self.name, **self.options)
        try:
            return env.lacks()
        finally:
            env.close()


def env_spec(recipe: Recipe, name: str, max_steps: int | None, split: str) -> EnvSpec:
    """An environment of a recipe. The split is left to the seeds where episodes are unbounded."""
    options: dict[str, Any] = dict(recipe.settings(name))
    kind = envs.environment_class(name)
    if max_steps is not None:
        options["max_steps"] = max_steps
    if kind.splits and not kind.unbounded_episodes:
        options["split"] = split
    return EnvSpec(name, options)


def train_specs(recipe: Recipe) -> dict[str, EnvSpec]:
    """The environments that the recipe collects from, by id; none where it reads a file."""
    assert recipe.collect is not None
    specs = (env_spec(recipe, name, recipe.collect.max_steps, "train") for name in recipe.collect.levels)
    return {spec.id: spec for spec in specs}


@dataclass
class EpisodeStart:
    """An episode about to be played by an agent; ``steps`` were already taken (by an expert, say).

    ``lost`` says why its environment does not begin it; it is then over before its first step.
    """

    id: str
    env: envs.TextEnv
    instruction: str
    observation: str
    steps: list[Step] = field(default_factory=list)
    lost: str | None = None


@dataclass
class EpisodeResult:
    """How an episode ended.

    ``error`` says what is wrong with it. ``lost`` means that the environment is at fault, or that the model gave no
    answer (then ``unanswered`` says why): such an episode says nothing of the agent and is to be played again or
    dropped, never scored. ``replies``: what became of those that the agent's model wrote. ``tokens``: read and written
    for its decisions, whole prompts included; None where they are not known. ``computed``: tokens that
    go through a model for them which keeps the episode's last prompt; None where not known.
    """

    start: EpisodeStart
    steps: list[Step]
    score: float
    success: bool
    error: str | None = None
    lost: bool = False
    unanswered: LostAnswer | None = None
    replies: Replies = field(default_factory=Replies)
    tokens: tuple[int, int] | None = None
    computed: int | None = None

    @property
    def retryable(self) -> bool:
        """Whether it is lost and may go well when it is played again."""
        return self.lost and (self.unanswered is None or self.unanswered.passing)

    @property
    def reward(self) -> float:
        """Sum of rewards from the start on."""
        return sum(s.reward for s in self.steps)


def start_episode(
    spec: EnvSpec, seed: int, episode_id: str | None = None, attempts: int = MOST_ATTEMPTS
) -> EpisodeStart:
    """A new episode of an environment; one whose process is gone is started again.

    Raises:
        envs.EnvironmentDiedError: it does not start in so many attempts.
    """
    env = spec.lease()
    try:
        for attempt in Attempts(attempts):
            with attempt:
                observation, info = env.reset(seed=seed)
                start = EpisodeStart(episode_id or f"{spec.id}/{seed}", env, info["goal"], observation)
    except Exception:
        envs.release(env)
        raise
    return start


NO_ENV = envs.TextEnv("nowhere")
"""Stands in an episode that did not begin; nobody plays it."""


def failed_start(episode_id: str, why: str) -> EpisodeStart:
    """An episode that does not begin, and why."""
    return EpisodeStart(episode_id, NO_ENV, "", "", lost=why)


class EpisodeStarter:
    """Begins episodes, and tells one that does not begin from an environment that is gone.

    An episode whose environment does not begin it in :data:`MOST_ATTEMPTS` attempts is lost, as one is that dies in a
    step, and whoever plays it decides whether it is tried again. While none begins the next have one attempt each.
    """

    def __init__(self) -> None:
        self._failed: dict[str, set[str]] = {}

    def begin(self, spec: EnvSpec, seed: int, episode_id: str | None = None) -> EpisodeStart:
        """:func:`start_episode`, within bounds.

        Raises:
            envs.EnvironmentDiedError: the episode is lost.
            EnvironmentGoneError: so are :data:`MAX_FAILED_STARTS` different ones of this environment, one after the
                other. One that it says it does not have (``ValueError``, Gymnasium's own errors) does not count.
        """
        failed = self._failed.setdefault(spec.id, set())
        try:
            start = start_episode(spec, seed, episode_id, 1 if failed else MOST_ATTEMPTS)
        except (envs.MissingExtraError, envs.UnknownEnvironmentError):
            raise
        except (ValueError, gym.error.Error) as error:
            raise envs.EnvironmentDiedError(str(error)) from error
        except Exception as error:
            failed.add(episode_id or f"{spec.id}/{seed}")
            why = str(error) if isinstance(error, envs.EnvironmentDiedError) else f"{type(error).__name__}: {error}"
            if len(failed) >= MAX_FAILED_STARTS:
                raise EnvironmentGoneError(
                    f"{spec.id}: {len(failed)} episodes one after the other did not begin, the last because {why}. "
                    "Once it runs again, the same command goes on"
                ) from error
            raise envs.EnvironmentDiedError(why) from error
        failed.clear()
        return start

    def start(self, spec: EnvSpec, seed: int, episode_id: str | None = None) -> EpisodeStart:
        """An episode to play, one that is lost already where it does not begin.

        Raises:
            EnvironmentGoneError: see :meth:`begin`.
        """
        try:
            return self.begin(spec, seed, episode_id)
        except envs.EnvironmentDiedError as error:
            return failed_start(episode_id or f"{spec.id}/{seed}", str(error))


def rollout(
    agent: Player, prefix_groups: Iterable[Iterable[EpisodeStart]], horizon: int | None = None
) -> Iterator[EpisodeResult]:
    """Play every start to its end with ``agent``, as many side by side as it has slots.

    The starts of a group are played one after the other in one slot, whose cache they share: put starts with a common
    prefix into a group. ``horizon`` bounds the steps of every episode from its start. Groups and starts are drawn only
    when their time comes. Episodes are yielded as they end, and their environment is given back. One that did not begin
    (:attr:`EpisodeStart.lost`) is lost, as is one whose environment dies in a step.
    """
    waiting = iter(prefix_groups)
    group_of: dict[int, Iterator[EpisodeStart]] = {}

    def following_start(slot: int) -> EpisodeStart | None:
        while True:
            if slot in group_of and (start := next(group_of[slot], None)) is not None:
                return start
            group = next(waiting, None)
            if group is None:
                return None
            group_of[slot] = iter(group)

    needs_list = agent.needs_list
    running: dict[int, tuple[EpisodeStart, list[Step], str]] = {}
    replies: dict[int, Replies] = {}
    tokens: dict[int, tuple[int, int] | None] = {}
    computed: dict[int, int | None] = {}
    free = list(range(agent.engine.slots))

    def end(
        slot: int,
        info: dict[str, Any] | None = None,
        error: str | None = None,
        lost: bool = False,
        unanswered: LostAnswer | None = None,
    ) -> EpisodeResult:
        start, steps, _ = running.pop(slot)
        free.append(slot)
        envs.release(start.env)
        score, success = (info["score"], info["success"]) if info else (0.0, False)
        took = (replies.pop(slot), tokens.pop(slot), computed.pop(slot))
        return EpisodeResult(start, steps, score, success, error, lost, unanswered, *took)

    def failed(slot: int, error: Exception) -> EpisodeResult:
        # a crashed environment must not end the others' episodes
        return end(slot, error=f"the environment failed: {type(error).__name__}: {error}", lost=True)

    while True:
        for slot in list(free):
            while (start := following_start(slot)) is not None and start.lost is not None:
                yield EpisodeResult(start, [], 0.0, False, f"the environment failed: {start.lost}", lost=True)
            if start is None:
                continue
            free.remove(slot)
            agent.start(slot, start.instruction, start.steps, start.observation)
            running[slot], replies[slot] = (start, [], start.observation), Replies()
            tokens[slot], computed[slot] = ((0, 0), 0) if isinstance(agent, CountsTokens) else (None, None)
        if not running:
            return
        for slot in [s for s in running if not agent.fits(s)]:
            yield end(slot, error="the context of the model is full")
        offered = {}
        for slot in sorted(running):
            try:
                env = running[slot][0].env
                offered[slot] = env.admissible() if needs_list or env.cheap_list else []
            except Exception as error:
                yield failed(slot, error)
        slots = list(offered)
        seeds = [decision_seed(running[s][0].id, len(running[s][1])) for s in slots]
        for slot, decision in zip(slots, agent.act(slots, list(offered.values()), seeds), strict=True):
            start, steps, observation = running[slot]
            replies[slot].add(decision.replies)
            if (before := tokens[slot]) is not None and isinstance(agent, CountsTokens):
                more = agent.tokens_of(slot, decision)
                tokens[slot] = more and (before[0] + more[0], before[1] + more[1])
            if (through := computed[slot]) is not None and isinstance(agent, CountsTokens):
                fed = agent.computed_by(slot, decision)
                computed[slot] = None if fed is None else through + fed
            if isinstance(decision, LostAnswer):
                yield end(slot, error=f"{UNANSWERED}: {decision.reason}", lost=True, unanswered=decision)
                continue
            try:
                following, reward, terminated, truncated, info = start.env.step(decision.action)
            except Exception as error:
                yield failed(slot, error)
                continue
            step = Step(observation=observation, thought=decision.thought, action=decision.action, reward=reward)
            steps.append(step)
            if terminated or truncated or (horizon is not None and len(steps) >= horizon):
                yield end(slot, info)
            else:
                agent.advance(slot, step, following)
                running[slot] = (start, steps, following)
