"""Running trials on Ray Tune: what each asks for, how many at a time, who is stopped, and going on after a kill."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner, grid_search
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining

from ..cluster.capacity import check_room, resources_of
from ..cluster.resources import Total, peak_of, resource_requests, worker_request
from ..cluster.workers import ensure_ray
from ..errors import AtlasError
from ..ray_private import HEAD_RESOURCE, TUNE_ENVIRONMENT
from ..recipe.loading import Recipe, SearchSpace, Sweep
from ..rundir import files, logs
from ..rundir.following import polling
from ..rundir.progress import duration, say, track
from .trials import Trial

_TUNE_FOLDER = ".ray"
_FAILURES = 2
"""How often a trial may lose its process; a node that is taken away is no reason to give it up."""


def resource_request(trial: Trial, kind: str, gpus: bool) -> tuple[list[dict[str, float]], Total]:
    """What a trial's own process and its environment runners ask of Tune, and all that it asks of the cluster.

    The actors of a trial of ATLaS come and go with its stages. They are put wherever there is room, and the number of
    trials at a time leaves room for them.
    """
    recipe, one = trial.recipe, worker_request(trial.recipe)
    place = recipe.placement.resource_request("trainers")
    if kind == "switch":
        assert recipe.switch is not None
        runner = {"CPU": 1.0, **recipe.placement.resource_request("workers")}
        bundles = [{"CPU": one.cpus, "GPU": one.gpus, **place}, *[runner] * recipe.switch.env_runners]
        return bundles, Total(sum(b["CPU"] for b in bundles), one.gpus)
    trains = recipe.finetune is not None and not recipe.finetune.workers
    plays = not recipe.workers
    own = Total(one.cpus if plays else float(trains), max(one.gpus if plays else 0.0, float(trains and gpus)))
    others = peak_of(d for d in resource_requests(recipe, gpus) if d.count)
    # a bundle must not be empty; this resource is where the driver is
    bundle = {"CPU": own.cpus, "GPU": own.gpus, **(place if own.cpus else {HEAD_RESOURCE: 0.001})}
    return [bundle], Total(own.cpus + others.cpus, own.gpus + others.gpus)


def tune(recipe: Recipe, run_dir: Path, trials: Sequence[Trial], trainable: type, name: str, **more: Any) -> None:
    """Run trials that are not done yet. What a trial had done before a kill it finds in its own directory.

    Tune gives the ``trainable`` a configuration of ``point`` (the trial's ``number``, ``values`` and ``bundles``, which
    are what it asks for), ``recipe``, ``run_dir`` and ``logs`` of the sweep, ``metric``, the driver's ``path`` of
    modules and what ``more`` holds.

    Args:
        recipe: with a ``[sweep]`` table.
        run_dir: of the sweep.
        trials: to run.
        trainable: the class.
        name: of Tune's own directory.
        **more: see above.

    Raises:
        InputError: a trial asks for more than this machine has.
    """
    assert recipe.sweep is not None
    sweep = recipe.sweep
    ensure_ray(math.ceil(max(resource_request(t, sweep.kind, False)[1].cpus for t in trials)))
    logs.capture_loggers("ray.tune", "ray.train")
    os.environ |= TUNE_ENVIRONMENT
    there = resources_of(None)
    wanted = {t.number: resource_request(t, sweep.kind, there.get("GPU", 0) > 0) for t in trials}
    limit = at_a_time(sweep, [total for _, total in wanted.values()], there)
    points = [{"number": t.number, "values": t.reached(), "bundles": wanted[t.number][0]} for t in trials]
    given = recipe.model_dump(mode="json", exclude_unset=True)
    same: dict[str, Any] = {"recipe": given, "run_dir": str(run_dir.resolve()), "logs": logs.folder()}
    same |= {"path": sys.path, "metric": sweep.judged_by, **more}
    storage = (run_dir / _TUNE_FOLDER).resolve()
    shutil.rmtree(storage / name, ignore_errors=True)
    for trial in trials:
        trial.layout.trial_result.unlink(missing_ok=True)  # it failed, and is tried again
    tuner = _tuner(sweep, storage, name, trainable, points, same, limit, trials)
    say(f"  {len(trials)} trials to run, {min(limit, len(trials))} at a time")
    with _followed(trials):
        results = tuner.fit()
    _take_failures(trials, results)
    shutil.rmtree(storage / name, ignore_errors=True)


def at_a_time(sweep: Sweep, totals: Sequence[Total], there: Mapping[str, float]) -> int:
    """How many trials run side by side.

    Raises:
        InputError: there is not room for a single one.
    """
    cpus, gpus = max(t.cpus for t in totals), max(t.gpus for t in totals)
    check_room(cpus, gpus, "a trial asks for", ("engine.cpus", "engine.gpus"))
    room = [int(there.get(name, 0) / asked) for name, asked in (("CPU", cpus), ("GPU", gpus)) if asked]
    return max(1, min([*room, *([sweep.concurrent] if sweep.concurrent else [])]))


def evaluations(trial: Trial) -> int:
    """How often a trial reports."""
    switch = trial.recipe.switch
    return math.ceil(switch.steps / switch.evaluate_every) if switch and _of_switch(trial) else 1


def _of_switch(trial: Trial) -> bool:
    return any(field.startswith("switch.") for field in trial.values)


def _tuner(
    sweep: Sweep,
    storage: Path,
    name: str,
    trainable: type,
    points: list[dict[str, Any]],
    same: dict[str, Any],
    limit: int,
    trials: Sequence[Trial],
) -> Tuner:
    switch, swap = sweep.kind == "switch", sweep.scheduler == "pbt"
    # trials keep their own states; only population based training takes some to other trials, later than they were made
    keep = {"num_to_keep": 4, "checkpoint_frequency": 1} if swap else {}
    return Tuner(
        trainable,
        param_space={"point": grid_search(points), **same},
        tune_config=TuneConfig(
            metric="score" if switch else None,
            mode=sweep.mode if switch else None,
            scheduler=scheduler(sweep, max(evaluations(t) for t in trials)),
            max_concurrent_trials=limit,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            failure_config=FailureConfig(max_failures=_FAILURES),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False, **keep),
            callbacks=[_Stops({trial.name: trial for trial in trials})],
        ),
    )


def _name(trial: Any) -> str:
    return f"{trial.config['point']['number']:04d}"


def scheduler(sweep: Sweep, rounds: int) -> Any:
    """Tune's scheduler; ``rounds`` is how often a trial reports at most."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(time_attr="evaluation", max_t=rounds, grace_period=1, reduction_factor=2)

    def domain(space: SearchSpace) -> Any:
        if space.randint:
            return ray_tune.randint(space.randint[0], space.randint[1] + 1)
        return space.choices or (ray_tune.uniform if space.uniform else ray_tune.loguniform)(*space.bounds)

    domains = {field: domain(space) for field, space in sweep.space.items()}
    bounds = {field: space.bounds for field, space in sweep.space.items() if space.bounds}
    return PopulationBasedTraining(
        time_attr="evaluation",
        perturbation_interval=1,
        hyperparam_mutations={"point": {"values": domains}},
        custom_explore_fn=partial(_within, bounds),
    )


