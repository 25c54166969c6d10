"""The switch's own decision problem as a Gymnasium vector environment: which model acts now.

``a_t = DEEPTHINK(s_t) if g_t = 1 else QUICK(s_t)``. With a cost c the reward is ``R_t - c g_t`` (LONDI); under a budget
it is ``R_t``, and the guard keeps the calls within it (LONDI-B, arXiv 2402.12061). With more than two models g_t is the
number of the model, and each has a weight that its calls cost in c [ours].
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..models.hashed_words import Vector
from .budget import BudgetGuard
from .features import EXTRA, with_shares
from .spending import Amount, Unit

# What a request over the budget costs. Redundant [ours]: the guard overrides it and the mask keeps it from being made.
PENALTY = 1.0
RUN_LEFT = "run_left"
"""Of a step's ``info``: how many steps without a decision follow it."""


@dataclass(frozen=True)
class Outcome:
    """What one step of an episode brought. ``timeout`` is the level's step limit, ``cut`` a limit of ours.

    ``used`` is what the step took, in mean calls of DEEPTHINK, where that is measured. ``lost`` says why the model gave
    no answer, so that there was no step and the episode is over. ``replies``: what each model wrote for it, nothing
    where none writes (:class:`atlas_ray.data.replies.Replies`). ``spent``: what the step is paid for; None where nobody
    tells, or nobody asks.

    The step limit belongs to the task (it is in the reward, and the policy sees the share of it that is used), so
    learning treats a timeout as an end and not as something to bootstrap from; a cut is bootstrapped from.
    """

    reward: float
    ended: bool = False
    timeout: bool = False
    cut: bool = False
    success: bool = False
    used: float = 0.0
    lost: str | None = None
    replies: tuple[Mapping[str, int], ...] = ()
    spent: Amount | None = None

    @property
    def over(self) -> bool:
        """Whether the episode goes on no more."""
        return self.ended or self.timeout or self.cut or self.lost is not None


class Game(Protocol):
    """Several episodes side by side in which one of several models acts at every step."""

    rows: int
    models: int
    width: int
    """Entries of a row of :meth:`observe`."""

    def begin(self, row: int, seed: int) -> None:
        """Start the episode of ``seed`` in ``row``."""
        ...

    def observe(self, rows: Sequence[int]) -> Vector:
        """The states as ``[len(rows), width]`` float32."""
        ...

    def step_share(self, row: int) -> float:
        """Share of the episode's steps that is used, 0..1."""
        ...

    def worst_cases(self, row: int) -> Sequence[Amount]:
        """What the next step may cost at most, by each model; asked for where the budget is not in calls."""
        ...

    def advance(self, choices: Mapping[int, int]) -> dict[int, Outcome]:
        """One step of the rows in ``choices``, each by the model of that number."""
        ...

    def stop(self, row: int) -> None:
        """The episode in ``row`` is over, since its budget allows no further step."""
        ...


def features(game: Game, budget: BudgetGuard, rows: Sequence[int]) -> Vector:
    """``[len(rows), game.width + 2]``: what a switch sees; nothing but the shares where a run is on."""
    shares = [budget.share(r) for r in rows], [game.step_share(r) for r in rows]
    deciding = [row for row in rows if not budget.run_left(row)]
    if len(deciding) == len(rows):
        return with_shares(game.observe(rows), *shares)
    encoded = np.zeros((len(rows), game.width), np.float32)
    if deciding:
        encoded[[not budget.run_left(row) for row in rows]] = game.observe(deciding)
    return with_shares(encoded, *shares)


