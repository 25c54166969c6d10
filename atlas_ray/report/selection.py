"""Which steps the selectors marked: how far they agree, how the untuned model does behind them, and where they lie."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from ..data.records import Annotation, Trajectory, read_annotations, read_trajectories
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.select import matched
from ..rundir.layout import RunLayout
from ..selection.agreement import Agreement, Counts, agreement
from ..selection.controls import by_trajectory
from ..selection.stage import annotations_path
from .episode_view import marked_episode
from .page import NOTHING, Html, el, missing, short, table
from .plots import agreement_figure, svg
from .reading import UNCLEAR, judge

_DRAWN = ("all", "random", "non-critical", "uniform", "last")
_SELECTORS = 8  # in the matrix
_EPISODES = 4  # side by side
_CATEGORIES = 12
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Marks:
    """What the selectors of a run marked.

    Attributes:
        trajectories: that they annotated, or some of them.
        found: by selector, in the order of the recipe and without ``all``: annotations by trajectory id.
        gone: selectors of the recipe that have no annotations.
    """

    trajectories: tuple[Trajectory, ...]
    found: dict[str, dict[str, Annotation]]
    gone: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Two selectors to look at, or one, or none: oracle and value, else the first that are no mere draw."""
        chosen = tuple(name for name in self.found if name not in _DRAWN and not matched(name))
        return ("oracle", "value") if {"oracle", "value"} <= {*chosen} else chosen[:2]

    def shared(self, *names: str) -> list[Trajectory]:
        """Trajectories that all of these selectors annotated."""
        return [t for t in self.trajectories if all(t.id in self.found[name] for name in names)]


def annotated(run_dir: Path) -> list[str]:
    """The selectors that left annotations in a run."""
    return [name for name in RunLayout(run_dir).selectors if _NAME.fullmatch(name)]


def read_marks(run_dir: Path, recipe: Recipe | None) -> Marks:
    """The annotations of the selectors that the recipe names; without a recipe, of those that are there.

    Raises:
        InputError: a file is not what it should be, or there are no trajectories; names the file.
    """
    names = recipe.select.selectors if recipe and recipe.select else annotated(run_dir)
    trajectories = read_trajectories(RunLayout(run_dir).expert)
    found: dict[str, dict[str, Annotation]] = {}
    gone = []
    for name in names:
        path = annotations_path(run_dir, name)
        if not path.is_file() or not path.stat().st_size:
            gone.append(name)
        elif name != "all":
            try:
                found[name] = by_trajectory(read_annotations(path, trajectories))
            except InputError as error:
                raise InputError(error.message, path, error.line, error.field) from None
    return Marks(tuple(trajectories), found, tuple(gone))


def agreement_part(marks: Marks) -> list[Html]:
    """Cohen's kappa of every pair of selectors, and more of the pair that is shown."""
    parts = []
    if marks.gone:
        parts.append(el("p", f"Without annotations, and so left out: {', '.join(marks.gone)}.", cls="note"))
    if len(marks.found) < 2:
        there = " and ".join(marks.found) or "no selector"
        parts.append(el("p", f"It takes two selectors to agree; there are annotations by {there}.", cls="note"))
        return parts
    parts += [_matrix(marks), el("p", " ".join(_about_matrix(marks)), cls="note")]
    if len(marks.shown) == 2:
        first, second = marks.shown
        parts.append(el("h3", f"{first} and {second}"))
        if marks.shared(first, second):
            parts += _pair(_agreement(marks, first, second))
        else:
            parts.append(el("p", "No trajectory is annotated by both, so there is nothing to compare.", cls="note"))
    return parts


def review_part(run_dir: Path, marks: Marks) -> list[Html]:
    """A handful of episodes with the marks of the selectors that are shown, side by side where they are two."""
    names = marks.shown
    if not names:
        return [missing(_why_none(run_dir, marks))]
    there = [t for t in marks.shared(*names) if any(marks.found[name][t.id].critical for name in names)]
    if not there:
        return [missing(f"no episode that {' and '.join(names)} annotated has a critical step")]
    chosen = in_turn(there)[:_EPISODES]
    episodes = [marked_episode(t, {name: marks.found[name][t.id] for name in names}) for t in chosen]
    columns = "their marks beside each step" if len(names) == 1 else f"left the marks of {names[0]}, right {names[1]}"
    parts = [
        el(
            "p",
            f"{len(chosen)} of {len(there):,} episodes, {columns}. Chosen by rule and not for their looks: each "
            "environment in turn, successful episodes of 5 to 20 steps first.",
            cls="note",
        ),
        *episodes[0],
    ]
    for trajectory, episode in zip(chosen[1:], episodes[1:], strict=True):
        title = short(f"{trajectory.env}, seed {trajectory.seed}: {trajectory.instruction}", 120)
        parts.append(el("details", el("summary", title), episode))
    return parts


def _why_none(run_dir: Path, marks: Marks) -> str:
    for name in marks.gone:
        if name not in _DRAWN and not matched(name):
            return f"{annotations_path(run_dir, name).relative_to(run_dir)} is missing"
    return f"this run has no selector but {', '.join(_DRAWN)}"


