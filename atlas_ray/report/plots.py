"""The pictures, as SVG for the page (its colours follow the page's) and as PNG for a README."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..results import Arm, Policy
from ..selection.agreement import BINS, Agreement
from .page import LIGHT, Html, short
from .reading import arm_labels, ends

# fonttype none keeps text as text, the salt makes ids the same on every run
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "atlas-ray", "font.size": 10.0, "font.family": "DejaVu Sans"}
# where a label may stand, in points from its marker
_OFFSETS = [
    (9, 0),
    (-9, 0),
    (9, 11),
    (9, -11),
    (-9, 11),
    (-9, -11),
    (9, 23),
    (9, -23),
    (-9, 23),
    (-9, -23),
    (9, 35),
    (9, -35),
    (-9, 35),
    (-9, -35),
]


def _axes(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["rule"])
    axes.tick_params(colors=LIGHT["muted"], length=0)
    axes.set_axisbelow(True)
    return figure, axes


def atlas_figure(arms: Sequence[Arm]) -> Figure:
    """Held-in and held-out success of every arm with 95 % intervals."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(1.1 + 0.5 * len(arms))
        for split, shift, colour, marker in (("held-in", -0.12, "blue", "o"), ("held-out", 0.12, "orange", "s")):
            scores = [(i, a.held_in if split == "held-in" else a.held_out) for i, a in enumerate(arms)]
            for i, score in ((i, s) for i, s in scores if s is not None):
                axes.plot(score.ci95, [i + shift] * 2, color=LIGHT[colour], linewidth=1.6, solid_capstyle="butt")
            points = [(s.success, i + shift) for i, s in scores if s is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], markersize=6, label=split)
        axes.set_yticks(range(len(arms)), arm_labels(arms), parse_math=False, color=LIGHT["ink"])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
        axes.set_xlabel("success, with 95 % interval", color=LIGHT["muted"])
        figure.legend(loc="outside upper right", ncols=2, frameon=False, labelcolor=LIGHT["ink"])
    return figure


def londi_figure(policies: Sequence[Policy]) -> Figure:
    """Success against DEEPTHINK calls an episode, every policy a labelled point, with the random-mixing line."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(4.4)
        if (pair := ends(policies)) is not None:
            line = [(p.deepthink_calls_per_episode, p.success) for p in pair]
            axes.plot(*zip(*line, strict=True), color=LIGHT["muted"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        for p in policies:
            colour = LIGHT["orange" if p.learned else "blue"]
            x = p.deepthink_calls_per_episode
            axes.plot([x, x], p.ci95, color=colour, linewidth=1.3, alpha=0.55, solid_capstyle="butt", zorder=2)
            axes.plot([x], [p.success], "o", color=colour, markersize=6.5, zorder=3)
        most = max((p.deepthink_calls_per_episode for p in policies), default=0.0) or 1.0
        axes.set_xlim(-0.06 * most, 1.12 * most)
        low, high = min(p.ci95[0] for p in policies), max(p.ci95[1] for p in policies)
        axes.set_ylim(max(-0.02, low - 0.08), min(1.02, high + 0.08))
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.set_xlabel("DEEPTHINK calls an episode", color=LIGHT["muted"])
        axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])
        _label(figure, axes, policies)
    return figure


def agreement_figure(result: Agreement) -> Figure:
    """Share of the steps that each of two selectors marked: of all, by place in the episode, by environment."""
    rows = {"all steps": result.total}
    for part, counts in enumerate(result.positions):
        rows[f"at {part / BINS:.0%} to {(part + 1) / BINS:.0%}"] = counts
    rows |= result.environments
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(1.1 + 0.36 * len(rows))
        for which, (shift, colour, marker) in enumerate(((-0.12, "blue", "o"), (0.12, "orange", "s"))):
            shares = [(i + shift, counts.shares[which]) for i, counts in enumerate(rows.values())]
            points = [(share, i) for i, share in shares if share is not None]
            axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], markersize=6, label=result.names[which])
        for after in (0.5, BINS + 0.5):
            axes.axhline(after, color=LIGHT["rule"], linewidth=0.7)
        axes.set_yticks(range(len(rows)), [short(row, 40) for row in rows], parse_math=False, color=LIGHT["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
        axes.set_xlabel("share of the steps that was marked", color=LIGHT["muted"])
        figure.legend(loc="outside upper right", ncols=2, frameon=False, labelcolor=LIGHT["ink"])
    return figure


def _label(figure: Figure, axes: Any, policies: Sequence[Policy]) -> None:
    """Write each policy's label where it covers least of the others."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    taken = []
    for p in policies:
        x = p.deepthink_calls_per_episode
        (left, y), (_, low), (_, high) = axes.transData.transform([(x, p.success), (x, p.ci95[0]), (x, p.ci95[1])])
        taken += [Bbox.from_extents(left - 6, y - 6, left + 6, y + 6), Bbox.from_extents(left - 1, low, left + 1, high)]
    for p in sorted(policies, key=lambda p: (p.deepthink_calls_per_episode, p.success)):
        note = axes.annotate(
            p.name,
            (p.deepthink_calls_per_episode, p.success),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=LIGHT["ink"],
            parse_math=False,
        )
        best = min(_OFFSETS, key=lambda o: _cost(_move(note, o, renderer), o, frame, taken))
        taken.append(_move(note, best, renderer))


def _move(note: Any, offset: tuple[int, int], renderer: Any) -> Bbox:
    note.set_position(offset)
    note.set_ha("left" if offset[0] > 0 else "right")
    box: Bbox = note.get_window_extent(renderer)
    return box


def _cost(box: Bbox, offset: tuple[int, int], frame: Bbox, taken: Sequence[Bbox]) -> float:
    """Area hidden or cut off, and a little for the distance."""
    covered = sum(_overlap(box, other) for other in taken)
    return 4 * (box.width * box.height - _overlap(box, frame)) + covered + 0.1 * abs(offset[1])


def _overlap(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return float(shared.width * shared.height) if shared else 0.0


def svg(figure: Figure, prefix: str, description: str) -> Html:
    """The figure as inline SVG; colours become the page's variables and ids get a prefix, for two share a page."""
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    return Html(text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1))


def save_png(figure: Figure, path: Path) -> None:
    """The figure on white, 160 dots an inch, replacing ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    temporary.replace(path)
