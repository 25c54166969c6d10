"""``report.html``: one self-contained file that loads and runs nothing, the same bytes for the same run.

This module is the one to begin with: `build_report` puts the parts together. `page.py` makes safe HTML, `tables.py` and
the `*plots.py` tables and pictures, `reading.py` and `switch_reading.py` sentences. The parts: `selection.py`,
`starts.py`, `training.py`, `switching.py`, `replay.py`, `sweep.py`, `journal.py` (what was dropped, how long it took)
and `claims.py` (the papers' and ours). May import `selection` and below.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ..data.records import first_problem
from ..data.results import Arm, Results, load_results
from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.files import write_text
from ..rundir.layout import RunLayout
from .claims import claims
from .episode_view import RecordedEpisode, SwitchStep, switch_episode_view
from .journal import events, stage_times
from .page import Html, el, missing, page
from .plots import atlas_figure, save_png, svg
from .reading import read_atlas
from .selection import agreement_part, annotated, read_marks, review_part
from .starts import read_starts, starts_part
from .sweep import sweep_part
from .switch_plots import londi_figure
from .switching import londi_part, reading_part
from .tables import arms_table, levels_table, replies_table
from .training import training_part

__all__ = ["RecordedEpisode", "SwitchStep", "build_report", "write_plots"]


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Needs ``results.json``, annotations or a sweep; any other input that is missing leaves its part out, with a line
    that says so.

    Raises:
        InputError: an input is missing that is needed, or is not what it should be.
    """
    run_dir = Path(run_dir)
    results = _results(run_dir)
    recipe = _recipe(RunLayout(run_dir).recipe)
    title = f"atlas-ray: {recipe.name if recipe else run_dir.resolve().name}"
    swept = sweep_part(run_dir)
    parts = [
        el("header", el("h1", title), el("p", _summary(recipe, results, bool(swept)), cls="lead")),
        *swept,
        *(_scores(run_dir, recipe, results) if results or not swept else []),
        el("h2", "What was dropped and retried"),
        events(run_dir),
        *training_part(run_dir),
        el("h2", "How long it took"),
        stage_times(run_dir),
        el("h2", "The recipe"),
        _resolved(RunLayout(run_dir).recipe),
        el("h2", "The papers' claims and ours"),
        *claims(recipe),
    ]
    path = RunLayout(run_dir).report
    write_text(path, page(title, parts))
    return path


def _scores(run_dir: Path, recipe: Recipe | None, results: Results | None) -> list[Html]:
    """What the stages found."""
    return [
        *_reading(results),
        *_atlas(results),
        *_londi(results),
        *_selection(run_dir, recipe, results),
        el("h2", "An episode under the switch"),
        *(switch_episode_view(run_dir) if results and results.londi else [missing("this run trained no switch")]),
    ]


def write_plots(run_dir: str | Path) -> list[Path]:
    """Save the pictures as ``atlas.png`` and ``londi.png`` in the run directory; returns those that were written."""
    run_dir = Path(run_dir)
    results = load_results(RunLayout(run_dir).results)
    written = []
    if results.atlas:
        save_png(atlas_figure(results.atlas.arms), run_dir / "atlas.png")
        written.append(run_dir / "atlas.png")
    if results.londi:
        save_png(londi_figure(results.londi.policies), run_dir / "londi.png")
        written.append(run_dir / "londi.png")
    return written


def _recipe(path: Path) -> Recipe | None:
    if not path.is_file():
        return None
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        field, message = first_problem(error)
        raise InputError(message, path, None, field or None) from None


def _results(run_dir: Path) -> Results | None:
    """The scores; None where nothing was scored and there are annotations to report on.

    Raises:
        InputError: there is neither, or the results are not what they should be.
    """
    path = RunLayout(run_dir).results
    try:
        empty = json.loads(path.read_bytes()) in ({}, {"atlas": None}, {"londi": None}, {"atlas": None, "londi": None})
    except FileNotFoundError:
        empty = True
    except ValueError:
        empty = False  # and not JSON, as the reader says better
    return None if empty and (annotated(run_dir) or RunLayout(run_dir).sweep_json.is_file()) else load_results(path)


