"""The LONDI stage: train the switches of a recipe, then compare them with the baselines on the same episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..agents.rollout import SWITCH_JUDGE, SWITCH_SELECT, SWITCH_TEST, SWITCH_TRAIN
from ..agents.throughput import replies_told
from ..cluster.workers import ActorPool, worker_pool
from ..data.replies import Replies
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.switch import DOUBTS, MEASURED
from ..rundir import files
from ..rundir.following import Tail, polling
from ..rundir.progress import duration, say
from .calibration import FITTED, Calibration, weights_of
from .episode_file import EpisodeFile
from .logged_stage import learn_from_logs
from .logistic import BLANK
from .policies import (
    PolicySpec,
    Row,
    baselines,
    learned_policies,
    lost_episode_seeds,
    random_twins,
    resolve_budget,
    save_rules,
    scorable_episodes,
    shadowed_by_quick,
    single_model_policies,
    summarize_policy,
)
from .random_calls import play_random_calls
from .signals import Weights
from .stage_context import StageContext
from .tasks import PlayTask, TrainTask, engine_leases, remaining, rollout_chunk, train

_RECORDED = 3  # episodes that are played once more, step by step


def switch_stage(recipe: Recipe, run_dir: str | Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train, compare, aggregate; everything that is done already is skipped.

    Writes ``checkpoints/switch-cost0.05-seed0/`` and the like; ``switch/selection.jsonl``, episodes played before the
    test (what a call takes, what a percentage is of, QUICK's margins), and ``switch/usage.json``, what came of them;
    ``switch/fitting.jsonl``, training episodes that baselines and a signal are fitted to; with ``random_episodes``
    ``switch/random.jsonl`` and ``switch/logs.parquet``, what every switch learns from;
    ``checkpoints/switch-classifier0.25/`` and the like, such baselines as switches;
    ``switch/episodes.jsonl``, a row per test episode; ``switch/policies.json``, the rows returned; and
    ``switch/replay.json``, a few episodes of the last budget's switch, or of the last switch, step by step.

    With ``logs`` switches are learned from them first, see :func:`atlas_ray.switching.logged_stage.learn_from_logs`;
    without ``levels`` nothing is played.

    Args:
        recipe: one with a ``[switch]`` table.
        run_dir: the run directory.
        say: told a line of progress now and then.

    Returns:
        A row per policy, as in ``results.json``; none where nothing is played.

    Raises:
        AtlasError: more of a model's answers than ``max_lost_answers`` are none, or no episode is left to score. What
            ended is kept, and a later call plays what was lost again.
        InputError: the cost is measured in something that no call takes any of.
    """
    context = StageContext(recipe, Path(run_dir), say)
    if context.settings.logs:
        learn_from_logs(context)
    if not context.settings.levels:
        files.write_json(context.layout.switch_policies, [])
        return []
    with replies_told(context.log, "switch", context.replies, say):
        with _workers(context):
            count = context.settings.evaluate_episodes
            selection = EpisodeFile(context, context.layout.switch_selection, "dev", SWITCH_SELECT, count)
            learned = _train_all(context, selection)
            policy_specs, rows = _play_test(context, learned, selection)
            if not context.layout.switch_replay.is_file():
                own = learned or [spec for spec in policy_specs if spec.saved_as]
                record_episodes(context, own, scorable_episodes(rows, "the comparison"))
        summaries = _summarize(context, policy_specs, rows)
        files.write_json(context.layout.switch_policies, summaries)
        context.report_tally()
        if lost := lost_episode_seeds(rows):
            say(f"  {len(lost)} of {context.settings.test_episodes} episodes are left out for all, as one was lost")
        return summaries


def score(
    recipe: Recipe, run_dir: Path, policy_specs: Sequence[PolicySpec], pool: ActorPool[Any, Any], leases: Any
) -> list[Row]:
    """Play policies that are there already on the test episodes that ``switch/episodes.jsonl`` lacks.

    Returns:
        Their episodes, lost ones too.

    Raises:
        AtlasError: more of a model's answers are none than may be.
    """
    return _play(_test_file, recipe, run_dir, policy_specs, pool, leases)


