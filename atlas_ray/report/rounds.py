"""The report's parts on rounds of switching and tuning: their headline with its picture, and two tables (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from ..data.resampling import MeanDifference
from ..data.results import ALWAYS_QUICK
from ..data.rounds import Round, Rounds, System, load_rounds
from .headlines import Headline, percent, picture
from .labels import Label, write_labels
from .page import LIGHT, NOTHING, Html, el, table
from .plots import SETTINGS, blank, plain, svg
from .reading import UNCLEAR
from .run import Run

_SHOWN = (
    "Success against calls of the larger models per episode, round by round, on the same test episodes, with 95 % "
    "intervals over episodes and training seeds. Orange: what acts in the round; hollow: a round that is not kept. "
    "Blue: the round's QUICK alone, without calls; grey: DEEPTHINK alone."
)
_PARTS_NOTE = (
    "Whether the switch or QUICK alone acts in a round, and which round is kept, follows from episodes of their own, "
    "never from these. Differences are paired, their 95 % intervals from resampling episodes and training seeds, and "
    "are not corrected for the number of comparisons."
)
_ARMS_NOTE = (
    "Each arm's QUICK plays alone, on the same test episodes. Calls spent: those of the larger models in all episodes "
    "that were played to collect what it learned from, failures too, of this round and those before it. Means over "
    "training seeds."
)


def rounds_headlines(run: Run) -> list[Headline]:
    """Nothing where no rounds were played."""
    made = _read(run)
    if made is None:
        return []
    first, kept = made.rounds[0], made.rounds[made.kept]
    shown = picture(svg(rounds_figure(made), "rounds", "Success against calls, round by round"), _SHOWN)
    question = "Does the small model learn what it had to ask for?"
    before, after = acting(first), acting(kept)
    if kept.against_first is None:
        answer = f"No round is kept: {_reason(made)}."
        return [Headline("rounds", question, answer, _lines(made), shown)]
    success, calls = kept.against_first.success, kept.against_first.calls
    fewer = f"{percent(1 - after.calls / before.calls)} fewer" if before.calls and calls.mean < 0 else "no fewer"
    how = (
        "more success" if success.above else "less success" if success.below else "a success that cannot be told apart"
    )
    answer = (
        f"After {_rounds(made.kept)} of learning from its own calls the system makes {fewer} calls per episode "
        f"({before.calls:.2f} before, {after.calls:.2f} now) with {how} ({before.success:.2f} before, "
        f"{after.success:.2f} now); the small model alone went from {first.quick.success:.2f} to "
        f"{kept.quick.success:.2f}."
    )
    return [Headline("rounds", question, answer, _lines(made), shown)]


def rounds_part(run: Run) -> list[Html]:
    """Tables of the rounds and of the arms; nothing where no rounds were played."""
    made = _read(run)
    if made is None:
        return []
    parts = [
        el("h3", "Rounds of switching and tuning"),
        _rounds_table(made),
        el("p", f"Round {made.kept} is kept: {_reason(made)}. {_PARTS_NOTE}", cls="note"),
    ]
    if any(each.arms for each in made.rounds):
        parts += [el("h3", "What QUICK learned from"), _arms_table(made), el("p", _ARMS_NOTE, cls="note")]
    return parts


def _read(run: Run) -> Rounds | None:
    return load_rounds(run.layout.rounds) if run.layout.rounds.is_file() else None


def acting(each: Round) -> System:
    """What acts in a round."""
    return each.quick if each.policy == ALWAYS_QUICK else each.switch


def _reason(made: Rounds) -> str:
    return made.why.replace("-", "\N{MINUS SIGN}") if "[" in made.why else made.why


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _lines(made: Rounds) -> list[str]:
    """The numbers behind the headline."""
    kept = made.rounds[made.kept]
    lines = []
    if kept.against_first:
        lines.append(
            f"round {made.kept} less round 0: success {_signed(kept.against_first.success)}, "
            f"calls {_signed(kept.against_first.calls)}"
        )
    lines.append(f"round {made.kept} less DEEPTHINK alone: success {_signed(kept.against_deepthink.success)}")
    for arm in kept.arms:
        if arm.first_above:
            lines.append(
                f"QUICK alone, tuned on {kept.arms[0].arm} ({kept.arms[0].calls_spent:,.0f} calls spent) less "
                f"{arm.arm} ({arm.calls_spent:,.0f} calls): {_signed(arm.first_above)}{_unclear(arm.first_above)}"
            )
    return lines


def _unclear(d: MeanDifference) -> str:
    return "" if d.above or d.below else f", {UNCLEAR}"


def _signed(d: MeanDifference) -> str:
    mean, low, high = (f"{round(v, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") for v in d)
    return f"{mean} [{low}, {high}]"


def _rate(each: System) -> Html:
    low, high = each.ci95
    return Html(f"{each.success:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def _rounds_table(made: Rounds) -> Html:
    systems = [made.deepthink, *(s for each in made.rounds for s in (each.quick, each.switch))]
    paid = any(s.money for s in systems)
    heads = ["round", "who", "", "success", "calls", "MFLOPs", "seconds", *(["money"] if paid else [])]
    heads += ["success, less the round before", "calls, less the round before"]

    def row(
        number: str, name: str, mark: str, each: System, apart: Sequence[str] = (NOTHING, NOTHING)
    ) -> list[str | Html]:
        cells: list[str | Html] = [number, name, el("span", mark, cls="badge") if mark else "", _rate(each)]
        cells += [f"{each.calls:.2f}", f"{each.flops / 1e6:,.0f}", f"{each.seconds:.2f}"]
        return [*cells, *([f"{each.money:.4f}"] if paid else []), *apart]

    rows = [row(NOTHING, "DEEPTHINK alone", "", made.deepthink)]
    for each in made.rounds:
        apart = (_signed(each.on_test.success), _signed(each.on_test.calls)) if each.on_test else (NOTHING, NOTHING)
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
            _signed(arm.first_above) if arm.first_above else NOTHING,
            f"{arm.calls_spent:,.0f}",
            f"{arm.trained_tokens:,.0f}",
            f"{arm.steps_share:.1%}",
            f"{arm.trajectories:,.0f}",
        ]
        for each in made.rounds
        for arm in each.arms
    ]
    return table(heads, rows, text=2)


def rounds_figure(made: Rounds) -> Figure:
    """Success against calls: what acts in each round connected, QUICK alone, and DEEPTHINK alone."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.2)
        axes = plain(figure.add_subplot())
        acts = [acting(each) for each in made.rounds]
        axes.plot([s.calls for s in acts], [s.success for s in acts], color=LIGHT["orange"], linewidth=1.0)
        drawn = [("DEEPTHINK alone", "D", "muted", [made.deepthink], len(made.rounds))]
        drawn += [("QUICK alone", "o", "blue", [each.quick for each in made.rounds], len(made.rounds))]
        drawn += [("what acts", "s", "orange", acts, made.kept)]
        for label, marker, colour, systems, last in drawn:
            look = {"linestyle": "none", "marker": marker, "color": LIGHT[colour], "markersize": 6.5, "zorder": 3}
            for number, s in enumerate(systems):
                axes.plot([s.calls] * 2, s.ci95, color=LIGHT[colour], linewidth=1.3, alpha=0.4)
                fill = {} if number <= last else {"markerfacecolor": LIGHT["paper"]}
                axes.plot([s.calls], [s.success], label=label if not number else None, **look, **fill)
        axes.set_xlabel("calls per episode", color=LIGHT["muted"])
        axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.margins(x=0.12, y=0.1)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
        named = [(f"round {number}", s, True) for number, s in enumerate(acts)]
        named += [("", s, False) for *_, systems, _ in drawn[:-1] for s in systems]
        write_labels(figure, axes, [Label(name, s.calls, s.success, s.ci95, shown) for name, s, shown in named])
    return figure
