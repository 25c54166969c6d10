"""Stage 2: annotations of the expert trajectories by every selector of the recipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..data.exchange.sources import reading
from ..data.kept import Outcomes, outcomes_of
from ..data.records import Annotation, Trajectory, read_annotations, read_trajectories, write_annotations
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.select import matched, members
from ..rundir.files import RunLog, write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from .advised import by_advised
from .agreement import Agreement, agreement
from .calls import select_calls
from .compute import selection_compute
from .controls import (
    by_trajectory,
    select_all,
    select_last,
    select_matched,
    select_non_critical,
    select_random,
    select_successes,
    select_uniform,
)
from .deviation_stage import by_deviation
from .distilled_stage import by_distilled
from .ensembles import AnnotationsBySelector, mark_scores, select_intersection, select_rank_mean, select_union
from .oracle_stage import by_oracle
from .oracle_task import LABELS
from .scored_stage import by_base, by_value, step_scores
from .start_after import start_after
from .verified_stage import by_verified


def annotations_path(run_dir: Path, selector: str) -> Path:
    """Where a selector's annotations are."""
    return RunLayout(run_dir).annotations(selector)


def expert_trajectories(run_dir: Path) -> list[Trajectory]:
    """What is selected from."""
    return read_trajectories(RunLayout(run_dir).expert)


def needs(recipe: Recipe, selector: str) -> tuple[str, ...]:
    """The selectors that have to come before this one."""
    assert recipe.select is not None
    if selector == "verified":
        proposer = recipe.select.verified.propose
        return () if proposer == "all" else (proposer,)
    return (recipe.select.rest_of,) if selector == "non-critical" else members(selector)


def _make(
    recipe: Recipe, run_dir: Path, selector: str, trajectories: list[Trajectory], done: dict[str, list[Annotation]]
) -> list[Annotation]:
    config = recipe.select
    assert config is not None
    if selector in config.files:
        with reading(config.files[selector]) as source:
            return _own(source.path, selector, trajectories)
    if (member := matched(selector)) is not None:
        kind = selector.removesuffix(f"_{member}")
        return select_matched(kind, trajectories, member, done[member], recipe.seed)
    if joined := members(selector):
        annotated = {name: done[name] for name in joined}
        if not selector.startswith("rank-mean"):
            return (select_union if selector.startswith("union") else select_intersection)(trajectories, annotated)
        scores = {n: step_scores(run_dir, n, trajectories) or mark_scores(trajectories, done[n]) for n in joined}
        return select_rank_mean(trajectories, scores, config.fraction)
    by_name: dict[str, Callable[[], list[Annotation]]] = {
        "all": lambda: select_all(trajectories),
        "successes": lambda: select_successes(trajectories),
        "random": lambda: select_random(trajectories, config.fraction, recipe.seed),
        "uniform": lambda: select_uniform(trajectories, config.fraction),
        "last": lambda: select_last(trajectories, config.fraction),
        "non-critical": lambda: select_non_critical(trajectories, done[config.rest_of], config.fraction, recipe.seed),
        "value": lambda: by_value(recipe, run_dir, trajectories),
        "deviation": lambda: by_deviation(recipe, run_dir, trajectories),
        "perplexity": lambda: by_base(recipe, run_dir, trajectories, selector),
        "entropy": lambda: by_base(recipe, run_dir, trajectories, selector),
        "oracle": lambda: by_oracle(recipe, run_dir, trajectories),
        "mistakes": lambda: by_oracle(recipe, run_dir, trajectories, LABELS),
        "distilled": lambda: by_distilled(recipe, run_dir, trajectories),
        "calls": lambda: _by_calls(run_dir, trajectories),
        "advised": lambda: by_advised(recipe, run_dir, trajectories),
        "verified": lambda: by_verified(recipe, run_dir, trajectories, done.get(config.verified.propose)),
    }
    return by_name[selector]()