def judge(
    recipe: Recipe,
    run_dir: Path,
    policy_specs: Sequence[PolicySpec],
    count: int,
    pool: ActorPool[Any, Any],
    leases: Any,
) -> list[Row]:
    """:func:`score` on ``count`` episodes that chose no policy in training and test none, ``switch/judged.jsonl``."""

    def judged(context: StageContext) -> EpisodeFile:
        return EpisodeFile(context, context.layout.switch_judged, "dev", SWITCH_JUDGE, count)

    return _play(judged, recipe, run_dir, policy_specs, pool, leases)


def _play(
    file: Callable[[StageContext], EpisodeFile],
    recipe: Recipe,
    run_dir: Path,
    policy_specs: Sequence[PolicySpec],
    pool: ActorPool[Any, Any],
    leases: Any,
) -> list[Row]:
    context = StageContext(recipe, run_dir, say)
    context.pool, context.leases = pool, leases
    if context.layout.switch_usage.is_file():
        context.mean_call = files.read_json(context.layout.switch_usage).get("mean_call")
    with replies_told(context.log, "switch", context.replies):
        return file(context).play(policy_specs)


@contextmanager
def _workers(context: StageContext) -> Iterator[None]:
    """The pools of workers and the engine actors, while the block lasts."""
    recipe, settings = context.recipe, context.settings
    runners = settings.env_runners * max(1, recipe.workers)
    apart = recipe.placement.trainers != recipe.placement.workers
    pool_of = (recipe, context.on_worker_lost, len(settings.local), runners)
    with (
        worker_pool(*pool_of) as pool,
        worker_pool(*pool_of, "trainers") if apart else pool as trainers,
        engine_leases(recipe) as leases,
    ):
        context.pool, context.trainers, context.leases = pool, trainers, leases
        yield


def _train_all(context: StageContext, selection: EpisodeFile) -> list[PolicySpec]:
    """Train every switch of the recipe, those whose terms follow from episodes of others last."""
    settings = context.settings
    usage: dict[str, Any] = {}
    if own := [name for name in DOUBTS if name in settings.signals]:
        shadowed = _fitting(context)(shadowed_by_quick(settings))
        context.weights = Weights(**{name: weights_of(name, shadowed, context.say) for name in own})
    if MEASURED in settings.costs:
        context.mean_call = usage["mean_call"] = _mean_call(context, selection)
    _train_missing(context, learned_policies(settings, context.run_dir))
    budgets: dict[str, int] = {}
    if any(isinstance(budget, str) and budget.endswith("%") for budget in settings.budgets):
        calls, budgets = _resolve_budgets(context, selection)
        usage |= {"calls": calls, "budgets": budgets}
    learned = learned_policies(settings, context.run_dir, budgets)
    _train_missing(context, learned)
    if usage:
        files.write_json(context.layout.switch_usage, {"unit": settings.unit, **usage})
    return learned


def _test_file(context: StageContext) -> EpisodeFile:
    return EpisodeFile(context, context.layout.switch_episodes, "test", SWITCH_TEST, context.settings.test_episodes)


def _mean_call(context: StageContext, selection: EpisodeFile) -> float:
    """What a mean call of DEEPTHINK takes when it plays alone, in the recipe's unit.

    Raises:
        InputError: a call takes none of it.
    """
    settings = context.settings
    rows = scorable_episodes(selection.play([single_model_policies(settings)[-1]]), "the mean call")
    mean_call = sum(row[settings.unit] for row in rows) / sum(row["calls"] for row in rows)
    if not mean_call:
        hint = ": give the models a price" if settings.unit == "money" else ""
        raise InputError(f"a call of the last model takes none of it{hint}", field="switch.unit")
    return float(mean_call)


def _resolve_budgets(context: StageContext, selection: EpisodeFile) -> tuple[float, dict[str, int]]:
    """Mean calls per episode of the first cost's switches, and the budgets that percentages of those stand for."""
    settings = context.settings
    first = learned_policies(settings, context.run_dir)[:1]
    rows = scorable_episodes(selection.play(first), first[0].name)
    calls = fmean(row["calls"] for row in rows)
    budgets = {
        given: max(settings.run_length, resolve_budget(given, calls))
        for given in settings.budgets
        if isinstance(given, str) and "%" in given
    }
    said = ", ".join(f"{given} is {budget}" for given, budget in budgets.items())
    context.say(f"  {said} of {calls:.2f} calls per episode")
    return calls, budgets


