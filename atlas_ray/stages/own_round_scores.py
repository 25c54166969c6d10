"""What the episodes of the rounds of a model's own runs say: success on the same episodes, and which round is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.paired import Difference, episodes_needed, paired_difference
from ..data.results import Cell, interval
from ..rundir import files

Episode = tuple[str, int]
"""Level and seed."""
Played = dict[Episode, bool]
"""Whether each episode of a model was a success; lost ones say nothing and are left out."""


def played_by(path: Path, key: str) -> Played:
    """Episodes of a model in a file of episodes."""
    found = {(r["level"], r["seed"]): r for r in files.jsonl_rows(path) if r["model"] == key}  # the later line counts
    return {episode: bool(row["success"]) for episode, row in found.items() if not row["lost"]}


def common(models: Sequence[Sequence[Played]], wanted: Callable[[Episode], bool] = lambda _: True) -> list[Episode]:
    """Episodes that all models have played, with every training seed."""
    return sorted(filter(wanted, set.intersection(*(set(own) for each in models for own in each))))


def cell(model: Sequence[Played], episodes: Sequence[Episode]) -> Cell:
    """Success of a model, over its training seeds, on these episodes."""
    mean, low, high = interval(_table(model, episodes))
    return Cell(success=mean, ci95=(low, high), episodes=len(model) * len(episodes))


def apart(
    first: Sequence[Played], second: Sequence[Played], episodes: Sequence[Episode], level: float = 0.95
) -> Difference:
    """Success of the first less that of the second on these episodes, seed by seed of the training."""
    return paired_difference(_table(first, episodes), _table(second, episodes), level, chained=True)


def _table(model: Sequence[Played], episodes: Sequence[Episode]) -> list[list[bool]]:
    return [[own[episode] for episode in episodes] for own in model]


@dataclass(frozen=True)
class OwnVerdict:
    """What the episodes that judge say of a round.

    Args:
        over: number of the round that it is compared with: the one kept so far; None for round 0.
        gained: its success less that round's.
        kept: whether it is kept.
        why: why it is not.
    """

    over: int | None = None
    gained: Difference | None = None
    kept: bool = True
    why: str = ""


def own_verdicts(judged: Sequence[Sequence[Played]]) -> list[OwnVerdict]:
    """Judge rounds in their order: one is kept where success rose beyond chance over the one kept last (ours)."""
    found: list[OwnVerdict] = []
    last = 0
    for number, model in enumerate(judged):
        if not number:
            found.append(OwnVerdict())
            continue
        episodes = common([model, judged[last]])
        gained = apart(model, judged[last], episodes)
        why = "" if gained.above else _no_gain(number, last, gained, model, judged[last], episodes)
        found.append(OwnVerdict(last, gained, not why, why))
        last = last if why else number
    return found


def _no_gain(
    number: int,
    last: int,
    gained: Difference,
    model: Sequence[Played],
    before: Sequence[Played],
    episodes: Sequence[Episode],
) -> str:
    if gained.below:
        return f"round {number} succeeds less often than round {last}"
    told = f"more success than in round {last} cannot be told of round {number} from {len(episodes)} episodes"
    enough = episodes_needed(_table(model, episodes), _table(before, episodes), 0.0, chained=True)
    return told if enough is None else f"{told} (some {enough:,} could show it, if nothing else changes)"
