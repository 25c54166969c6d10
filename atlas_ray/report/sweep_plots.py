"""The pictures of a sweep: success against calls with its front, or the score over a swept number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..recipe.sweep_space import shown
from .page import LIGHT, short
from .plots import SETTINGS, blank, plain

Row = Mapping[str, Any]
_FIRST = "select.fraction"
"""ATLaS's m, the axis of the picture where it is swept."""
_TERMS = {"switch.costs": ("at a cost c", "o"), "switch.budgets": ("under a budget n", "s")}
_TERMS |= {"switch.averages": ("Lagrangian", "^")}
_LOOKS = [("blue", "o"), ("orange", "s"), ("ink", "^"), ("muted", "D"), ("blue", "v"), ("orange", "P")]
_NAMES = {"switch.costs": "c", "switch.budgets": "n", "switch.averages": "calls", _FIRST: "m"}
_WORDS = {"held_in": "held-in success", "held_out": "held-out success", "calls": "number of calls per episode"}
_FACTOR = 20.0
"""Largest by smallest value from which on an axis is logarithmic."""


def word(metric: str) -> str:
    """A metric as people say it."""
    return _WORDS.get(metric, metric)


def label(values: Row, fields: Iterable[str], names: bool = True) -> str:
    """``c = 0.02, learning_rate = 0.001`` of those fields that have a value."""
    found = [(_NAMES.get(f, f.split(".")[-1]), shown(values[f])) for f in fields if f in values]
    return ", ".join(f"{name} = {value}" if names else value for name, value in found)


def axis_of(made: Row) -> str | None:
    """The swept field that stands on the horizontal axis: m, else the first with several numbers."""

    def numbers(field: str) -> set[float]:
        values = [row["values"].get(field) for row in made["trials"]]
        return set(values) if all(_number(v) for v in values) else set()

    fields = sorted(made["fields"], key=lambda f: f != _FIRST)
    return next((f for f in fields if len(numbers(f)) > 1), None)


def stretched(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= _FACTOR


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def switches_figure(made: Row) -> Figure:
    """Success against calls per episode: the front filled and connected, with names."""
    rows, front = [r for r in made["trials"] if "calls" in r], made["front"]
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.6)
        axes = plain(figure.add_subplot())
        _draw_ends(axes, made["ends"])
        path = [r for number in front for r in rows if r["trial"] == number]
        axes.plot([r["calls"] for r in path], [r["success"] for r in path], color=LIGHT["orange"], linewidth=1.0)
        for r in rows:
            axes.plot([r["calls"]] * 2, r["ci95"], color=LIGHT["orange"], linewidth=1.3, alpha=0.4)
        for term, (name, marker) in {**_TERMS, "": ("switches", "o")}.items():
            own = [r for r in rows if (term in r["values"] if term else not _TERMS.keys() & r["values"].keys())]
            look = {"linestyle": "none", "marker": marker, "color": LIGHT["orange"], "markersize": 6.5, "zorder": 3}
            for on_it, fill in ((True, {}), (False, {"markerfacecolor": LIGHT["paper"]})):
                points = [(r["calls"], r["success"]) for r in own if (r["trial"] in front) == on_it]
                if points:
                    axes.plot(*zip(*points, strict=True), **look, **fill)
            if own:
                axes.plot([], [], label=name, **look)
        for place, r in enumerate(path):
            _name(axes, label(r["values"], made["fields"]), (r["calls"], r["success"]), 10 if place % 2 else -12)
        axes.set_xlabel("DEEPTHINK calls per episode", color=LIGHT["muted"])
        axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.margins(x=0.14, y=0.08)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
    return figure


def _draw_ends(axes: Any, ends: Sequence[Row]) -> None:
    """Always QUICK and always DEEPTHINK, and what mixes the two."""
    if len(ends) < 2:
        return
    points = [(end["deepthink_calls_per_episode"], end["success"]) for end in (ends[0], ends[-1])]
    axes.plot(*zip(*points, strict=True), color=LIGHT["muted"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(*zip(*points, strict=True), "D", color=LIGHT["ink"], markersize=6, label="one model throughout")
    for end, point in zip((ends[0], ends[-1]), points, strict=True):
        _name(axes, end["name"], point, 10)


def _name(axes: Any, text: str, point: tuple[float, float], up: int) -> None:
    about = {"textcoords": "offset points", "fontsize": 8.5, "color": LIGHT["ink"], "parse_math": False}
    axes.annotate(short(text, 48), point, xytext=(6, up), va="center", **about)


def score_figure(made: Row, axis: str) -> Figure:
    """The metric over a swept number, a line for each set of the other values."""
    rows = [r for r in made["trials"] if "metric" in r]
    others = [f for f in made["fields"] if f != axis]
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: r["values"][axis]):
        lines.setdefault(label(row["values"], others), []).append(row)
    few = len(lines) <= len(_LOOKS)
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.0)
        axes = plain(figure.add_subplot())
        for number, (name, own) in enumerate(lines.items()):
            colour, marker = _LOOKS[number] if few else _LOOKS[0]
            for r in own:
                axes.plot([r["values"][axis]] * 2, _interval(r, made), color=LIGHT[colour], linewidth=1.3, alpha=0.45)
            points = [(r["values"][axis], r["metric"]) for r in own]
            style = {"color": LIGHT[colour], "marker": marker, "linewidth": 1.2, "label": short(name, 40) or None}
            axes.plot(*zip(*points, strict=True), **style)
        if stretched([r["values"][axis] for r in rows]):
            axes.set_xscale("log")
        axes.set_xlabel(f"{axis} (m)" if axis == _FIRST else axis, color=LIGHT["muted"], parse_math=False)
        axes.set_ylabel(f"{word(made['metric'])}, with 95 % interval", color=LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        if few and others:
            legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=LIGHT["ink"])
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def ranked_figure(made: Row) -> Figure:
    """The metric of every trial, where no swept field is a number."""
    rows = [r for r in made["trials"] if "metric" in r]
    with matplotlib.rc_context(SETTINGS):
        figure = blank(0.9 + 0.34 * len(rows))
        axes = plain(figure.add_subplot())
        for place, row in enumerate(rows):
            axes.plot(_interval(row, made), [place] * 2, color=LIGHT["blue"], linewidth=1.6, solid_capstyle="butt")
            axes.plot(row["metric"], place, "o", color=LIGHT["blue"], markersize=6)
        names = [short(label(row["values"], made["fields"]), 48) for row in rows]
        axes.set_yticks(range(len(rows)), names, parse_math=False, color=LIGHT["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
        axes.set_xlabel(f"{word(made['metric'])}, with 95 % interval", color=LIGHT["muted"])
    return figure


def _interval(row: Row, made: Row) -> Sequence[float]:
    interval: Sequence[float] = row["held_out_ci95" if made["metric"] == "held_out" else "ci95"]
    return interval
