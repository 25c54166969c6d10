"""What the numbers of the switches say, in sentences that are computed from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..data.results import ALWAYS_DEEPTHINK, ALWAYS_QUICK, Policy, combine
from .reading import UNCLEAR, judge, signed, span

MATCHED = ("random", "every", "threshold", "classifier", "verifier", "escalate")
"""Families of baselines that are played at the rate of each learned switch."""
TRIGGERS = "triggers"
"""The family that calls at a rate of its own."""
ORACLE = "oracle"


def family(policy: Policy) -> str:
    """``londi``, ``londi-b``, ``londi-l``, ``random`` and so on: its name up to the bracket."""
    return policy.name.partition("(")[0]


def ends(policies: Sequence[Policy]) -> tuple[Policy, Policy] | None:
    """(always-quick, always-deepthink), if both were tested and DEEPTHINK was called at all."""
    by_name = {p.name: p for p in policies}
    if ALWAYS_QUICK not in by_name or ALWAYS_DEEPTHINK not in by_name:
        return None
    quick, deepthink = by_name[ALWAYS_QUICK], by_name[ALWAYS_DEEPTHINK]
    return (quick, deepthink) if deepthink.deepthink_calls_per_episode > 0 else None


def above_line(policy: Policy, quick: Policy, deepthink: Policy) -> tuple[float, float, float]:
    """Success above the random-mixing line at the policy's calls per episode, with the 95 % interval.

    Drawing before each *episode* which model plays all of it gives exactly the straight line between the two ends.
    Beyond the calls of always-deepthink the line stays at its success. The calls are taken as known.
    """
    share = min(1.0, policy.deepthink_calls_per_episode / deepthink.deepthink_calls_per_episode)
    return combine([(1, policy), (share - 1, quick), (-share, deepthink)])


def twins(policy: Policy, policies: Sequence[Policy]) -> list[Policy]:
    """Baselines at a switch's rate of calls, to two digits, and triggers at their own, all under the same budget."""
    rate = round(policy.deepthink_share, 2)

    def at_its_rate(other: Policy) -> bool:
        return other is not policy and (own := _set_to(other)) is not None and own == rate

    rivals = [p for p in policies if (p.budget, p.budget_unit) == (policy.budget, policy.budget_unit)]
    return [p for p in rivals if family(p) == TRIGGERS or (family(p) in MATCHED and at_its_rate(p))]


def _set_to(policy: Policy) -> float | None:
    """The rate of calls that a baseline was set to, where it has one."""
    rate = re.search(r"\(p=([\d.]+)", policy.name)
    return None if rate is None else float(rate[1])


def read_londi(policies: Sequence[Policy]) -> dict[str, list[str]]:
    """Sentences by what they are about: all policies first, then every switch under its name."""
    pair = ends(policies)
    told = {"All policies": _all(policies, pair)}
    for policy in policies:
        if policy.is_switch:
            about = [] if pair is None else [_line(policy, *pair)]
            about += _versus(policy, twins(policy, policies))
            about += [] if pair is None else [_saving(policy, pair[1])]
            told[policy.name] = about + _spread(policy) + _chosen(policy) + _kept(policy)
    return {name: sentences for name, sentences in told.items() if sentences}


def _all(policies: Sequence[Policy], pair: tuple[Policy, Policy] | None) -> list[str]:
    sentences = []
    if pair is not None:
        quick, deepthink = pair
        mean, low, high = combine([(1, deepthink), (-1, quick)])
        verdict = judge(
            low,
            high,
            "the large model is better, so calling it can pay",
            "the small model is better, so calling the large one cannot pay",
            f"{UNCLEAR}, so there is little that a switch could gain",
        )
        sentences.append(f"{deepthink.name} minus {quick.name}: {signed(mean)} {span(low, high)}, {verdict}.")
    for policy in policies:
        if policy.name == ORACLE:
            sentences.append(
                f"{ORACLE}, which calls wherever QUICK does not do what the expert would, makes "
                f"{policy.deepthink_calls_per_episode:.2f} calls per episode, on {policy.deepthink_share:.0%} of the "
                f"steps, and has success {policy.success:.2f} {_interval(policy)}."
            )
    bounded = [p for p in policies if p.budget is not None]
    if bounded:
        broken, episodes = sum(p.budget_violations for p in bounded), sum(p.episodes for p in bounded)
        sentences.append(f"Budgets were exceeded in {broken:,} of {episodes:,} episodes.")
    return sentences


def _line(policy: Policy, quick: Policy, deepthink: Policy) -> str:
    mean, low, high = above_line(policy, quick, deepthink)
    where = f"random mixing at its {policy.deepthink_calls_per_episode:.2f} calls per episode"
    return f"Against {where}: {signed(mean)} {span(low, high)}, {judge(low, high)}."


def _versus(policy: Policy, others: Sequence[Policy]) -> list[str]:
    parts = []
    for other in others:
        mean, low, high = combine([(1, policy), (-1, other)])
        calls = f"{other.deepthink_calls_per_episode:.2f} calls per episode"
        parts.append(f"{other.name} {signed(mean)} {span(low, high)}, {judge(low, high)} ({calls})")
    own = ", and triggers at their own" if TRIGGERS in map(family, others) else ""
    return [f"Against baselines at its rate of calls{own}: {'; '.join(parts)}."] if parts else []


def _saving(policy: Policy, deepthink: Policy) -> str:
    mean, low, high = combine([(1, policy), (-1, deepthink)])
    unclear = "at a success that cannot be told apart at this scale"
    outcome = judge(low, high, "at a higher success", "at a lower success", unclear)
    saved = [_less(policy.deepthink_calls_per_episode, deepthink.deepthink_calls_per_episode, "fewer", "calls")]
    if deepthink.compute > 0:
        saved.append(_less(policy.compute, deepthink.compute, "less", "compute"))
    return (
        f"Against {deepthink.name}: {' and '.join(saved)}, {outcome}: {signed(mean)} {span(low, high)}. "
        f"It calls on {policy.deepthink_share:.0%} of its steps."
    )


def _less(a: float, b: float, fewer: str, what: str) -> str:
    return f"{abs(1 - a / b):.0%} {fewer if a <= b else 'more'} {what}"


def _spread(policy: Policy) -> list[str]:
    if len(policy.success_by_seed) < 2:
        return []
    low, high = min(policy.success_by_seed), max(policy.success_by_seed)
    each = ", ".join(f"{s:.2f}" for s in policy.success_by_seed)
    return [f"Over {len(policy.seeds)} training seeds its success goes from {low:.2f} to {high:.2f} ({each})."]


def _chosen(policy: Policy) -> list[str]:
    if policy.chosen_success is None:
        return []
    more = policy.chosen_success - policy.success
    return [f"In the episodes that chose it its success was {policy.chosen_success:.2f}, {signed(-more)} here."]


def _kept(policy: Policy) -> list[str]:
    if policy.checkpoint is None:
        return []
    return [
        f"It was fitted to training episodes, not learned, and is kept as checkpoints/{policy.checkpoint}: it can be "
        "served and collected with like a learned switch."
    ]


def _interval(policy: Policy) -> str:
    return f"[{policy.ci95[0]:.2f}, {policy.ci95[1]:.2f}]"
