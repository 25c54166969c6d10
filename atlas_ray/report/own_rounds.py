"""The report's parts on rounds of a model's own runs: a headline with the curve, and a table (ours)."""

from __future__ import annotations

from ..data.own_rounds import OwnRound, OwnRounds, load_own_rounds
from ..data.results import Cell
from .headlines import Headline, picture, with_interval
from .page import NOTHING, Html, el, table
from .plots import svg
from .round_plots import own_rounds_figure
from .run import Run

_SHOWN = (
    "Success on the same test episodes, round by round, with 95 % intervals over episodes and training seeds; hollow: "
    "a round that is not kept. Circles and squares are of the arm that goes on, small crosses of the others."
)
_NOTE = (
    "Round 0 is the model that nobody has tuned; from round 2 on each training seed collects with its own model, and "
    "the other arms learn from the same episodes. Which round is kept follows from episodes of their own, never from "
    "these. Tokens and FLOPs are those of everything on the way to a model: collecting, selecting with its roll-outs, "
    "training."
)
_ONCE = "Trained once: the intervals know nothing of the spread between trainings."


def own_rounds_headlines(run: Run) -> list[Headline]:
    """Nothing where no such rounds were played."""
    made = _read(run)
    if made is None:
        return []
    number = made.kept or len(made.rounds) - 1
    each, before = made.rounds[number], made.rounds[0]
    answer = f"No round was played behind the untuned model, as {made.why}."
    if number:
        assert each.against_first is not None
        scores = f"{before.held_in.success:.2f} before, {each.held_in.success:.2f} after {_rounds(number)}"
        answer = {
            1: f"Yes: it succeeds more often on held-in levels than before it learned ({scores}).",
            0: f"Whether it succeeds more often on held-in levels than before it learned cannot be told ({scores}).",
            -1: f"No: it succeeds less often on held-in levels than before it learned ({scores}).",
        }[each.against_first.above - each.against_first.below]
        answer += f" Round {made.kept} is the one to use: {made.why}."
    shown = picture(svg(own_rounds_figure(made), "own-rounds", "Success, round by round"), _SHOWN)
    caveat = _ONCE if len(made.seeds) == 1 else ""
    return [Headline("own-rounds", "Does the model learn from its own runs?", answer, _lines(made), shown, caveat)]


def _lines(made: OwnRounds) -> list[str]:
    """The numbers behind the headline, of the last rounds first."""
    lines = []
    for each in reversed(made.rounds[1:]):
        if each.gained is not None:
            lines.append(
                f"round {each.round} less round {each.over}, on the episodes that judge: {with_interval(each.gained)}"
            )
        for split, d in (("held-in", each.against_first), ("held-out", each.against_first_out)):
            if d is not None:
                lines.append(f"round {each.round} less round 0, {split} test episodes: {with_interval(d)}")
    return lines


def own_rounds_part(run: Run) -> list[Html]:
    """A table of the rounds and their arms; nothing where no such rounds were played."""
    made = _read(run)
    if made is None:
        return []
    note = f"Round {made.kept} is the one to use: {made.why}. {_NOTE}"
    return [el("h3", "Rounds of the model's own runs"), _table(made), el("p", note, cls="note")]


def _read(run: Run) -> OwnRounds | None:
    return load_own_rounds(run.layout.own_rounds) if run.layout.own_rounds.is_file() else None


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _rate(each: Cell | None) -> str | Html:
    if each is None:
        return NOTHING
    low, high = each.ci95
    return Html(f"{each.success:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def _table(made: OwnRounds) -> Html:
    heads = ["round", "arm", "", "held-in success", "held-out success", "judged, less the round kept before"]
    heads += [
        "held-in, first arm less this",
        "collected",
        "of these successes",
        "learned from",
        "trained tokens",
        "FLOPs",
    ]
    first = made.rounds[0]
    empty: list[str | Html] = [NOTHING] * 7
    rows: list[list[str | Html]] = [
        ["0", "untuned", _badge(made, first), _rate(first.held_in), _rate(first.held_out), *empty]
    ]
    for each in made.rounds[1:]:
        assert each.gained is not None and each.lesson is not None
        for arm in each.arms:
            goes_on = arm.arm == made.arm
            rows.append(
                [
                    str(each.round),
                    arm.arm,
                    _badge(made, each) if goes_on else "",
                    _rate(arm.held_in),
                    _rate(arm.held_out),
                    with_interval(each.gained) if goes_on else NOTHING,
                    with_interval(arm.first_above) if arm.first_above else NOTHING,
                    f"{each.lesson.episodes:,.0f}",
                    f"{each.lesson.successes:,.0f}",
                    f"{arm.examples:,.0f}",
                    f"{arm.trained_tokens:,.0f}",
                    NOTHING if arm.flops is None else f"{arm.flops:.2e}",
                ]
            )
    return table(heads, rows, text=3)


def _badge(made: OwnRounds, each: OwnRound) -> str | Html:
    said = "to use" if each.round == made.kept else "kept" if each.kept else ""
    return el("span", said, cls="badge") if said else ""
