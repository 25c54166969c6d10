"""``DIR/report.html``: what recorded sessions cost, who acted where, and how they ended.

What always asking DEEPTHINK would have cost is an estimate: the same steps with the tokens that were counted, at its
prices. It takes for granted that DEEPTHINK reads and writes as many tokens, and needs as many steps.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from ..data.gateway_record import Record, Recorded, StepUsage
from ..data.records import FIRST_ACTOR
from ..data.results import interval, tenths
from ..errors import InputError
from ..report.headlines import Headline, answers_part, percent, picture
from ..report.page import NOTHING, Html, el, missing, page, table
from ..report.places import Panel, places_figure
from ..report.plots import svg
from ..rundir.files import write_text
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from ..switching.spending import Usage, cost, dollars

_MOST_DAYS = 60


@dataclass
class Spending:
    """Of a model, or of a model on a day. ``uncounted``: steps of which the server did not say what they took."""

    steps: int = 0
    uncounted: int = 0
    prompt: int = 0
    completion: int = 0
    usd: Decimal = Decimal(0)
    seconds: float = 0.0

    def add(self, step: StepUsage) -> None:
        """Count a step."""
        self.steps += 1
        self.uncounted += step.usd is None
        self.prompt += step.prompt_tokens or 0
        self.completion += step.completion_tokens or 0
        self.usd += Decimal(step.usd or 0)
        self.seconds += step.seconds


@dataclass
class Totals:
    """What all sessions come to.

    ``models``, ``days``: by name, by (day, name). ``always``: what the steps with known usage would have cost by
    DEEPTHINK alone, and ``counted`` what they did cost. ``spent``: all money, with reservations that were kept.
    ``shadows``: whether QUICK would have done the same as DEEPTHINK, where it was asked besides, and ``beside`` what
    that has cost. ``calls``: (step, steps of its session) of each call. ``ended``: (share of calls, success) of
    sessions.
    """

    models: dict[str, Spending] = field(default_factory=lambda: defaultdict(Spending))
    days: dict[tuple[str, str], Spending] = field(default_factory=lambda: defaultdict(Spending))
    always: Decimal = Decimal(0)
    counted: Decimal = Decimal(0)
    spent: Decimal = Decimal(0)
    beside: Decimal = Decimal(0)
    shadows: list[bool] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)
    ended: list[tuple[float, bool | None]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, sessions: Iterable[Recorded]) -> Totals:
        """Those of some sessions."""
        made = cls()
        for session in sessions:
            made._add(session)
        return made

    @property
    def steps(self) -> int:
        """Of all sessions."""
        return sum(model.steps for model in self.models.values())

    def _add(self, session: Recorded) -> None:
        trajectory, usage = session
        taken = len(trajectory.steps)
        called = [n for n, step in enumerate(trajectory.steps) if step.actor not in (None, FIRST_ACTOR)]
        self.calls += [(n, taken) for n in called]
        self.ended.append((len(called) / taken, trajectory.success))
        self.scores += [] if trajectory.score is None else [trajectory.score]
        self.spent += usage.spent.dollars
        last = usage.models[-1]
        for step in usage.steps[:taken]:
            day = time.strftime("%Y-%m-%d", time.gmtime(step.begun))
            self.models[step.model].add(step)
            self.days[day, step.model].add(step)
            if step.shadow is not None:
                self.shadows += [] if step.shadow.same is None else [step.shadow.same]
                self.beside += Decimal(step.shadow.usd or 0)
            if step.usd is not None:
                tokens = Usage(step.prompt_tokens or 0, step.completion_tokens or 0)
                self.always += dollars(cost(last, tokens, True).usd)
                self.counted += Decimal(step.usd)


def build_report(directory: str | Path) -> Path:
    """Write the page of a directory that a gateway has recorded to.

    Args:
        directory: the recipe's ``gateway.record``.

    Returns:
        The page.

    Raises:
        InputError: it holds no session, or a file is not what it should be; names file, line and field.
    """
    root = Path(directory)
    totals = Totals.of(Record(root).sessions())
    parts = [
        el("header", el("h1", "atlas-ray: sessions of a gateway"), el("p", _lead(totals), cls="lead")),
        *answers_part([_cost(totals), _calls(totals), _success(totals)]),
        el("h2", "Spend by model"),
        _models(totals),
        el("p", _NOTE, cls="note"),
        el("h2", "Spend by day"),
        *_days(totals),
        el("h2", "How sessions ended"),
        *_ended(totals),
    ]
    path = RunLayout(root).report
    write_text(path, page("atlas-ray: sessions of a gateway", parts))
    return path


def report_command(directory: Path | None, recipe: str | None, dry_run: bool) -> int:
    """``atlas-ray gateway --report DIR``; its exit code.

    Raises:
        InputError: neither or both of a directory and a recipe are given; see :func:`build_report`.
    """
    if directory is None or recipe is not None:
        raise InputError("needs a recipe, a run, or --report DIR, one of them", field="gateway")
    if dry_run:
        print(json.dumps({"report": str(RunLayout(directory).report)}, indent=2))
    else:
        say(f"report: {build_report(directory)}")
    return 0


_NOTE = (
    "Tokens and money are those that the models' servers counted. Where one did not say, what was reserved stays "
    "spent; that stands in no row of a model, and in the total of all sessions."
)
_ESTIMATE = (
    "Estimated: the same steps, with the tokens that were counted, at DEEPTHINK's prices. Whether it would have "
    "written more, or needed fewer steps, is not known."
)


def _lead(totals: Totals) -> str:
    days = sorted({day for day, _ in totals.days})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{_many(len(totals.ended), 'session')} with {_many(totals.steps, 'step')}, {when} (UTC)."


def _cost(totals: Totals) -> Headline:
    kept = totals.spent - totals.counted - totals.beside
    sessions = len(totals.ended)
    numbers = [f"{money(totals.spent / sessions)} per session."]
    if kept > 0:
        numbers.append(f"{money(kept)} of it are reservations that were kept, as no usage came; in both sums.")
    if totals.beside:
        numbers.append(f"{money(totals.beside)} of it went to QUICK for what it would have done at DEEPTHINK's steps.")
    if not totals.always:
        told = f"{_many(sessions, 'session')} cost {money(totals.spent)}."
        return Headline("cost", "What did they cost?", told, numbers, caveat="DEEPTHINK has no price.")
    numbers.append(f"{money(totals.counted)} for steps with known usage; DEEPTHINK alone {money(totals.always)}.")
    always = totals.always + kept
    saved = 1 - totals.spent / always
    more = "less" if saved >= 0 else "more"
    share = f"{percent(float(abs(saved)))} {more} than the {money(always)}"
    told = f"{_many(sessions, 'session')} cost {money(totals.spent)}: {share} that DEEPTHINK alone would have cost."
    return Headline("cost", "What did they cost?", told, numbers, caveat=_ESTIMATE)


def _calls(totals: Totals) -> Headline:
    calls, steps = len(totals.calls), totals.steps
    told = f"{percent(calls / steps)} of the steps were calls of a larger model: {calls:,} of {steps:,}."
    without = sum(not share for share, _ in totals.ended)
    numbers = [f"{without:,} of {_many(len(totals.ended), 'session')} had no call."]
    if totals.shadows:
        same, asked = sum(totals.shadows), len(totals.shadows)
        numbers.append(f"QUICK was asked too at {_many(asked, 'call')}, and did the same at {percent(same / asked)}.")
    shown = None
    if (shares := tenths(totals.calls)) is not None:
        halves = sum(shares[:5])
        numbers.append(f"{percent(halves)} of the calls fell into the first half of their session.")
        drawn = svg(places_figure([Panel("calls", shares, "orange")]), "calls", "Where in sessions calls fall")
        shown = picture(drawn, "Share of the calls in each tenth of a session; the line is what even spreading gives.")
    return Headline("calls", "Who acted?", told, numbers, shown)


def _success(totals: Totals) -> Headline:
    known = [success for _, success in totals.ended if success is not None]
    unknown = len(totals.ended) - len(known)
    question, apart = (
        "Did they reach their goal?",
        f"{_many(unknown, 'session')} without a known outcome count nowhere.",
    )
    if not known:
        told = f"Nobody has said so of any of the {_many(len(totals.ended), 'session')}."
        return Headline("success", question, told)
    told = f"{percent(sum(known) / len(known))} of the {_many(len(known), 'session')} with a known outcome did."
    numbers = [f"success {_rate(known)}", *([apart] if unknown else [])]
    if totals.scores:
        mean = sum(totals.scores) / len(totals.scores)
        numbers.append(f"mean score {mean:.2f} of the {_many(len(totals.scores), 'session')} that have one")
    return Headline("success", question, told, numbers)


def _models(totals: Totals) -> Html:
    heads = ["model", "steps", "share of steps", "tokens read", "tokens written", "money", "seconds per step"]
    heads.append("steps without usage")
    rows: list[list[str | Html]] = [
        [
            name,
            f"{one.steps:,}",
            f"{one.steps / totals.steps:.1%}",
            f"{one.prompt:,}",
            f"{one.completion:,}",
            money(one.usd),
            f"{one.seconds / one.steps:.2f}",
            f"{one.uncounted:,}",
        ]
        for name, one in totals.models.items()
    ]
    counted = sum(one.uncounted for one in totals.models.values())
    rows.append(["all sessions", f"{totals.steps:,}", "", "", "", money(totals.spent), "", f"{counted:,}"])
    return table(heads, rows)


def _days(totals: Totals) -> list[Html]:
    days = sorted({day for day, _ in totals.days})
    names = list(totals.models)
    rows: list[list[str | Html]] = []
    for day in days[-_MOST_DAYS:]:
        own = [totals.days.get((day, name), Spending()) for name in names]
        steps = sum(one.steps for one in own)
        cells = [f"{money(one.usd)} ({one.steps / steps:.0%})" if one.steps else NOTHING for one in own]
        rows.append([day, f"{steps:,}", *cells, money(sum((one.usd for one in own), Decimal(0)))])
    note = "Of each model its money, and its share of the day's steps."
    if len(days) > _MOST_DAYS:
        note += f" The last {_MOST_DAYS} of {len(days)} days."
    return [table(["day (UTC)", "steps", *names, "money"], rows), el("p", note, cls="note")]


def _ended(totals: Totals) -> list[Html]:
    groups = {
        "without a call": [s for share, s in totals.ended if not share],
        "with calls and steps of the small model": [s for share, s in totals.ended if 0 < share < 1],
        "with calls alone": [s for share, s in totals.ended if share == 1],
    }
    rows: list[list[str | Html]] = []
    for name, ends in groups.items():
        known = [success for success in ends if success is not None]
        rate = _rate(known) if known else NOTHING
        rows.append([name, f"{len(ends):,}", f"{len(known):,}", rate, f"{len(ends) - len(known):,}"])
    if not any(success is not None for _, success in totals.ended):
        return [missing("no outcome was posted to /v1/atlas/sessions/ID/outcome")]
    note = "Who has calls is chosen by the switch and the budget: the rows differ in more than their calls."
    heads = ["sessions", "number", "known outcome", "success", "unknown outcome"]
    return [table(heads, rows), el("p", note, cls="note")]


def _rate(known: Sequence[bool]) -> str:
    mean, low, high = interval([known])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def money(usd: Decimal) -> str:
    """``$0.0123``: at least two digits behind the point, and three that count."""
    digits = 2
    while digits < 12 and usd and abs(usd) < Decimal(10) ** (2 - digits):
        digits += 1
    return f"${usd:,.{digits}f}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
