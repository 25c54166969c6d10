"""The stages in order. Each is a function of the recipe and the run directory and skips what is already done."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .cluster.address import check_address
from .cluster.remote_rundir import at_home
from .cluster.resources import demands
from .cluster.workers import expect
from .errors import InputError
from .recipe.endpoint import REACHING
from .recipe.loading import Recipe
from .recipe.select import OF_ASKING
from .rundir.files import RunLog, mend_jsonl, read_json, write_json
from .rundir.layout import RunLayout
from .rundir.logs import kept
from .rundir.progress import duration, say
from .rundir.tracking import follow
from .stages.paths import check_there
from .stages.same_models import named_in, note_models, refuse_other_models
from .storage.sync import Keeper, stored

STAGES = ("collect", "select", "finetune", "evaluate", "switch", "report")


def open_run(recipe: Recipe, run_dir: Path) -> None:
    """Create the run directory, or make sure that it belongs to this recipe.

    Raises:
        InputError: the directory holds a run of another recipe; the message names the first field that differs.
    """
    layout = RunLayout(run_dir)
    path, wanted = layout.recipe, recipe.model_dump(mode="json")
    if path.exists():
        for log in (layout.metrics, layout.events):
            mend_jsonl(log)
        refuse_other(recipe, read_json(path), run_dir)
        return
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise InputError("is not empty and not a run of ours: name another --out", run_dir)
    write_json(path, wanted)


def refuse_other(recipe: Recipe, found: dict[str, Any], where: str | Path) -> None:
    """Refuse to go on with a run under another recipe than its own.

    Where it runs, where it is kept, what it may lose and how endpoints are reached may change: what a message says to
    mend there must not cost what was paid for. A field that recipes did not have yet when the run was begun counts as
    its default.
    """
    elsewhere = dict.fromkeys(("placement", "storage", "max_lost_answers"))
    old, new = {**_completed(found), **elsewhere}, {**recipe.model_dump(mode="json"), **elsewhere}
    if difference := _difference(_however_reached(old), _however_reached(new)):
        field, was, now = difference
        raise InputError(
            f"this run was made with {was!r}, the recipe now says {now!r}: name another --out or delete the run",
            where,
            None,
            field,
        )


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe with the fields of today; as it was found where it is none any more."""
    try:
        return Recipe.model_validate(found).model_dump(mode="json")
    except ValidationError:
        return found


