"""The first screen: a question, its answer in plain words, the numbers behind it, and the picture that carries it.

An answer is made from intervals that hold together for all comparisons behind it, so that the best of several may be
named. What cannot be told is said to be so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..data.paired import Difference
from ..data.results import Arm, Policy
from .page import Html, el, scrolling

WITHIN = 0.05
"""A success rate that lies at most so far below another is as good for a headline (ours)."""

_MOST_LINES = 6


@dataclass(frozen=True)
class Headline:
    """One question and its answer.

    Attributes:
        name: its id in the page, of its own.
        question: in a few words.
        answer: one or two sentences without intervals.
        numbers: what the answer was made from, with intervals; the first six are shown.
        picture: a ``figure`` element, or None.
        caveat: what the answer does not know, or nothing.
    """

    name: str
    question: str
    answer: str
    numbers: Sequence[str] = ()
    picture: Html | None = None
    caveat: str = ""


def answers_part(headlines: Sequence[Headline]) -> list[Html]:
    """The first screen."""
    return [_answer(headline) for headline in headlines]


def _answer(h: Headline) -> Html:
    numbers = [el("li", line) for line in h.numbers[:_MOST_LINES]]
    if (more := len(h.numbers) - _MOST_LINES) > 0:
        numbers.append(el("li", f"… and {more} more, see all comparisons below."))
    told = [el("h3", h.question), el("p", h.answer, cls="headline")]
    told += [el("ul", numbers, cls="numbers")] if numbers else []
    told += [el("p", h.caveat, cls="note")] if h.caveat else []
    shown = [h.picture] if h.picture is not None else []
    return el("section", el("div", told, cls="said"), *shown, cls="answer" if shown else "answer alone", id=h.name)


def trained_once(scored: Iterable[Arm | Policy]) -> str:
    """The caveat of an answer on models of which one was trained only once; nothing where none was."""
    once = any(len(each.seeds) == 1 for each in scored)
    return "Trained once: the intervals know nothing of the spread between trainings." if once else ""


def picture(image: Html, caption: str) -> Html:
    """A picture and what it shows; it scrolls by itself where it is wider than the page."""
    return el("figure", scrolling(image, "picture", "drawing"), el("figcaption", caption))


def percent(share: float) -> str:
    """``84 %``, which does not break."""
    return f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def tokens_saved(arm: Arm, other: Arm) -> str:
    """``with 67 % fewer trained tokens``: of an arm against another."""
    if not other.trained_tokens:
        return "at no known saving"
    saved = 1 - arm.trained_tokens / other.trained_tokens
    if not round(saved, 2):
        return "with as many trained tokens"
    return f"with {percent(abs(saved))} {'fewer' if saved > 0 else 'more'} trained tokens"


def with_interval(d: Difference) -> str:
    """``+0.03 [−0.04, +0.10]``."""
    mean, low, high = (f"{round(v, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") for v in (d.mean, d.low, d.high))
    return f"{mean} [{low}, {high}]"


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b and c``; of very many the first ones. The arm ``all`` is ``all steps``, as it would be misread."""
    said = ["all steps" if name == "all" else name for name in names]
    shown = said if len(said) <= most else [*said[: most - 1], f"{len(said) - most + 1} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def is_as_good(d: Difference) -> bool:
    """Whether the first of the two is shown to lie no more than :data:`WITHIN` below the second."""
    return d.low >= -WITHIN
