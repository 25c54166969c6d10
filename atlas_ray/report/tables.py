"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.replies import Replies, summed
from ..data.results import Arm, Cell, Policy
from .forgetting import COULD, Forgotten, forgotten, known_levels
from .page import NOTHING, Html, el, table
from .reading import arm_labels, signed, span
from .run import Run


def rate(cell: Cell | Policy | None) -> Html:
    """``0.63 [0.55, 0.70]``."""
    if cell is None:
        return el("span", NOTHING, cls="ci")
    low, high = cell.ci95
    return Html(f"{cell.success:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def arms_part(run: Run) -> list[Html]:
    """The ATLaS arms, and their success on each level folded away."""
    arms = run.arms
    if not arms:
        return []
    by_level = levels_table(arms)
    known = known_levels(arms)
    note = "Tokens and seconds are means of one training run, over all its epochs."
    if any(arm.compute for arm in arms):
        note += (
            " FLOPs are those of models: to play the collected episodes, to mark what is trained (roll-outs and "
            "whoever proposes included, with their environment steps), and to train once; a dash where they are not "
            "counted."
        )
    if known:
        note += (
            f" Forgetting: success less that of the untuned model where that could do it, on {', '.join(known)} "
            f"(at least {COULD:g})."
        )
    if any(len(arm.seeds) < 2 for arm in arms if arm.selector != "none"):
        note += " Arms with one training seed have intervals that know nothing of the spread between seeds."
    return [
        el("h3", "ATLaS: which steps to train on"),
        arms_table(arms, [forgotten(run, arm) for arm in arms] if known else ()),
        el("p", note, cls="note"),
        *([el("details", el("summary", "Success on each level"), by_level)] if by_level else []),
    ]


def arms_table(arms: Sequence[Arm], lost: Sequence[Forgotten | None] = ()) -> Html:
    """The ATLaS arms with cost and success; ``lost`` is what each forgot, empty for no such column."""
    heads = ["arm", "cap m", "anchor", "share of steps", "held-in success", "held-out success"]
    heads += [*(["forgetting"] if lost else []), "trained tokens", "context tokens", "seconds", "seeds"]
    counted = any(arm.compute for arm in arms)
    heads += [*(["FLOPs to collect", "to select", "to train", "steps to select"] if counted else []), *told_heads(arms)]
    rows: list[list[str | Html]] = [
        [
            label,
            f"{arm.fraction:.0%}",
            f"{arm.anchor:g}" if arm.anchor else NOTHING,
            f"{arm.steps_share:.1%}",
            rate(arm.held_in),
            rate(arm.held_out),
            *([_change(row)] if lost else []),
            f"{arm.trained_tokens:,}",
            f"{arm.context_tokens:,}",
            f"{arm.train_seconds:.1f}",
            ", ".join(map(str, arm.seeds)) or NOTHING,
            *(_compute(arm) if counted else []),
            *told(arm, arms),
        ]
        for label, arm, row in zip(arm_labels(arms), arms, lost or [None] * len(arms), strict=True)
    ]
    return table(heads, rows)


def _compute(arm: Arm) -> list[str]:
    took = arm.compute
    if took is None:
        return [NOTHING] * 4
    flops = [NOTHING if part is None else f"{part:.2e}" for part in (took.collect, took.select, took.train)]
    return [*flops, NOTHING if took.select_steps is None else f"{took.select_steps:,}"]


def _change(row: Forgotten | None) -> Html:
    if row is None:
        return el("span", NOTHING, cls="ci")
    return Html(f"{signed(row.change.mean)} " + el("span", span(row.change.low, row.change.high), cls="ci"))


def told_heads(scored: Sequence[Arm] | Sequence[Policy]) -> list[str]:
    """Heads of the columns of :func:`told`; none where no model writes and nothing was lost."""
    heads = ["lost episodes"] if any(s.lost_episodes for s in scored) else []
    return heads + (["replies"] if any(s.replies for s in scored) else [])


def told(one: Arm | Policy, scored: Sequence[Arm] | Sequence[Policy]) -> list[str | Html]:
    """Episodes that were lost, and what became of the replies."""
    cells: dict[str, str] = {
        "lost episodes": f"{one.lost_episodes:,}",
        "replies": Replies(one.replies or {}).words() or NOTHING,
    }
    return [cells[head] for head in told_heads(scored)]


def replies_table(told: Mapping[Any, Mapping[Any, int]]) -> list[Html]:
    """What became of the replies of models, a row for who asked them."""
    whole = summed(told.values()).row()
    rows: list[list[str | Html]] = [
        [who, *(f"{counts.get(name, 0):,}" for name in whole)] for who, counts in told.items()
    ]
    note = "Of models that write, those of earlier starts of the run too."
    if "not valid" in whole:
        note += " Not valid: the answer broke a rule of the oracle's form."
    if "fallen back" in whole:
        note += " Fallen back: the last reply went to the environment."
    if "lost" in whole:
        note += " Lost: no answer; its trajectory or roll-out is left out."
    return [table(["asked by", *whole], rows), el("p", note, cls="note")]


def levels_table(arms: Sequence[Arm]) -> Html | None:
    """Success on each level, one column per arm; None when no arm has levels."""
    rows: list[list[str | Html]] = []
    for split in ("held-in", "held-out"):
        levels = [_levels(arm, split) for arm in arms]
        for level in dict.fromkeys(name for cells in levels for name in cells):
            rows.append([level, split, *[rate(cells.get(level)) for cells in levels]])
    return table(["level", "split", *arm_labels(arms)], rows, text=2) if rows else None


def _levels(arm: Arm, split: str) -> Mapping[str, Cell]:
    score = arm.held_in if split == "held-in" else arm.held_out
    return (score.levels or {}) if score is not None else {}
