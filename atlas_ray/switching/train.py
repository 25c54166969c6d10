"""Training one switch, so that a killed run goes on and the best policy is kept, not the last."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cluster.workers import ensure_ray
from ..data.replies import Losses, Replies, summed
from ..errors import AtlasError
from ..recipe.loading import Switch
from ..rundir import files
from .policy import CONFIG, SwitchConfig, SwitchPolicy

if TYPE_CHECKING:
    from .algorithm import EnvCreator

STATE, HISTORY, BEST, LAST = "state", "history.json", "best", "last"
DUAL_RATE = 0.5
"""Step of the Lagrangian's price, as a share of itself (at least of ``DUAL_LEAST``), for twice the calls asked for."""
DUAL_LEAST = 0.02


def train_switch(
    directory: str | Path,
    settings: Switch,
    config: SwitchConfig,
    make_env: EnvCreator,
    evaluate: Callable[[SwitchPolicy], dict[str, Any]],
    first_episode: int,
    seed: int = 0,
    on_evaluation: Callable[[dict[str, Any]], None] = lambda row: None,
    on_fault: Callable[[int], None] = lambda lost: None,
    on_stop: Callable[[dict[str, int]], None] = lambda replies: None,
    resources: dict[str, float] | None = None,
    who: str = "training",
    max_lost_answers: float = 1.0,
) -> SwitchPolicy:
    """Train a switch with RLlib's DQN or SAC inside this process.

    Off-policy learning gets better and worse again, so the policy is evaluated greedily every
    ``settings.evaluate_every`` environment steps, and the best one by ``objective`` is what ends up in ``directory``,
    with the last one in ``directory/last``. After every evaluation the state of the training is in ``DIRECTORY.train``
    beside it, from where a later call goes on; that is removed at the end.

    With ``config.average`` (Lagrangian) the price of a call is a dual variable: after each evaluation it rises where
    the greedy policy calls more often than that, and falls where it calls less. A policy that keeps to the average is
    better than one that does not, and then the one with the higher objective.

    Args:
        directory: where the policy goes.
        settings: hyper-parameters.
        config: shape of the switch, its cost, budget or average.
        make_env: the environment whose first episode has the seed given; the reward holds the cost, unless it is dual.
        evaluate: scores a policy, always on the same episodes, as ``objective``, and for an average ``calls``; where
            models write, ``replies`` of the episodes.
        first_episode: seed of the first training episode.
        seed: of weights, exploration and replay.
        on_evaluation: told a row of numbers after each evaluation: ``step``, ``objective``, ``best``, what ``evaluate``
            returned, ``price`` for an average, ``seconds`` so far and ``eta_seconds``; where models write, ``replies``
            of the whole training so far.
        on_fault: told of environment runners that were lost and started again.
        on_stop: told the ``replies`` of a training that cannot go on, since too many of them are none.
        resources: custom ones of Ray that each environment runner asks for.
        who: name in messages.
        max_lost_answers: share of a model's answers that may be none.

    Returns:
        The best policy.

    Raises:
        AtlasError: more of a model's answers are none. A later call goes on from the last evaluation.
    """
    directory = Path(directory)
    work = directory.parent / f"{directory.name}.train"
    if (directory / CONFIG).is_file():
        shutil.rmtree(work, ignore_errors=True)
        return SwitchPolicy.load(directory)
    saved = work / STATE
    history: list[dict[str, Any]] = files.read_json(saved / HISTORY) if saved.is_dir() else []
    start: dict[str, Any] = {"step": 0, "seconds": 0.0, "next_seed": first_episode}
    start |= history[-1] if history else {}

    ensure_ray(1 + settings.env_runners)
    from .algorithm import build_algorithm

    name = f"atlas-ray-switch/{directory.resolve()}"
    algorithm = build_algorithm(name, make_env, settings, config, seed + start["step"], start["next_seed"], resources)
    lost = 0
    try:
        if history:
            algorithm.restore_from_path(str(saved.resolve()))
        training = Training(algorithm, settings, config, evaluate, first_episode, history, who, max_lost_answers)
        while not training.over:
            try:
                policy, is_best = training.train_until_eval(algorithm.train)
            except AtlasError:
                on_stop(training.replies())
                raise
            if algorithm.num_restarted_env_runners() > lost:
                on_fault(algorithm.num_restarted_env_runners() - lost)
                lost = algorithm.num_restarted_env_runners()
            if is_best:
                policy.save(work / BEST)
            policy.save(work / LAST)
            with files.atomic_directory(saved) as temporary:
                algorithm.save_to_path(str(temporary.resolve()))
                files.write_json(temporary / HISTORY, history)
            on_evaluation(history[-1])
    finally:
        algorithm.stop()
    SwitchPolicy.load(work / LAST).save(work / BEST / LAST)
    (work / BEST).rename(directory)
    shutil.rmtree(work)
    return SwitchPolicy.load(directory)


