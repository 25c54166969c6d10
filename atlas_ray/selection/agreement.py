"""How far two selectors mark the same steps (ours).

Steps are pooled over the trajectories that both annotated. Where a number is not defined (a share of nothing, chance
agreement of 1) it is None, in JSON null.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.records import Annotation, Trajectory
from ..errors import InputError
from .bootstrap import bootstrap_ci95
from .controls import by_trajectory

BINS = 5
_NOTHING = "-"


@dataclass(frozen=True)
class Counts:
    """How many of some steps the first selector marked, the second one, and both."""

    steps: int
    first: int
    second: int
    both: int

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """Share of the steps that each selector marked; None when there are no steps."""
        return _ratio(self.first, self.steps), _ratio(self.second, self.steps)

    @property
    def jaccard(self) -> float | None:
        """Steps that both marked over steps that any marked; None when none is marked."""
        return _ratio(self.both, self.first + self.second - self.both)

    @property
    def overlap(self) -> float | None:
        """Steps that both marked over those of the selector that marked fewer; None when that is none."""
        return _ratio(self.both, min(self.first, self.second))

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement on marked and unmarked steps beyond that of chance, 1 at most.

        0 when one selector marked every step or none and the other did not, for chance explains all of that. None
        when chance agreement is 1: both marked every step, or both none, or there are no steps.
        """
        chance = self.first * self.second + (self.steps - self.first) * (self.steps - self.second)
        agreed = self.steps - self.first - self.second + 2 * self.both
        return _ratio(self.steps * agreed - chance, self.steps**2 - chance)

    def describe(self) -> dict[str, Any]:
        """Counts and measures, ready for JSON."""
        first, second = self.shares
        return {
            "steps": self.steps,
            "first": self.first,
            "second": self.second,
            "both": self.both,
            "first_share": first,
            "second_share": second,
            "jaccard": self.jaccard,
            "overlap": self.overlap,
            "kappa": self.kappa,
        }


@dataclass(frozen=True)
class Agreement:
    """Two selectors on the same trajectories; pairs are in the order of ``names``.

    Attributes:
        names: of the selectors.
        trajectories: that both annotated; everything below is about these.
        alone: trajectories that only this one annotated, which are left out.
        total: over all steps.
        kappa_ci95: 95 % interval of the kappa of ``total``, percentiles of a bootstrap over trajectories; None with a
            single trajectory or an undefined kappa.
        positions: by place in the episode, :data:`BINS` equal parts from its beginning to its end.
        environments: by environment, in the order of their names.
        categories: share of each category among the marked steps that carry one; empty where none does.
    """

    names: tuple[str, str]
    trajectories: int
    alone: tuple[int, int]
    total: Counts
    kappa_ci95: tuple[float, float] | None
    positions: tuple[Counts, ...]
    environments: Mapping[str, Counts]
    categories: tuple[Mapping[str, float], Mapping[str, float]]

    def describe(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "names": list(self.names),
            "trajectories": self.trajectories,
            "alone": list(self.alone),
            "total": self.total.describe(),
            "kappa_ci95": list(self.kappa_ci95) if self.kappa_ci95 else None,
            "positions": [counts.describe() for counts in self.positions],
            "environments": {name: counts.describe() for name, counts in self.environments.items()},
            "categories": [dict(shares) for shares in self.categories],
        }


