"""The part of the report on how the models were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..agents.unknown_words import NOTHING as NO_WORDS
from ..agents.unknown_words import warning
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from .page import NOTHING, Html, el, table


def training_part(run_dir: Path) -> list[Html]:
    """What every model of the run read, how fast, and what was left out; nothing where no model was trained."""
    found = {path.parent.name: read_json(path) for path in RunLayout(run_dir).checkpoint_records}
    # (switches lie there too, without a selector)
    runs = {name: run for name, run in found.items() if "selector" in run}
    if not runs:
        return []
    heads = ["model", "steps", "trained", "anchored", "context", "cut", "waiting", "tokens/s", "of peak", "fewer FLOPs"]
    rows: list[list[str | Html]] = [
        [
            name,
            f"{run['steps']:,}" + (f", best {run['best']:,}" if run["best"] is not None else ""),
            *(f"{run[f'{kind}_tokens']:,}" for kind in ("trained", "anchored", "context", "cut")),
            f"{run['idle_share']:.1%}",
            f"{run['tokens_per_second']:,.0f}",
            _share(run["peak_share"]),
            _share(run["flops_saved"]),
        ]
        for name, run in runs.items()
    ]
    return [
        el("h3", "How the models were trained"),
        table(heads, rows),
        el(
            "p",
            "Tokens over all epochs: trained ones carry loss, anchored ones are held to the base, context is read "
            "besides, and what stands behind the last of them is cut, which changes nothing. No token is padding; "
            "waiting is the share that workers lost to the one with the largest part. Tokens/s counts what was read. "
            "Of peak: FLOPs that were needed against this device's fastest matrix products, measured at the "
            "end of the run. Fewer FLOPs: than plain masking of the same data, unpadded; as a speed-up, 1 / (1 - x) is "
            "the ceiling.",
            cls="note",
        ),
        *_left_out(runs),
    ]


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def _left_out(runs: dict[str, dict[str, Any]]) -> list[Html]:
    lines = [
        f"{name}: {run['shortened']} of {run['trajectories']} trajectories were longer than the context and lost whole "
        f"steps, {run['lost_critical_steps']} critical ones; {run['emptied']} had no critical step left."
        for name, run in runs.items()
        if run["shortened"] or run["lost_critical_steps"]
    ]
    unknown = {name: warning(run.get("unknown", NO_WORDS), name) for name, run in runs.items()}
    lines += [f"{why}." for why in unknown.values() if why]
    return [el("ul", (el("li", line) for line in lines))] if lines else []