class Training:
    """A training of a switch that is under way, from one greedy evaluation to the next.

    Args:
        algorithm: of :func:`atlas_ray.switching.algorithm.algorithm_config`.
        settings: hyper-parameters.
        config: what is learned.
        evaluate: see :func:`train_switch`.
        first_episode: seed of the first training episode.
        history: rows of the evaluations so far, which grow.
        who: name in messages.
        max_lost_answers: see :func:`train_switch`.
    """

    def __init__(
        self,
        algorithm: Any,
        settings: Switch,
        config: SwitchConfig,
        evaluate: Callable[[SwitchPolicy], dict[str, Any]],
        first_episode: int,
        history: list[dict[str, Any]],
        who: str = "training",
        max_lost_answers: float = 1.0,
    ) -> None:
        self.algorithm, self.settings, self.config, self.evaluate = algorithm, settings, config, evaluate
        self.first_episode, self.history = first_episode, history
        self.who, self.max_lost_answers = who, max_lost_answers
        self._counted = self._sampled()
        self._begun, self._clock = (history[-1] if history else {"step": 0, "seconds": 0.0}), time.monotonic()

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return bool(self.algorithm.steps >= self.settings.steps)

    def train_until_eval(self, train: Callable[[], object]) -> tuple[SwitchPolicy, bool]:
        """Train by calls of ``train`` until the next evaluation.

        Returns:
            The greedy policy, and whether it is the best so far.

        Raises:
            AtlasError: see :func:`train_switch`.
        """
        from .algorithm import action_costs

        algorithm, settings, config, history = self.algorithm, self.settings, self.config, self.history
        price = history[-1].get("price", 0.0) if history else 0.0
        if config.average is not None:
            algorithm.buffer.charge = action_costs(settings, price)
        target = min(settings.steps, algorithm.steps + settings.evaluate_every)
        while algorithm.steps < target:
            train()
            self._check(early=True)
        self._check()
        policy = SwitchPolicy(config, {k: v.numpy() for k, v in algorithm.get_module().net.state_dict().items()})
        row: dict[str, Any] = {"step": algorithm.steps, **self.evaluate(policy)}
        if replies := self.replies(row.pop("replies", {})):
            row["replies"] = replies
        self._counted = self._sampled()
        if config.average is not None:
            row["price"] = _dual_step(price, row["calls"], config.average)
        is_best = all(_rank(row, config) >= _rank(other, config) for other in history)
        passed = time.monotonic() - self._clock
        pace = passed / (algorithm.steps - self._begun["step"])
        # rows of an environment that begin no new episode until the next step are counted too
        begun = algorithm.buffer.ended + settings.num_envs * max(1, settings.env_runners)
        history.append(
            {
                **row,
                "best": row["objective"] if is_best else history[-1]["best"],
                "seconds": round(self._begun["seconds"] + passed, 1),
                "eta_seconds": round(max(0, settings.steps - algorithm.steps) * pace, 1),
                "next_seed": self.first_episode + begun,
            }
        )
        return policy, is_best

    def _sampled(self) -> Replies:
        """What the models wrote in all steps of the training."""
        return summed(self.algorithm.buffer.replies.values())

    def replies(self, evaluated: Mapping[str, int] | None = None) -> dict[str, int]:
        """Counts of the whole training so far, with those of an evaluation that has just been."""
        before = self.history[-1].get("replies", {}) if self.history else {}
        total = summed([before, evaluated or {}, self._sampled()])
        total.subtract(self._counted)
        return total.row()

    def _check(self, early: bool = False) -> None:
        losses, buffer = Losses(self.max_lost_answers), self.algorithm.buffer
        for number, replies in buffer.replies.items():
            losses.note(f"{self.who}, {self.settings.models[number].model}", replies, buffer.reasons.get(number))
        losses.check(early)


def _dual_step(price: float, calls: float, average: float) -> float:
    """The price of a call after a greedy evaluation with so many calls an episode [ours]."""
    excess = max(-1.0, min(1.0, (calls - average) / average))
    return max(0.0, price + DUAL_RATE * max(price, DUAL_LEAST) * excess)


def _rank(row: dict[str, Any], config: SwitchConfig) -> tuple[float, float]:
    """What makes one evaluation better than another."""
    if config.average is None:
        return 0.0, row["objective"]
    return -max(0.0, row["calls"] - config.average), row["objective"]
