"""How the episodes of a run ended, one by one: what two arms or policies that played the same ones are compared by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.paired import Difference, paired_counts, paired_difference, two_sided_quantile
from ..data.results import Arm, Cell, Policy, combine
from ..errors import InputError
from ..rundir.layout import RunLayout

Episode = tuple[str, int]
"""Level and seed."""
Played = dict[int | None, dict[Episode, bool]]
"""By training seed (None: not trained): success of every episode that was not lost."""
_PlayedOnce = Mapping[Episode, int]


@dataclass(frozen=True)
class Outcomes:
    """Success in single episodes, by name of the arm (``none`` is the untuned model) or policy.

    Empty where the run keeps no episodes: then rates are compared as if they were independent.
    """

    arms: dict[str, Played] = field(default_factory=dict)
    policies: dict[str, Played] = field(default_factory=dict)
    calls: dict[str, dict[int | None, dict[Episode, int]]] = field(default_factory=dict)
    """Calls of the policies in the same episodes."""
    offsets: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """Where in the file of the evaluation the row of an episode begins, by model, level and seed."""

    def of_arms(self, a: Arm, b: Arm, levels: Sequence[str], level: float = 0.95) -> Difference | None:
        """Success of a less that of b over the episodes of these levels that both played; None without any."""
        return compared(self.arms.get(a.name, {}), self.arms.get(b.name, {}), level, lambda e: e[0] in levels)

    def of_policies(self, a: Policy, b: Policy, level: float = 0.95) -> Difference | None:
        """The same of two policies of the switch, over all episodes."""
        return compared(self.policies.get(a.name, {}), self.policies.get(b.name, {}), level)


def compared(
    first: Played, second: Played, level: float = 0.95, counts: Callable[[Episode], bool] = lambda episode: True
) -> Difference | None:
    """Success of the first less that of the second over the episodes that all training seeds of both played."""
    shared = [e for e in _shared(first, second) if counts(e)]
    if not shared:
        return None
    a, b = ([[p[e] for e in shared] for p in one.values()] for one in (first, second))
    return paired_difference(a, b, level)


def compared_calls(
    first: dict[int | None, dict[Episode, int]], second: dict[int | None, dict[Episode, int]]
) -> Difference | None:
    """Calls per episode of the first less those of the second, where they played the same episodes."""
    shared = _shared(first, second)
    if not shared:
        return None
    a, b = ([[p[e] for e in shared] for p in one.values()] for one in (first, second))
    return paired_counts(a, b)


def _shared(first: Mapping[int | None, _PlayedOnce], second: Mapping[int | None, _PlayedOnce]) -> list[Episode]:
    """The episodes that all training seeds of both played."""
    if not first or not second:
        return []
    return sorted(set.intersection(*(set(p) for p in (*first.values(), *second.values()))))


def unpaired(terms: Sequence[tuple[float, Cell | Policy]], level: float = 0.95) -> Difference:
    """A weighted sum of success rates as if they were independent, see :func:`atlas_ray.data.results.combine`."""
    mean, low, high = combine(terms)
    # the rates have 95 % intervals, whatever level is asked for
    wider = two_sided_quantile(level) / two_sided_quantile(0.95)
    return Difference(mean, mean - wider * (mean - low), mean + wider * (high - mean))


def difference(paired: Difference | None, a: Cell | Policy, b: Cell | Policy, level: float = 0.95) -> Difference:
    """The paired difference where there is one, else that of the two rates."""
    return paired if paired is not None else unpaired([(1, a), (-1, b)], level)


def read_outcomes(*layouts: RunLayout) -> Outcomes:
    """The outcomes that run directories keep. Of several ones the places of the rows are of the last that has them.

    Raises:
        InputError: a row is not what it should be; names file and line.
    """
    found = Outcomes()
    for layout in layouts:
        _read_into(found, layout)
    return found


def _read_into(found: Outcomes, layout: RunLayout) -> None:
    for offset, row in _rows(layout.evaluation_episodes, ("model", "level", "seed")):
        if not row.get("lost"):
            found.offsets[row["model"], row["level"], row["seed"]] = offset
        name, _, seed = str(row["model"]).rpartition("/")
        training = int(seed) if name and seed.isdigit() else None
        _note(found.arms, name if training is not None else str(row["model"]), training, row)
    for _, row in _rows(layout.switch_episodes, ("policy", "level", "seed")):
        _note(found.policies, row["policy"], row.get("training"), row)
        if not row.get("lost") and "calls" in row:
            calls = found.calls.setdefault(row["policy"], {}).setdefault(row.get("training"), {})
            calls[row["level"], row["seed"]] = row["calls"]


def _note(table: dict[str, Played], name: str, training: int | None, row: dict[str, Any]) -> None:
    played = table.setdefault(name, {}).setdefault(training, {})
    if not row.get("lost"):  # a lost episode says nothing, and a later row may have it
        played[row["level"], row["seed"]] = bool(row["success"])


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of episodes and where they begin, without a last line that is still being written."""
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"not JSON: {error}", path, number) from None
            if gone := next((n for n in (*needed, "success") if not isinstance(row, dict) or n not in row), None):
                raise InputError(f"a row of an episode needs {gone}", path, number, gone)
            yield offset, row
            offset += len(line)