def _calibration(context: StageContext, selection: EpisodeFile) -> Calibration:
    """Play what the recipe's baselines are set by: selection and training episodes, none of the test."""
    settings, found = context.settings, context.from_logs
    if "threshold" in settings.baselines:
        # below no threshold, so QUICK acts alone, and is asked for its margin
        watched = PolicySpec("quick, watched", "threshold", tau=-math.inf)
        rows = scorable_episodes(selection.play([watched]), watched.name)
        found = replace(found, margins=[margin for row in rows for margin in row["margins"]])
    if not (FITTED - found.doubts.keys()) & set(settings.baselines):
        return found
    play, last = _fitting(context), len(settings.models) - 1
    quick = play(PolicySpec("quick, fitted to", "always"))
    if "escalate" in settings.baselines:
        after = settings.escalate_after
        always = PolicySpec(f"deepthink after {after}", "escalate", last, tau=math.inf, weights=BLANK, after=after)
        found = found.with_escalation(quick, play(always), after)
    for kind in DOUBTS:
        if kind in settings.baselines and kind not in found.doubts:
            weights = getattr(context.weights, kind)  # of a signal, if it is one too
            weights = weights or weights_of(kind, play(shadowed_by_quick(settings)), context.say)
            found = found.with_doubt(kind, quick, weights)
    return found


def _fitting(context: StageContext) -> Callable[[PolicySpec], list[Row]]:
    """What plays a policy in the training episodes that rules and signals are fitted to."""
    if context.fitting is None:
        place, count = context.layout.switch_training("fitting"), context.settings.fit_episodes
        context.fitting = EpisodeFile(context, place, "train", SWITCH_TRAIN, count, record=True)
    file = context.fitting
    return lambda spec: scorable_episodes(file.play([spec]), spec.name)


def train_together(runs: Sequence[tuple[Recipe, Path]]) -> None:
    """Train the switches of several runs, as many at a time as there are workers, as each run's stage would.

    What needs other episodes or models first is left to the stage: measured costs, budgets as percentages, signals
    that are fitted, episodes of random calls, engine actors.
    """
    contexts = [StageContext(recipe, run_dir, say) for recipe, run_dir in runs]
    recipe, settings = contexts[0].recipe, contexts[0].settings
    fitted = settings.random_episodes or set(DOUBTS) & set(settings.signals)
    if recipe.engine.actors or MEASURED in settings.costs or fitted:
        return
    tasks = {c.run_dir: _missing_trainings(c, learned_policies(c.settings, c.run_dir)) for c in contexts}
    if sum(map(len, tasks.values())) < 2:
        return
    runners = settings.env_runners * max(1, recipe.workers)
    with ExitStack() as stack:
        lost, local = contexts[0].on_worker_lost, len(settings.local)
        pool = stack.enter_context(worker_pool(recipe, lost, local, runners, "trainers"))
        pool.timeout = math.inf  # a training says nothing to its pool until its end
        stack.enter_context(engine_leases(recipe))  # (closes what this process opens)
        for context in contexts:
            stack.enter_context(_evaluations_said(context))
        for _ in pool.stream(train, [task for own in tasks.values() for task in own]):
            pass


def _missing_trainings(context: StageContext, policy_specs: Sequence[PolicySpec]) -> list[TrainTask]:
    """The trainings of switches that have no checkpoint."""
    about = context.recipe, str(context.run_dir)
    return [
        TrainTask(*about, spec, training, context.mean_call, context.leases, context.weights)
        for spec in policy_specs
        for training in spec.seeds
        if not (spec.directory(training) / "config.json").is_file()
    ]


