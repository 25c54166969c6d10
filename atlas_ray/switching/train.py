"""Training one switch, so that a killed run goes on and the best policy is kept, not the last."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cluster.workers import ensure_ray
from ..data.replies import Losses, Replies, summed
from ..errors import AtlasError, InputError
from ..recipe.loading import Switch
from ..rundir import files
from .boundary import Repeating, Transitions, differing, play_boundary
from .policy import CHOSEN, CONFIG, SwitchConfig, SwitchPolicy

if TYPE_CHECKING:
    from .env_runners import EnvCreator

STATE, HISTORY, BEST, LAST, CANDIDATES = "state", "history.json", "best", "last", "candidates"
REPEATED = "repeated.json"
FINALISTS = 4
"""Policies that a play-off is between."""
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
    playoff: Callable[[SwitchPolicy], dict[str, Any]] | None = None,
) -> SwitchPolicy:
    """Train a switch with RLlib's DQN or SAC inside this process.

    Off-policy learning gets better and worse again, so the policy is evaluated greedily every
    ``settings.evaluate_every`` environment steps, and the best one by ``objective`` is what ends up in ``directory``,
    with the last one in ``directory/last``. After every evaluation the state of the training is in ``DIRECTORY.train``
    beside it, from where a later call goes on; that is removed at the end.

    With ``config.average`` (Lagrangian) the price of a call is a dual variable: after each evaluation it rises where
    the greedy policy calls more often than that, and falls where it calls less. A policy that keeps to the average is
    better than one that does not, and then the one with the higher objective.

    With ``settings.boundary_episodes`` QUICK and the last model first play so many training seeds alone, see
    :mod:`atlas_ray.switching.boundary`. These steps count, in the replay buffer and for updates.

    The best of several noisy evaluations looks better than it is. With a ``playoff`` the four best policies play other
    episodes, all the same, and the best of these is kept; ``chosen.json`` says how it did there [ours].

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
        playoff: scores a policy as ``evaluate`` does, on other episodes.

    Returns:
        The best policy.

    Raises:
        AtlasError: more of a model's answers are none. A later call goes on from the last evaluation.
    """
    work = WorkDirectory(Path(directory))
    if work.is_done():
        return work.policy()
    history, played = work.history(), list[Transitions]()
    repeated: tuple[int, ...] = ()
    if settings.boundary_episodes and config.budget != 0:
        repeated = work.repeated()
        if not history:
            seeds = range(first_episode, first_episode + settings.boundary_episodes)
            played = play_boundary(make_env(first_episode, 1), seeds)
            if (taken := sum(len(episode.rewards) for episode in played)) >= settings.steps:
                what = f"the steps of these episodes are {taken:,}, and the training has {settings.steps:,}"
                raise InputError(what, field="switch.boundary_episodes")
            repeated = differing(played)
        make_env = Repeating(make_env, repeated, settings.boundary_share)
        first_episode += settings.boundary_episodes
    start = history[-1] if history else {"step": 0, "next_seed": first_episode}

    ensure_ray(1 + settings.env_runners)
    from .algorithm import build_algorithm

    name = f"atlas-ray-switch/{work.directory.resolve()}"
    algorithm = build_algorithm(name, make_env, settings, config, seed + start["step"], start["next_seed"], resources)
    restarted = 0
    try:
        if history:
            work.restore(algorithm)
        algorithm.warm_start(played)
        training = Training(algorithm, settings, config, evaluate, first_episode, history, who, max_lost_answers)
        while not training.over:
            try:
                policy, is_best = training.train_until_eval(algorithm.train)
            except AtlasError:
                on_stop(training.replies())
                raise
            if (restarts := algorithm.num_restarted_env_runners()) > restarted:
                on_fault(restarts - restarted)
                restarted = restarts
            if playoff is not None:
                work.keep_candidate(policy, history[-1]["step"])
            work.save(algorithm, policy, is_best, history, repeated)
            on_evaluation(history[-1])
    finally:
        algorithm.stop()
    work.finish(_choose(work, history, config, playoff))
    return work.policy()


def _choose(
    work: WorkDirectory,
    history: list[dict[str, Any]],
    config: SwitchConfig,
    playoff: Callable[[SwitchPolicy], dict[str, Any]] | None,
) -> dict[str, Any]:
    """The evaluation, or the episodes of the play-off, whose policy is kept. Of equal ones the later counts."""
    ranked = sorted(reversed(history), key=lambda row: _rank(row, config), reverse=True)
    if playoff is None:
        return ranked[0]
    played = [{"step": row["step"], **playoff(work.candidate(row["step"]))} for row in ranked[:FINALISTS]]
    best = max(played, key=lambda row: _rank(row, config))
    work.promote(best["step"])
    return {**best, "finalists": [{name: row[name] for name in ("step", "objective")} for row in played]}


class WorkDirectory:
    """Files of one training: its state and its policies in ``DIRECTORY.train``, and at the end the best in DIRECTORY.

    Args:
        directory: where the policy goes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self._work = directory, directory.parent / f"{directory.name}.train"

    def is_done(self) -> bool:
        """Whether the policy is there; what a kill has left beside it is removed then."""
        done = (self.directory / CONFIG).is_file()
        if done:
            shutil.rmtree(self._work, ignore_errors=True)
        return done

    def policy(self) -> SwitchPolicy:
        """The policy of a training that is done."""
        return SwitchPolicy.load(self.directory)

    def history(self) -> list[dict[str, Any]]:
        """Rows of the evaluations so far."""
        state = self._work / STATE
        found: list[dict[str, Any]] = files.read_json(state / HISTORY) if state.is_dir() else []
        return found

    def restore(self, algorithm: Any) -> None:
        """Bring a new algorithm to the state of the last evaluation."""
        algorithm.restore_from_path(str((self._work / STATE).resolve()))

    def repeated(self) -> tuple[int, ...]:
        """Seeds of training episodes that come more often."""
        path = self._work / STATE / REPEATED
        return tuple(files.read_json(path)) if path.is_file() else ()

    def save(
        self,
        algorithm: Any,
        policy: SwitchPolicy,
        is_best: bool,
        history: list[dict[str, Any]],
        repeated: Sequence[int] = (),
    ) -> None:
        """Write the policy, as the best too if it is, then the state to go on from."""
        if is_best:
            policy.save(self._work / BEST)
        policy.save(self._work / LAST)
        with files.atomic_directory(self._work / STATE) as temporary:
            algorithm.save_to_path(str(temporary.resolve()))
            files.write_json(temporary / HISTORY, history)
            files.write_json(temporary / REPEATED, list(repeated))

    def keep_candidate(self, policy: SwitchPolicy, step: int) -> None:
        """Write a policy that may have to play again."""
        policy.save(self._work / CANDIDATES / str(step))

    def candidate(self, step: int) -> SwitchPolicy:
        """The policy of the evaluation at a step."""
        return SwitchPolicy.load(self._work / CANDIDATES / str(step))

    def promote(self, step: int) -> None:
        """Make it the best."""
        self.candidate(step).save(self._work / BEST)

    def finish(self, chosen: dict[str, Any]) -> None:
        """Put the best policy, why it is, and the last one, where the policy goes, by one rename."""
        told = ("step", "objective", "return", "success", "calls", "finalists")
        files.write_json(self._work / BEST / CHOSEN, {name: chosen[name] for name in told if name in chosen})
        SwitchPolicy.load(self._work / LAST).save(self._work / BEST / LAST)
        (self._work / BEST).rename(self.directory)
        shutil.rmtree(self._work)


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
        algorithm, history = self.algorithm, self.history
        price = history[-1].get("price", 0.0) if history else 0.0
        self._train_steps(train, price)
        net = algorithm.get_module().net
        policy = SwitchPolicy(self.config, {name: tensor.numpy() for name, tensor in net.state_dict().items()})
        row = self._evaluate(policy, price)
        is_best = all(_rank(row, self.config) >= _rank(other, self.config) for other in history)
        best = row["objective"] if is_best else history[-1]["best"]
        history.append({**row, "best": best, **self._progress()})
        return policy, is_best

    def _train_steps(self, train: Callable[[], object], price: float) -> None:
        """Call ``train`` until the steps of the next evaluation are there, with calls at this price for an average."""
        from .algorithm import action_costs

        algorithm, settings = self.algorithm, self.settings
        if self.config.average is not None:
            algorithm.buffer.charge = action_costs(settings, price)
        target = min(settings.steps, algorithm.steps + settings.evaluate_every)
        while algorithm.steps < target:
            train()
            self._check(early=True)
        self._check()

    def _evaluate(self, policy: SwitchPolicy, price: float) -> dict[str, Any]:
        """What an evaluation of the policy says, with the replies so far and, for an average, the next price."""
        row: dict[str, Any] = {"step": self.algorithm.steps, **self.evaluate(policy)}
        if replies := self.replies(row.pop("replies", {})):
            row["replies"] = replies
        self._counted = self._sampled()
        if self.config.average is not None:
            row["price"] = _dual_step(price, row["calls"], self.config.average)
        return row

    def _progress(self) -> dict[str, Any]:
        """Seconds so far and to come, and the seed from which no training episode has begun."""
        algorithm, settings = self.algorithm, self.settings
        passed = time.monotonic() - self._clock
        pace = passed / (algorithm.steps - self._begun["step"])
        # rows of an environment that begin no new episode until the next step are counted too
        begun = algorithm.buffer.ended + settings.num_envs * max(1, settings.env_runners)
        return {
            "seconds": round(self._begun["seconds"] + passed, 1),
            "eta_seconds": round(max(0, settings.steps - algorithm.steps) * pace, 1),
            "next_seed": self.first_episode + begun,
        }

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
    """The price of a call after a greedy evaluation with so many calls per episode [ours]."""
    excess = max(-1.0, min(1.0, (calls - average) / average))
    return max(0.0, price + DUAL_RATE * max(price, DUAL_LEAST) * excess)


def _rank(row: dict[str, Any], config: SwitchConfig) -> tuple[float, float]:
    """What makes one evaluation better than another."""
    if config.average is None:
        return 0.0, row["objective"]
    return -max(0.0, row["calls"] - config.average), row["objective"]