def _summary(recipe: Recipe | None, results: Results | None, swept: bool) -> str:
    """One sentence on what was run; of a sweep each trial is one arm, or one switch."""
    if recipe is None:
        counts = [f"{len(results.atlas.arms)} arms"] if results and results.atlas else []
        counts += [f"{len(results.londi.policies)} switch policies"] if results and results.londi else []
        scored = f"{' and '.join(counts) or 'No models'} were scored"
        return f"{scored}; recipe.resolved.json is missing, so no more can be told."
    parts = []
    if recipe.collect:
        levels = recipe.collect.levels
        parts.append(f"{sum(levels.values()):,} expert episodes of {', '.join(levels)}")
    if recipe.select:
        parts.append(f"at most {recipe.select.fraction:.0%} of each episode's steps marked as critical")
    if recipe.finetune:
        f = recipe.finetune
        base = "a new model" if f.scratch else f.base
        each = "in each trial" if swept else f"in {len(f.arms)} arms and {len(f.seeds)} seeds each"
        parts.append(f"{base} tuned {each}")
    if recipe.evaluate:
        e = recipe.evaluate
        parts.append(
            f"scored on {len(e.held_in)} held-in and {len(e.held_out)} held-out levels of {e.episodes} episodes"
        )
    if recipe.switch:
        s = recipe.switch
        count = (len(s.costs) + len(s.budgets) + len(s.averages)) * len(s.seeds)
        models = " and ".join(m.model for m in s.models)
        learned = "1 switch learned in each trial" if swept else f"{count} switch{'es' * (count != 1)} learned"
        parts.append(f"{learned} between {models} on {', '.join(s.levels)}")
    if recipe.sweep and swept:
        parts.append(f"swept over {', '.join(recipe.sweep.space)}")
    return "; ".join(parts) + "."


def _reading(results: Results | None) -> list[Html]:
    parts = [el("h2", "What the numbers say")]
    if results is None or not (results.atlas or results.londi):
        return [*parts, missing("this run scored no model")]
    if results.atlas and (sentences := read_atlas(results.atlas.arms)):
        parts += [el("h3", "Critical steps"), el("ul", [el("li", s) for s in sentences], cls="reading")]
    if results.londi:
        parts += reading_part(results.londi.policies)
    if len(parts) == 1:
        parts.append(missing("the results hold nothing to compare"))
    parts.append(
        el(
            "p",
            "In brackets 95 % intervals. A difference counts only when its interval leaves zero out; where there is no "
            "effect at all, up to one comparison in twenty still does so by chance.",
            cls="note",
        )
    )
    return parts


def _atlas(results: Results | None) -> list[Html]:
    if not results or not results.atlas:
        return [el("h2", "ATLaS: which steps to train on"), missing("this run tuned no model")]
    arms = results.atlas.arms
    by_level = levels_table(arms)
    return [
        el("h2", "ATLaS: which steps to train on"),
        arms_table(arms),
        el("p", f"Tokens and seconds are means of one training run, over all its epochs.{_one_seed(arms)}", cls="note"),
        *([el("details", el("summary", "Success on each level"), by_level)] if by_level else []),
        el(
            "figure",
            svg(atlas_figure(arms), "atlas", "Success of every arm"),
            el("figcaption", "Success of every arm on levels it was trained on (other episodes) and on new levels."),
        ),
    ]


def _one_seed(arms: Sequence[Arm]) -> str:
    if all(len(arm.seeds) > 1 for arm in arms if arm.selector != "none"):
        return ""
    return " Arms with one training seed have intervals that know nothing of the spread between seeds."


def _londi(results: Results | None) -> list[Html]:
    heading = el("h2", "LONDI: when to call the large model")
    if not results or not results.londi:
        return [heading, missing("this run trained no switch")]
    return [heading, *londi_part(results.londi.policies)]


def _selection(run_dir: Path, recipe: Recipe | None, results: Results | None) -> list[Html]:
    episodes = el("h2", "Expert episodes and their critical steps")
    if not (recipe and recipe.select) and not annotated(run_dir):
        return [episodes, missing("this run selected no steps")]
    parts = []
    path = RunLayout(run_dir).expert
    if path.is_file():
        marks = read_marks(run_dir, recipe)
        parts += [el("h2", "How far the selectors agree"), *agreement_part(marks)]
        review = review_part(run_dir, marks)
    else:
        review = [missing(f"{path.relative_to(run_dir)} is missing")]
    starts = read_starts(run_dir)
    if starts or (recipe and recipe.select and recipe.select.start_after):
        parts += [el("h2", "What the untuned model does behind marked steps"), *starts_part(starts)]
    if told := (results.replies or {}).get("select") if results else None:
        parts += [el("h2", "What became of the replies of models that select"), *replies_table(told)]
    return [*parts, episodes, *review]


def _resolved(path: Path) -> Html:
    if not path.is_file():
        return missing(f"{path.name} is missing")
    text = json.dumps(json.loads(path.read_bytes()), indent=2, ensure_ascii=False)
    return el("details", el("summary", "Every setting of this run"), el("pre", text))
