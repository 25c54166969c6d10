"""The picture of the switches, success against calls and against compute, and what is drawn of where they call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..data.results import Policy
from .labels import Label, write_labels
from .page import LIGHT
from .places import Panel
from .plots import SETTINGS, blank, plain
from .switch_reading import MATCHED, ORACLE, TRIGGERS, ends, family

Against = Literal["calls", "compute"]


@dataclass(frozen=True)
class _Kind:
    """How a kind of policy is drawn."""

    label: str
    marker: str
    colour: str
    size: float = 6.5


_KINDS = {
    "end": _Kind("one model throughout", "D", "ink", 6.0),
    "londi": _Kind("LONDI, at a cost", "o", "orange", 7.0),
    "londi-measured": _Kind("LONDI, at the measured cost", "P", "orange", 8.0),
    "londi-b": _Kind("LONDI-B, under a budget", "s", "orange", 6.5),
    "londi-l": _Kind("Lagrangian, on average", "^", "orange", 7.5),
    "random": _Kind("random", "X", "blue", 6.5),
    "every": _Kind("every k-th step", "d", "blue", 6.5),
    "threshold": _Kind("threshold on QUICK's margin", "v", "blue", 6.5),
    "classifier": _Kind("classifier of downgrades", "<", "blue", 6.5),
    "verifier": _Kind("verifier of QUICK's answers", "H", "blue", 7.0),
    "escalate": _Kind("escalate once", ">", "blue", 6.5),
    TRIGGERS: _Kind("hand-written triggers", "p", "blue", 7.5),
    ORACLE: _Kind("oracle", "*", "blue", 10.0),
    "other": _Kind("other", "h", "blue", 7.0),
}
_FRONTIER: dict[str, Any] = {"linewidth": 7, "zorder": 0.5, "solid_capstyle": "round", "drawstyle": "steps-post"}


def frontier(policies: Sequence[Policy], against: Against) -> list[Policy]:
    """Policies than which none has as much success with less of what they are set against; not the oracle.

    In the order of what they take. The oracle asks the environment's expert, which nobody has in earnest.
    """
    found: list[Policy] = []
    for p in sorted(policies, key=lambda p: (_x(p, against), -p.success)):
        if family(p) != ORACLE and (not found or p.success > found[-1].success):
            found.append(p)
    return found


def _kind(policy: Policy, policies: Sequence[Policy]) -> str:
    if policy in (ends(policies) or ()):
        return "end"
    if policy.cost == "measured":
        return "londi-measured"
    name = family(policy)
    return name if name in _KINDS else "other"


def _x(policy: Policy, against: Against) -> float:
    return policy.compute if against == "compute" else policy.deepthink_calls_per_episode


def _limit(policy: Policy) -> float:
    """By which switches of one kind are put in order."""
    cost = policy.cost if isinstance(policy.cost, float) else None
    return next((float(v) for v in (cost, policy.budget, policy.average) if v is not None), 0.0)


def londi_figure(policies: Sequence[Policy], against: Against = "calls") -> Figure:
    """Success against DEEPTHINK calls or compute an episode, with the random-mixing line.

    Every kind of policy has a marker, hollow for a baseline under a budget; learned switches of a kind are connected,
    and they and the two ends have their names beside them.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = blank(5.0)
        axes = plain(figure.add_subplot())
        if (pair := ends(policies)) is not None:
            line = [(_x(p, against), p.success) for p in pair]
            dashes = {"linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1}
            axes.plot(*zip(*line, strict=True), color=LIGHT["muted"], label="random mixing", **dashes)
        edge = [(_x(p, against), p.success) for p in frontier(policies, against)]
        axes.plot(*zip(*edge, strict=True), **_FRONTIER, color=LIGHT["rule"], label="frontier")
        for name, kind in _KINDS.items():
            own = [p for p in policies if _kind(p, policies) == name]
            if own:
                _draw(axes, own, kind, against)
        _frame(axes, policies, against)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
        named = [p.is_switch or p in (pair or ()) for p in policies]
        write_labels(
            figure,
            axes,
            [Label(p.name, _x(p, against), p.success, p.ci95, n) for p, n in zip(policies, named, strict=True)],
        )
    return figure


def _draw(axes: Any, own: Sequence[Policy], kind: _Kind, against: Against) -> None:
    colour = LIGHT[kind.colour]
    for p in own:
        axes.plot(
            [_x(p, against)] * 2, p.ci95, color=colour, linewidth=1.3, alpha=0.45, solid_capstyle="butt", zorder=2
        )
    if kind.colour == "orange":
        path = [(_x(p, against), p.success) for p in sorted(own, key=_limit)]
        axes.plot(*zip(*path, strict=True), color=colour, linewidth=1.0, zorder=2.5)
    look = {"linestyle": "none", "marker": kind.marker, "color": colour, "markersize": kind.size, "zorder": 3}
    hollow = [p for p in own if p.budget is not None and not p.learned]
    filled = [p for p in own if p not in hollow]
    for points, fill in ((filled, {}), (hollow, {"markerfacecolor": LIGHT["paper"]})):
        axes.plot([_x(p, against) for p in points], [p.success for p in points], **look, **fill)
    axes.plot([], [], label=kind.label, **look)


def _frame(axes: Any, policies: Sequence[Policy], against: Against) -> None:
    values = [_x(p, against) for p in policies]
    most = max(values) or 1.0
    least = 0.0 if against == "calls" else min(values)
    axes.set_xlim(least - 0.1 * (most - least or most), most + 0.12 * (most - least or most))
    low, high = min(p.ci95[0] for p in policies), max(p.ci95[1] for p in policies)
    axes.set_ylim(max(-0.02, low - 0.08), min(1.02, high + 0.08))
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    name = "DEEPTHINK calls per episode" if against == "calls" else f"compute ({policies[0].compute_unit})"
    if against == "compute" and most >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel(name, color=LIGHT["muted"], parse_math=False)
    axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])


def called_panels(policies: Sequence[Policy]) -> list[Panel]:
    """Where learned switches, one random policy and the oracle call; nothing where no learned switch says."""
    shown = [p for p in policies if p.learned and p.called_at]
    for name in (MATCHED[0], ORACLE) if shown else ():
        shown += [p for p in policies if family(p) == name and p.called_at][:1]
    return [Panel(p.name, p.called_at, "orange" if p.learned else "blue") for p in shown if p.called_at]
