"""The turns of an imported trajectory word by word, in memory and beside the trajectories of a run.

A line of ``imported-words.jsonl``: ``{"id": str, "turns": {NUMBER: text}}``, the turns that :func:`plain` would
write otherwise, by their 0-based number in the conversation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..files import jsonl_rows, write_parts
from ..records import Trajectory
from .items import ImportedTrajectory
from .turns import compose, parse

ACKNOWLEDGEMENT = "OK."

Words = dict[str, str]


def plain(item: Trajectory) -> tuple[str, ...]:
    """All turns of a trajectory as we write them."""
    turns = [item.instruction, ACKNOWLEDGEMENT]
    for step in item.steps:
        turns += [step.observation, compose(step.thought, step.action)]
    return tuple(turns)


def texts_of(item: Trajectory) -> tuple[str, ...]:
    """All turns of a trajectory: as they were read when they still say the same, else as we write them."""
    if isinstance(item, ImportedTrajectory) and item.conversation[0] == item.instruction:
        texts = item.conversation
        read = [(o, *(parse(a) or (None, ""))) for o, a in zip(texts[2::2], texts[3::2], strict=False)]
        if read == [(s.observation, s.thought, s.action) for s in item.steps]:
            return texts
    return plain(item)


def words_of(item: Trajectory) -> Words:
    """The turns of the conversation it was read from that :func:`plain` would write otherwise."""
    if not isinstance(item, ImportedTrajectory):
        return {}
    ours = plain(item)
    return {str(n): text for n, text in enumerate(item.conversation) if ours[n : n + 1] != (text,)}


def with_words(item: Trajectory, words: Words) -> Trajectory:
    """The trajectory with the conversation it was read from; as it is when the words do not fit its turns."""
    turns = list(plain(item))
    for number, text in sorted((int(n), text) for n, text in words.items()):
        if number > len(turns):
            return item
        turns[number : number + 1] = [text]
    return ImportedTrajectory(**dict(item), conversation=tuple(turns))


def _path(run_dir: Path) -> Path:
    return run_dir / "imported-words.jsonl"


def write_words(run_dir: Path, words: Mapping[str, Words]) -> None:
    """Keep the words of a run's trajectories, by their ids."""
    rows = ({"id": name, "turns": turns} for name, turns in words.items())
    write_parts(_path(run_dir), (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_words(run_dir: Path) -> dict[str, Words]:
    """The words of a run's trajectories; nothing for a run that keeps none."""
    return {row["id"]: row["turns"] for row in jsonl_rows(_path(run_dir))}
