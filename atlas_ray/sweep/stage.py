"""A whole sweep: what trials share, the trials, their scores and the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import pipeline
from ..cluster.address import check_address
from ..cluster.workers import set_local_cluster_size, worker_pool
from ..errors import AtlasError, InputError
from ..recipe.loading import Recipe
from ..recipe.sweep_space import check_sweep, shown
from ..rundir import files
from ..rundir.logs import run_logging
from ..rundir.progress import duration, say
from ..stages.paths import check_inputs
from ..stages.report import write_report
from ..stages.same_environments import record_environments, refuse_other_environments
from ..stages.same_models import models_and_encoders, record_models, refuse_other_models
from ..storage.sync import synced
from . import table
from .shared import share
from .trials import Trial, trials_of

# of these a policy that is not trained knows nothing
_TRAINING = (
    "algorithm",
    "averages",
    "batch_size",
    "budgets",
    "costs",
    "encoder",
    "evaluate_episodes",
    "evaluate_every",
    "features",
    "gamma",
    "keep_replay_buffer",
    "learning_rate",
    "seeds",
    "signals",
    "steps",
    "updates_per_step",
)


def sweep(recipe: Recipe, run_dir: Path, verbose: bool = False) -> dict[str, Any]:
    """Run the trials of a recipe with a ``[sweep]`` table; those that are done are not run again.

    Writes ``trials/NNNN/``, a run directory each, ``sweep.csv``, ``sweep.json`` and ``report.html``.

    Returns:
        What is in ``sweep.json``.

    Raises:
        ValidationError: the recipe's sweep cannot be; :func:`atlas_ray.recipe.load` says the same with the line.
        InputError: something that a trial names cannot be had here.
        AtlasError: all trials failed.
    """
    check_sweep(recipe)
    pipeline.refuse_job_copy(recipe, run_dir)
    check_address()
    with synced(recipe, run_dir, partial(pipeline.refuse_other, recipe)) as run_sync:
        trials = trials_of(recipe, run_dir)
        unfinished = [t for t in trials if t.outcome().get("status") not in ("done", "stopped")]
        _check(unfinished)
        pipeline.open_run(recipe, run_dir)
        if run_sync:
            run_sync.begin()
        # the whole sweep is kept, so none of its runs is by itself
        return _run(recipe.model_copy(update={"storage": None}), run_dir, trials, unfinished, verbose)


def _run(
    recipe: Recipe, run_dir: Path, trials: Sequence[Trial], unfinished: Sequence[Trial], verbose: bool
) -> dict[str, Any]:
    config = recipe.sweep
    assert config is not None
    set_local_cluster_size(recipe)
    start = time.monotonic()
    done = f", {len(trials) - len(unfinished)} of them already done" if len(unfinished) < len(trials) else ""
    say(f"sweep over {', '.join(config.space)}: {len(trials)} trials{done}")
    if config.kind == "atlas":
        share(recipe, run_dir, trials, unfinished)
    with run_logging(run_dir, verbose):
        rows, ends = (_switch if config.kind == "switch" else _atlas)(recipe, run_dir, trials, unfinished)
        made = table.write(run_dir, recipe.name, config, rows, ends)
        _sum_up(made, trials, time.monotonic() - start)
        if all("metric" not in row for row in rows):
            why = rows[0].get("why", "it gave no reason")
            kind = InputError if all(t.outcome().get("bad_input") for t in trials) else AtlasError
            raise kind(f"all {len(rows)} trials failed; {trials[0].about}: {why}")
        write_report(run_dir)
    return made


def _check(trials: Sequence[Trial]) -> None:
    """Refuse what cannot be had, once for every set of values that are not mere numbers."""
    from ..preflight import check

    seen = set()
    for trial in trials:
        words = str({k: v for k, v in trial.values.items() if isinstance(v, bool) or not isinstance(v, int | float)})
        if words not in seen:
            seen.add(words)
            check_inputs(trial.recipe, fetched=True)
            check(trial.recipe)


def _atlas(
    recipe: Recipe, run_dir: Path, trials: Sequence[Trial], unfinished: Sequence[Trial]
) -> tuple[list[table.Row], list[table.Row]]:
    assert recipe.sweep is not None
    if unfinished:
        from .atlas import AtlasTrial
        from .tuning import tune

        tune(recipe, run_dir, unfinished, AtlasTrial, "atlas")
    return [table.atlas_row(trial, recipe.sweep.judged_by) for trial in trials], []


def train_switches(
    recipe: Recipe, run_dir: Path, trials: Sequence[Trial], setup_fn: Callable[[Trial], Any] | None = None
) -> None:
    """Train the switches of these trials, the learners one after the other.

    ``setup_fn`` makes the :class:`TrainingSetup` of a trial, by default on the recipe's own levels.
    """
    from . import switch
    from .tuning import tune

    for trial in trials:
        pipeline.open_run(trial.recipe, trial.directory)
        record_models(trial.recipe, trial.directory, "switch")
        record_environments(trial.recipe, trial.directory, "switch")
    for algorithm, trainable in (("dqn", switch.TrialDQN), ("sac", switch.TrialSAC)):
        own = [t for t in trials if t.recipe.switch and t.recipe.switch.algorithm == algorithm]
        if own:
            tune(recipe, run_dir, own, trainable, algorithm, setup_fn=setup_fn or switch.setup_of)


def _switch(
    recipe: Recipe, run_dir: Path, trials: Sequence[Trial], unfinished: Sequence[Trial]
) -> tuple[list[table.Row], list[table.Row]]:
    from ..switching.policies import lost_episode_seeds, scorable_episodes, single_model_policies, summarize_policy
    from ..switching.stage import score
    from ..switching.tasks import engine_leases, switch_of
    from .switch import policy_spec_of

    assert recipe.sweep is not None
    for trial in trials:
        refuse_other_models(trial.directory, models_and_encoders(trial.recipe, "switch"))
        refuse_other_environments(trial.recipe, trial.directory, "switch")
    if unfinished:
        train_switches(recipe, run_dir, unfinished)
    lost = lambda task, attempt, why: say(f"  {task.who}: a worker died ({attempt})")  # noqa: E731
    settings, played, beside = switch_of(recipe), {}, []
    with worker_pool(recipe, lost, len(settings.local)) as pool, engine_leases(recipe) as leases:
        for trial in trials:
            if trial.outcome()["status"] != "failed":
                played[trial.number] = score(trial.recipe, trial.directory, [policy_spec_of(trial)], pool, leases)
        if all(f.removeprefix("switch.") in _TRAINING for t in trials for f in t.values):
            beside = score(trials[0].recipe, run_dir, single_model_policies(settings), pool, leases)
    without = lost_episode_seeds([*beside, *(row for own in played.values() for row in own)])
    rows = []
    for trial in trials:
        if trial.number not in played:
            rows.append(table.begun(trial))
            continue
        policy_spec, own = policy_spec_of(trial), played[trial.number]
        made = summarize_policy(
            policy_spec, own, switch_of(trial.recipe).unit, len(switch_of(trial.recipe).models), without
        )
        files.write_json(trial.layout.switch_policies, [made])
        objective = fmean(row["objective"] for row in scorable_episodes(own, policy_spec.name, without))
        steps = files.read_json(trial.layout.trial_history)[-1]["step"]
        rows.append(table.switch_row(trial, recipe.sweep.judged_by, made, objective, steps))
    ends = [
        summarize_policy(c, [r for r in beside if r["policy"] == c.name], settings.unit, len(settings.models), without)
        for c in (single_model_policies(settings) if beside else ())
    ]
    return rows, ends


def _sum_up(made: table.Row, trials: Sequence[Trial], seconds: float) -> None:
    by_status = [r["status"] for r in made["trials"]]
    counts = ", ".join(f"{by_status.count(s)} {s}" for s in ("done", "stopped", "failed") if s in by_status)
    say(f"  {len(trials)} trials in {duration(seconds)}: {counts}")
    for row in made["trials"]:
        if "why" in row:
            say(f"  {trials[row['trial']].about} failed: {row['why']}")
    if made["best"] is not None:
        best = made["trials"][made["best"]]
        values = ", ".join(f"{field} = {shown(value)}" for field, value in best["values"].items())
        say(f"  best by {made['metric']}: trial {best['trial']} ({values}) with {best['metric']:.3f}")
