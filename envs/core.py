"""What every text environment of this package has in common: one Gymnasium dialect.

Observation and action are text. ``info`` holds ``goal`` (str), ``score`` (float in 0..1), ``success`` (bool),
``admissible``, a callable that lists the actions which make sense now and costs nothing until it is called, and, where
the environment knows its sub-goals, ``progress`` (the share of them reached, 0..1).
An action that the environment does not know gives an observation that says so, never an exception.
"""

from __future__ import annotations

import copy
import importlib.metadata
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import gymnasium as gym

from .text_space import TextSpace

SPLITS = ("train", "dev", "test")
_HALVES = re.compile(r"[\ud800-\udfff]")


class UnknownEnvironmentError(ValueError):
    """An environment id, level or task that is not registered here."""


class MissingExtraError(ImportError):
    """What an environment needs is not installed, or its data is not there; the message says how to get it."""


class ExpertGaveUpError(RuntimeError):
    """The scripted expert found no plan. The episode is not usable."""


class ExpertTooSlowError(ExpertGaveUpError):
    """The scripted expert ran past the CPU time of a move."""


class EnvironmentDiedError(RuntimeError):
    """The process or server behind an environment is gone or hangs. The episode is lost; ``reset()`` begins anew."""


@dataclass(frozen=True)
class Listing:
    """``info["admissible"]``: lists the actions that make sense now when it is called.

    In another process, where gymnasium's asynchronous vector environment sends it, it holds the list of that moment
    where that costs little; elsewhere ``vector_env.call("admissible")`` asks the environments.
    """

    env: TextEnv

    def __call__(self) -> list[str]:
        """The actions."""
        return self.env.admissible()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Listed, (self.env.admissible() if self.env.cheap_list else None,)


@dataclass(frozen=True)
class _Listed:
    """A :class:`Listing` that came from another process; ``actions`` is None where they were not listed."""

    actions: list[str] | None

    def __call__(self) -> list[str]:
        if self.actions is None:
            raise RuntimeError('listing is dear here and was not done: ask vector_env.call("admissible")')
        return list(self.actions)


@dataclass(frozen=True)
class ExpertStep:
    """One move of an expert: what it wants (``thought``, if it says so) and what it does (``action``)."""

    thought: str | None
    action: str


class Expert(Protocol):
    """Plays the episode that an environment was just reset to."""

    def act(self) -> ExpertStep:
        """The next move.

        Raises:
            ExpertGaveUpError: there is none.
        """
        ...

    def follow(self, action: str) -> None:
        """Told before a step which action is to be made, whoever chose it; then :meth:`act` need not be asked for it.

        Once told of a step it is to be told of every one. An expert that is never told takes its own moves for made.
        """
        ...


class GoldPath:
    """An expert that reads its moves from a list, as most text games come with one.

    Where somebody else leaves the list, what is left of it is tried from there in a clone of ``env``: if it still
    succeeds, the expert goes on with it, else it gives up. Without ``env`` it gives up at once.
    """

    def __init__(self, actions: Sequence[str], env: TextEnv | None = None) -> None:
        self._left, self._env = list(actions)[::-1], env
        self._said: str | None = None
        self._strayed = False

    def act(self) -> ExpertStep:
        """The next action of the list.

        Raises:
            ExpertGaveUpError: the list is at its end, and the episode is not; or somebody left it, and the rest of it
                does not lead to the goal.
        """
        if not self._left:
            raise ExpertGaveUpError("the gold path is at its end, the episode is not")
        if self._strayed and not self._leads_on():
            raise ExpertGaveUpError("somebody left the gold path, and the rest of it does not lead to the goal")
        self._strayed = False
        self._said = self._left.pop()
        return ExpertStep(thought=None, action=self._said)

    def follow(self, action: str) -> None:
        """See :meth:`Expert.follow`."""
        if self._said is not None:
            self._left.append(self._said)
            self._said = None
        if self._left and self._left[-1] == action:
            self._left.pop()
        else:
            self._strayed = True

    def _leads_on(self) -> bool:
        if self._env is None:
            return False
        twin = self._env.clone()
        try:
            for action in reversed(self._left):
                _, _, terminated, truncated, info = twin.step(action)
                if terminated or truncated:
                    return bool(info["success"])
            return False
        finally:
            twin.close()


