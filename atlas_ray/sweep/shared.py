"""What trials have in common is done once, and their directories share the files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .. import pipeline
from ..recipe.loading import Recipe
from ..recipe.select import BY_BASE, with_members
from ..rundir.files import replacing
from ..rundir.layout import RunLayout
from ..rundir.logs import run_logging
from ..rundir.progress import say
from ..stages.evaluate import play_untuned
from ..stages.table import ATLAS, done_stages
from .trials import Trial

_STAGES = ATLAS[:-1]
# what follows from the numbers behind a selection, and not the other way round
_AFTER_SCORES = ("select.fraction", "select.selectors", "select.rest_of", "select.threshold")
_SCORES = ("value", *BY_BASE, "deviation")
# grows after it was copied, so a link would let one trial write into the others
_GROWS = ("scores", "evaluation")


def first_stage(recipe: Recipe, field: str) -> str:
    """The first stage whose outcome depends on a field."""
    table = field.split(".")[0]
    if table == "evaluate":
        return "finetune" if recipe.finetune and recipe.finetune.validation else "evaluate"
    if table == "finetune":
        wanted = recipe.select.selectors if recipe.select else []
        by_base = any({*BY_BASE}.intersection(with_members(name)) for name in wanted)
        return "select" if by_base and field.startswith(("finetune.base", "finetune.scratch")) else "finetune"
    return "select" if table in ("select", "engine", "agent", "style", "prompt") else "collect"


def share(recipe: Recipe, run_dir: Path, trials: Sequence[Trial], unfinished: Sequence[Trial]) -> None:
    """Run what several trials need once, and put its files into every unfinished trial's directory.

    It runs in the sweep's own directory where no swept field touches it, else in ``shared/STAGE-N``. Which trials are
    finished does not matter for what is run, or where.
    """
    sources: dict[int, Path] = {}
    scores: dict[str, Path] = {}
    for stage in _STAGES:
        if getattr(recipe, stage) is None:
            break
        touching = [f for f in trials[0].values if _STAGES.index(stage) >= ATLAS.index(first_stage(recipe, f))]
        groups = _groups(trials, touching)
        by_scores = _groups(trials, [f for f in touching if f not in _AFTER_SCORES])
        for number, (key, group) in enumerate(groups.items()):
            alike = next(k for k, others in by_scores.items() if group[0] in others)
            again = stage == "select" and len(by_scores[alike]) > len(group)
            if (len(group) == 1 and not again) or not any(t in unfinished for t in group):
                continue
            place = run_dir if not touching else RunLayout(run_dir).shared(f"{stage}-{number}").root
            made = recipe if not touching else _common(recipe, group[0])
            pipeline.open_run(made, place)
            if (source := sources.get(group[0].number, place)) != place:
                link(source, place)
            if again and alike in scores:
                _take_scores(scores[alike], place)
            _run(made, place, stage, key)
            if stage == "select":
                scores.setdefault(alike, place)
            sources |= {trial.number: place for trial in group}
    for trial in unfinished:
        pipeline.open_run(trial.recipe, trial.directory)
        if trial.number in sources:
            link(sources[trial.number], trial.directory)
    _share_untuned(recipe, run_dir, trials, unfinished)


def _common(recipe: Recipe, trial: Trial) -> Recipe:
    """A trial's recipe, done by as many workers as the sweep's own."""
    return trial.recipe.model_copy(update={} if "workers" in trial.values else {"workers": recipe.workers})


def _run(recipe: Recipe, place: Path, stage: str, key: str) -> None:
    if not done_stages(recipe, place).get(stage):
        say(f"for {key or 'all trials'}:")
        pipeline.run(recipe, place, (stage,))


def _groups(trials: Sequence[Trial], fields: Sequence[str]) -> dict[str, list[Trial]]:
    """Trials with the same values of these fields, by these values."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        key = ", ".join(f"{field} = {trial.values[field]}" for field in fields if field in trial.values)
        found.setdefault(key, []).append(trial)
    return found


def _share_untuned(recipe: Recipe, run_dir: Path, trials: Sequence[Trial], unfinished: Sequence[Trial]) -> None:
    """The untuned model's episodes, which every trial is compared with."""
    if not recipe.finetune or recipe.finetune.scratch or not recipe.evaluate:
        return
    of_base, no_matter = ("finetune.base", "finetune.scratch"), ("collect.", "select.", "finetune.")
    fields = [f for f in trials[0].values if f.startswith(of_base) or not f.startswith(no_matter)]
    for number, group in enumerate(_groups(trials, fields).values()):
        waiting = [t for t in group if t in unfinished and not t.layout.evaluation_episodes.exists()]
        tuned = group[0].recipe.finetune
        if len(group) == 1 or not waiting or tuned is None or tuned.scratch:
            continue
        place = run_dir if not fields else RunLayout(run_dir).shared(f"untuned-{number}").root
        made = recipe if not fields else _common(recipe, group[0])
        pipeline.open_run(made, place)
        with run_logging(place):
            played = play_untuned(made, place)
        for trial in waiting:
            _put(played, trial.layout.evaluation_episodes, copy=True)


def link(source: Path, target: Path) -> None:
    """The files of collect, select and finetune in another run directory, where they are not there yet."""
    layout = RunLayout(source)
    for folder in (layout.trajectories_dir, layout.annotations_dir, layout.pairs_dir, layout.checkpoints):
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(source)
            if path.is_file() and not any(name.startswith(".") for name in inner.parts):
                _put(path, target / inner, copy=any(name in _GROWS for name in inner.parts))


def _take_scores(source: Path, target: Path) -> None:
    for name in _SCORES:
        path = RunLayout(source).scores(name)
        if path.is_file():
            _put(path, RunLayout(target).scores(name), copy=True)


def _put(source: Path, target: Path, copy: bool) -> None:
    if target.exists():
        return
    with replacing(target) as temporary:
        if copy:
            shutil.copy2(source, temporary)
        else:
            try:
                os.link(source, temporary)
            except OSError:  # not every file system links
                shutil.copy2(source, temporary)
