"""The report's table of what switches would be worth by logs alone."""

from __future__ import annotations

from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from ..switching.estimates import LEAST_ESS
from ..switching.logged_stage import span
from .page import NOTHING, Html, el, table

_NOTE = (
    "Off-policy estimates per episode from logged episodes that nothing was learned from, with 95 % intervals; nothing "
    "was played. Doubly robust: a model of what follows, corrected by the logs; weighted: importance sampling over "
    "whole episodes alone. Effective episodes: how many equally weighted ones would say as much; with fewer than "
    f"{LEAST_ESS:g} do not trust a row."
)


def estimates_part(layout: RunLayout) -> list[Html]:
    """A row for each policy, and the warnings; nothing where nothing was learned from logs."""
    if not layout.switch_estimates.is_file():
        return []
    found = read_json(layout.switch_estimates)
    names = [name for name in ("success", "return", "calls", "money") if name in found[0]["plain"]]
    heads = ["policy", "effective episodes", *names, *(f"{name}, weighted" for name in names)]
    rows: list[list[str | Html]] = []
    warned: list[Html] = []
    for row in found:
        who = row["policy"] if "training" not in row else f"{row['policy']} seed {row['training']}"
        first, second = row.get("doubly_robust") or row["plain"], row.get("weighted") or {}
        cells = [span(first.get(name)) for name in names]
        cells += [span(second.get(name)) if second else NOTHING for name in names]
        rows.append([who, f"{row['ess']:.1f} of {row['episodes']:,}", *cells])
        warned += [el("li", f"{who}: {warning}") for warning in row.get("warnings", ())]
    parts = [el("h3", "What the logs say of the switches, before any of them acts"), table(heads, rows)]
    if warned:
        parts += [el("p", "Where the logs cannot tell:"), el("ul", warned, cls="reading")]
    return [*parts, el("p", _NOTE, cls="note")]
