"""The stages of a run in their order: what each is called, needs, uses, leaves and does.

Whoever asks something of all stages asks this table. Importing it loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import envs
from ..recipe.loading import Recipe
from ..recipe.of_run import policy_of
from ..recipe.select import ASK_ORACLE, BY_BASE, TEXT_ENCODERS, Select, with_members
from ..recipe.switch import EXPERT
from ..rundir.files import write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say

Names = Iterator[tuple[str, str]]
Episodes = Iterator[tuple[str, str, str, int]]


def _nothing(recipe: Recipe) -> Iterator[tuple[str, str]]:
    return iter(())


def _no_episodes(recipe: Recipe) -> Episodes:
    return iter(())


@dataclass(frozen=True)
class Stage:
    """One stage. It reads and writes files of the run directory only, and skips what is done."""

    name: str
    """Its command and, but for the report, its table in the recipe."""
    help: str
    """What its command does."""
    title: str
    """What it makes, for the line that says that it begins."""
    needs: tuple[str, ...]
    """Earlier stages whose files it reads."""
    wanted: Callable[[Recipe], bool]
    """Whether a recipe asks for it."""
    is_done: Callable[[Recipe, RunLayout], bool]
    """Whether everything that it makes is there, by its completion markers."""
    run: Callable[[Recipe, Path], object]
    """Do what is not done yet in a run directory."""
    models: Callable[[Recipe], Names] = _nothing
    """(field, name) of every model that it runs here."""
    environments: Callable[[Recipe], Episodes] = _no_episodes
    """(field, name, split, episodes that must be there) of every environment that it plays."""


def done_stages(recipe: Recipe, run_dir: Path) -> dict[str, bool]:
    """For every stage that the recipe asks for, whether its outcome is there."""
    layout = RunLayout(run_dir)
    return {stage.name: stage.is_done(recipe, layout) for stage in STAGES if stage.wanted(recipe)}


def models(recipe: Recipe) -> Names:
    """(field, name) of every model that a stage of the recipe runs here, each once."""
    return iter(dict.fromkeys(named for stage in STAGES for named in stage.models(recipe)))


# -- collect


def _collect(recipe: Recipe, run_dir: Path) -> None:
    from .collect import collect

    collect(recipe, run_dir)


def _models_of_collect(recipe: Recipe) -> Names:
    if recipe.collect and (agent := recipe.collect.agent) and not agent.base_url:
        yield "collect.agent.model", agent.model
    if recipe.collect and recipe.collect.switch:
        yield from (("collect.switch", name) for name in policy_of(recipe.collect.switch, "collect.switch").local)


def _played_to_collect(recipe: Recipe) -> Episodes:
    if recipe.collect:
        yield from (("collect.levels", name, "train", want) for name, want in recipe.collect.levels.items())


# -- select


def _select(recipe: Recipe, run_dir: Path) -> None:
    from ..selection import select

    select(recipe, run_dir)


def _is_selected(recipe: Recipe, layout: RunLayout) -> bool:
    config = recipe.select
    assert config is not None
    made = [layout.annotations(name) for name in config.selectors]
    return all(path.exists() for path in (*made, *([layout.start_after] if config.start_after else ())))


def _models_of_select(recipe: Recipe) -> Names:
    config = recipe.select
    if config is None:
        return
    used = {part for name in config.selectors for part in with_members(name)}
    if "value" in used or "deviation" in used:
        yield "select.model", config.model
    if "deviation" in used and config.play_on:
        yield "select.play_on", config.play_on
    if "verified" in used:
        yield from _models_that_verify(recipe, config)
    if used.intersection(BY_BASE) or config.start_after:
        yield from list(_base(recipe)) or [("select.model", config.model)]
    if used.intersection(ASK_ORACLE) and not config.oracle.base_url:
        yield "select.oracle.model", config.oracle.model
    if "distilled" in used and config.distilled.encoder not in TEXT_ENCODERS:
        yield "select.distilled.encoder", config.distilled.encoder


def _models_that_verify(recipe: Recipe, config: Select) -> Names:
    other, agent = config.verified.alternative, config.verified.agent
    if not other.base_url and other.model != EXPERT:
        yield "select.verified.alternative.model", other.model
    collected = recipe.collect.agent if recipe.collect else None
    if agent is None and collected is None:
        yield "select.model", config.model
    elif (plays := agent or collected) and not plays.base_url:
        yield "select.verified.agent.model" if agent else "collect.agent.model", plays.model


# -- finetune


def _finetune(recipe: Recipe, run_dir: Path) -> None:
    from ..finetune import finetune

    finetune(recipe, run_dir)


def _is_tuned(recipe: Recipe, layout: RunLayout) -> bool:
    config = recipe.finetune
    assert config is not None
    return all(layout.checkpoint_record(arm.name, seed).exists() for arm in config.arms for seed in config.seeds)


def _base(recipe: Recipe) -> Names:
    if recipe.finetune and not recipe.finetune.scratch:
        yield "finetune.base", recipe.finetune.base


def _played_in_validation(recipe: Recipe) -> Episodes:
    if recipe.finetune and recipe.finetune.validation:
        levels = recipe.collect.levels if recipe.collect else {}
        names = recipe.evaluate.held_in if recipe.evaluate else list(levels)
        yield from (("finetune.validation", name, "dev", 1) for name in names)


# -- evaluate


def _evaluate(recipe: Recipe, run_dir: Path) -> None:
    from .evaluate import evaluate

    atlas = evaluate(recipe, run_dir)
    write_json(RunLayout(run_dir).atlas_scores, atlas.model_dump(mode="json", exclude_defaults=True))


def _played_for_scores(recipe: Recipe) -> Episodes:
    if recipe.evaluate:
        yield from (("evaluate.held_in", name, "test", 1) for name in recipe.evaluate.held_in)
        yield from (("evaluate.held_out", name, "test", 1) for name in recipe.evaluate.held_out)


# -- switch


def _switch(recipe: Recipe, run_dir: Path) -> None:
    from ..switching.stage import switch_stage

    switch_stage(recipe, run_dir, say)


def _models_of_switch(recipe: Recipe) -> Names:
    if recipe.switch:
        local = recipe.switch.local
        for number, model in enumerate(recipe.switch.models):
            if model.model in local:
                yield f"switch.models.{number}.model", model.model


def _played_by_switches(recipe: Recipe) -> Episodes:
    if recipe.switch:
        yield from (("switch.levels", name, split, 1) for name in recipe.switch.levels for split in envs.SPLITS)


# -- rounds


def _rounds(recipe: Recipe, run_dir: Path) -> None:
    if recipe.switch:
        from .rounds import play_rounds

        play_rounds(recipe, run_dir)
    else:
        from .own_rounds import play_own_rounds

        play_own_rounds(recipe, run_dir)


def _are_rounds_played(recipe: Recipe, layout: RunLayout) -> bool:
    return (layout.rounds if recipe.switch else layout.own_rounds).exists()


def _models_of_rounds(recipe: Recipe) -> Names:
    if recipe.rounds and recipe.switch:
        yield from _models_of_switch(recipe)
    elif recipe.rounds:
        yield from (named for stage in (_models_of_collect, _models_of_select, _base) for named in stage(recipe))


def _played_in_rounds(recipe: Recipe) -> Episodes:
    if recipe.rounds and recipe.switch:
        yield from (("switch.levels", name, "train", recipe.rounds.episodes) for name in recipe.switch.levels)
    elif recipe.rounds and recipe.evaluate:
        yield from (("evaluate.held_in", name, "dev", 1) for name in recipe.evaluate.held_in)


# -- report


def _report(recipe: Recipe, run_dir: Path) -> None:
    from .report import write_report

    write_report(run_dir)


STAGES = (
    Stage(
        name="collect",
        help="play or read the episodes to learn from",
        title="episodes to learn from",
        needs=(),
        wanted=lambda recipe: recipe.collect is not None,
        is_done=lambda recipe, layout: layout.expert.exists(),
        run=_collect,
        models=_models_of_collect,
        environments=_played_to_collect,
    ),
    Stage(
        name="select",
        help="mark critical steps in the collected episodes",
        title="critical steps",
        needs=("collect",),
        wanted=lambda recipe: recipe.select is not None,
        is_done=_is_selected,
        run=_select,
        models=_models_of_select,
    ),
    Stage(
        name="finetune",
        help="fine-tune on the marked steps",
        title="masked fine-tuning",
        needs=("collect", "select"),
        wanted=lambda recipe: recipe.finetune is not None,
        is_done=_is_tuned,
        run=_finetune,
        models=_base,
        environments=_played_in_validation,
    ),
    Stage(
        name="evaluate",
        help="score the base model and every arm",
        title="scores",
        needs=("collect", "select", "finetune"),
        wanted=lambda recipe: recipe.evaluate is not None,
        is_done=lambda recipe, layout: layout.atlas_scores.exists(),
        run=_evaluate,
        models=_base,
        environments=_played_for_scores,
    ),
    Stage(
        name="switch",
        help="train and score the LONDI switch",
        title="LONDI switch",
        needs=(),
        wanted=lambda recipe: recipe.switch is not None,
        is_done=lambda recipe, layout: layout.switch_policies.exists(),
        run=_switch,
        models=_models_of_switch,
        environments=_played_by_switches,
    ),
    Stage(
        name="rounds",
        help="tune on the switch's calls, or on a model's own runs, and collect again with what learned, in rounds",
        title="rounds of collecting and tuning",
        needs=("switch",),
        wanted=lambda recipe: recipe.rounds is not None,
        is_done=_are_rounds_played,
        run=_rounds,
        models=_models_of_rounds,
        environments=_played_in_rounds,
    ),
    Stage(
        name="report",
        help="write results.json and report.html of a run again",
        title="report",
        needs=(),  # it takes what is there
        wanted=lambda recipe: any((recipe.select, recipe.evaluate, recipe.switch)),
        is_done=lambda recipe, layout: layout.report.exists(),
        run=_report,
    ),
)
"""In the order in which they run."""

STAGE = {stage.name: stage for stage in STAGES}
"""By name."""

ATLAS = (*STAGE["evaluate"].needs, "evaluate")
"""Names of the stages of ATLaS."""