def _however_reached(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe without what says how endpoints are reached, and not what they answer."""
    made = copy.deepcopy(resolved)
    oracle = (made.get("select") or {}).get("oracle") or {}
    for table in (oracle, *((made.get("switch") or {}).get("models") or [])):
        for field in REACHING:
            table.pop(field, None)
        table["base_url"] = bool(table.get("base_url"))  # another address may be the same server
    for field in OF_ASKING:
        oracle.pop(field, None)
    return made


def refuse_job_copy(recipe: Recipe, run_dir: Path) -> None:
    """What a job writes beside its code is lost.

    Raises:
        InputError: the run directory would be, and nothing of it is kept elsewhere.
    """
    if recipe.storage is None and "working_dir_files" in run_dir.resolve().parts:
        raise InputError(
            "lies in this job's copy of the working directory, which Ray removes at its end: "
            "give --out a directory that stays, or --storage",
            run_dir,
        )


def _difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if (found := _difference(old.get(key), new.get(key), f"{where}.{key}".strip("."))) is not None:
                return found
        return None
    return None if old == new else (where, old, new)


def done_stages(recipe: Recipe, run_dir: Path) -> dict[str, bool]:
    """For every stage that the recipe asks for, whether its outcome is there."""
    done: dict[str, bool] = {}
    layout = RunLayout(run_dir)
    if recipe.collect:
        done["collect"] = layout.expert.exists()
    if recipe.select:
        made = [layout.annotations(name) for name in recipe.select.selectors]
        made += [layout.start_after] if recipe.select.start_after else []
        done["select"] = all(path.exists() for path in made)
    if recipe.finetune:
        models = [(arm.name, seed) for arm in recipe.finetune.arms for seed in recipe.finetune.seeds]
        done["finetune"] = all(layout.checkpoint_record(arm, seed).exists() for arm, seed in models)
    if recipe.evaluate:
        done["evaluate"] = layout.atlas_scores.exists()
    if recipe.switch:
        done["switch"] = layout.switch_policies.exists()
    if recipe.select or recipe.switch:
        done["report"] = layout.report.exists()
    return done


def _collect(recipe: Recipe, run_dir: Path) -> None:
    from .stages.collect import collect

    collect(recipe, run_dir)


def _select(recipe: Recipe, run_dir: Path) -> None:
    from .selection import select

    select(recipe, run_dir)


def _finetune(recipe: Recipe, run_dir: Path) -> None:
    from .finetune import finetune

    finetune(recipe, run_dir)


def _evaluate(recipe: Recipe, run_dir: Path) -> None:
    from .stages.evaluate import evaluate

    atlas = evaluate(recipe, run_dir)
    write_json(RunLayout(run_dir).atlas_scores, atlas.model_dump(mode="json", exclude_defaults=True))


def _switch(recipe: Recipe, run_dir: Path) -> None:
    from .switching.stage import switch_stage

    switch_stage(recipe, run_dir, say)


def write_report(run_dir: Path) -> Path:
    """``results.json`` from the scores and counts of replies that the stages left, if any, and ``report.html``.

    Raises:
        InputError: the directory holds neither scores nor annotations.
    """
    from .data.results import Results, write_results
    from .report import build_report
    from .selection.reply_counts import replies_of

    layout = RunLayout(run_dir)
    parts: dict[str, Any] = {}
    if layout.atlas_scores.exists():
        parts["atlas"] = read_json(layout.atlas_scores)
    if layout.switch_policies.exists():
        parts["londi"] = {"policies": read_json(layout.switch_policies)}
    if not parts and not layout.selectors and not layout.sweep_json.exists():
        raise InputError(
            "holds neither scores nor annotations: run its select, evaluate or switch stage first", run_dir
        )
    if replies := replies_of(run_dir):
        parts["replies"] = {"select": replies}
    if parts:
        write_results(layout.results, Results.model_validate(parts))
    return build_report(run_dir)


_RUN: dict[str, Callable[[Recipe, Path], object]] = {
    "collect": _collect,
    "select": _select,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "switch": _switch,
    "report": lambda recipe, run_dir: write_report(run_dir),
}
_WHAT = {
    "collect": "expert episodes",
    "select": "critical steps",
    "finetune": "masked fine-tuning",
    "evaluate": "scores",
    "switch": "LONDI switch",
    "report": "report",
}


def run(recipe: Recipe, run_dir: Path, stages: tuple[str, ...] = STAGES, verbose: bool = False) -> dict[str, float]:
    """Run the stages that are asked for and not done yet, in order.

    ``verbose``: what goes to the logs goes to stderr too.

    Returns:
        Wall seconds of each stage that ran.

    Raises:
        InputError: a stage needs an earlier one that was not run, or what the recipe names cannot be had here.
    """
    refuse_job_copy(recipe, run_dir)
    with stored(recipe, run_dir, partial(refuse_other, recipe)) as keeper:
        if left := [stage for stage, ready in done_stages(recipe, run_dir).items() if stage in stages and not ready]:
            for stage in left:
                refuse_other_models(run_dir, named_in(recipe, stage))
            if demands(recipe) or recipe.switch:
                check_address()
            check_there(recipe, fetched=True, marks=stages != ("collect",))
            from .preflight import check  # (imports torch, which takes seconds)

            check(recipe)
        open_run(recipe, run_dir)
        expect(recipe)
        if keeper:
            keeper.begin()
        with (
            at_home(run_dir),
            kept(run_dir, verbose),
            follow(run_dir, recipe.trackers, recipe.name, recipe.model_dump(mode="json")),
        ):
            return _in_order(recipe, run_dir, stages, keeper)


def _in_order(recipe: Recipe, run_dir: Path, stages: tuple[str, ...], keeper: Keeper | None) -> dict[str, float]:
    seconds: dict[str, float] = {}
    wanted = [s for s in done_stages(recipe, run_dir) if s in stages]
    for number, stage in enumerate(wanted, start=1):
        title = f"[{number}/{len(wanted)}] {stage}: {_WHAT[stage]}"
        done = done_stages(recipe, run_dir)
        if done[stage] and (stage != "report" or not seconds):
            say(f"{title} · already done")
            continue
        unmet = [s for s, ready in done.items() if not ready and _needs(stage, s)]
        if unmet:
            raise InputError(f"needs the stage {unmet[0]}, which has not been run", run_dir, None, stage)
        say(title)
        note_models(recipe, run_dir, stage)
        start = time.monotonic()
        _RUN[stage](recipe, run_dir)
        seconds[stage] = time.monotonic() - start
        RunLog(run_dir).metric("pipeline", name=stage, seconds=round(seconds[stage], 2))
        say(f"  {stage} took {duration(seconds[stage])}")
        if keeper:
            keeper.attempt()
    return seconds


def _needs(stage: str, earlier: str) -> bool:
    """Whether ``stage`` reads what ``earlier`` writes. The switch stands on its own; a report takes what is there."""
    chain = ("collect", "select", "finetune", "evaluate")
    return stage in chain and earlier in chain[: chain.index(stage)]