def in_turn(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The first of each environment, then the second of each; short and successful ones before the others."""
    by_env: dict[str, list[Trajectory]] = defaultdict(list)
    for t in sorted(trajectories, key=lambda t: not (t.success and 5 <= len(t.steps) <= 20)):
        by_env[t.env].append(t)
    return [t for t in chain.from_iterable(zip_longest(*by_env.values())) if t is not None]


def _matrix(marks: Marks) -> Html:
    names = _in_matrix(marks)
    rows: list[list[str | Html]] = []
    for name in names:
        here = marks.shared(name)
        steps = sum(len(t.steps) for t in here)
        share = sum(len(a.critical) for a in marks.found[name].values()) / steps
        kappas = ["" if other == name else number(_counts(marks, name, other).kappa) for other in names]
        rows.append([name, f"{len(here):,} of {len(marks.trajectories):,}", f"{share:.1%}", *kappas])
    heads = [name.replace("_", "_\u200b") for name in names]  # where the name of an ensemble may be broken
    return table(["selector", "trajectories annotated", "share of their steps", *heads], rows)


def _in_matrix(marks: Marks) -> list[str]:
    kept = sorted(marks.found, key=lambda name: name not in marks.shown)[:_SELECTORS]
    return [name for name in marks.found if name in kept]


def _about_matrix(marks: Marks) -> list[str]:
    said = [
        "Cohen's kappa of each pair, over the steps of the trajectories that both annotated: 1 is the same steps, 0 is "
        "what chance would give, below 0 is less. An ensemble agrees with its members and non-critical disagrees "
        "with what it avoids because of how they are made."
    ]
    if left := [name for name in marks.found if name not in _in_matrix(marks)]:
        said.append(f"Left out for want of room: {', '.join(left)}.")
    return said


def _counts(marks: Marks, first: str, second: str) -> Counts:
    """The same counts as :func:`agreement`'s over all steps, without its intervals."""
    shared = marks.shared(first, second)
    a, b = ([set(marks.found[name][t.id].critical) for t in shared] for name in (first, second))
    both = sum(len(x & y) for x, y in zip(a, b, strict=True))
    return Counts(sum(len(t.steps) for t in shared), sum(map(len, a)), sum(map(len, b)), both)


def _agreement(marks: Marks, first: str, second: str) -> Agreement:
    return agreement(
        marks.trajectories, marks.found[first].values(), marks.found[second].values(), names=(first, second)
    )


def _pair(result: Agreement) -> list[Html]:
    first, second = result.names
    total = result.total
    shares = [f"{name} marked {n / total.steps:.1%}" for name, n in ((first, total.first), (second, total.second))]
    kappa = f"Cohen's kappa {number(total.kappa)}"
    if result.kappa_ci95:
        low, high = result.kappa_ci95
        beyond = judge(low, high, "more agreement than by chance", "less agreement than by chance")
        kappa += f" [{number(low)}, {number(high)}], " + (f"{UNCLEAR} from chance" if beyond == UNCLEAR else beyond)
    else:
        kappa += ", without an interval, for which it takes two trajectories and steps that are marked and that are not"
    said = [
        f"{total.steps:,} steps of {result.trajectories:,} trajectories that both annotated: {', '.join(shares)} of "
        f"them, {total.both:,} steps are marked by both.",
        f"{kappa}.",
        f"Overlap {number(total.overlap)}: the share of the steps of the one that marked fewer that the other marked "
        f"too. Jaccard {number(total.jaccard)}: the share of the steps marked by any that both marked.",
    ]
    if any(result.alone):
        said.append(
            f"Left out because the other did not annotate them: {result.alone[0]:,} trajectories of {first}, "
            f"{result.alone[1]:,} of {second}."
        )
    return [
        el("ul", [el("li", sentence) for sentence in said], cls="reading"),
        *_categories(result),
        el(
            "figure",
            svg(agreement_figure(result), "agreement", "Share of the steps that each of two selectors marked"),
            el(
                "figcaption",
                "Share of the steps that each marked: of all, by place in the episode, by environment. Selectors can "
                "agree here and still mark different steps; kappa says whether they are the same.",
            ),
        ),
    ]


def _categories(result: Agreement) -> list[Html]:
    first, second = result.categories
    known = sorted({*first, *second}, key=lambda name: (-first.get(name, 0.0) - second.get(name, 0.0), name))
    if not known:
        return []
    rows: list[list[str | Html]] = [
        [short(name, 60), *(f"{s[name]:.1%}" if name in s else NOTHING for s in result.categories)]
        for name in known[:_CATEGORIES]
    ]
    parts = [table(["category, share of the marked steps that have one", *result.names], rows)]
    if len(known) > _CATEGORIES:
        parts.append(el("p", f"… and {len(known) - _CATEGORIES:,} rarer categories.", cls="note"))
    return parts


def number(value: float | None) -> str:
    """Two decimals; what rounds to zero has no minus, and what is not defined is a dash."""
    return NOTHING if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