@dataclass(slots=True)
class Turn:
    """What an action led to.

    ``score`` (0..1) is the whole episode's so far; ``reward`` is its gain unless given. ``over`` ends the task;
    ``progress`` is the share of sub-goals reached; ``more`` goes into ``info``. ``truncated``: a limit of the
    environment's own ended the episode.
    """

    observation: str
    score: float
    success: bool = False
    over: bool = False
    reward: float | None = None
    progress: float | None = None
    more: Mapping[str, Any] | None = None
    truncated: bool = False


def _whole(text: str) -> str:
    """Text as it is; halves of surrogate pairs, which no file can hold, become U+FFFD."""
    if text.isascii() or not _HALVES.search(text):
        return text
    return _HALVES.sub("\ufffd", text)


class TextEnv(gym.Env[str, str]):
    """Base of the text environments. A subclass writes :meth:`variations`, :meth:`begin`, :meth:`do`, ``admissible``.

    An episode is named by task, split and variation. ``reset(seed=s)`` takes ``variations(task, split)[s % n]``, so
    consecutive seeds go through all of them; ``reset(options={"task", "variation", "split"})`` names it outright. An
    option that an environment does not know is refused.

    Args:
        task: what is played.
        max_steps: own step limit of an episode; None leaves ``limit`` to the environment.
        split: where episodes come from unless ``reset`` says otherwise; None is all of them.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    splits: ClassVar[tuple[str, ...]] = ()
    """Names that ``split`` may take."""
    unbounded_episodes: ClassVar[bool] = False
    """Whether there are more episodes than a run can play, so that its stages keep theirs apart by seed alone."""
    cheap_clone: ClassVar[bool] = True
    """Whether :meth:`clone` copies; environments that live in another process replay instead."""
    cheap_list: ClassVar[bool] = True
    """Whether :meth:`admissible` costs little beside a step; an agent that can do without does so where it is dear."""
    reusable: ClassVar[bool] = False
    """Whether a closed episode's environment is worth keeping for the next (a process stands behind it)."""
    wraps: ClassVar[bool] = False
    """Whether it plays an environment of Gymnasium that is none of these, named by its task."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides what an episode is; a run goes on with no other."""
    observation_space: TextSpace
    action_space: TextSpace

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "endless" in vars(cls):  # its older name, for one release
            warnings.warn(f"{cls.__name__}.endless is now unbounded_episodes", DeprecationWarning, stacklevel=2)
            cls.unbounded_episodes = vars(cls)["endless"]

    def __init__(self, task: str, max_steps: int | None = None, split: str | None = None) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, it must be at least 1")
        self.observation_space, self.action_space = TextSpace(2**16), TextSpace(256)
        self.task = self.home_task = task
        self.max_steps, self.split = max_steps, self._known_split(split)
        self.limit = max_steps or 100
        self.variation = 0
        self.goal = ""
        self.score = 0.0
        self.history: list[str] = []
        self.leased: tuple[Any, ...] | None = None
        self._done = True

    # ---- what a subclass writes -------------------------------------------------------------------------------------

    def variations(self, task: str, split: str | None) -> Sequence[int]:
        """The episodes of a task in a split (None: of all splits)."""
        raise NotImplementedError

    def variation_of(self, seed: int, choices: Sequence[int]) -> int:
        """Which of the variations ``choices`` a seed plays.

        Raises:
            ValueError: none of them.
        """
        return choices[seed % len(choices)]

    def begin(self, variation: int) -> tuple[str, str]:
        """Start an episode of ``self.task``.

        Returns:
            (goal, first observation).
        """
        raise NotImplementedError

    def do(self, action: str) -> Turn:
        """Carry out an action, known or not."""
        raise NotImplementedError

    def admissible(self) -> list[str]:
        """Actions that make sense now."""
        raise NotImplementedError

    def expert(self, cpu_seconds: float = 2.0) -> Expert:
        """An expert for the episode that was just begun, which it must play from its first step.

        Args:
            cpu_seconds: CPU time one move may take, where the expert has to plan.

        Raises:
            ExpertGaveUpError: this environment or this episode has none.
        """
        raise ExpertGaveUpError(f"{type(self).__name__} has no expert")

    def lacks(self) -> Mapping[str, str]:
        """What this environment cannot do, with the reason: ``seeds``, ``replay``, ``success``. Those of others may.

        Raises:
            EnvironmentDiedError: that cannot be told now.
        """
        return {}

    def tells_same(self, shown: str, recorded: str) -> bool:
        """Whether two observations tell of one state; white space does not, and files lose some of it."""
        return shown == recorded or shown.split() == recorded.split()

    @classmethod
    def versions(cls) -> dict[str, str]:
        """What decides what an episode is, and its version here; of :attr:`packages` those that are installed."""
        found = {}
        for name in cls.packages:
            with suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def tasks(self) -> Sequence[str]:
        """Tasks that ``reset(options={"task": ...})`` can change to."""
        return (self.home_task,)

    # ---- Gymnasium --------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: picks the variation; without it the environment's own generator does.
            options: ``task``, ``variation``, ``split``, for this episode only. A variation given wins over the seed.

        Raises:
            ValueError: an option that is not known, or a value that does not exist.
            EnvironmentDiedError: the process behind the environment could not be started.
        """
        options = dict(options or {})
        task, variation = options.pop("task", None), options.pop("variation", None)
        split = self._known_split(options.pop("split", self.split))
        if options:
            raise ValueError(f"unknown reset option {sorted(options)[0]!r}; known are 'task', 'variation', 'split'")
        if task is not None and task not in self.tasks():
            raise ValueError(f"task: {task!r} cannot be played here; known are {', '.join(self.tasks())}")
        task = self.home_task if task is None else task
        choices = self._choices(task, split, variation)
        super().reset(seed=seed)
        self._done, self.task = True, task
        if seed is None:
            self.variation = choices[int(self.np_random.integers(len(choices)))]
        else:
            self.variation = choices[0] if variation is not None else self.variation_of(seed, choices)
        self.goal, observation = map(_whole, self.begin(self.variation))
        self.score, self.history, self._done = 0.0, [], False
        return observation, self._info(Turn(observation, 0.0, progress=self.progress()))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do ``action``; one that is not known costs a step and is answered by a text that says so.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over, or none was begun.
            EnvironmentDiedError: the episode is lost.
        """
        if self._done:
            raise gym.error.ResetNeeded("the episode is over: call reset() first")
        action = action if isinstance(action, str) else ""
        try:
            turn = self.do(action)
        except Exception:
            self._done = True
            raise
        self.history.append(action)
        reward = turn.score - self.score if turn.reward is None else turn.reward
        self.score = turn.score
        truncated = not turn.over and (turn.truncated or len(self.history) >= self.limit)
        self._done = turn.over or truncated
        return _whole(turn.observation), reward, turn.over, truncated, self._info(turn)

    def progress(self) -> float | None:
        """Share of sub-goals reached at the start of an episode, where they are known."""
        return None

    def clone(self) -> Self:
        """An independent environment in the same state: stepping one leaves the other as it was."""
        return copy.deepcopy(self)

    def replay_into(self, other: Self) -> Self:
        """Bring ``other`` to the state of this one by the same episode and actions (for :meth:`clone`)."""
        other.reset(options={"task": self.task, "variation": self.variation})
        for action in self.history:
            other.step(action)
        other.np_random = copy.deepcopy(self.np_random)
        return other

    def _known_split(self, split: str | None) -> str | None:
        if split is not None and split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise ValueError(f"split: {type(self).__name__} has no split {split!r}; known: {known}")
        return split

    def _choices(self, task: str, split: str | None, given: Any) -> Sequence[int]:
        choices = self.variations(task, split)
        where = f"{task}{f', split {split}' if split else ''}"
        if not choices:
            raise ValueError(f"{where}: has no episodes")
        if given is None:
            return choices
        if isinstance(given, bool) or not isinstance(given, int) or given not in choices:
            raise ValueError(f"variation: {given!r} is not among the {len(choices)} of {where}")
        return (given,)

    def _info(self, turn: Turn) -> dict[str, Any]:
        # admissible: not a closure, because check_env compares the info of two resets
        info: dict[str, Any] = {
            "goal": self.goal,
            "score": turn.score,
            "success": turn.success,
            "admissible": Listing(self),
        }
        if turn.more:
            info.update(turn.more)
        if turn.progress is not None:
            info["progress"] = turn.progress
        return info
