"""``report.html``: one self-contained file that loads nothing, the same bytes for the same run.

This module is the one to begin with: `build_report` puts the parts together, in the order of the lists below, so a new
part is a line in one of them. First the questions (`headlines.py` and the `*headlines.py`), then pictures, tables, a
viewer of episodes (`viewer.py`, `viewer_data.py`, `viewer.js`), and folded away what only a checker reads. `run.py`
reads the run directory, `outcomes.py` how its episodes ended. `page.py` makes safe HTML, `tables.py` and the
`*plots.py` tables and pictures, `reading.py` and `switch_reading.py` all comparisons in sentences. May import
`selection` and below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from ..data.own_rounds import load_own_rounds
from ..data.rounds import load_rounds
from ..rundir.files import write_text
from ..rundir.layout import RunLayout
from . import arm_headlines, sweep_headlines, switch_headlines
from .claims import claims
from .collected import collected_part, outcomes_part
from .distilled import distilled_part
from .episode_view import RecordedEpisode, SwitchStep, switch_episode_view
from .estimates import estimates_part
from .forgetting import COULD
from .headlines import WITHIN, Headline, answers_part, picture
from .journal import events, stage_times
from .own_rounds import own_rounds_headlines, own_rounds_part
from .page import Html, el, missing, page
from .places import marked_panels, places_figure
from .plots import atlas_figure, save_png, svg
from .reading import is_control, read_atlas
from .round_plots import own_rounds_figure, rounds_figure
from .rounds import rounds_headlines, rounds_part
from .run import Run, read_run
from .selection import agreement_part, review_part
from .starts import read_starts, starts_part
from .summary import summary
from .sweep import sweep_part
from .switch_plots import called_panels, londi_figure
from .switching import policies_part, reading_part, switch_pictures
from .tables import arms_part, replies_table
from .training import training_part
from .viewer import viewer_part

__all__ = ["RecordedEpisode", "SwitchStep", "answers", "build_report", "write_plots"]

Part = Callable[[Run], Sequence[Html]]
"""A part of the page; nothing where the run has nothing of the kind."""

_QUESTIONS: tuple[Callable[[Run], list[Headline]], ...] = (
    switch_headlines.switch_headlines,
    rounds_headlines,
    own_rounds_headlines,
    arm_headlines.arm_headlines,
    sweep_headlines.sweep_headlines,
)
"""The first screen."""

_MAIN = ("switch", "rounds", "own-rounds", "arms", "tokens", "sweep-leaders", "sweep-random", "sweep-all")
"""The headlines with which a command ends."""

_PICTURES: tuple[Part, ...] = (
    switch_pictures,
    arm_headlines.arm_pictures,
    sweep_headlines.sweep_pictures,
    lambda run: _places(run),
)
"""Pictures that no headline has shown already."""

_TABLES: tuple[Part, ...] = (
    policies_part,
    lambda run: estimates_part(run.layout),
    rounds_part,
    own_rounds_part,
    arms_part,
    lambda run: collected_part(run.layout),
    lambda run: outcomes_part(run.marks) if run.marks else [],
    lambda run: _agreement(run),
    lambda run: distilled_part(run.layout),
    lambda run: _starts(run),
    lambda run: _replies(run),
    lambda run: training_part(run.root),
)
"""Tables, each under a heading of the third order."""


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Needs ``results.json``, annotations or a sweep; any other input that is missing leaves its part out, with a line
    that says so.

    Raises:
        InputError: an input is missing that is needed, or is not what it should be.
    """
    run = read_run(Path(run_dir))
    title = f"atlas-ray: {run.title}"
    headlines = list(chain.from_iterable(ask(run) for ask in _QUESTIONS))
    viewer, script = viewer_part(run, _episodes(run))
    parts = [
        el("header", el("h1", title), el("p", summary(run), cls="lead")),
        *_section("What came out", [*answers_part(headlines), *_answers_note(headlines)]),
        *sweep_part(run.root),
        *_section("Pictures", [el("div", shown, cls="pictures")] if (shown := _all(_PICTURES, run)) else []),
        *_section("Tables", [*_all(_TABLES, run), *_not_there(run)]),
        *_section("Episodes", viewer),
        *_section("For those who check", _checks(run)),
    ]
    path = RunLayout(run_dir).report
    write_text(path, page(title, parts, script))
    return path


def answers(run_dir: str | Path) -> list[str]:
    """The main questions of the report's first screen with their answers, those of a kind together.

    Raises:
        InputError: as for :func:`build_report`.
    """
    run = read_run(Path(run_dir))
    kinds = [[f"{h.question} {h.answer}" for h in ask(run) if h.name in _MAIN] for ask in _QUESTIONS]
    return [" ".join(told) for told in kinds if told]


def _all(parts: Sequence[Part], run: Run) -> list[Html]:
    return list(chain.from_iterable(part(run) for part in parts))


def _section(title: str, parts: Sequence[Html]) -> list[Html]:
    """A heading and what stands under it; nothing where that is empty."""
    return [el("h2", title), *parts] if parts else []


