"""The stages in order. Each is a function of the recipe and the run directory and skips what is already done."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .cluster.address import check_address
from .cluster.devices import check_devices
from .cluster.remote_rundir import serve_run_dir
from .cluster.resources import resource_requests
from .cluster.workers import set_local_cluster_size
from .errors import InputError
from .recipe.endpoint import REACHING
from .recipe.loading import Recipe
from .recipe.select import OF_ASKING
from .rundir.files import RunLog, mend_jsonl, read_json, write_json
from .rundir.layout import RunLayout
from .rundir.logs import run_logging
from .rundir.progress import duration, say
from .rundir.tracking import follow
from .stages.paths import check_inputs
from .stages.same_environments import record_environments, refuse_other_environments
from .stages.same_models import models_and_encoders, record_models, refuse_other_models
from .stages.table import STAGE, done_stages
from .storage.sync import RunSync, synced


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
        raise InputError("is not empty and not a run of ours: name another --out", run_dir, code="not_a_run")
    write_json(path, wanted)


def refuse_other(recipe: Recipe, found: dict[str, Any], where: str | Path) -> None:
    """Refuse to go on with a run under another recipe than its own.

    Where it runs, where it is kept, what it may lose and how endpoints are reached may change: what a message says to
    mend there must not cost what was paid for. A field that recipes did not have yet when the run was begun counts as
    its default.
    """
    elsewhere = dict.fromkeys(("placement", "storage", "max_lost_answers", "gateway"))
    old, new = {**_completed(found), **elsewhere}, {**recipe.model_dump(mode="json"), **elsewhere}
    if difference := _difference(_however_reached(old), _however_reached(new)):
        field, was, now = difference
        raise InputError(
            f"this run was made with {was!r}, the recipe now says {now!r}: name another --out or delete the run",
            where,
            None,
            field,
            "other_recipe",
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
    agent = (made.get("collect") or {}).get("agent") or {}
    verified = (made.get("select") or {}).get("verified") or {}
    others = (verified.get(name) or {} for name in ("alternative", "agent"))
    for table in (oracle, agent, *others, *((made.get("switch") or {}).get("models") or [])):
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
            code="job_copy",
        )


def _difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if (found := _difference(old.get(key), new.get(key), f"{where}.{key}".strip("."))) is not None:
                return found
        return None
    return None if old == new else (where, old, new)


def run(recipe: Recipe, run_dir: Path, stages: Sequence[str] = tuple(STAGE), verbose: bool = False) -> dict[str, float]:
    """Run the stages that are asked for and not done yet, in order.

    ``verbose``: what goes to the logs goes to stderr too.

    Returns:
        Wall seconds of each stage that ran.

    Raises:
        InputError: a stage needs an earlier one that was not run, or what the recipe names cannot be had here.
    """
    refuse_job_copy(recipe, run_dir)
    with synced(recipe, run_dir, partial(refuse_other, recipe)) as sync:
        done = done_stages(recipe, run_dir)
        if left := [stage for stage, ready in done.items() if stage in stages and not ready]:
            for stage in left:
                refuse_other_models(run_dir, models_and_encoders(recipe, stage))
                refuse_other_environments(recipe, run_dir, stage)
            if resource_requests(recipe) or recipe.switch:
                check_address()
            collected = done.get("collect", False)
            check_inputs(recipe, fetched=True, annotations=tuple(stages) != ("collect",), collected=collected)
            from .preflight import check  # (imports torch, which takes seconds)

            check(recipe)
            check_devices(recipe, left)
        open_run(recipe, run_dir)
        set_local_cluster_size(recipe)
        if sync:
            sync.begin()
        with (
            serve_run_dir(run_dir),
            run_logging(run_dir, verbose),
            follow(run_dir, recipe.trackers, recipe.name, recipe.model_dump(mode="json")),
        ):
            return _in_order(recipe, run_dir, stages, sync)


def _in_order(recipe: Recipe, run_dir: Path, stages: Sequence[str], sync: RunSync | None) -> dict[str, float]:
    seconds: dict[str, float] = {}
    wanted = [s for s in done_stages(recipe, run_dir) if s in stages]
    for number, stage in enumerate(wanted, start=1):
        title = f"[{number}/{len(wanted)}] {stage}: {STAGE[stage].title}"
        done = done_stages(recipe, run_dir)
        if done[stage] and (stage != "report" or not seconds):
            say(f"{title} · already done")
            continue
        unmet = [s for s, ready in done.items() if not ready and s in STAGE[stage].needs]
        if unmet:
            raise InputError(
                f"needs the stage {unmet[0]}, which has not been run", run_dir, None, stage, "missing_stage"
            )
        say(title)
        record_models(recipe, run_dir, stage)
        record_environments(recipe, run_dir, stage)
        start = time.monotonic()
        STAGE[stage].run(recipe, run_dir)
        seconds[stage] = time.monotonic() - start
        RunLog(run_dir).metric("pipeline", name=stage, seconds=round(seconds[stage], 2))
        say(f"  {stage} took {duration(seconds[stage])}")
        if sync:
            sync.try_push()
    return seconds
