"""Arms of a sweep brought together: trials that differ in their arm alone are read as one run with several arms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..data.paired import Difference, level_for
from ..data.results import Arm, Atlas, Results
from ..rundir.layout import RunLayout
from .arm_pairs import FORGETTING, QUESTIONS, Pair, Question, Split, apart
from .forgetting import forgotten
from .run import Run

Row = Mapping[str, Any]
"""As in ``sweep.json``."""
ARMS = "finetune.arms"
"""The swept field, or the beginning of its name, in which the trials of a group differ."""
SPLITS: tuple[Split, Split] = ("held_in", "held_out")


@dataclass(frozen=True)
class Group:
    """Trials that differ in their arm alone.

    Attributes:
        values: the swept values that they share.
        trials: numbers of those that were scored.
        unfinished: how many are not yet.
        failed: how many failed.
        arms: of the scored ones, the untuned model first where it was scored.
        root: the sweep's directory.
    """

    values: Mapping[str, Any]
    trials: tuple[int, ...]
    unfinished: int
    failed: int
    arms: tuple[Arm, ...]
    root: Path

    @cached_property
    def run(self) -> Run:
        """The same as a run, whose episodes lie in the trials."""
        results = Results(atlas=Atlas(arms=self.arms)) if self.arms else None
        return Run(self.root, None, results, tuple(RunLayout(self.root).trial(number).root for number in self.trials))

    def row(self) -> dict[str, Any]:
        """Its part of ``sweep.json``, where the arms stand with their trials."""
        about: dict[str, Any] = {"values": dict(self.values), "trials": list(self.trials)}
        about |= {"unfinished": self.unfinished, "failed": self.failed}
        untuned = [a.model_dump(mode="json", exclude_defaults=True) for a in self.arms if a.selector == "none"]
        return {**about, "untuned": untuned[0] if untuned else None}


@dataclass(frozen=True)
class Comparison:
    """Two arms of a group on the same episodes.

    Attributes:
        question: name of the :class:`atlas_ray.report.arm_pairs.Question`, or ``forgetting``.
        values: of the group.
        first: name of the arm.
        second: what it is set against; ``none`` is the untuned model.
        split: ``held_in`` or ``held_out``; ``known`` are the levels that the untuned model could do.
        difference: success of the first less that of the second.
        level: of its interval, which holds together with all others of its question and split.
        seeds: training seeds of the first.
    """

    question: str
    values: Mapping[str, Any]
    first: str
    second: str
    split: str
    difference: Difference
    level: float
    seeds: int

    def row(self) -> dict[str, Any]:
        """Its part of ``sweep.json``."""
        d = self.difference
        about: dict[str, Any] = {"question": self.question, "values": dict(self.values)}
        about |= {
            "first": self.first,
            "second": self.second,
            "split": self.split,
            "mean": d.mean,
            "low": d.low,
            "high": d.high,
        }
        return {**about, "level": self.level, "episodes": d.episodes, "seeds": self.seeds}

    @classmethod
    def of_row(cls, row: Row) -> Self:
        """The reverse of :meth:`row`."""
        d = Difference(row["mean"], row["low"], row["high"], row["episodes"])
        names = (row["first"], row["second"], row["split"])
        return cls(row["question"], row["values"], *names, d, row["level"], row["seeds"])


def sweeps_arms(fields: Sequence[str]) -> bool:
    """Whether a sweep over these fields has arms that can be brought together."""
    return any(is_of_arms(field) for field in fields)


def is_of_arms(field: str) -> bool:
    """Whether a swept field says which arm a trial trains."""
    return field == ARMS or field.startswith(f"{ARMS}.")


def group_trials(rows: Sequence[Row], root: Path, untuned: Mapping[int, Row]) -> list[Group]:
    """The groups of a sweep's trials, in the order of their first ones.

    Args:
        rows: of ``sweep.json``.
        root: the sweep's directory.
        untuned: scores of the untuned model by number of the trial.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(json.dumps(shared_values(row), sort_keys=True), []).append(row)
    groups = []
    for own in found.values():
        scored = [row for row in own if "arm" in row]
        base = [Arm.model_validate(untuned[row["trial"]]) for row in scored if row["trial"] in untuned][:1]
        arms = {(arm.name, arm.fraction): arm for row in scored for arm in [Arm.model_validate(row["arm"])]}
        unfinished, failed = (sum(row["status"] == status for row in own) for status in ("unfinished", "failed"))
        trials = tuple(row["trial"] for row in scored)
        groups.append(Group(shared_values(own[0]), trials, unfinished, failed, (*base, *arms.values()), root))
    return groups


def shared_values(row: Row) -> dict[str, Any]:
    """The values of a trial but for its arm."""
    return {field: value for field, value in row["values"].items() if not is_of_arms(field)}


def groups_of(made: Row, root: Path) -> list[Group]:
    """The groups that stand in a ``sweep.json``; none where it has no arms to compare."""
    rows = {row["trial"]: row for row in made["trials"]}
    groups = []
    for row in made.get("groups", ()):
        given = [*([row["untuned"]] if row["untuned"] else []), *(rows[number]["arm"] for number in row["trials"])]
        arms = {(arm.name, arm.fraction): arm for arm in map(Arm.model_validate, given)}
        trials = tuple(row["trials"])
        groups.append(Group(row["values"], trials, row["unfinished"], row["failed"], tuple(arms.values()), root))
    return groups


def comparisons_of(made: Row) -> list[Comparison]:
    """The comparisons that stand in a ``sweep.json``."""
    return [Comparison.of_row(row) for row in made.get("comparisons", ())]


def compare_arms(groups: Sequence[Group]) -> list[Comparison]:
    """All comparisons within the groups; those of one question and split hold together over all groups."""
    found: list[Comparison] = []
    for question in QUESTIONS:
        pairs = [(group, pair) for group in groups for pair in question.pairs(group.arms)]
        for split in SPLITS:
            found += _compared(question, split, pairs)
    trained = [(group, arm) for group in groups for arm in group.arms if arm.seeds]
    return found + list(_forgotten(trained))


def _compared(question: Question, split: Split, pairs: Sequence[tuple[Group, Pair]]) -> Iterator[Comparison]:
    here = [(group, pair) for group, pair in pairs if apart(group.run, *pair, split) is not None]
    level = level_for(len(here))
    for group, (first, second) in here:
        d = apart(group.run, first, second, split, level)
        assert d is not None
        names = (first.name, second.name)
        yield Comparison(question.name, group.values, *names, split, d, level, len(first.seeds))


def _forgotten(trained: Sequence[tuple[Group, Arm]]) -> Iterator[Comparison]:
    here = [(group, arm) for group, arm in trained if forgotten(group.run, arm) is not None]
    level = level_for(len(here))
    for group, arm in here:
        lost = forgotten(group.run, arm, level)
        assert lost is not None
        yield Comparison(FORGETTING, group.values, arm.name, "none", "known", lost.change, level, len(arm.seeds))
