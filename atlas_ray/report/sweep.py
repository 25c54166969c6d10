"""The report's part on a sweep: one row per trial, a picture, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.paired import Difference
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from .arm_pairs import FORGETS, FORGETTING, QUESTIONS
from .headlines import with_interval
from .page import NOTHING, Html, el, short, table
from .plots import svg
from .sweep_plots import axis_of, label, ranked_figure, score_figure, switches_figure, word
from .swept_arms import Comparison, comparisons_of

_FRONT = (
    "Success against DEEPTHINK calls per episode on the test episodes, with 95 % intervals. Filled and connected: "
    "trials than which none has more success with as few calls. The others are hollow."
)
_CHOSEN = (
    "The best of many trials looks better than it is, because it was picked by the very numbers that are shown. What "
    "it is worth is told by episodes that it was not picked by: run it with another seed."
)


_COMPARED = (
    "Success of the first less that of the second, on the same episodes, over new episodes and new training seeds. "
    "Intervals are widened so that all of one question and column hold together. Known levels are those that the "
    "untuned model could do."
)


def read_sweep(layout: RunLayout) -> dict[str, Any] | None:
    """What is in ``sweep.json``; None where there is none."""
    return read_json(layout.sweep_json) if layout.sweep_json.is_file() else None


def sweep_part(run_dir: Path) -> list[Html]:
    """Table and picture of a sweep's trials; nothing where the directory holds no sweep."""
    made = read_sweep(RunLayout(run_dir))
    if made is None:
        return []
    compared = comparisons_of(made)
    failed = [row for row in made["trials"] if "why" in row]
    return [
        el("h2", "The sweep"),
        el("p", _sentence(made)),
        trials_table(made),
        el("p", _CHOSEN, cls="note"),
        *([] if compared else _picture(made)),
        *([el("details", el("summary", "All comparisons of arms"), _compared_part(compared))] if compared else []),
        *([el("h3", "Trials that failed"), el("ul", [_failure(row) for row in failed])] if failed else []),
    ]


def _sentence(made: Mapping[str, Any]) -> str:
    by_status = [row["status"] for row in made["trials"]]
    words = {"done": "done", "stopped": f"stopped early by {made['scheduler']}", "failed": "failed"}
    words["unfinished"] = "not finished and left out"
    counts = ", ".join(f"{by_status.count(s)} {words[s]}" for s in words if s in by_status)
    sentence = f"{len(by_status)} trials over {', '.join(made['fields'])}: {counts}."
    best = next((row for row in made["trials"] if row["trial"] == made["best"]), None)
    if best is None:
        return sentence
    which = "largest" if made["mode"] == "max" else "smallest"
    values = label(best["values"], made["fields"])
    return f"{sentence} The {which} {word(made['metric'])} has trial {best['trial']} ({values}): {best['metric']:.3f}."


def trials_table(made: Mapping[str, Any]) -> Html:
    """One row per trial."""
    switch = made["kind"] == "switch"
    numbers = {"calls": ".2f", "share": ".1%", "return": ".3f", "objective": ".3f", "steps": ",", "seconds": ".0f"}
    numbers = numbers if switch else {"share": ".1%", "trained_tokens": ",", "seconds": ".0f"}
    heads = {"calls": "calls per episode", "share": "share of steps", "trained_tokens": "trained tokens"}
    held_out = any("held_out" in row for row in made["trials"])
    shown = ["trial", *made["fields"], "", "success" if switch else "held-in success"]
    forgetting = any("forgetting" in row for row in made["trials"])
    shown += [*(["held-out success"] if held_out else []), *(["forgetting"] if forgetting else [])]
    shown += [heads.get(name, name) for name in numbers]
    shown += ["budget exceeded"] if switch else []
    rows: list[list[str | Html]] = []
    for row in made["trials"]:
        cells: list[str | Html] = [str(row["trial"])]
        cells += [
            short(label(row["values"], [f], names=False), 40) if f in row["values"] else NOTHING for f in made["fields"]
        ]
        cells += [_mark(row, made), _rate(row, "success", "ci95")]
        cells += [_rate(row, "held_out", "held_out_ci95")] if held_out else []
        cells += [_change(row)] if forgetting else []
        cells += [format(row[name], spec) if name in row else NOTHING for name, spec in numbers.items()]
        cells += [f"{row['budget_violations']:,}" if "budget_violations" in row else NOTHING] if switch else []
        rows.append(cells)
    return table(shown, rows, text=len(made["fields"]) + 2)


def _mark(row: Mapping[str, Any], made: Mapping[str, Any]) -> Html | str:
    marks = ["best"] if row["trial"] == made["best"] else []
    marks += ["front"] if row["trial"] in made["front"] else []
    marks += [row["status"]] if row["status"] != "done" else []
    return el("span", ", ".join(marks), cls="badge") if marks else ""


def _rate(row: Mapping[str, Any], name: str, interval: str) -> Html:
    if name not in row:
        return el("span", NOTHING, cls="ci")
    low, high = row[interval]
    return Html(f"{row[name]:.2f} " + el("span", f"[{low:.2f}, {high:.2f}]", cls="ci"))


def _change(row: Mapping[str, Any]) -> str:
    if "forgetting" not in row:
        return NOTHING
    return with_interval(Difference(row["forgetting"], *row["forgetting_ci95"]))


def _compared_part(compared: Sequence[Comparison]) -> list[Html]:
    names = {question.name: question.asked for question in QUESTIONS}
    names |= {FORGETTING: FORGETS}
    columns = {"held_in": "held-in", "held_out": "held-out", "known": "known levels"}
    found: dict[tuple[str, str, str, str], dict[str, Comparison]] = {}
    for c in compared:
        where = label(c.values, c.values) or NOTHING
        found.setdefault((c.question, where, c.first, c.second), {})[c.split] = c
    parts: list[Html] = []
    for question, asked in names.items():
        own = {key: cells for key, cells in found.items() if key[0] == question}
        splits = [split for split in columns if any(split in cells for cells in own.values())]
        rows: list[list[str | Html]] = [
            [
                where,
                first,
                "untuned" if second == "none" else second,
                *(with_interval(cells[split].difference) if split in cells else NOTHING for split in splits),
                *_counts(cells[splits[0]]),
            ]
            for (_, where, first, second), cells in own.items()
        ]
        if rows:
            heads = ["where", "first", "second", *(columns[split] for split in splits), "episodes", "seeds"]
            parts += [el("h4", asked), table(heads, rows, text=3)]
    return [*parts, el("p", _COMPARED, cls="note")]


def _counts(c: Comparison) -> list[str]:
    return [NOTHING if c.difference.episodes is None else f"{c.difference.episodes:,}", str(c.seeds)]


def _failure(row: Mapping[str, Any]) -> Html:
    return el("li", short(f"Trial {row['trial']}: {row['why']}", 500))


def _picture(made: Mapping[str, Any]) -> list[Html]:
    if not any("metric" in row for row in made["trials"]):
        return []
    if made["kind"] == "switch":
        figure, caption = switches_figure(made), _FRONT
        if made["ends"]:
            caption += " Dashed: random mixing, which draws one of the two models for each whole episode."
    elif axis := axis_of(made):
        figure = score_figure(made, axis)
        caption = f"The {word(made['metric'])} of the trials over {axis}, with 95 % intervals."
    else:
        figure, caption = ranked_figure(made), f"The {word(made['metric'])} of the trials, with 95 % intervals."
    return [el("figure", svg(figure, "sweep", "Scores of the trials"), el("figcaption", caption))]
