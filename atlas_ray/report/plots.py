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
from matplotlib.ticker import EngFormatter

from ..data.results import Arm, Cell, Policy
from ..rundir.files import replacing
from ..selection.agreement import BINS, Agreement
from .labels import Label, write_labels
from .page import LIGHT, Html, short
from .reading import arm_labels, is_control

# fonttype none keeps text as text, the salt makes ids the same on every run
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "atlas-ray", "font.size": 10.0, "font.family": "DejaVu Sans"}


def blank(height: float) -> Figure:
    """A figure of the page's width, ``height`` inches high, without a background."""
    figure = Figure(figsize=(5.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    return figure


def plain(axes: Any) -> Any:
    """The same axes with little ink."""
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["rule"])
    axes.tick_params(colors=LIGHT["muted"], length=0)
    axes.set_axisbelow(True)
    return axes


def atlas_figure(arms: Sequence[Arm]) -> Figure:
    """Held-in and held-out success of every arm with 95 % intervals."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(1.1 + 0.5 * len(arms))
        axes = plain(figure.add_subplot())
        for split, shift, colour, marker in (("held-in", -0.12, "blue", "o"), ("held-out", 0.12, "orange", "s")):
            scores = [(i, a.held_in if split == "held-in" else a.held_out) for i, a in enumerate(arms)]
            for i, score in ((i, s) for i, s in scores if s is not None):
                axes.plot(score.ci95, [i + shift] * 2, color=LIGHT[colour], linewidth=1.6, solid_capstyle="butt")
            points = [(s.success, i + shift) for i, s in scores if s is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], markersize=6, label=split)
        _label_rows(figure, axes, arm_labels(arms))
    return figure


def _label_rows(figure: Figure, axes: Any, labels: Sequence[str]) -> None:
    """Name rows of successes from the top down, with a scale and a legend of two kinds of points."""
    axes.set_yticks(range(len(labels)), labels, parse_math=False, color=LIGHT["ink"])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
    axes.set_xlabel("success, with 95 % interval", color=LIGHT["muted"])
    figure.legend(loc="outside upper right", ncols=2, frameon=False, labelcolor=LIGHT["ink"])


def pairs_figure(rows: Sequence[tuple[str, Cell | Policy, Cell | Policy]]) -> Figure:
    """Success of the same in two runs, A and B, with 95 % intervals."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(1.1 + 0.45 * len(rows))
        axes = plain(figure.add_subplot())
        for which, (shift, colour, marker) in enumerate(((-0.12, "blue", "o"), (0.12, "orange", "s"))):
            scores = [(a, b)[which] for _, a, b in rows]
            for i, score in enumerate(scores):
                axes.plot(score.ci95, [i + shift] * 2, color=LIGHT[colour], linewidth=1.6, solid_capstyle="butt")
            points = [(score.success, i + shift) for i, score in enumerate(scores)]
            axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], markersize=6, label="AB"[which])
        _label_rows(figure, axes, [short(r[0], 40) for r in rows])
    return figure


def tokens_figure(arms: Sequence[Arm]) -> Figure:
    """Held-in success of every arm against the tokens that carried loss; the untuned model as a line."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(3.9)
        axes = plain(figure.add_subplot())
        for arm in (a for a in arms if a.selector == "none"):
            axes.axhline(arm.held_in.success, color=LIGHT["muted"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                "untuned",
                (1, arm.held_in.success),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color=LIGHT["muted"],
            )
        trained = [(label, a) for label, a in zip(arm_labels(arms), arms, strict=True) if a.selector != "none"]
        for _, arm in trained:
            x, colour = arm.trained_tokens, LIGHT["blue" if is_control(arm.selector) else "orange"]
            axes.plot([x, x], arm.held_in.ci95, color=colour, linewidth=1.3, alpha=0.45, zorder=2)
            face = LIGHT["paper"] if arm.anchor else colour
            axes.plot([x], [arm.held_in.success], "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)
        most = max((a.trained_tokens for _, a in trained), default=0) or 1
        axes.set_xlim(0, 1.2 * most)
        ends = [end for arm in arms for end in arm.held_in.ci95]
        axes.set_ylim(max(-0.02, min(ends, default=0) - 0.08), min(1.02, max(ends, default=1) + 0.08))
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel("trained tokens", color=LIGHT["muted"])
        axes.set_ylabel("held-in success, with 95 % interval", color=LIGHT["muted"])
        write_labels(figure, axes, [Label(n, a.trained_tokens, a.held_in.success, a.held_in.ci95) for n, a in trained])
    return figure


def agreement_figure(result: Agreement) -> Figure:
    """Share of the steps that each of two selectors marked: of all, by place in the episode, by environment."""
    rows = {"all steps": result.total}
    for part, counts in enumerate(result.positions):
        rows[f"at {part / BINS:.0%} to {(part + 1) / BINS:.0%}"] = counts
    rows |= result.environments
    with matplotlib.rc_context(SETTINGS):
        figure = blank(1.1 + 0.36 * len(rows))
        axes = plain(figure.add_subplot())
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


def svg(figure: Figure, prefix: str, description: str) -> Html:
    """The figure as inline SVG; colours become the page's variables and ids get a prefix, for two share a page."""
    out = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
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
    with replacing(path) as temporary, matplotlib.rc_context(SETTINGS):
        figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})
