"""What the rounds' episodes say: comparisons on the same episodes, which of a round's policies acts, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.paired import Difference, episodes_needed, paired_counts, paired_difference
from ..data.results import ALWAYS_QUICK, interval
from ..data.rounds import Comparison, System
from ..rundir import files

Row = dict[str, Any]
Played = Sequence[dict[int, Row]]
"""Episodes of a system by their seed, for each training seed; of what is not trained there is one."""


def episodes_of(path: Path, policy: str, training: int | None) -> dict[int, Row]:
    """Episodes of a policy in a file of the switch stage, by seed; lost ones say nothing and are left out."""
    found: dict[int, Row] = {}
    for row in files.jsonl_rows(path):
        if row["policy"] == policy and row["training"] == training:
            found[row["seed"]] = row  # of two lines the later counts
    return {seed: row for seed, row in found.items() if not row.get("lost")}


def common(*systems: Played) -> list[int]:
    """Seeds of the episodes that all systems have played, with every training seed."""
    return sorted(set.intersection(*(set(rows) for played in systems for rows in played)))


def compared(first: Played, second: Played, seeds: Sequence[int] | None = None) -> Comparison:
    """First less second: on these test episodes, or on all that both have played to be judged."""
    judged = common(first, second) if seeds is None else seeds
    wins, calls = ([_table(p, judged, name) for p in (first, second)] for name in ("success", "calls"))
    return Comparison(
        success=paired_difference(wins[0], wins[1], chained=True),
        calls=paired_counts(calls[0], calls[1], chained=True),
    )


def success_apart(first: Played, second: Played, seeds: Sequence[int], level: float = 0.95) -> Difference:
    """Success of the first less that of the second on these episodes."""
    wins = [_table(p, seeds, "success") for p in (first, second)]
    return paired_difference(wins[0], wins[1], level, chained=True)


def system(name: str, played: Played, seeds: Sequence[int]) -> System:
    """Means of a system over these episodes."""
    success, low, high = interval(_table(played, seeds, "success"))
    means = {
        n: fmean(v for row in _table(played, seeds, n) for v in row) for n in ("calls", "flops", "seconds", "money")
    }
    return System(name=name, success=success, ci95=(low, high), episodes=len(played) * len(seeds), **means)


def _table(played: Played, seeds: Sequence[int], name: str) -> list[list[Any]]:
    """A field of each episode, ``[training seeds, episodes]``."""
    return [[rows[seed][name] for seed in seeds] for rows in played]


@dataclass(frozen=True)
class Judged:
    """A round on the episodes that judge.

    Args:
        quick: episodes of its QUICK alone.
        switch: episodes of its switch.
        term: name of the switch.
    """

    quick: Played
    switch: Played
    term: str

    def acting(self, policy: str) -> Played:
        """Episodes of one of the two."""
        return self.quick if policy == ALWAYS_QUICK else self.switch


@dataclass(frozen=True)
class Verdict:
    """What the episodes that judge say of a round.

    Args:
        policy: which of its two policies acts.
        alone: QUICK alone less the switch.
        over: number of the round that it is compared with: the one kept so far.
        gained: what acts less what acts in that round; None for round 0.
        kept: whether it is kept.
        why: why it is not kept.
    """

    policy: str
    alone: Comparison
    over: int | None = None
    gained: Comparison | None = None
    kept: bool = True
    why: str = ""


def verdicts(judged: Sequence[Judged], margin: float) -> list[Verdict]:
    """Judge rounds in their order (the rules are ours).

    A policy keeps up with another where the interval of its success less the other's lies above ``-margin``. QUICK
    alone acts where it keeps up with its switch and with what acts in every round kept so far; else the switch does. A
    round is kept where, over the one kept last, success rose beyond chance, or calls fell beyond chance while success
    keeps up with that of every round kept so far, so that many small losses do not add up.
    """
    found: list[Verdict] = []
    before: list[tuple[int, Played]] = []
    for number, each in enumerate(judged):
        rivals = [each.switch, *(played for _, played in before)]
        policy = ALWAYS_QUICK if all(_keeps_up(each.quick, other, margin) for other in rivals) else each.term
        acting, alone = each.acting(policy), compared(each.quick, each.switch)
        if not before:
            found.append(Verdict(policy, alone))
        else:
            over, last = before[-1]
            gained = compared(acting, last)
            why = "" if gained.success.above else _no_gain(number, acting, before, gained, margin)
            found.append(Verdict(policy, alone, over, gained, not why, why))
        if found[-1].kept:
            before.append((number, acting))
    return found


def _success(played: Played, other: Played) -> tuple[list[list[Any]], list[list[Any]]]:
    seeds = common(played, other)
    return _table(played, seeds, "success"), _table(other, seeds, "success")


def _keeps_up(played: Played, other: Played, margin: float) -> bool:
    return paired_difference(*_success(played, other), chained=True).low > -margin


def _no_gain(
    number: int, acting: Played, before: Sequence[tuple[int, Played]], gained: Comparison, margin: float
) -> str:
    """Why a round without more success is not kept; nothing where its fewer calls make up for it."""
    over = before[-1][0]
    if not gained.calls.below:
        return f"neither more success nor fewer calls than in round {over} can be told of round {number}"
    for earlier, played in before:
        if not _keeps_up(acting, played, margin):
            return f"round {number} calls less than round {over}, but {_cannot(acting, earlier, played, margin)}"
    return ""


def _cannot(acting: Played, earlier: int, played: Played, margin: float) -> str:
    """What stands against a success within the margin of that of an earlier round."""
    rows = _success(acting, played)
    d, episodes = paired_difference(*rows, chained=True), len(rows[0][0])
    if d.high < -margin:
        return f"its success is more than {margin:g} below round {earlier}'s"
    if d.below and d.mean <= -margin:
        return f"its success is below round {earlier}'s"
    told = (
        f"whether its success is within {margin:g} of that of round {earlier} cannot be told from {episodes} episodes"
    )
    if (enough := episodes_needed(*rows, -margin, chained=True)) is not None:
        return f"{told} (some {enough:,} could show it, if nothing else changes)"
    if d.mean <= -margin:
        return f"{told}, and in these it is further below"
    return f"{told}, and no number of episodes could show it with {max(len(r) for r in rows)} training seeds so unlike"
