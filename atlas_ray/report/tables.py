"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..results import Arm, Cell, Policy
from .page import NOTHING, Html, el, table
from .reading import above_line, arm_labels, ends, signed, span


def _rate(cell: Cell | Policy | None) -> Html:
    """``0.63 [0.55, 0.70]``."""
    if cell is None:
        return el("span", NOTHING, cls="ci")
    low, high = cell.ci95
    return Html(f"{cell.success:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def arms_table(arms: Sequence[Arm]) -> Html:
    """The ATLaS arms with cost and success."""
    heads = ["arm", "cap m", "anchor", "share of steps", "held-in success", "held-out success", "trained tokens"]
    heads += ["context tokens", "seconds", "seeds"]
    rows: list[list[str | Html]] = [
        [
            label,
            f"{arm.fraction:.0%}",
            f"{arm.anchor:g}" if arm.anchor else NOTHING,
            f"{arm.steps_share:.1%}",
            _rate(arm.held_in),
            _rate(arm.held_out),
            f"{arm.trained_tokens:,}",
            f"{arm.context_tokens:,}",
            f"{arm.train_seconds:.1f}",
            ", ".join(map(str, arm.seeds)) or NOTHING,
        ]
        for label, arm in zip(arm_labels(arms), arms, strict=True)
    ]
    return table(heads, rows)


def levels_table(arms: Sequence[Arm]) -> Html | None:
    """Success on each level, a column an arm; None when no arm has levels."""
    rows: list[list[str | Html]] = []
    for split in ("held-in", "held-out"):
        levels = [_levels(arm, split) for arm in arms]
        for level in dict.fromkeys(name for cells in levels for name in cells):
            rows.append([level, split, *[_rate(cells.get(level)) for cells in levels]])
    return table(["level", "split", *arm_labels(arms)], rows, text=2) if rows else None


def _levels(arm: Arm, split: str) -> Mapping[str, Cell]:
    score = arm.held_in if split == "held-in" else arm.held_out
    return (score.levels or {}) if score is not None else {}


def _limit(policy: Policy) -> str:
    cost = [] if policy.cost is None else [f"c = {policy.cost:g}"]
    budget = [] if policy.budget is None else [f"n = {policy.budget}"]
    return ", ".join(cost + budget) or NOTHING


def policies_table(policies: Sequence[Policy]) -> Html:
    """The LONDI policies with their success against random mixing."""
    pair = ends(policies)
    heads = ["policy", "limit", "success", "above random mixing", "return", "calls an episode"]
    heads += ["share of steps", f"compute ({policies[0].compute_unit})", "budget exceeded", "episodes"]
    rows: list[list[str | Html]] = []
    for policy in policies:
        line: str | Html = NOTHING
        if pair is not None and policy not in pair:
            mean, low, high = above_line(policy, *pair)
            line = Html(f"{signed(mean)} " + el("span", span(low, high), cls="ci"))
        rows.append(
            [
                policy.name,
                _limit(policy),
                _rate(policy),
                line,
                f"{policy.mean_return:.3f}",
                f"{policy.deepthink_calls_per_episode:.2f}",
                f"{policy.deepthink_share:.1%}",
                f"{policy.compute:.2e}" if policy.compute >= 1e4 else f"{policy.compute:.3g}",
                NOTHING if policy.budget is None else f"{policy.budget_violations:,}",
                f"{policy.episodes:,}",
            ]
        )
    return table(heads, rows)
