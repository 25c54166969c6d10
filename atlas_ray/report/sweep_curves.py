"""Pictures of a sweep's arms: success over a swept number, a line per arm, and how far apart arms are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..data.results import Arm
from .arm_pairs import Split, critical, everything, score, twin
from .labels import write_at_ends
from .page import LIGHT, short
from .plots import SETTINGS, blank, plain
from .sweep_plots import label, stretched
from .swept_arms import Comparison, Group

MOST_PANELS = 6
"""Panels of one picture; what has no place stands in the table."""
_MOST_SELECTORS = 4
_MOST_LINES = 8
_MARKERS = ("o", "s", "^", "D")
_DASHES, _DOTS = (0, (4, 2)), (0, (1, 1.5))


@dataclass(frozen=True)
class Look:
    """How the line of an arm is drawn."""

    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    filled: bool


_LOOKS = [Look(c, "-" if f else _DASHES, m, f) for f in (True, False) for m in _MARKERS for c in ("orange", "blue")]
"""Of differences, in this order."""


@dataclass(frozen=True)
class Panel:
    """Some lines over the axis.

    Attributes:
        title: what they share.
        anchored: whether its arms have an anchor; all steps stand there without it, too.
        looks: by name of the arm, in the order of drawing.
        points: by name of the arm, ``(place on the axis, arm)``.
        untuned: the untuned model, where it was scored.
    """

    title: str
    anchored: bool
    looks: Mapping[str, Look]
    points: Mapping[str, Sequence[tuple[float, Arm]]]
    untuned: Arm | None


def drawn_arms(arms: Sequence[Arm], anchored: bool) -> dict[str, Look]:
    """The arms of a curve: critical ones, as many random steps, what is not critical, and all steps.

    A control has the marker of the critical arm that it belongs to, in another colour and line.
    """
    looks: dict[str, Look] = {}
    chosen = [arm for arm in critical(arms) if bool(arm.anchor) == anchored][:_MOST_SELECTORS]
    for arm, marker in zip(chosen, _MARKERS, strict=False):
        looks[arm.name] = Look("orange", "-", marker, True)
    for arm, marker in zip(chosen, _MARKERS, strict=False):
        selector = arm.selector
        if (random := twin(arm, arms, f"random_{selector}", "random")) is not None:
            looks.setdefault(random.name, Look("blue", _DASHES, marker, False))
        if (rest := twin(arm, arms, f"non-critical_{selector}", "non-critical")) is not None:
            looks.setdefault(rest.name, Look("muted", _DOTS, marker, False))
    whole = [arm for arm in arms if arm.selector == "all" and bool(arm.anchor) == anchored]
    if anchored and (plain_one := everything(arms)) is not None:
        whole.append(plain_one)
    for arm in whole if chosen else ():
        looks.setdefault(arm.name, Look("ink", "-", "", True) if not arm.anchor else Look("ink", "--", "", True))
    return looks


def panels_of(groups: Sequence[Group], axis: str) -> list[Panel]:
    """A panel for the arms without an anchor and one for those with it, for each set of other swept values."""
    found = []
    by_others: dict[str, list[Group]] = {}
    for group in groups:
        others = label({k: v for k, v in group.values.items() if k != axis}, [k for k in group.values if k != axis])
        by_others.setdefault(others, []).append(group)
    for others, own in by_others.items():
        arms = list({arm.name: arm for group in own for arm in group.arms}.values())
        untuned = next((arm for arm in arms if arm.selector == "none"), None)
        for anchored in (False, True):
            looks = drawn_arms(arms, anchored)
            if not looks:
                continue
            points = {name: sorted(_points(name, own, axis), key=lambda p: p[0]) for name in looks}
            how = "with the anchor" if anchored else "without an anchor"
            found.append(Panel(", ".join(filter(None, (others, how))), anchored, looks, points, untuned))
    return found


def _points(name: str, groups: Sequence[Group], axis: str) -> Iterator[tuple[float, Arm]]:
    for group in groups:
        yield from ((group.values[axis], arm) for arm in group.arms if arm.name == name)


def curve_figure(panels: Sequence[Panel], axis: str, split: Split) -> Figure:
    """Success of every drawn arm over the axis, with 95 % intervals; the untuned model as a dotted line."""
    panels = panels[:MOST_PANELS]
    places = [x for panel in panels for points in panel.points.values() for x, _ in points]
    with matplotlib.rc_context(SETTINGS):
        figure = blank(0.6 + 2.7 * len(panels))
        drawn = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, panel in zip(drawn, panels, strict=True):
            _draw(plain(axes), panel, split, _width(places))
            axes.set_ylabel("success", color=LIGHT["muted"])
        _along(drawn[-1], places, axis, room=0.5)
        for axes, panel in zip(drawn, panels, strict=True):
            write_at_ends(figure, axes, list(_ends(panel, split, _width(places))))
    return figure


def _ends(panel: Panel, split: Split, width: float) -> Iterator[tuple[str, float, float, str]]:
    for number, (name, look) in enumerate(panel.looks.items()):
        scored = [(x, s) for x, arm in panel.points[name] if (s := score(arm, split)) is not None]
        if scored:
            x, last = scored[-1]
            plain_one = panel.anchored and "+anchor" not in name
            said = f"{_said(name.partition('+')[0])}{', no anchor' if plain_one else ''}"
            yield said, _beside(x, number, len(panel.looks), width), last.success, LIGHT[look.colour]


def _said(name: str) -> str:
    return "all steps" if name == "all" else name.replace("+anchor", " + anchor ")


def _beside(place: float, number: int, count: int, width: float) -> float:
    """Lines stand side by side, for their intervals would cover each other."""
    return place + (number - (count - 1) / 2) * 0.012 * width


def _width(places: Sequence[float]) -> float:
    """Of an axis, in its units; 0 of a logarithmic one, where nothing is moved."""
    return 0.0 if stretched(places) else max(places) - min(places)


def _draw(axes: Any, panel: Panel, split: Split, width: float) -> None:
    axes.set_title(short(panel.title, 60), loc="left", fontsize=9.5, color=LIGHT["muted"], parse_math=False)
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axes.margins(y=0.1)
    if panel.untuned is not None and (base := score(panel.untuned, split)) is not None:
        axes.axhline(base.success, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate("untuned", (0, base.success), xycoords=("axes fraction", "data"), xytext=(2, 3), fontsize=8.5,
                      textcoords="offset points", color=LIGHT["muted"])  # fmt: skip
    for number, (name, look) in enumerate(panel.looks.items()):
        scored = [(x, s) for x, arm in panel.points[name] if (s := score(arm, split)) is not None]
        if scored:
            places = [_beside(x, number, len(panel.looks), width) for x, _ in scored]
            _line(axes, [(x, s.success, s.ci95) for x, (_, s) in zip(places, scored, strict=True)], look)


def _line(
    axes: Any, points: Sequence[tuple[float, float, tuple[float, float]]], look: Look, width: float | None = None
) -> None:
    colour = LIGHT[look.colour]
    for x, _, ends in points:
        axes.plot([x, x], ends, color=colour, linewidth=1.1, alpha=0.3, zorder=2)
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        color=colour,
        linestyle=look.line,
        linewidth=width or (1.9 if look.colour == "orange" else 1.3),
        marker=look.marker or "None",
        markersize=5.5,
        markerfacecolor=colour if look.filled else LIGHT["paper"],
        zorder=4 if look.colour == "orange" else 3,
    )


def _along(axes: Any, places: Sequence[float], axis: str, room: float) -> None:
    """The horizontal axis with a tick at each place, and room for names to the right of the last."""
    values = sorted(set(places))
    if stretched(values):
        axes.set_xscale("log")
        axes.set_xlim(values[0] / 1.3, values[-1] * (values[-1] / values[0]) ** room)
    else:
        width = (values[-1] - values[0]) or 1.0
        axes.set_xlim(values[0] - 0.05 * width, values[-1] + room * width)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(short(axis, 60), color=LIGHT["muted"], parse_math=False)


def differences_figure(compared: Sequence[Comparison], axis: str | None, drawn: Collection[str] = ()) -> Figure:
    """How far arms are apart, with the intervals that hold together: over the axis, or one below the other.

    Where there are very many, only those of the arms ``drawn``.
    """
    with matplotlib.rc_context(SETTINGS):
        if axis is None:
            return _forest(compared)
        lines: dict[str, list[Comparison]] = {}
        for c in compared:
            others = label({k: v for k, v in c.values.items() if k != axis}, [k for k in c.values if k != axis])
            lines.setdefault(", ".join(filter(None, (_said(c.first), others))), []).append(c)
        figure = blank(max(3.2, 1.0 + 0.17 * len(lines)))
        axes = plain(figure.add_subplot())
        axes.axhline(0, color=LIGHT["edge"], linewidth=0.9, zorder=1)
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        if len(lines) > _MOST_LINES:
            lines = {name: own for name, own in lines.items() if own[0].first in drawn}
        width, count = _width([c.values[axis] for c in compared]), len(lines)
        ends = []
        for number, (name, own) in enumerate(lines.items()):
            look = _LOOKS[number % len(_LOOKS)]
            rows = sorted(own, key=lambda c: c.values[axis])
            points = [(_beside(c.values[axis], number, count, width), c.difference) for c in rows]
            _line(axes, [(x, d.mean, (d.low, d.high)) for x, d in points], look, 1.4)
            ends.append((name, points[-1][0], points[-1][1].mean, LIGHT[look.colour]))
        _along(axes, [c.values[axis] for c in compared], axis, room=0.6)
        axes.set_ylabel("difference of success", color=LIGHT["muted"])
        write_at_ends(figure, axes, ends)
    return figure


def _forest(compared: Sequence[Comparison]) -> Figure:
    figure = blank(0.8 + 0.32 * len(compared))
    axes = plain(figure.add_subplot())
    axes.axvline(0, color=LIGHT["edge"], linewidth=0.9, zorder=1)
    for place, c in enumerate(compared):
        d = c.difference
        axes.plot([d.low, d.high], [place] * 2, color=LIGHT["blue"], linewidth=1.6, solid_capstyle="butt")
        axes.plot([d.mean], [place], "o", color=LIGHT["blue"], markersize=6)
    names = [", ".join(filter(None, (_said(c.first), label(c.values, c.values)))) for c in compared]
    axes.set_yticks(range(len(compared)), [short(n, 48) for n in names], parse_math=False, color=LIGHT["ink"])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
    axes.set_xlabel("difference of success", color=LIGHT["muted"])
    return figure
