"""The viewer of episodes: its empty frame, which `viewer.js` fills. Without the script the static lists stand there."""

from __future__ import annotations

from collections.abc import Sequence

from .page import Html, data, el, shipped
from .run import Run
from .viewer_data import collect

_KEYS = (
    "Keys, once the viewer is clicked: \N{LEFTWARDS ARROW} and \N{RIGHTWARDS ARROW} step, Home and End go to the "
    "first and the last step, m goes to the next mark or call."
)


def viewer_part(run: Run, static: Sequence[Html]) -> tuple[list[Html], str]:
    """The viewer with its data, and the script that fills it; ``static`` is what stands there without the script.

    Without an episode there is no viewer and no script.
    """
    collected = collect(run)
    if not collected.count:
        return list(static), ""
    left = " ".join(collected.told)
    parts = [
        el(
            "section",
            el("p", f"{collected.count:,} episodes. {left} {_KEYS}".replace("  ", " "), cls="note"),
            el("div", id="viewer-frame"),
            id="viewer",
            hidden="",
            **{"aria-label": "Episode viewer"},
        ),
        el("div", *static, id="static-episodes"),
        data("viewer-data", collected.value),
    ]
    return parts, shipped("viewer.js")