def _answers_note(headlines: Sequence[Headline]) -> list[Html]:
    if not headlines:
        return []
    told = (
        "Answers are made from 95 % intervals of differences, between what played the same episodes wherever the run "
        "keeps them, widened so that all comparisons behind an answer hold together. "
        f"As good as another is what is shown to lie less than {WITHIN:g} below it; of several switches or arms that "
        "do, the one with the fewest calls or trained tokens is named. The untuned model could do a level where it "
        f"has at least {COULD:g}."
    )
    return [el("p", told, cls="note")]


def _places(run: Run) -> list[Html]:
    """Where in an episode the marks of the selectors and the calls of the switches lie."""
    panels = called_panels(run.policies)
    if run.marks is not None:
        controls = [name for name in run.marks.found if is_control(name)]
        panels = [*marked_panels(run.marks.trajectories, run.marks.found, controls), *panels]
    if not panels:
        return []
    image = svg(places_figure(panels), "places", "Where in an episode marks and calls lie")
    caption = (
        "Where in an episode the marks of the selectors and the calls of the switches lie: share in each tenth of the "
        "episode; controls and baselines in blue. The line is what spreading them evenly would give."
    )
    return [picture(image, caption)]


def _agreement(run: Run) -> list[Html]:
    if not run.selects:
        return []
    if run.marks is None:
        return [el("h3", "How far the selectors agree"), missing(f"{_expert(run)} is missing")]
    return [el("h3", "How far the selectors agree"), *agreement_part(run.marks)]


def _expert(run: Run) -> str:
    return str(run.layout.expert.relative_to(run.root))


def _starts(run: Run) -> list[Html]:
    starts = read_starts(run.root)
    if not starts and not (run.recipe and run.recipe.select and run.recipe.select.start_after):
        return []
    return [el("h3", "What the untuned model does behind marked steps"), *starts_part(starts)]


def _replies(run: Run) -> list[Html]:
    told = (run.results.replies or {}).get("select") if run.results else None
    return [el("h3", "What became of the replies of models that select"), *replies_table(told)] if told else []


def _not_there(run: Run) -> list[Html]:
    """What a reader may look for in vain."""
    if run.layout.sweep_json.is_file():
        return []
    told = {
        "this run scored no model": not run.arms and not run.policies,
        "this run tuned no model": bool(run.policies) and not run.arms,
        "this run trained no switch": bool(run.arms) and not run.policies,
        "this run selected no steps": not run.selects,
    }
    return [missing(what) for what, is_so in told.items() if is_so]


def _episodes(run: Run) -> list[Html]:
    parts: list[Html] = []
    if run.marks is not None:
        parts += [el("h3", "Expert episodes and their critical steps"), *review_part(run.root, run.marks)]
    if run.policies:
        parts += [el("h3", "An episode under the switch"), *switch_episode_view(run.root)]
    return parts


def _checks(run: Run) -> list[Html]:
    """What is folded away."""
    return [
        *_fold("All comparisons", _comparisons(run)),
        *_fold("What was dropped and retried", [events(run.root)]),
        *_fold("How long it took", [stage_times(run.root)]),
        *_fold("Every setting of this run", _resolved(run.layout.recipe)),
        *_fold("The papers' claims and ours", claims(run.recipe)),
    ]


def _fold(title: str, parts: Sequence[Html]) -> list[Html]:
    return [el("details", el("summary", title), parts)] if parts else []


def _comparisons(run: Run) -> list[Html]:
    parts = []
    if sentences := read_atlas(run.arms):
        parts += [el("h3", "Critical steps"), el("ul", [el("li", s) for s in sentences], cls="reading")]
    parts += reading_part(run.policies)
    if parts:
        parts.append(
            el(
                "p",
                "In brackets 95 % intervals, as if the two had played other episodes, and so too wide where they "
                "played the same. A difference counts only when its interval leaves zero out; where there is no "
                "effect at all, up to one comparison in twenty still does so by chance.",
                cls="note",
            )
        )
    return parts


def _resolved(path: Path) -> list[Html]:
    if not path.is_file():
        return [missing(f"{path.name} is missing")]
    text = json.dumps(json.loads(path.read_bytes()), indent=2, ensure_ascii=False)
    return [el("pre", text, tabindex="0")]


def write_plots(run_dir: str | Path) -> list[Path]:
    """Save the pictures of both methods and of the rounds as PNG in the run directory; returns those written."""
    run = read_run(Path(run_dir))
    figures: dict[str, Figure] = {}
    if run.arms:
        figures["atlas.png"] = atlas_figure(run.arms)
    if run.policies:
        figures["londi.png"] = londi_figure(run.policies)
    if run.layout.rounds.is_file():
        figures["rounds.png"] = rounds_figure(load_rounds(run.layout.rounds))
    if run.layout.own_rounds.is_file():
        figures["own-rounds.png"] = own_rounds_figure(load_own_rounds(run.layout.own_rounds))
    written = []
    for name, figure in figures.items():
        save_png(figure, run.root / name)
        written.append(run.root / name)
    return written
