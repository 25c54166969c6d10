"""Names beside the points of a picture, where they cover least of each other and of the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from .page import LIGHT, short

# where a label may stand, in points from its marker
_OFFSETS = [(side * 9, up) for up in (0, 11, -11, 23, -23, 35, -35) for side in (1, -1)]

_LINE = 11.5
"""Height of a line of text, in points."""


@dataclass(frozen=True)
class Label:
    """A point with an upright interval, and its name; not ``shown`` are those that no name may cover."""

    text: str
    x: float
    y: float
    interval: tuple[float, float]
    shown: bool = True


def write_labels(figure: Figure, axes: Any, labels: Sequence[Label]) -> None:
    """Write the names that are to be shown; the axes must have their limits already."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    taken = []
    for p in labels:
        (left, y), (_, low), (_, high) = axes.transData.transform([(p.x, v) for v in (p.y, *p.interval)])
        taken += [Bbox.from_extents(left - 6, y - 6, left + 6, y + 6), Bbox.from_extents(left - 1, low, left + 1, high)]
    for p in sorted((p for p in labels if p.shown), key=lambda p: (p.x, p.y)):
        note = axes.annotate(
            short(p.text, 40),
            (p.x, p.y),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=LIGHT["ink"],
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5},
        )
        best = min(_OFFSETS, key=lambda o: _cost(_move(note, o, renderer), o, frame, taken))
        taken.append(_move(note, best, renderer))
        note.arrow_patch.set_visible(best[1] != 0)


def write_at_ends(figure: Figure, axes: Any, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write names to the right of where lines end, one below the other; the axes must have their limits already.

    Args:
        figure: of the axes.
        axes: with room to the right.
        ends: name, place and colour of each.
    """
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    places = [axes.transData.transform((x, y)) * points for _, x, y, _ in ends]
    heights, right = [float(y) for _, y in places], max((x for x, _ in places), default=0.0)
    order = sorted(range(len(ends)), key=lambda i: heights[i])
    shifts = dict(zip(order, _spread([heights[i] for i in order], _LINE), strict=True))
    for i, (text, x, y, colour) in enumerate(ends):
        shift = shifts[i] - heights[i]
        note = axes.annotate(
            short(text, 40),
            (x, y),
            xytext=(14 + right - places[i][0], shift),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
        )
        note.arrow_patch.set_visible(abs(shift) > 2)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights at least ``gap`` apart, each group around where it was."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _top(blocks[-2], gap) + gap > _bottom(blocks[-1], gap):
            last = blocks.pop()
            blocks[-1] += last
    return [_bottom(block, gap) + gap * i for block in blocks for i in range(len(block))]


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return _bottom(block, gap) + gap * (len(block) - 1)


def _move(note: Any, offset: tuple[int, int], renderer: Any) -> Bbox:
    note.set_position(offset)
    note.set_ha("left" if offset[0] > 0 else "right")
    note.update_positions(renderer)
    box: Bbox = Text.get_window_extent(note, renderer)  # the label alone, without its line
    return box


def _cost(box: Bbox, offset: tuple[int, int], frame: Bbox, taken: Sequence[Bbox]) -> float:
    """Area hidden or cut off, and a little for the distance."""
    covered = sum(_overlap(box, other) for other in taken)
    return 4 * (box.width * box.height - _overlap(box, frame)) + covered + 0.1 * abs(offset[1])


def _overlap(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return float(shared.width * shared.height) if shared else 0.0
