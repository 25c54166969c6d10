"""What the rounds' episodes say: comparisons on the same episodes, which of a round's policies acts, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.resampling import MeanDifference, resampled_difference
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


def table(played: Played, seeds: Sequence[int], name: str) -> list[list[float]]:
    """A number of each episode, ``[training seeds, episodes]``."""
    return [[float(rows[seed][name]) for seed in seeds] for rows in played]


def compared(first: Played, second: Played, seeds: Sequence[int] | None = None) -> Comparison:
    """First less second: on these test episodes, or on all that both have played to be judged."""
    judged = common(first, second) if seeds is None else seeds

    def of(name: str) -> MeanDifference:
        return resampled_difference(table(first, judged, name), table(second, judged, name))

    return Comparison(success=of("success"), calls=of("calls"), objective=of("objective") if seeds is None else None)


def system(name: str, played: Played, seeds: Sequence[int]) -> System:
    """Means of a system over these episodes."""
    success, low, high = interval([[bool(rows[seed]["success"]) for seed in seeds] for rows in played])
    means = {
        n: fmean(v for row in table(played, seeds, n) for v in row) for n in ("calls", "flops", "seconds", "money")
    }
    return System(name=name, success=success, ci95=(low, high), episodes=len(played) * len(seeds), **means)


def is_of_use(comparison: Comparison) -> bool:
    """Whether a switch, compared with its QUICK alone, is to act: its calls bring success beyond chance.

    Where success cannot be told apart the fewer calls are taken, which are none.
    """
    return comparison.success.above


def has_gained(comparison: Comparison) -> bool:
    """Whether a round, compared with the one before, gained: more success, or as much with fewer calls.

    Each beyond chance; as much is what cannot be told to be less.
    """
    return comparison.success.above or (comparison.calls.below and not comparison.success.below)


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

    @property
    def of_use(self) -> Comparison:
        """Switch less QUICK alone."""
        return compared(self.switch, self.quick)

    @property
    def policy(self) -> str:
        """Which of the two acts."""
        return self.term if is_of_use(self.of_use) else ALWAYS_QUICK

    @property
    def acting(self) -> Played:
        """Episodes of the one that acts."""
        return self.quick if self.policy == ALWAYS_QUICK else self.switch


def kept_round(judged: Sequence[Judged]) -> tuple[int, str]:
    """The round to use: the last up to which each gained over the one before; and why none behind it."""
    for number in range(1, len(judged)):
        found = compared(judged[number].acting, judged[number - 1].acting)
        if not has_gained(found):
            return number - 1, f"round {number} gained nothing over it: {words(found)}"
    last = len(judged) - 1
    return last, "no more rounds were played"


def words(found: Comparison) -> str:
    """A comparison for people."""

    def one(name: str, d: MeanDifference) -> str:
        return f"{name} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"

    return f"{one('success', found.success)}, {one('calls', found.calls)}"