def _train_missing(context: StageContext, policy_specs: Sequence[PolicySpec]) -> None:
    """Train the switches that have no checkpoint."""
    recipe, settings = context.recipe, context.settings
    tasks = _missing_trainings(context, policy_specs)
    if not tasks:
        return
    if settings.random_episodes:
        play_random_calls(context)
    context.say(f"  training {len(tasks)} switches of {settings.steps} steps, {recipe.workers or 1} at a time")
    apart = context.trainers is not context.pool
    if apart:
        context.pool.close()  # its CPUs are free for the trainings, or for their environment runners
    # a training says nothing to its pool until its end
    context.trainers.timeout, timeout = math.inf, context.trainers.timeout
    with _evaluations_said(context):
        for _, tally in context.trainers.stream(train, tasks):
            context.tally += tally
    context.trainers.timeout = timeout
    if apart:
        context.trainers.close()


@contextmanager
def _evaluations_said(context: StageContext) -> Iterator[None]:
    """Say what trainings, which run in other processes, note in the metrics, while the block lasts."""
    tail = Tail(context.layout.metrics)

    def tell() -> None:
        for row in map(json.loads, tail.lines()):
            if row["stage"] == "switch" and "policy" in row:
                replies = Replies(row.get("replies", {})).words()
                found = f"objective {row['objective']:.3f}, best {row['best']:.3f}, " if "best" in row else ""
                context.say(
                    f"  {row['policy']}: step {row['step']}, {found}about {duration(row['eta_seconds'])} left"
                    f"{replies and f' · replies: {replies}'}"
                )

    with polling(tell, 1.0):
        yield


def _play_test(
    context: StageContext, learned: Sequence[PolicySpec], selection: EpisodeFile
) -> tuple[list[PolicySpec], list[Row]]:
    """Play single models, switches, and baselines at the switches' rates: all policies, and all their episodes."""
    test, plain = _test_file(context), single_model_policies(context.settings)
    rows = test.play([*plain, *learned])
    scorable, calibration = scorable_episodes(rows, "the comparison"), _calibration(context, selection)
    rules = baselines(context.settings, learned, scorable, calibration)
    save_rules(rules, context.run_dir, context.say)
    rows += test.play(rules)
    # rules that are kept miss the rates that they were set to: random calls at those which they have
    twins = random_twins(context.settings, rules, scorable_episodes(rows, "the comparison"))
    return [*plain, *learned, *rules, *twins], rows + (test.play(twins) if twins else [])


def record_episodes(context: StageContext, switches: Sequence[PolicySpec], rows: Sequence[Row]) -> None:
    """Play a few episodes of a switch again, and write their steps to ``switch/replay.json``.

    One of each kind that there is, so that its failures are seen too: a success with calls, a failure with calls, a
    success without any; of a kind the one with most steps by QUICK.
    """
    spec = next((spec for spec in reversed(switches) if spec.budget is not None), switches[-1])
    training = spec.training_seeds[0]
    own = [row for row in rows if row["policy"] == spec.name and row["training"] == training]
    kinds: dict[tuple[bool, bool], Row] = {}
    for row in sorted(own, key=lambda r: r["steps"] - r["calls"]):
        kinds[bool(row["success"]), row["calls"] > 0] = row
    order = [(True, True), (False, True), (True, False), (False, False)]
    seeds = tuple(kinds[kind]["seed"] for kind in order if kind in kinds)[:_RECORDED]
    play = (context.recipe, spec, training, seeds, "test", context.mean_call, context.leases)
    task = PlayTask(*play, record=True)
    found: dict[int, Row] = {}
    for _, (row, tally) in context.pool.stream(rollout_chunk, [task], remaining):
        context.tally += tally
        if row["lost"]:
            context.log.event("switch", "no replay", policy=task.who, seed=row["seed"], why=row["error"])
            continue
        about = {"policy": spec.name, "budget": spec.limit, "seed": row["seed"], "success": row["success"]}
        found[row["seed"]] = {**about, **row["episode"]}
    if episodes := [found[seed] for seed in seeds if seed in found]:
        files.write_json(context.layout.switch_replay, {**episodes[0], "others": episodes[1:]})


def _summarize(context: StageContext, policy_specs: Sequence[PolicySpec], rows: Sequence[Row]) -> list[Row]:
    """One row per policy; an episode that one of them lost is left out for all."""
    unit, models, lost = context.settings.unit, len(context.settings.models), lost_episode_seeds(rows)
    return [
        summarize_policy(spec, [row for row in rows if row["policy"] == spec.name], unit, models, lost)
        for spec in policy_specs
    ]
