"""``compare-B.html``: two runs side by side, what they have in common compared one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.paired import Difference, level_for
from ..data.results import Arm, Cell, Policy
from ..errors import InputError
from ..rundir.files import write_text
from ..rundir.layout import RunLayout
from .headlines import Headline, answers_part, listed, picture, with_interval
from .outcomes import Episode, Played, compared, compared_calls, difference
from .page import NOTHING, Html, el, missing, page, short, table
from .plots import pairs_figure, svg
from .run import Run, read_run
from .summary import summary
from .tables import rate

_VALUE = 300  # characters of a setting


@dataclass(frozen=True)
class _Both:
    """An arm or a policy that both runs scored: success of the second run less that of the first.

    ``d`` is for reading alone, ``wide`` holds together with those of all others.
    """

    name: str
    a: Cell | Policy
    b: Cell | Policy
    d: Difference
    wide: Difference


def build_comparison(first: str | Path, second: str | Path, out: str | Path | None = None) -> Path:
    """Compare two runs in one page.

    Args:
        first: a run directory with ``results.json``; it is called A in the page.
        second: another, called B.
        out: the file; by default ``compare-NAME.html`` in the first run, NAME being the second's directory.

    Returns:
        The file.

    Raises:
        InputError: a run has no scores, or a file is not what it should be.
    """
    a, b = _scored(Path(first)), _scored(Path(second))
    path = RunLayout(a.root).comparison(b.root.resolve().name) if out is None else Path(out)
    arms, policies = _arms(a, b, "held-in"), _policies(a, b)
    held_out = _arms(a, b, "held-out")
    scored = {"arms": ("held-in", a.arms, b.arms), "switch policies": ("switch", a.policies, b.policies)}
    other = [what for what, (split, *both) in scored.items() if all(both) and not _same_levels(a, b, split)]
    headlines = [
        *_headline("arms", "Which arms differ on the levels they were trained on?", arms, "arm"),
        *_headline("held-out", "Which arms differ on new levels?", held_out, "arm"),
        *_headline("switch", "Which policies of the switch differ?", policies, "policy"),
    ]
    answers = [*answers_part(headlines)]
    answers += [missing(f"{what}, as the two were scored on other levels") for what in other]
    answers = answers or [missing("the two have no arm and no policy in common")]
    title = f"atlas-ray: {a.title} and {b.title}"
    parts = [
        el("header", el("h1", title), _which("A", a, first), _which("B", b, second)),
        el("h2", "What differs"),
        *answers,
        el("p", _NOTE, cls="note"),
        *_tables(a, b, arms, held_out, policies),
        el("h2", "Settings that differ"),
        *_settings(a, b),
    ]
    write_text(path, page(title, parts))
    return path


_NOTE = (
    "B less A, with 95 % intervals: of what played the same levels and seeds in both from these episodes, else as if "
    "the two were independent. Intervals above are widened so that all comparisons of a question hold together; in the "
    "tables each is for itself. Calls are compared on shared episodes alone. Arms are the same by "
    "selector, cap and anchor, policies by name; whatever else differs stands in the last table."
)


def _scored(root: Path) -> Run:
    if not root.is_dir():
        raise InputError("no such run directory", root)
    if not RunLayout(root).results.is_file():
        name = RunLayout(root).results.name
        raise InputError(f"has no {name}: `atlas-ray report` writes it once something was scored", root)
    return read_run(root)


def _which(letter: str, run: Run, given: str | Path) -> Html:
    return el("p", el("strong", f"{letter}: "), f"{short(str(given), 200)}. {summary(run)}", cls="lead")


# -- what both have


def _played(run: Run, name: str, arms: bool) -> Played:
    return (run.outcomes.arms if arms else run.outcomes.policies).get(name, {})


def _arms(a: Run, b: Run, split: str) -> list[_Both]:
    keyed = [{(arm.name, arm.fraction): arm for arm in run.arms} for run in (a, b)]
    found: list[tuple[str, Cell, Cell, Played, Played, list[str]]] = []
    for key, first in keyed[0].items():
        second = keyed[1].get(key)
        x, y = (_score(arm, split) for arm in (first, second))
        if x is None or y is None or not _same_levels(a, b, split):
            continue
        # a name that stands for several caps has no episodes of its own
        alone = all(sum(arm.name == key[0] for arm in run.arms) == 1 for run in (a, b))
        one, two = (_played(run, key[0], True) if alone else {} for run in (a, b))
        found.append((_arm_label(first, [*a.arms, *b.arms]), x, y, one, two, [*(x.levels or {})]))
    return _compared(found)


def _levels(run: Run, split: str) -> set[str] | None:
    """On which levels a run was scored; None where nobody knows."""
    if split == "switch":
        return {*run.recipe.switch.levels} if run.recipe and run.recipe.switch else None
    scores = [score for arm in run.arms if (score := _score(arm, split)) is not None]
    return {*scores[0].levels} if scores and scores[0].levels else None


def _same_levels(a: Run, b: Run, split: str) -> bool:
    """Whether the two may be compared: success on other levels says nothing of what differs."""
    one, two = _levels(a, split), _levels(b, split)
    return one is None or two is None or one == two


def _score(arm: Arm | None, split: str) -> Any:
    return None if arm is None else arm.held_in if split == "held-in" else arm.held_out


def _arm_label(arm: Arm, arms: Sequence[Arm]) -> str:
    name = "untuned" if arm.selector == "none" else arm.name
    several = len({other.fraction for other in arms if 0 < other.fraction < 1}) > 1
    return f"{name} {arm.fraction:.0%}" if several and 0 < arm.fraction < 1 else name


def _policies(a: Run, b: Run) -> list[_Both]:
    others = {p.name: p for p in b.policies}
    rows = [(p, others[p.name]) for p in a.policies if p.name in others and _same_levels(a, b, "switch")]
    return _compared([(p.name, p, q, _played(a, p.name, False), _played(b, p.name, False), None) for p, q in rows])


def _compared(rows: Sequence[tuple[str, Any, Any, Played, Played, list[str] | None]]) -> list[_Both]:
    found = []
    for name, a, b, one, two, levels in rows:
        ds = []
        for level in (0.95, level_for(len(rows))):
            paired = compared(two, one, level, partial(_counts, levels))
            ds.append(difference(paired, b, a, level))
        found.append(_Both(name, a, b, *ds))
    return found


def _counts(levels: list[str] | None, episode: Episode) -> bool:
    return levels is None or episode[0] in levels


# -- what is said


def _headline(name: str, question: str, both: Sequence[_Both], kind: str) -> list[Headline]:
    if not both:
        return []
    better, worse = [x.name for x in both if x.wide.low > 0], [x.name for x in both if x.wide.high < 0]
    unclear = [x.name for x in both if x.name not in better and x.name not in worse]
    said = [
        f"better in B {'is' if len(better) == 1 else 'are'} {listed(better)}" if better else "",
        f"worse {'is' if len(worse) == 1 else 'are'} {listed(worse)}" if worse else "",
    ]
    told = ", ".join(s for s in said if s)
    if not told:
        answer = f"None of {len(both)} in both can be told apart." if len(both) > 1 else "They cannot be told apart."
    else:
        rest = f"; of {listed(unclear)} it cannot be told" if unclear else ""
        answer = f"{told[0].upper()}{told[1:]}{rest}."
    ordered = sorted(both, key=lambda x: -abs(x.d.mean))
    numbers = [f"{x.name}: {with_interval(x.wide)}{_pairs(x.wide)}" for x in ordered]
    shown = picture(
        svg(pairs_figure([(x.name, x.a, x.b) for x in both]), name, f"Success in A and B, for each {kind}"),
        f"Success of each {kind} that both runs scored, with 95 % intervals.",
    )
    return [Headline(name, question, answer, numbers, shown)]


def _pairs(d: Difference) -> str:
    return f", {d.episodes:,} shared episodes" if d.episodes is not None else ", no shared episodes"


# -- tables


def _tables(a: Run, b: Run, arms: Sequence[_Both], held_out: Sequence[_Both], policies: Sequence[_Both]) -> list[Html]:
    parts = []
    if a.arms or b.arms:
        parts += [el("h2", "Arms side by side"), _arms_table(a, b, arms, held_out)]
    if a.policies or b.policies:
        parts += [el("h2", "Policies side by side"), _policies_table(a, b, policies)]
    return parts


def _arms_table(a: Run, b: Run, arms: Sequence[_Both], held_out: Sequence[_Both]) -> Html:
    heads = ["arm", "held-in, A", "held-in, B", "B less A", "held-out, A", "held-out, B", "B less A"]
    heads += ["trained tokens, A", "trained tokens, B"]
    everything = [*a.arms, *b.arms]
    of_a, of_b = ({_arm_label(arm, everything): arm for arm in run.arms} for run in (a, b))
    rows: list[list[str | Html]] = []
    for name in dict.fromkeys((*of_a, *of_b)):
        x, y = of_a.get(name), of_b.get(name)
        row: list[str | Html] = [name]
        for split, both in (("held-in", arms), ("held-out", held_out)):
            row += [rate(_score(x, split)), rate(_score(y, split)), _less(name, both)]
        rows.append([*row, *(NOTHING if arm is None else f"{arm.trained_tokens:,}" for arm in (x, y))])
    return table(heads, rows)


def _policies_table(a: Run, b: Run, policies: Sequence[_Both]) -> Html:
    heads = [
        "policy",
        "success, A",
        "success, B",
        "B less A",
        "calls per episode, A",
        "calls per episode, B",
        "B less A",
    ]
    units = [run.policies[0].compute_unit if run.policies else "" for run in (a, b)]
    heads += [f"compute ({unit}), {letter}" for unit, letter in zip(units, "AB", strict=True)]
    of_a, of_b = ({p.name: p for p in run.policies} for run in (a, b))
    rows: list[list[str | Html]] = []
    for name in dict.fromkeys((*of_a, *of_b)):
        pair = (of_a.get(name), of_b.get(name))
        row: list[str | Html] = [name, *(rate(p) for p in pair), _less(name, policies)]
        row += [NOTHING if p is None else f"{p.deepthink_calls_per_episode:.2f}" for p in pair]
        row.append(_less_calls(a, b, name))
        rows.append([*row, *(NOTHING if p is None else f"{p.compute:.3g}" for p in pair)])
    return table(heads, rows)


def _less(name: str, both: Sequence[_Both]) -> str | Html:
    found = next((x for x in both if x.name == name), None)
    return NOTHING if found is None else with_interval(found.d)


def _less_calls(a: Run, b: Run, name: str) -> str:
    if not _same_levels(a, b, "switch"):
        return NOTHING
    d = compared_calls(b.outcomes.calls.get(name, {}), a.outcomes.calls.get(name, {}))
    return NOTHING if d is None else with_interval(d)


# -- settings


def flat(value: Any, name: str = "") -> dict[str, str]:
    """A recipe's fields by dotted name, as JSON."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, below in value.items() for k, v in flat(below, f"{name}.{key}" if name else key).items()}
    return {name: json.dumps(value, ensure_ascii=False)}


def _settings(a: Run, b: Run) -> list[Html]:
    if a.recipe is None or b.recipe is None:
        return [missing("a run without recipe.resolved.json cannot be compared by its settings")]
    one, two = (flat(run.recipe.model_dump(mode="json")) if run.recipe else {} for run in (a, b))
    names = [n for n in dict.fromkeys((*one, *two)) if one.get(n) != two.get(n)]
    if not names:
        return [el("p", "None: the two have the same recipe.")]
    rows: list[list[str | Html]] = [
        [n, *(short(side[n], _VALUE) if n in side else NOTHING for side in (one, two))] for n in names
    ]
    return [table(["setting", "A", "B"], rows, text=3, wrap_last=True)]
