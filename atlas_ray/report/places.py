"""Where in an episode marks and calls lie: a small picture for each selector and each switch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..data.records import Annotation, Trajectory
from ..data.results import DECILES, tenths
from .page import LIGHT, short
from .plots import SETTINGS, blank, plain

_COLUMNS = 4
_MOST = 12


@dataclass(frozen=True)
class Panel:
    """One picture: its title, the share of marks or calls in each tenth of the episode, and its colour."""

    title: str
    shares: Sequence[float]
    colour: str


def marked_panels(
    trajectories: Sequence[Trajectory], found: Mapping[str, Mapping[str, Annotation]], controls: Sequence[str]
) -> list[Panel]:
    """Where each selector marks; controls in blue."""
    panels = []
    for name, own in found.items():
        marked = [(i, len(t.steps)) for t in trajectories if t.id in own for i in own[t.id].critical]
        if (shares := tenths(marked)) is not None:
            panels.append(Panel(name, shares, "blue" if name in controls else "orange"))
    return panels


def places_figure(panels: Sequence[Panel]) -> Figure:
    """At most twelve panels with the same axes; the line is what even spreading would give."""
    shown = panels[:_MOST]
    columns = min(_COLUMNS, max(2, len(shown)))
    rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = blank(0.7 + 1.45 * rows)
        grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        most = max(share for panel in shown for share in panel.shares)
        for axes, panel in zip(grid, shown, strict=False):
            plain(axes)
            middles = [(i + 0.5) / DECILES for i in range(DECILES)]
            axes.bar(middles, panel.shares, width=0.85 / DECILES, color=LIGHT[panel.colour])
            axes.axhline(1 / DECILES, color=LIGHT["muted"], linewidth=0.9)
            axes.set_title(short(panel.title, 24), fontsize=9, color=LIGHT["ink"], parse_math=False)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.05 * max(most, 1 / DECILES))
            axes.set_xticks([0.12, 0.9], ["start", "end"])
            axes.tick_params(labelsize=8)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        figure.supylabel("share of its marks or calls", fontsize=9, color=LIGHT["muted"])
    return figure
