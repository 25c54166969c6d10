"""Which arms are set against which, question by question, and how far apart they are on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.paired import Difference
from ..data.results import Arm, Score
from .outcomes import difference
from .reading import is_control
from .run import Run

Split = Literal["held_in", "held_out"]
Pair = tuple[Arm, Arm]


@dataclass(frozen=True)
class Question:
    """What is asked of pairs of arms: whether the first does better than the second.

    Attributes:
        name: in files.
        asked: in plain words.
        other: what the second arms are, in plain words.
        pairs: of some arms those that it compares.
    """

    name: str
    asked: str
    other: str
    pairs: Callable[[Sequence[Arm]], list[Pair]]


def critical(arms: Sequence[Arm]) -> list[Arm]:
    """The arms that are trained on critical steps, in their order."""
    return [arm for arm in arms if not is_control(arm.selector) and not arm.pairs]


def twin(arm: Arm, arms: Sequence[Arm], *selectors: str) -> Arm | None:
    """The arm of the first of these selectors that there is, with the same cap and anchor."""
    like = {
        a.selector: a for a in reversed(arms) if not a.pairs and (a.fraction, a.anchor) == (arm.fraction, arm.anchor)
    }
    return next((like[name] for name in selectors if name in like), None)


def everything(arms: Sequence[Arm]) -> Arm | None:
    """The arm of all steps without an anchor."""
    return next((arm for arm in arms if arm.selector == "all" and not arm.anchor), None)


def _with_twins(*kinds: str) -> Callable[[Sequence[Arm]], list[Pair]]:
    def pairs(arms: Sequence[Arm]) -> list[Pair]:
        found = ((arm, twin(arm, arms, *(kind.format(arm.selector) for kind in kinds))) for arm in critical(arms))
        return [(arm, other) for arm, other in found if other is not None]

    return pairs


def _with_all(arms: Sequence[Arm]) -> list[Pair]:
    other = everything(arms)
    return [] if other is None else [(arm, other) for arm in critical(arms)]


def _with_and_without(arms: Sequence[Arm]) -> list[Pair]:
    def plain(arm: Arm) -> Iterator[Arm]:
        return (
            a for a in arms if not a.anchor and not a.pairs and (a.selector, a.fraction) == (arm.selector, arm.fraction)
        )

    return [(arm, other) for arm in arms if arm.anchor for other in plain(arm)]


def _pairs_and_steps(arms: Sequence[Arm]) -> list[Pair]:
    found = ((arm, twin(arm, arms, arm.selector, "all")) for arm in arms if arm.pairs)
    return [(arm, other) for arm, other in found if other is not None]


def _with_successes(arms: Sequence[Arm]) -> list[Pair]:
    other = next((arm for arm in arms if arm.selector == "successes" and not arm.anchor and not arm.pairs), None)
    own = (arm for arm in arms if arm is not other and (arm.pairs or not is_control(arm.selector)))
    return [] if other is None else [(arm, other) for arm in own]


def _predicted_and_made(arms: Sequence[Arm]) -> list[Pair]:
    def made(arm: Arm) -> Iterator[Arm]:
        others = (a for a in critical(arms) if a.selector != "distilled")
        return (a for a in others if (a.fraction, a.anchor) == (arm.fraction, arm.anchor))

    return [(arm, other) for arm in critical(arms) if arm.selector == "distilled" for other in made(arm)]


QUESTIONS = (
    Question(
        "random",
        "Do critical steps teach more than as many random ones?",
        "as many random steps",
        _with_twins("random_{}"),
    ),
    Question(
        "random-cap",
        "And more than random steps under the same cap?",
        "random steps under the same cap",
        _with_twins("random"),
    ),
    Question(
        "non-critical",
        "Do they teach more than steps that are not critical?",
        "steps that are not critical",
        _with_twins("non-critical_{}", "non-critical"),
    ),
    Question("all", "Can critical steps stand in for all steps?", "all steps", _with_all),
    Question(
        "distilled",
        "Do predicted marks teach as much as marks that are made?",
        "marks that are made",
        _predicted_and_made,
    ),
    Question("pairs", "Do pairs of turns teach more than steps alone?", "the steps alone", _pairs_and_steps),
    Question(
        "successes",
        "Of a model's own runs, what teaches more than the successes alone?",
        "the successes alone",
        _with_successes,
    ),
    Question("anchor", "Does the anchor help?", "the same without the anchor", _with_and_without),
)
"""What is asked of the arms of a sweep, in this order."""

FORGETTING = "forgetting"
"""The question that is asked of each arm against the untuned model."""
FORGETS = "Does tuning forget what the untuned model could do?"
"""The same in plain words."""


def score(arm: Arm, split: Split) -> Score | None:
    """Its success on the levels of a split."""
    return arm.held_in if split == "held_in" else arm.held_out


def apart(run: Run, first: Arm, second: Arm, split: Split = "held_in", level: float = 0.95) -> Difference | None:
    """Success of the first less that of the second, on the same episodes where the run keeps them.

    None where one of them was not scored on the split.
    """
    a, b = score(first, split), score(second, split)
    if a is None or b is None:
        return None
    # a name that stands for several caps has no episodes of its own
    unique = sum(arm.name in (first.name, second.name) for arm in run.arms) == 2
    paired = run.outcomes.of_arms(first, second, [*(a.levels or {})], level) if unique else None
    return difference(paired, a, b, level)
