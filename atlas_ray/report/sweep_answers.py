"""What a sweep over arms says, question by question, in plain words and without pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.sweep_space import shown
from .arm_pairs import FORGETS, FORGETTING, QUESTIONS, critical
from .headlines import Headline, is_as_good, listed, tokens_saved, trained_once, with_interval
from .sweep_plots import axis_of, label
from .swept_arms import Comparison, Group, comparisons_of, groups_of, is_of_arms

LEADERS = "leaders"
"""Name of the answer on which arm leads; those on a question of the arms are called after it."""
HELD_IN = ("held_in", "known")
"""The splits that an answer is about; held-out levels are told beside it."""
_AXES = {
    "collect.expert.habit_share": "the expert's bias",
    "collect.expert.noise": "the expert's noise",
    "select.fraction": "the share of steps",
}
"""What it is that grows, in plain words."""


@dataclass(frozen=True)
class _Verdict:
    """What is said of the first arms of some comparisons, where it is so."""

    holds: Callable[[Comparison], bool]
    said: str
    """With ``{names}``, and ``{s}`` or ``{es}`` for the end of a verb of one."""


_UNCLEAR = "of {names} it cannot be told"
_BEATS = (
    _Verdict(lambda c: c.difference.low > 0, "{names} teach{es} more"),
    _Verdict(lambda c: c.difference.high < 0, "{names} teach{es} less"),
)
_STANDS_IN = (
    _BEATS[0],
    _Verdict(lambda c: is_as_good(c.difference), "{names} teach{es} as much"),
    _BEATS[1],
)
_HELPS = (
    _Verdict(lambda c: c.difference.low > 0, "it helps {names}"),
    _Verdict(lambda c: c.difference.high < 0, "it harms {names}"),
)
_FORGETS = (
    _Verdict(lambda c: c.difference.high < 0, "{names} forget{s}"),
    _Verdict(lambda c: is_as_good(c.difference), "{names} keep{s} it"),
)
_VERDICTS = {"all": _STANDS_IN, "distilled": _STANDS_IN, "anchor": _HELPS, FORGETTING: _FORGETS}


@dataclass(frozen=True)
class Swept:
    """A sweep over arms.

    Attributes:
        made: what is in its ``sweep.json``.
        groups: those in which an arm was scored, along the axis where there is one.
        compared: all comparisons.
        axis: the swept number, where there is one.
    """

    made: Mapping[str, Any]
    groups: Sequence[Group]
    compared: Sequence[Comparison]
    axis: str | None

    def of(self, question: str, *splits: str) -> list[Comparison]:
        """The comparisons of a question on some splits."""
        return [c for c in self.compared if c.question == question and c.split in splits]


def swept_of(made: Mapping[str, Any] | None, root: Path) -> Swept | None:
    """What a ``sweep.json`` says of arms; None where nothing was scored.

    Args:
        made: what is in it; None where there is none.
        root: the sweep's directory.
    """
    groups = [group for group in groups_of(made, root) if any(arm.seeds for arm in group.arms)] if made else []
    if made is None or not groups:
        return None
    axis = axis_of({**made, "fields": [field for field in made["fields"] if not is_of_arms(field)]})
    groups = sorted(groups, key=lambda group: group.values[axis]) if axis else groups
    return Swept(made, groups, comparisons_of(made), axis)


def sweep_answers(swept: Swept) -> list[Headline]:
    """Which arm leads where, then an answer for each question that has a comparison."""
    asked = {**{q.name: q.asked for q in QUESTIONS}, FORGETTING: FORGETS}
    found = [_answered(name, words, swept) for name, words in asked.items() if swept.of(name, *HELD_IN)]
    return [_leaders(swept), *found]


# -- who leads


def _leaders(swept: Swept) -> Headline:
    groups, axis = swept.groups, swept.axis
    best = [(group, max((a for a in group.arms if a.seeds), key=lambda a: a.held_in.success)) for group in groups]
    parts = []
    for name, own in itertools.groupby(best, key=lambda pair: pair[1].name):
        leads = list(own)
        where = _where([group for group, _ in leads], axis)
        parts.append(f"{listed([name])} {where}({_and([f'{arm.held_in.success:.2f}' for _, arm in leads])})")
    what = _AXES.get(axis or "", axis)
    question = f"Which arm has most success as {what} grows?" if axis else "Which arm has most success?"
    answer = f"Most success has {_named_once('; '.join(parts), axis)}."
    numbers = [line for group in reversed(groups) for line in _of_best(group, swept)]
    caveat = "The leader is picked by these very numbers; what can be told is said below. " + _left_out(swept.made)
    return Headline(LEADERS, question, answer, numbers, None, f"{caveat} {_once(groups)}".strip())


def _of_best(group: Group, swept: Swept) -> Iterator[str]:
    """The best critical arm of a group against as many random steps and against all."""
    if not (arms := critical(group.arms)):
        return
    best = max(arms, key=lambda arm: arm.held_in.success)
    for question in ("random", "all"):
        for c in swept.of(question, "held_in"):
            if (c.first, c.values) == (best.name, group.values):
                yield _number(c)


def _left_out(made: Mapping[str, Any]) -> str:
    counts = [(sum(row["status"] == status for row in made["trials"]), status) for status in ("unfinished", "failed")]
    told = _and([f"{count} {status}" for count, status in counts if count])
    return f"Of {len(made['trials'])} trials {told}: left out." if told else ""


def _once(groups: Iterable[Group]) -> str:
    return trained_once(arm for group in groups for arm in group.arms)


# -- what beats what


def _answered(name: str, asked: str, swept: Swept) -> Headline:
    verdicts, own = _VERDICTS.get(name, _BEATS), swept.of(name, *HELD_IN)
    numbers = [_number(c) + _saved(c, swept) for c in sorted(own, key=lambda c: -abs(c.difference.mean))]
    if beside := swept.of(name, "held_out"):
        numbers.insert(0, f"On levels that were never trained on: {_told(beside, swept, verdicts)}.")
    return Headline(name, asked, _sentence(_told(own, swept, verdicts)), numbers, None, _once(swept.groups))


def _saved(c: Comparison, swept: Swept) -> str:
    """Of critical steps against all steps: what they cost."""
    if c.question != "all":
        return ""
    arms = {arm.name: arm for group in swept.groups if group.values == c.values for arm in group.arms}
    return f", {tokens_saved(arms[c.first], arms[c.second])}"


def _told(compared: Sequence[Comparison], swept: Swept, verdicts: Sequence[_Verdict]) -> str:
    """What can be told in each group, alike ones together."""
    told, axis = [], swept.axis
    for group in swept.groups:
        if own := [c for c in compared if c.values == group.values]:
            told.append((group, _verdict(own, verdicts)))
    parts = []
    for words, alike in itertools.groupby(told, key=lambda pair: pair[1]):
        parts.append(_where([group for group, _ in alike], axis) + words)
    return _named_once("; ".join(parts), axis)


def _verdict(compared: Sequence[Comparison], verdicts: Sequence[_Verdict]) -> str:
    left, parts = list(compared), []
    for verdict in verdicts:
        if names := [_name(c) for c in left if verdict.holds(c)]:
            one = len(names) == 1 and names != ["all"]
            parts.append(verdict.said.format(names=listed(names), s="s" * one, es="es" * one))
            left = [c for c in left if not verdict.holds(c)]
    if left and not parts:
        return "it cannot be told"
    if left:
        parts.append(_UNCLEAR.format(names=listed([_name(c) for c in left])))
    return ", ".join(parts)


def _name(c: Comparison) -> str:
    return c.second if c.question == "anchor" else c.first


# -- in words


def _where(groups: Sequence[Group], axis: str | None) -> str:
    """``at habit_share = 0 and 0.5 ``; nothing where only arms are swept."""
    if not groups[0].values:
        return ""
    if axis and list(groups[0].values) == [axis]:
        return f"at {label(groups[0].values, [axis])}{_and_others([shown(g.values[axis]) for g in groups[1:]])} "
    return f"at {_and([label(group.values, group.values) for group in groups])} "


def _and_others(values: Sequence[str]) -> str:
    return "".join([*(f", {value}" for value in values[:-1]), *(f" and {value}" for value in values[-1:])])


def _and(parts: Sequence[str]) -> str:
    return parts[0] + _and_others(parts[1:]) if parts else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _named_once(text: str, axis: str | None) -> str:
    """``at habit_share = 0 …; at 1 …``: the axis is named where it stands first."""
    first = f"at {label({axis: 0}, [axis]).removesuffix('0')}" if axis else ""
    head, found, tail = text.partition(first) if first else (text, "", "")
    return head + found + tail.replace(first, "at ") if found else text


def _number(c: Comparison) -> str:
    where = f"{label(c.values, c.values)}: " if c.values else ""
    second = "untuned" if c.second == "none" else c.second
    return f"{where}{c.first} less {second} {with_interval(c.difference)}"