class SwitchingVectorEnv(gym.vector.VectorEnv[Vector, NDArray[np.int64], NDArray[Any]]):
    """One decision, the number of a model, for each of the rows of a game, every vector step.

    Observations are flat, ``[N, width + 2]`` float32 with the budget's remaining share before the last entry, so that a
    network can mask calls by itself. Episodes get seeds ``stride`` apart, the first that of ``reset(seed=...)``. A row
    whose episode is over is reset by the next step, whatever its action.

    Args:
        game: where the models act.
        first_seed: seed of the first episode unless ``reset`` gives one.
        budget: most calls per episode, or of the unit; None for no limit. A call is a step of any model but the first.
        cost: c, taken from the reward for each call made.
        weights: what a step of each model costs in c; by default 0 for the first and 1 for the others. None: what the
            game says that the step used (:attr:`Outcome.used`).
        stride: between the seeds of episodes, for several environments that share them out.
        unit: of the budget. An episode whose budget of tokens or money allows no further step ends there.
        run: steps that a model takes once it is called, see :class:`atlas_ray.switching.budget.BudgetGuard`. Actions of
            such steps are ignored, and their states not read.

    Attributes:
        repeated: seeds that a ``repeated_share`` of the episodes has in place of its own; drawn by its own seed alone.

    ``info`` holds for every row ``calls`` and ``overrides`` of the episode so far, and ``success``; where there is one
    :attr:`Outcome.lost`, and the step is then none to learn from
    (:class:`atlas_ray.switching.replay_buffer.TransitionBuffer` leaves it out); where models write ``replies`` of the
    step; and with runs ``run_left``, the steps without a decision that follow.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        game: Game,
        first_seed: int,
        budget: float | None = None,
        cost: float = 0.0,
        weights: Sequence[float] | None = (),
        stride: int = 1,
        unit: Unit = "calls",
        run: int = 1,
    ) -> None:
        self.game, self.cost, self.stride = game, cost, stride
        self.weights = [0.0] + [1.0] * (game.models - 1) if weights == () else weights
        self.num_envs = game.rows
        self.repeated: tuple[int, ...] = ()
        self.repeated_share = 0.0
        self.budget = BudgetGuard(budget, game.rows, unit, run)
        self.next_seed = first_seed
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (game.width + EXTRA,), np.float32)
        self.single_action_space = spaces.Discrete(game.models)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, game.rows)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, game.rows)
        self._over = np.ones(game.rows, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Begin an episode in every row; ``seed`` is that of the first one, the others follow."""
        if isinstance(seed, list):
            raise ValueError("give one seed: episodes are numbered from it on")
        if seed is not None:
            self.next_seed = seed
        for row in range(self.num_envs):
            self._begin(row)
        return self._observations(), self._info({})

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Vector, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Decide for every row; rows whose episode is over begin a new one instead."""
        rewards = np.zeros(self.num_envs, np.float64)
        terminated, truncated = (np.zeros(self.num_envs, np.bool_) for _ in range(2))
        choices, quotes = {}, self.budget.quotes
        for row in range(self.num_envs):
            if self._over[row]:
                self._begin(row)
                continue
            if quotes and self.budget.is_empty(row):
                self._stop(row)
                terminated[row] = True
                continue
            wanted, forced = int(actions[row]), self.budget.run_left(row)
            choices[row] = self.budget.grant(row, wanted)
            rewards[row] = -PENALTY * (choices[row] != wanted and not forced)
        for row, choice in choices.items():
            if choice:
                self.budget.record(row)
        outcomes = self.game.advance(choices)
        for row, outcome in outcomes.items():
            self._over[row] = outcome.over
            if outcome.over:
                self.budget.end_run(row)
            if quotes:
                self.budget.settle(row, outcome.spent)
            if outcome.lost is not None:
                rewards[row], truncated[row] = 0.0, True
                continue
            rewards[row] += self.reward(outcome, choices[row])
            terminated[row] = outcome.ended or outcome.timeout
            truncated[row] = outcome.cut and not terminated[row]
            if quotes and not outcome.over and self._quote(row):
                self._stop(row)
                terminated[row] = True
        return self._observations(), rewards, terminated, truncated, self._info(outcomes)

    def reward(self, outcome: Outcome, choice: int) -> float:
        """What a step by a model is worth: the environment's reward less what it costs."""
        return outcome.reward - self.cost * (outcome.used if self.weights is None else self.weights[choice])

    def _begin(self, row: int) -> None:
        drawn = random.Random(f"repeat {self.next_seed}") if self.repeated else None
        again = drawn is not None and drawn.random() < self.repeated_share
        self.game.begin(row, drawn.choice(self.repeated) if drawn is not None and again else self.next_seed)
        self.budget.start(row)
        self._over[row] = False
        self.next_seed += self.stride
        if self.budget.quotes:
            self._quote(row)

    def _quote(self, row: int) -> bool:
        """Tell the guard what the next step may cost; whether the budget allows none."""
        self.budget.quote(row, self.game.worst_cases(row))
        return self.budget.is_empty(row)

    def _stop(self, row: int) -> None:
        self.game.stop(row)
        self._over[row] = True

    def _observations(self) -> Vector:
        return features(self.game, self.budget, list(range(self.num_envs)))

    def _info(self, outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
        success = [row in outcomes and outcomes[row].success for row in range(self.num_envs)]
        info: dict[str, Any] = {}
        told_of_all: dict[str, NDArray[Any]] = {
            "calls": np.array(self.budget.made, np.int64),
            "overrides": np.array(self.budget.overrides, np.int64),
            "success": np.array(success, np.bool_),
        }
        if self.budget.run > 1:
            told_of_all[RUN_LEFT] = np.array([self.budget.run_left(row) for row in range(self.num_envs)], np.int64)
        for name, values in told_of_all.items():
            info |= {name: values, f"_{name}": np.ones(self.num_envs, np.bool_)}
        told = {row: o for row, o in outcomes.items() if o.lost is not None or o.replies}
        for name in ("lost", "replies") if told else ():
            values, there = np.full(self.num_envs, None, object), np.zeros(self.num_envs, np.bool_)
            for row, outcome in told.items():
                values[row], there[row] = getattr(outcome, name), True
            info |= {name: values, f"_{name}": there}
        return info
