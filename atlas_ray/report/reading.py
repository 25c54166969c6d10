"""What the numbers say, in sentences that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import ALWAYS_DEEPTHINK, ALWAYS_QUICK, Arm, Policy, Score, combine

CONTROLS = ("random", "non-critical", "perplexity", "uniform", "last", "all", "none")
UNCLEAR = "not distinguishable at this scale"


def signed(value: float) -> str:
    """``+0.030``; what rounds to zero has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "\N{MINUS SIGN}")


def span(low: float, high: float) -> str:
    """``[+0.010, +0.050]``."""
    return f"[{signed(low)}, {signed(high)}]"


def judge(low: float, high: float, better: str = "better", worse: str = "worse") -> str:
    """What the interval of a difference says of the first of the two."""
    return better if low > 0 else worse if high < 0 else UNCLEAR


def arm_labels(arms: Sequence[Arm]) -> list[str]:
    """Names of the arms, with the fraction where several were tried."""
    several = len({a.fraction for a in arms if a.selector not in ("none", "all")}) > 1
    names = ["untuned" if a.selector == "none" else a.name for a in arms]
    return [
        f"{name} {a.fraction:.0%}" if several and a.selector not in ("none", "all") else name
        for name, a in zip(names, arms, strict=True)
    ]


def _difference(where: str, first: str, a: Score | Policy, second: str, b: Score | Policy) -> str:
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
        if a.selector not in CONTROLS and not a.anchor:
            for control in CONTROLS:
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
                and (b.selector == "all" or (b.selector in (a.selector, "random") and b.fraction == a.fraction))
            ]
        if a.anchor and a.selector not in CONTROLS:
            twins = [(second, b) for second, b in pairs if b.anchor == a.anchor and b.fraction == a.fraction]
            sentences += [_versus(first, a, second, b) for second, b in twins if b.selector == "random"]
    return sentences


def ends(policies: Sequence[Policy]) -> tuple[Policy, Policy] | None:
    """(always-quick, always-deepthink), if both were tested and DEEPTHINK was called at all."""
    by_name = {p.name: p for p in policies}
    if ALWAYS_QUICK not in by_name or ALWAYS_DEEPTHINK not in by_name:
        return None
    quick, deepthink = by_name[ALWAYS_QUICK], by_name[ALWAYS_DEEPTHINK]
    return (quick, deepthink) if deepthink.deepthink_calls_per_episode > 0 else None


def above_line(policy: Policy, quick: Policy, deepthink: Policy) -> tuple[float, float, float]:
    """Success above the random-mixing line at the policy's calls an episode, with the 95 % interval.

    Drawing before each *episode* which model plays all of it gives exactly the straight line between the two ends.
    Beyond the calls of always-deepthink the line stays at its success. The calls are taken as known.
    """
    share = min(1.0, policy.deepthink_calls_per_episode / deepthink.deepthink_calls_per_episode)
    return combine([(1, policy), (share - 1, quick), (-share, deepthink)])


def read_londi(policies: Sequence[Policy]) -> list[str]:
    """Whether there is something to gain, each learned switch against random mixing and random calls, the budgets."""
    sentences = []
    if (pair := ends(policies)) is not None:
        quick, deepthink = pair
        mean, low, high = combine([(1, deepthink), (-1, quick)])
        verdict = (
            "the large model is better, so calling it can pay"
            if low > 0
            else "the small model is better, so calling the large one cannot pay"
            if high < 0
            else f"{UNCLEAR}, so there is little that a switch could gain"
        )
        sentences.append(f"{deepthink.name} minus {quick.name}: {signed(mean)} {span(low, high)}, {verdict}.")
        sentences += [_switch(policy, quick, deepthink) for policy in policies if policy.learned]
    for policy in policies:
        if policy.learned and (twin := _twin(policy, policies)) is not None:
            verdict = _difference("success", policy.name, policy, twin.name, twin)
            calls = f"{policy.deepthink_calls_per_episode:.2f} against {twin.deepthink_calls_per_episode:.2f}"
            sentences.append(f"{policy.name} minus {twin.name}: {verdict} ({calls} calls an episode).")
    bounded = [p for p in policies if p.budget is not None]
    if bounded:
        broken, episodes = sum(p.budget_violations for p in bounded), sum(p.episodes for p in bounded)
        sentences.append(f"Budgets were exceeded in {broken:,} of {episodes:,} episodes.")
    return sentences


def _twin(policy: Policy, policies: Sequence[Policy]) -> Policy | None:
    """The random policy of the same budget with the nearest share of calls, if that is within 0.05."""

    def distance(other: Policy) -> float:
        return abs(other.deepthink_share - policy.deepthink_share)

    random = [p for p in policies if p.name.startswith("random") and p.budget == policy.budget and distance(p) <= 0.05]
    return min(random, key=distance, default=None)


def _switch(policy: Policy, quick: Policy, deepthink: Policy) -> str:
    mean, low, high = above_line(policy, quick, deepthink)
    verdict = (
        "better than mixing at random"
        if low > 0
        else "worse than mixing at random"
        if high < 0
        else f"{UNCLEAR} from mixing at random"
    )
    side = "above" if mean >= 0 else "below"
    sentence = (
        f"{policy.name} lies {abs(mean):.3f} {side} the random-mixing line at its "
        f"{policy.deepthink_calls_per_episode:.2f} calls an episode, interval {span(low, high)}, {verdict}"
    )
    if deepthink.compute > 0:
        calls = policy.deepthink_calls_per_episode / deepthink.deepthink_calls_per_episode
        sentence += (
            f"; success {policy.success:.2f} against {deepthink.success:.2f} of {deepthink.name}, with {calls:.0%} of "
            f"its calls and {policy.compute / deepthink.compute:.0%} of its compute"
        )
    return sentence + "."
