"""The report's parts on rounds of switching and tuning: two headlines with pictures, and two tables (ours)."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.paired import Difference
from ..data.rounds import Comparison, Round, Rounds, System, TunedArm, load_rounds
from ..recipe.rounds import EQUAL_CALLS, EQUAL_TOKENS
from .headlines import Headline, percent, picture, with_interval
from .page import NOTHING, Html, el, table
from .plots import svg
from .round_plots import acting, arms_figure, lessons_figure, rounds_figure
from .run import Run

_SHOWN = (
    "Success against calls of the larger models per episode, round by round, on the same test episodes, with 95 % "
    "intervals over episodes and training seeds. Orange: what acts in the round; hollow: a round that is not kept. "
    "Blue: the round's QUICK alone, without calls; grey: DEEPTHINK alone."
)
_ARMS_SHOWN = (
    "Success of each arm's QUICK alone on the same test episodes, with 95 % intervals. Calls are those of the larger "
    "models in all episodes that were played to collect what it learned from. Dashed: the untuned QUICK."
)
_LESSONS_SHOWN = (
    "Success of each arm's QUICK alone on the same test episodes, with 95 % intervals, against the calls of the larger "
    "models in all episodes that were played to collect what it learned from, over all rounds; a point per round."
)
_PARTS_NOTE = (
    "Whether the switch or QUICK alone acts in a round, and which round is kept, follows from episodes of their own, "
    "never from these. Differences are paired, for new episodes and new training seeds, and each 95 % interval is for "
    "itself."
)
_ARMS_NOTE = (
    "Each arm's QUICK plays alone, on the same test episodes. Calls spent: those of the larger models in all episodes "
    "that were played to collect what it learned from, failures too, of this round and those before it. Means over "
    "training seeds. Intervals are each for itself; in the answer above they hold together."
)
_ONCE = "Trained once: the intervals know nothing of the spread between trainings."
_MEANS = {
    "calls": "the switch's calls",
    "random_calls": "as many random steps",
    "all": "all steps",
    EQUAL_CALLS: "the large model's own episodes",
    EQUAL_TOKENS: "the large model's own episodes",
}


def rounds_headlines(run: Run) -> list[Headline]:
    """Nothing where no rounds were played."""
    made = _read(run)
    if made is None:
        return []
    taught = _taught(made)
    return [_learning(made), *([_lessons(made, taught)] if taught is not None else [])]


def _learning(made: Rounds) -> Headline:
    """Whether the calls taught something, and what it did for the system."""
    shown = picture(svg(rounds_figure(made), "rounds", "Success against calls, round by round"), _SHOWN)
    number = made.kept or len(made.rounds) - 1
    each, lines = made.rounds[number], []
    answer = ""
    if each.learned is not None:
        scores = f"{made.rounds[0].quick.success:.2f} before, {each.quick.success:.2f} after {_rounds(number)}"
        answer = {
            1: f"Yes: alone, the small model succeeds more often than before it learned ({scores}). ",
            0: f"Whether the small model alone succeeds more often than before it learned cannot be told ({scores}). ",
            -1: f"No: alone, the small model succeeds less often than before it learned ({scores}). ",
        }[_sign(each.learned)]
        lines.append(f"QUICK alone, after {_rounds(number)} less untuned: {with_interval(each.learned)}")
    lines += _lines(made, number)
    question = "Does the small model learn what it had to ask for?"
    return Headline("rounds", question, answer + _system(made), lines, shown, _ONCE if len(made.seeds) == 1 else "")


def _system(made: Rounds) -> str:
    """What the rounds did for what acts."""
    before, after, kept = acting(made.rounds[0]), acting(made.rounds[made.kept]), made.rounds[made.kept]
    if kept.against_first is None:
        return f"What was there before the rounds stays in use, as {made.why}."
    success, calls = kept.against_first.success, kept.against_first.calls
    fewer = f"{percent(1 - after.calls / before.calls)} fewer" if before.calls and calls.below else "no fewer"
    how = {
        1: "more success",
        0: f"the same success, within {made.margin:g}"
        if success.low > -made.margin
        else f"a success of which it cannot be told whether it is the same within {made.margin:g}",
        -1: "less success",
    }[_sign(success)]
    return (
        f"With it the system makes {fewer} calls per episode ({before.calls:.2f} before, {after.calls:.2f} now) and "
        f"has {how} ({before.success:.2f} before, {after.success:.2f} now)."
    )


def _sign(d: Difference) -> int:
    return d.above - d.below


def _taught(made: Rounds) -> Round | None:
    """The round whose arms are looked at: the one kept, else the first."""
    wanted = made.rounds[made.kept or min(1, len(made.rounds) - 1)]
    return wanted if len(wanted.arms) > 1 else None


def _lessons(made: Rounds, each: Round) -> Headline:
    """Which lesson teaches the small model most."""
    first, others = each.arms[0], each.arms[1:]
    said = []
    for name, equal in ((EQUAL_CALLS, "calls spent"), (EQUAL_TOKENS, "trained tokens")):
        said += [f"At equal {equal} {_told(first, [arm])}." for arm in others if arm.arm == name]
    own = [arm for arm in others if arm.arm not in (EQUAL_CALLS, EQUAL_TOKENS)]
    if own:
        said.append(f"Within the same episodes {_told(first, own)}.")
    numbers = [
        f"QUICK alone, tuned on {first.arm} ({first.calls_spent:,.0f} calls spent, {first.trained_tokens:,.0f} tokens) "
        f"less {arm.arm} ({arm.calls_spent:,.0f}, {arm.trained_tokens:,.0f}): {with_interval(arm.first_above_all)}"
        for arm in others
        if arm.first_above_all is not None
    ]
    if sum(bool(played.arms) for played in made.rounds) > 1:
        figure, caption = lessons_figure(made), _LESSONS_SHOWN
    else:
        figure, caption = arms_figure(made, each), _ARMS_SHOWN
    shown = picture(svg(figure, "lessons", "Success of each arm's QUICK alone"), caption)
    once = _ONCE if len(made.seeds) == 1 else ""
    return Headline("lessons", "Which lesson teaches the small model most?", " ".join(said), numbers, shown, once)


def _told(first: TunedArm, others: Sequence[TunedArm]) -> str:
    """How the first arm compares with others, in words."""
    named = {sign: [a for a in others if a.first_above_all and _sign(a.first_above_all) == sign] for sign in (1, -1, 0)}
    mine = _MEANS[first.arm]
    verbs = {1: "teach more than", -1: "teach less than", 0: "cannot be told from"}
    found = [
        f"{verbs[sign]} {' and '.join(f'{_MEANS[a.arm]} ({first.success:.2f} against {a.success:.2f})' for a in arms)}"
        for sign, arms in named.items()
        if arms
    ]
    return f"{mine} {', and '.join(found)}"


def rounds_part(run: Run) -> list[Html]:
    """Tables of the rounds and of the arms; nothing where no rounds were played."""
    made = _read(run)
    if made is None:
        return []
    parts = [
        el("h3", "Rounds of switching and tuning"),
        _rounds_table(made),
        el("p", f"Round {made.kept} is the one to use: {made.why}. {_PARTS_NOTE}", cls="note"),
    ]
    if any(each.arms for each in made.rounds):
        parts += [el("h3", "What QUICK learned from"), _arms_table(made), el("p", _ARMS_NOTE, cls="note")]
    return parts


def _read(run: Run) -> Rounds | None:
    return load_rounds(run.layout.rounds) if run.layout.rounds.is_file() else None


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _lines(made: Rounds, number: int) -> list[str]:
    """The numbers behind the first headline."""
    each = made.rounds[number]
    lines = []
    if each.gained is not None and each.over is not None:
        lines.append(_apart(f"round {number} less round {each.over}, on the episodes that judge", each.gained))
    if each.against_first is not None:
        lines.append(_apart(f"round {number} less round 0, on the test episodes", each.against_first))
    lines.append(_apart(f"round {number} less DEEPTHINK alone", each.against_deepthink))
    return lines


def _apart(what: str, d: Comparison) -> str:
    return f"{what}: success {with_interval(d.success)}, calls {with_interval(d.calls)}"


def _rate(each: System) -> Html:
    low, high = each.ci95
    return Html(f"{each.success:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def _rounds_table(made: Rounds) -> Html:
    systems = [made.deepthink, *(s for each in made.rounds for s in (each.quick, each.switch))]
    paid = any(s.money for s in systems)
    heads = ["round", "who", "", "success", "calls", "MFLOPs", "seconds", *(["money"] if paid else [])]
    heads += ["success, less the round kept before", "calls, less the round kept before"]

    def row(
        number: str, name: str, mark: str, each: System, apart: Sequence[str] = (NOTHING, NOTHING)
    ) -> list[str | Html]:
        cells: list[str | Html] = [number, name, el("span", mark, cls="badge") if mark else "", _rate(each)]
        cells += [f"{each.calls:.2f}", f"{each.flops / 1e6:,.0f}", f"{each.seconds:.2f}"]
        return [*cells, *([f"{each.money:.4f}"] if paid else []), *apart]

    rows = [row(NOTHING, "DEEPTHINK alone", "", made.deepthink)]
    for each in made.rounds:
        both = (each.on_test.success, each.on_test.calls) if each.on_test else ()
        apart = [with_interval(d) for d in both] or [NOTHING, NOTHING]
        kept = "acts, kept" if each.round == made.kept else "acts"
        for name, system in (("QUICK alone", each.quick), (each.switch.name, each.switch)):
            acts = system.name == each.policy
            rows.append(row(str(each.round), name, kept if acts else "", system, apart if acts else (NOTHING, NOTHING)))
    return table(heads, rows, text=3)


def _arms_table(made: Rounds) -> Html:
    heads = ["round", "tuned on", "success alone", "first arm less this", "calls spent", "trained tokens"]
    heads += ["share of steps", "trajectories"]
    rows: list[list[str | Html]] = [
        [
            str(each.round),
            arm.arm,
            Html(f"{arm.success:.2f} " + el("span", f"[{arm.ci95[0]:.2f}, {arm.ci95[1]:.2f}]", cls="ci")),
            with_interval(arm.first_above) if arm.first_above else NOTHING,
            f"{arm.calls_spent:,.0f}",
            f"{arm.trained_tokens:,.0f}",
            f"{arm.steps_share:.1%}",
            f"{arm.trajectories:,.0f}",
        ]
        for each in made.rounds
        for arm in each.arms
    ]
    return table(heads, rows, text=2)