def _within(bounds: dict[str, list[float]], config: dict[str, Any]) -> dict[str, Any]:
    """Tune steps out of a range when it multiplies."""
    values = config["point"]["values"]
    values |= {field: min(max(values[field], low), high) for field, (low, high) in bounds.items()}
    return config


@contextmanager
def _followed(trials: Sequence[Trial]) -> Iterator[None]:
    """Say what becomes of the trials, which run in other processes."""
    waiting = list(trials)

    def done(trial: Trial) -> int:
        path = trial.layout.trial_history
        seen = len(files.read_json(path)) if _of_switch(trial) and path.is_file() else 0
        return evaluations(trial) if trial.outcome() else min(seen, evaluations(trial))

    before = sum(done(t) for t in trials)
    what = "evaluations" if _of_switch(trials[0]) else "trials"
    with track(what, sum(map(evaluations, trials)), before) as bar:

        def look() -> None:
            for trial in [t for t in waiting if t.outcome()]:
                waiting.remove(trial)
                outcome = trial.outcome()
                say(f"  {trial.about}: {outcome['status']} after {duration(outcome['seconds'])}")
            if (seen := sum(done(t) for t in trials)) > before:
                bar.advance(seen - bar.done)

        with polling(look, 1.0):
            yield


class _Stops(Callback):
    """Notes at once that a scheduler stopped a trial, or one that was killed would go on with it."""

    def __init__(self, trials: dict[str, Trial]) -> None:
        self.trials = trials

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Also called when a trial ends by itself, which it has noted then."""
        own = self.trials[str(trial)]
        if not own.outcome():
            own.end("stopped", _seconds(own))


def _seconds(trial: Trial) -> float:
    path = trial.layout.trial_history
    return float(files.read_json(path)[-1]["seconds"]) if path.is_file() else 0.0


def _take_failures(trials: Sequence[Trial], results: Any) -> None:
    """Note of trials that died what they could not note themselves."""
    errors = {Path(result.path).name: result.error for result in results if result.error is not None}
    for trial in trials:
        if not trial.outcome():
            trial.fail(errors.get(trial.name) or AtlasError("its process ended without a word"), _seconds(trial))