def agreement(
    trajectories: Iterable[Trajectory],
    first: Iterable[Annotation],
    second: Iterable[Annotation],
    names: tuple[str, str],
) -> Agreement:
    """Compare two selectors' annotations of the same trajectories.

    Raises:
        InputError: a selector has two annotations of one trajectory, or marks a step that does not exist; no
            trajectory is annotated by both.
    """
    annotated = by_trajectory(first), by_trajectory(second)
    each: list[Counts] = []
    alone = [0, 0]
    positions: list[list[Counts]] = [[] for _ in range(BINS)]
    environments: dict[str, list[Counts]] = defaultdict(list)
    categories: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for trajectory in trajectories:
        a, b = (by_id.get(trajectory.id) for by_id in annotated)
        if a is None or b is None:
            alone[0] += a is not None
            alone[1] += b is not None
            continue
        steps = len(trajectory.steps)
        for name, annotation, counted in zip(names, (a, b), categories, strict=True):
            if annotation.critical and annotation.critical[-1] >= steps:
                raise InputError(f"{name} marks step {annotation.critical[-1]} of {trajectory.id!r}, which has {steps}")
            counted.update(
                annotation.categories[t]
                for t in annotation.critical
                if annotation.categories and t in annotation.categories
            )
        parts: list[list[int]] = [[] for _ in range(BINS)]
        for t in range(steps):
            parts[part_of(t, steps)].append(t)
        for place, part in zip(positions, parts, strict=True):
            place.append(_count(part, a, b))
        each.append(_count(range(steps), a, b))
        environments[trajectory.env].append(each[-1])
    if not each:
        raise InputError(f"{names[0]} and {names[1]} have no annotated trajectory in common")
    total = _sum(each)
    return Agreement(
        names=names,
        trajectories=len(each),
        alone=(alone[0], alone[1]),
        total=total,
        kappa_ci95=_kappa_ci95(each) if total.kappa is not None else None,
        positions=tuple(map(_sum, positions)),
        environments={name: _sum(environments[name]) for name in sorted(environments)},
        categories=(_shares(categories[0]), _shares(categories[1])),
    )


def part_of(step: int, steps: int) -> int:
    """Which of the :data:`BINS` equal parts of an episode holds the middle of a step."""
    return (2 * step + 1) * BINS // (2 * steps)


def _count(steps: Sequence[int], a: Annotation, b: Annotation) -> Counts:
    mine, other = set(a.critical).intersection(steps), set(b.critical).intersection(steps)
    return Counts(len(steps), len(mine), len(other), len(mine & other))


def _sum(parts: Iterable[Counts]) -> Counts:
    found = list(parts)
    return Counts(
        sum(c.steps for c in found),
        sum(c.first for c in found),
        sum(c.second for c in found),
        sum(c.both for c in found),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _shares(counted: Counter[str]) -> dict[str, float]:
    return {name: count / counted.total() for name, count in sorted(counted.items())}


def _kappa_ci95(each: Sequence[Counts]) -> tuple[float, float] | None:
    """95 % interval of kappa, trajectories resampled; None for a single one, which is always itself."""
    if len(each) < 2:
        return None
    counts_K4 = np.array([(c.steps, c.first, c.second, c.both) for c in each])
    return bootstrap_ci95(len(each), lambda drawn_K: Counts(*counts_K4[drawn_K].sum(0).tolist()).kappa)


def agreement_text(result: Agreement) -> str:
    """The comparison as a plain-text table."""
    first, second = result.names
    low_high = "[{:.2f}, {:.2f}]".format(*result.kappa_ci95) if result.kappa_ci95 else "no interval"
    lines = [
        f"{first} against {second}: {result.total.steps:,} steps of {result.trajectories:,} trajectories",
        f"annotated by one only, left out: {result.alone[0]:,} by {first}, {result.alone[1]:,} by {second}",
        f"Cohen's kappa {_number(result.total.kappa)} {low_high}, Jaccard {_number(result.total.jaccard)}, "
        f"overlap coefficient {_number(result.total.overlap)}",
        "",
    ]
    rows = [["", "steps", first, second, "both", "Jaccard", "kappa"], _row("all steps", result.total)]
    for part, counts in enumerate(result.positions):
        rows.append(_row(f"at {part / BINS:.0%} to {(part + 1) / BINS:.0%} of the episode", counts))
    rows += [_row(name, counts) for name, counts in result.environments.items()]
    lines += _aligned(rows)
    if any(result.categories):
        known = sorted({name for shares in result.categories for name in shares})
        rows = [["share of marked steps", first, second]]
        rows += [[name, *(_share(shares.get(name)) for shares in result.categories)] for name in known]
        lines += ["", *_aligned(rows)]
    return "\n".join(lines)


def _row(label: str, counts: Counts) -> list[str]:
    shares = [*counts.shares, _ratio(counts.both, counts.steps)]
    return [label, f"{counts.steps:,}", *map(_share, shares), _number(counts.jaccard), _number(counts.kappa)]


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
