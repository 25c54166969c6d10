"""The headlines of a sweep over arms: which arm leads where, what beats what, and what is forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe.sweep_space import shown
from .arm_pairs import FORGETS, FORGETTING, QUESTIONS, critical
from .headlines import Headline, is_as_good, listed, picture, trained_once, with_interval
from .page import Html
from .plots import atlas_figure, svg, tokens_figure
from .run import Run
from .sweep import read_sweep
from .sweep_curves import MOST_PANELS, curve_figure, differences_figure, panels_of
from .sweep_plots import axis_of, label, ranked_figure
from .swept_arms import Comparison, Group, comparisons_of, groups_of, is_of_arms

_ORANGE = (
    "Orange: critical steps; blue, dashed: as many random steps, with the marker of those that they belong to; dotted: "
    "steps that are not critical; black: all steps (dashed: with the anchor)."
)
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
_VERDICTS = {"all": _STANDS_IN, "anchor": _HELPS, FORGETTING: _FORGETS}


def sweep_headlines(run: Run) -> list[Headline]:
    """Nothing where no sweep over arms was scored."""
    made = read_sweep(run.layout)
    groups = [group for group in groups_of(made, run.root) if any(arm.seeds for arm in group.arms)] if made else []
    if made is None or not groups:
        return []
    axis = _axis(made)
    groups = sorted(groups, key=lambda group: group.values[axis]) if axis else groups
    compared = comparisons_of(made)
    found = [_leaders(groups, compared, axis, made)]
    for name, asked in (*((q.name, q.asked) for q in QUESTIONS), (FORGETTING, FORGETS)):
        own = [c for c in compared if c.question == name and c.split in ("held_in", "known")]
        if own:
            beside = [c for c in compared if c.question == name and c.split == "held_out"]
            found.append(_answered(name, asked, own, beside, groups, axis))
    return found


def sweep_pictures(run: Run) -> list[Html]:
    """Held-out success over the axis, and success against trained tokens."""
    made = read_sweep(run.layout)
    groups = groups_of(made, run.root) if made else []
    if made is None or not groups:
        return []
    axis = _axis(made)
    shown = []
    panels = panels_of(groups, axis) if axis else []
    if axis and panels and any(arm.held_out is not None for group in groups for arm in group.arms):
        image = svg(curve_figure(panels, axis, "held_out"), "curve-out", f"Held-out success over {axis}")
        caption = f"Success on levels that were never trained on, over {axis}, with 95 % intervals. {_ORANGE}"
        shown.append(picture(image, caption))
    for number, group in enumerate(groups[:MOST_PANELS]):
        if not group.arms:
            continue
        image = svg(tokens_figure(group.arms), f"tokens-{number}", "Held-in success against trained tokens")
        where = label(group.values, group.values)
        caption = f"Held-in success against the tokens that carried loss{f', {where}' if where else ''}."
        shown.append(picture(image, f"{caption} Orange: critical steps; blue: controls; hollow: with an anchor."))
    return shown


def _axis(made: Any) -> str | None:
    return axis_of({**made, "fields": [field for field in made["fields"] if not is_of_arms(field)]})


# -- who leads


def _leaders(groups: Sequence[Group], compared: Sequence[Comparison], axis: str | None, made: Any) -> Headline:
    best = [(group, max((a for a in group.arms if a.seeds), key=lambda a: a.held_in.success)) for group in groups]
    parts = []
    for name, own in itertools.groupby(best, key=lambda pair: pair[1].name):
        leads = list(own)
        scores = _and([f"{arm.held_in.success:.2f}" for _, arm in leads])
        parts.append(f"{_where([group for group, _ in leads], axis)}{listed([name])} ({scores})")
    what = _AXES.get(axis or "", axis)
    question = f"Which arm has most success as {what} grows?" if axis else "Which arm has most success?"
    answer = _sentence(_named_once("; ".join(parts), axis))
    numbers = [line for group in reversed(groups) for line in _of_best(group, compared, axis)]
    shown = _scores_picture(groups, axis, made)
    caveat = "The leader is picked by these very numbers; what can be told is said below. " + _left_out(made)
    return Headline("leaders", question, answer, numbers, shown, f"{caveat} {_once(groups)}".strip())


def _scores_picture(groups: Sequence[Group], axis: str | None, made: Any) -> Html:
    if axis and (panels := panels_of(groups, axis)):
        image = svg(curve_figure(panels, axis, "held_in"), "curve", f"Held-in success of the arms over {axis}")
        return picture(image, f"Held-in success over {axis}, with 95 % intervals. {_ORANGE} The rest in the table.")
    alone = len(groups) == 1
    image = svg(atlas_figure(groups[0].arms) if alone else ranked_figure(made), "scores", "Success of the arms")
    return picture(image, "Success of every arm, with 95 % intervals." if alone else "Trials, with 95 % intervals.")


def _of_best(group: Group, compared: Sequence[Comparison], axis: str | None) -> Iterator[str]:
    """The best critical arm of a group against as many random steps and against all."""
    if not (arms := critical(group.arms)):
        return
    best = max(arms, key=lambda arm: arm.held_in.success)
    for question in ("random", "all"):
        for c in compared:
            if (c.question, c.first, c.split, c.values) == (question, best.name, "held_in", group.values):
                yield _number(c, axis)


def _left_out(made: Any) -> str:
    counts = [(sum(row["status"] == status for row in made["trials"]), status) for status in ("unfinished", "failed")]
    told = _and([f"{count} {status}" for count, status in counts if count])
    return f"Of {len(made['trials'])} trials {told}: left out." if told else ""


def _once(groups: Iterable[Group]) -> str:
    return trained_once(arm for group in groups for arm in group.arms)


# -- what beats what


def _answered(
    name: str,
    asked: str,
    own: Sequence[Comparison],
    beside: Sequence[Comparison],
    groups: Sequence[Group],
    axis: str | None,
) -> Headline:
    verdicts = _VERDICTS.get(name, _BEATS)
    answer = _sentence(_told(own, groups, axis, verdicts))
    numbers = [_number(c, axis) for c in sorted(own, key=lambda c: -abs(c.difference.mean))]
    if beside:
        numbers.insert(0, f"On levels that were never trained on: {_told(beside, groups, axis, verdicts)}.")
    few = {arm.name for group in groups for arm in group.arms if arm.selector == "all" or arm in critical([arm])}
    image = svg(differences_figure(own, axis, few), f"apart-{name}", "Differences of success")
    where = "the levels that the untuned model could do" if name == FORGETTING else "held-in levels"
    second = next((q.other for q in QUESTIONS if q.name == name), "the untuned model")
    caption = (
        f"Success less that of {second}, on {where}, with intervals that hold together: "
        f"{own[0].level:.2%} each, for {len(own)} comparisons."
    )
    return Headline(f"sweep-{name}", asked, answer, numbers, picture(image, caption), _once(groups))


def _told(
    compared: Sequence[Comparison], groups: Sequence[Group], axis: str | None, verdicts: Sequence[_Verdict]
) -> str:
    """What can be told in each group, alike ones together."""
    told = []
    for group in groups:
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


def _number(c: Comparison, axis: str | None) -> str:
    where = f"{label(c.values, c.values)}: " if c.values else ""
    second = "untuned" if c.second == "none" else c.second
    return f"{where}{c.first} less {second} {with_interval(c.difference)}"
