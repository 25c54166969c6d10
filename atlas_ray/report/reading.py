"""What the numbers say, in sentences that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.results import Arm, Score, combine
from ..recipe.select import MATCHED, matched

CONTROLS = ("random", "non-critical", "perplexity", "uniform", "last", "all", "none")
UNCLEAR = "not distinguishable at this scale"


def is_control(selector: str) -> bool:
    """Whether a selector is what critical steps are set against: a control, or one of as many steps as another's."""
    return selector in CONTROLS or matched(selector) is not None


def controls_of(selector: str) -> tuple[str, ...]:
    """The controls of a critical arm: those of all, and those that draw as many steps as it has."""
    return (*CONTROLS, *(f"{kind}_{selector}" for kind in MATCHED))


def signed(value: float) -> str:
    """``+0.030``; what rounds to zero has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "\N{MINUS SIGN}")


def span(low: float, high: float) -> str:
    """``[+0.010, +0.050]``."""
    return f"[{signed(low)}, {signed(high)}]"


def judge(low: float, high: float, better: str = "better", worse: str = "worse", unclear: str = UNCLEAR) -> str:
    """What the interval of a difference says of the first of the two."""
    return better if low > 0 else worse if high < 0 else unclear


def arm_labels(arms: Sequence[Arm]) -> list[str]:
    """Names of the arms, with the cap where several were tried and it has one."""
    several = len({a.fraction for a in arms if 0 < a.fraction < 1}) > 1
    names = ["untuned" if a.selector == "none" else a.name for a in arms]
    return [
        f"{name} {a.fraction:.0%}" if several and 0 < a.fraction < 1 else name
        for name, a in zip(names, arms, strict=True)
    ]


def _difference(where: str, first: str, a: Score, second: str, b: Score) -> str:
    mean, low, high = combine([(1, a), (-1, b)])
    verdict = judge(low, high, f"{first} is better", f"{second} is better")
    return f"{where} {signed(mean)} {span(low, high)}, {verdict}"


def _versus(first: str, a: Arm, second: str, b: Arm) -> str:
    parts = [_difference("held-in", first, a.held_in, second, b.held_in)]
    if a.held_out is not None and b.held_out is not None:
        parts.append(_difference("held-out", first, a.held_out, second, b.held_out))
    return f"{first} minus {second}: {'; '.join(parts)}."


def read_atlas(arms: Sequence[Arm]) -> list[str]:
    """A sentence for every critical arm against each control.

    And for every anchored arm against its plain twin, random and all, and against random with the same anchor.
    """
    labels = arm_labels(arms)
    pairs = list(zip(labels, arms, strict=True))
    sentences = []
    for first, a in pairs:
        if not is_control(a.selector) and not a.anchor:
            for control in controls_of(a.selector):
                sentences += [
                    _versus(f"critical ({first})", a, second, b)
                    for second, b in pairs
                    if b.selector == control
                    and not b.anchor
                    and (control in ("all", "none") or b.fraction == a.fraction)
                ]
    for first, a in pairs:
        if a.anchor:
            sentences += [
                _versus(first, a, second, b)
                for second, b in pairs
                if not b.anchor
                and (b.selector in (a.selector, "all", *_random(a.selector)))
                and (b.selector == "all" or b.fraction == a.fraction)
            ]
        if a.anchor and not is_control(a.selector):
            twins = [(second, b) for second, b in pairs if b.anchor == a.anchor and b.fraction == a.fraction]
            sentences += [_versus(first, a, second, b) for second, b in twins if b.selector in _random(a.selector)]
    return sentences


def _random(selector: str) -> tuple[str, str]:
    return "random", f"random_{selector}"