def _by_calls(run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    made = select_calls(trajectories)
    if unknown := len(trajectories) - len(made):
        RunLog(run_dir).event("select", "left out", selector="calls", trajectories=unknown, why="no actor is named")
        say(f"  calls: {unknown} of {len(trajectories)} trajectories do not say who took each step, left out")
    return made


def _own(path: Path, selector: str, trajectories: list[Trajectory]) -> list[Annotation]:
    """Annotations of the user's own.

    Raises:
        InputError: names file, line and field.
    """
    made = read_annotations(path, trajectories)
    try:
        by_trajectory(made)
    except InputError as error:
        raise InputError(error.message, path) from None
    return [a.model_copy(update={"selector": selector}) for a in made]


def fraction_of(recipe: Recipe, run_dir: Path, selector: str) -> float:
    """The cap m of a selector, 1 where it has none; what is made from others' marks and one's own say it themselves."""
    assert recipe.select is not None
    if selector in ("all", "successes", "calls", "mistakes", "advised", "verified"):
        return 1.0
    if members(selector) or selector in recipe.select.files:
        return max(a.fraction for a in read_annotations(annotations_path(run_dir, selector)))
    return recipe.select.fraction


def select(recipe: Recipe, run_dir: Path) -> AnnotationsBySelector:
    """Annotate ``trajectories/expert.jsonl`` by each selector into ``annotations/SELECTOR.jsonl``.

    Raises:
        InputError: a selector marked nothing at all, or annotations of the user's own cannot be read.
    """
    config = recipe.select
    assert config is not None
    trajectories = expert_trajectories(run_dir)
    done: dict[str, list[Annotation]] = {}
    waiting = list(config.selectors)
    while waiting:
        # the recipe makes sure that everything needed is named, and that nothing needs itself
        selector = next(s for s in waiting if all(n in done for n in needs(recipe, s)))
        waiting.remove(selector)
        target = annotations_path(run_dir, selector)
        if target.exists():
            done[selector] = read_annotations(target, trajectories)
            continue
        begun = time.perf_counter()
        made = _make(recipe, run_dir, selector, trajectories, done)
        RunLog(run_dir).metric("select", selector=selector, seconds=round(time.perf_counter() - begun, 3))
        marked = sum(bool(a.critical) for a in made)
        if not marked:
            why = f"the selector {selector} marked no step in any of {len(trajectories)} trajectories"
            raise InputError(why, None, None, "select.selectors", "empty_selection")
        if marked < len(made):
            RunLog(run_dir).event("select", "empty", selector=selector, trajectories=len(made) - marked)
            say(f"  {selector}: {len(made) - marked} of {len(made)} trajectories have no step to select")
        _note_outcomes(run_dir, selector, trajectories, made)
        taken = selection_compute(recipe, run_dir, selector, trajectories)
        write_json(RunLayout(run_dir).selection_compute(selector), taken)
        write_annotations(target, made)
        done[selector] = made
    for name, made in done.items():
        say(f"  {name}: {_shares(trajectories, made)}")
    if config.start_after and not RunLayout(run_dir).start_after.exists():
        start_after(recipe, run_dir, trajectories, done)
    return done


def _shares(trajectories: list[Trajectory], made: list[Annotation]) -> str:
    """The share of the steps that a selector marked, and where not all are successes that of each kind of episode."""
    by_id = {t.id: t for t in trajectories}
    steps, marked = Outcomes(), Outcomes()
    for annotation in made:
        trajectory = by_id[annotation.trajectory_id]
        steps = steps.add(trajectory.success, len(trajectory.steps))
        marked = marked.add(trajectory.success, len(annotation.critical))
    said = f"{sum(marked) / sum(steps):.1%} of the steps"
    if not steps.mixed:
        return said
    kinds = [
        (name.replace("unknown", "unknown outcome"), getattr(marked, name), n) for name, n in steps._asdict().items()
    ]
    return f"{said} ({', '.join(f'{m / n:.1%} of {name}' for name, m, n in kinds if n)})"


def _note_outcomes(run_dir: Path, selector: str, trajectories: list[Trajectory], made: list[Annotation]) -> None:
    """Log how the episodes ended that a selector marked, where not all of them are successes."""
    marked = {a.trajectory_id for a in made if a.critical}
    if (ended := outcomes_of(t for t in trajectories if t.id in marked)).mixed:
        RunLog(run_dir).event("select", "outcomes", selector=selector, **ended._asdict())


def compare(run_dir: Path, first: str, second: str) -> Agreement:
    """How far two selectors of a run agree.

    Raises:
        InputError: one of them has not been run, or they have no trajectory in common.
    """
    trajectories = expert_trajectories(run_dir)
    for name in (first, second):
        if not annotations_path(run_dir, name).exists():
            there = ", ".join(RunLayout(run_dir).selectors)
            raise InputError(f"no annotations by {name!r}; there are {there}", run_dir, None, "--compare")
    a, b = (read_annotations(annotations_path(run_dir, name), trajectories) for name in (first, second))
    return agreement(trajectories, a, b, (first, second))
