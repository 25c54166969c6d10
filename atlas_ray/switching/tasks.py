"""What the workers of the switch stage do: train a switch, or play a chunk of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from ..agents.rollout import SWITCH_PLAYOFF, SWITCH_SELECT, SWITCH_TRAIN, EnvSpec, env_spec, seed_block
from ..cluster.remote_rundir import open_run_dir
from ..cluster.worker_state import WorkerState
from ..data.replies import Losses, summed
from ..engines import EngineLease
from ..models.encoders import encoder_width
from ..recipe.loading import Recipe, Switch
from ..rundir.layout import RunLayout
from .decision_cache import DecisionCache
from .environment import SwitchingVectorEnv
from .evaluate import encoder_of, evaluate_policy, rollout_policy
from .players import close_players, engine_actors, lost, open_players
from .policies import PolicySpec, Row, scorable_episodes
from .policy import SwitchConfig, SwitchPolicy
from .signals import NOT_FITTED, Weights, total_width
from .text_game import TextGame
from .train import train_switch

Leases = tuple[tuple[EngineLease, ...], ...]
Tally = Counter[str]
"""How often something happened."""

STOPPED = "training stopped"
"""Event of a training that cannot go on."""
BETWEEN_SEEDS = 1_000
"""Training seeds begin with episodes so far apart."""

# Of this process: its number among those that play, its players, and what they answered. The environment runners of
# RLlib have nothing else to keep it in.
_state = WorkerState()


@dataclass(frozen=True)
class TrainTask:
    """One switch to train: a policy_spec and a training seed. ``weights``: of the signals that are fitted."""

    recipe: Recipe
    run_dir: str
    policy_spec: PolicySpec
    training: int
    mean_call: float | None
    leases: Leases
    weights: Weights = NOT_FITTED

    @property
    def who(self) -> str:
        """Name in messages."""
        return _who(self.policy_spec, self.training)

    @property
    def seed(self) -> int:
        """Of weights and draws."""
        return self.recipe.seed * 100 + self.training

    @property
    def checkpoint(self) -> str:
        """Where the switch goes, in the run directory."""
        return str(self.policy_spec.directory(self.training).relative_to(self.run_dir))


@dataclass(frozen=True)
class PlayTask:
    """A chunk of episodes of one policy, on a split."""

    recipe: Recipe
    policy_spec: PolicySpec
    training: int | None
    seeds: tuple[int, ...]
    split: str
    mean_call: float | None
    leases: Leases
    record: bool = False

    @property
    def who(self) -> str:
        """Name in messages."""
        return _who(self.policy_spec, self.training)


def _who(policy_spec: PolicySpec, training: int | None) -> str:
    return policy_spec.name if len(policy_spec.seeds) < 2 else f"{policy_spec.name} seed {training}"


def switch_of(recipe: Recipe) -> Switch:
    """The ``[switch]`` table of a recipe that has one."""
    assert recipe.switch is not None
    return recipe.switch


@contextmanager
def engine_leases(recipe: Recipe) -> Iterator[Leases]:
    """Engine actors with a place for every worker and for each of its environment runners, while the block lasts.

    At its end what this process itself has opened is closed too.
    """
    try:
        with engine_actors(recipe, max(1, recipe.workers) * (1 + switch_of(recipe).env_runners)) as found:
            yield found
    finally:
        close_players(_state)
        _state.clear()


def _specs(recipe: Recipe, split: str) -> list[EnvSpec]:
    settings = switch_of(recipe)
    return [env_spec(recipe, level, settings.max_steps, split) for level in settings.levels]


def _game_options(recipe: Recipe, mean_call: float | None) -> dict[str, Any]:
    settings = switch_of(recipe)
    cache = _state.get_or_create(DecisionCache) if settings.cache else None
    return {"decision_cache": cache, "unit": settings.unit, "mean_call": mean_call, "absorb_env_deaths": True} | (
        {"bills": True} if settings.bills else {}
    )


@dataclass(frozen=True)
class TaskEnvCreator:
    """Makes the environment that a switch learns in, here or in an environment runner's process.

    ``worker`` is the number of the worker that trains.
    """

    task: TrainTask
    worker: int

    def __call__(self, first_seed: int, stride: int) -> SwitchingVectorEnv:
        """One whose first episode has this seed, and the others lie ``stride`` apart."""
        recipe, policy_spec = self.task.recipe, self.task.policy_spec
        settings = switch_of(recipe)
        if _state.index is None:
            # runners share the seeds out, so a seed tells which of them this is
            runner = first_seed % stride
            _state.index = max(1, recipe.workers) + self.worker * settings.env_runners + runner
        players = open_players(recipe, _state, self.task.leases)
        encoder = "hidden" if settings.encoder == "hidden" else encoder_of(settings.encoder, settings.features)
        options = {"encoder": encoder, "signals": settings.signals, **_game_options(recipe, self.task.mean_call)}
        options["weights"] = self.task.weights
        game = TextGame(_specs(recipe, "train"), players, settings.num_envs, **options)
        cost, weights = policy_spec.cost_terms(settings)
        unit, run = policy_spec.unit, policy_spec.run
        return SwitchingVectorEnv(game, first_seed, policy_spec.budget, cost, weights, stride, unit, run)


def rollout_chunk(task: PlayTask, state: WorkerState) -> Iterator[tuple[Row, Tally]]:
    """Play the episodes of a task.

    Yields:
        A row per episode, as :func:`rollout_policy` does, and what was counted since the last.
    """
    _state.index = state.index
    settings = switch_of(task.recipe)
    players = open_players(task.recipe, _state, task.leases)
    before = _current_tally(players)
    cost, weights = task.policy_spec.cost_terms(settings)
    for row in rollout_policy(
        task.policy_spec.make_policy(task.recipe.seed, task.training),
        players,
        _specs(task.recipe, task.split),
        task.seeds,
        task.policy_spec.budget,
        cost,
        task.record,
        weights,
        task.recipe.max_lost_answers,
        task.policy_spec.unit,
        task.policy_spec.run,
        **_game_options(task.recipe, task.mean_call),
    ):
        now = _current_tally(players)
        yield row, now - before
        before = now


def remaining(task: PlayTask, received: list[tuple[Row, Tally]]) -> PlayTask | None:
    """What is left of a task of which these rows are there."""
    done = {row["seed"] for row, _ in received}
    left = tuple(seed for seed in task.seeds if seed not in done)
    return replace(task, seeds=left) if left else None


def count_losses(losses: Losses, who: str, settings: Switch, rows: Iterable[Row]) -> None:
    """Count the answers in these episodes, for each model of a policy by itself."""
    for row in rows:
        for number, replies in enumerate(row.get("replies", ())):
            reason = row["error"] if row.get("lost_by") == number else None
            losses.note(f"{who}, {settings.models[number].model}", replies, reason)


@dataclass(frozen=True)
class TrainingSetup:
    """What a training of a switch is made of, see :func:`atlas_ray.switching.train.train_switch`."""

    settings: Switch
    config: SwitchConfig
    make_env: Callable[[int, int], SwitchingVectorEnv]
    evaluate: Callable[[SwitchPolicy], dict[str, Any]]
    first_episode: int
    seed: int
    playoff: Callable[[SwitchPolicy], dict[str, Any]] | None = None


def build_training(task: TrainTask, index: int) -> TrainingSetup:
    """Set up the training of a task in the process of worker ``index``, which opens the players."""
    _state.index = index
    recipe, policy_spec = task.recipe, task.policy_spec
    settings = switch_of(recipe)
    players = open_players(recipe, _state, task.leases)
    cost, weights = policy_spec.cost_terms(settings)

    def evaluate(policy: SwitchPolicy, block: int = SWITCH_SELECT, count: int | None = None) -> dict[str, Any]:
        first = seed_block(recipe.seed, block)
        rows = evaluate_policy(
            policy,
            players,
            _specs(recipe, "dev"),
            range(first, first + (count or settings.evaluate_episodes)),
            policy_spec.budget,
            cost,
            weights=weights,
            max_lost_answers=recipe.max_lost_answers,
            budget_unit=policy_spec.unit,
            run=policy_spec.run,
            **_game_options(recipe, task.mean_call),
        )
        losses = Losses(recipe.max_lost_answers)
        count_losses(losses, task.who, settings, rows)
        losses.check()
        kept = scorable_episodes(rows, f"{task.who}, evaluated in training")
        means = {name: fmean(r[name] for r in kept) for name in ("objective", "return", "success", "calls")}
        return {**means, "replies": summed(losses.counts.values())}

    first_episode = seed_block(recipe.seed, SWITCH_TRAIN) + task.training * BETWEEN_SEEDS
    others, config = settings.playoff_episodes, switch_config(settings, policy_spec, task.weights)
    playoff = partial(evaluate, block=SWITCH_PLAYOFF, count=others) if others else None
    return TrainingSetup(settings, config, TaskEnvCreator(task, index), evaluate, first_episode, task.seed, playoff)


def switch_config(settings: Switch, policy_spec: PolicySpec, weights: Weights) -> SwitchConfig:
    """What a switch of a recipe is, by the terms of a policy; ``weights`` of its fitted signals."""
    from .algorithm import HIDDEN

    encoded = encoder_width(settings.encoder, settings.features, settings.models[0].model)
    return SwitchConfig(
        encoded + total_width(settings.signals),
        HIDDEN,
        models=len(settings.models),
        budget=policy_spec.budget,
        cost=policy_spec.cost,
        average=policy_spec.average,
        encoder=settings.encoder,
        signals=tuple(settings.signals),
        unit=policy_spec.unit,
        run_length=policy_spec.run,
        **weights._asdict(),
    )


def train(task: TrainTask, state: WorkerState) -> Iterator[Tally]:
    """Train the switch of a task; what it measures goes to the run's metrics.

    Yields:
        What was counted on the way.
    """
    _state.index = state.index
    if switch_of(task.recipe).random_episodes:
        _train_from_random_calls(task)
        yield Counter()
        return
    players = open_players(task.recipe, _state, task.leases)
    before, faults = _current_tally(players), Counter[str]()
    setup, at = build_training(task, state.index or 0), open_run_dir(task.run_dir)
    name = task.checkpoint
    at.fetch(f"{name}.train")

    def on_fault(runners: int) -> None:
        faults["env-runners"] += runners
        at.log.event("switch", "env-runners lost", policy=task.who, runners=runners)

    def on_evaluation(row: dict[str, Any]) -> None:
        at.send(f"{name}.train")
        at.log.metric("switch", policy=task.who, **row)

    train_switch(
        at.root / name,
        setup.settings,
        setup.config,
        setup.make_env,
        setup.evaluate,
        setup.first_episode,
        setup.seed,
        on_evaluation=on_evaluation,
        on_fault=on_fault,
        on_stop=lambda replies: at.log.event("switch", STOPPED, policy=task.who, replies=replies),
        resources=task.recipe.placement.resource_request("workers"),
        who=task.who,
        max_lost_answers=task.recipe.max_lost_answers,
        playoff=setup.playoff,
    )
    at.send(name)
    at.drop(f"{name}.train")
    yield _current_tally(players) - before + faults


def _train_from_random_calls(task: TrainTask) -> None:
    """Train the switch of a task from the transitions that the stage has left in the run directory."""
    from .logged_training import train_from_logs

    at, name, settings = open_run_dir(task.run_dir), task.checkpoint, switch_of(task.recipe)
    data = RunLayout(at.root).switch_logs
    at.fetch(f"{name}.train")
    at.fetch(str(data.relative_to(at.root)))

    def note(row: Row) -> None:
        at.send(f"{name}.train")
        at.log.metric("switch", policy=task.who, **row)

    config = switch_config(settings, task.policy_spec, task.weights)
    train_from_logs(at.root / name, settings, config, data, task.seed, note)
    at.send(name)
    at.drop(f"{name}.train")


def _current_tally(players: tuple[Any, ...]) -> Tally:
    found = Counter({"engine answers": lost(players)})
    if (cache := _state.find(DecisionCache)) is not None:
        found |= {"asked": cache.hits + cache.misses, "answered from the cache": cache.hits}
    return found
