"""Preference pairs, a chosen and a rejected turn on the same history, and the JSONL file that holds them.

A line: ``{"id", "episode", "step", "env", "task", "seed", "instruction", "source", "history": [steps], "observation",
"chosen": {"thought"?, "action", "actor"?}, "rejected": {...}, "evidence"?}``. Steps are those of a trajectory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationInfo, field_validator

from ..errors import InputError
from ..rundir.files import write_parts
from .records import OnError, Step, Trajectory, rows_by_id

Side = Literal["chosen", "rejected"]


class Turn(BaseModel):
    """What an agent writes in one step. ``actor`` names who wrote it, None where nobody knows."""

    model_config = Step.model_config

    thought: str | None = None
    action: str = Field(min_length=1)
    actor: str | None = None

    def words(self) -> tuple[str, str]:
        """Thought and action as a model is trained on them, with single spaces."""
        return " ".join((self.thought or "").split()), " ".join(self.action.split())


class Pair(BaseModel):
    """Two turns on the same history, the first of which is preferred.

    ``env``, ``task``, ``seed``, ``instruction`` and ``source`` are those of the trajectory whose id is ``episode``;
    the actions of ``history`` on that seed lead to ``observation``, on which both turns act. ``step`` is its 0-based
    step, so ``history`` has as many steps. ``evidence`` says why the one is preferred, in words of whoever made the
    pair (roll-outs, successes of each, seeds of the roll-outs).
    """

    model_config = Step.model_config

    id: str = Field(min_length=1)
    episode: str = Field(min_length=1)
    step: int = Field(ge=0)
    env: str
    task: str
    seed: int
    instruction: str
    source: str
    history: tuple[Step, ...]
    observation: str
    chosen: Turn
    rejected: Turn
    evidence: dict[str, JsonValue] = {}

    @field_validator("history")
    @classmethod
    def _all_of_it(cls, history: tuple[Step, ...], info: ValidationInfo) -> tuple[Step, ...]:
        if len(history) != info.data.get("step", len(history)):
            raise ValueError(f"has {len(history)} steps, and the pair is at step {info.data['step']}, from 0")
        return history

    @field_validator("rejected")
    @classmethod
    def _another(cls, rejected: Turn, info: ValidationInfo) -> Turn:
        if "chosen" in info.data and rejected.words() == info.data["chosen"].words():
            raise ValueError("is the same turn as chosen, so none is preferred")
        return rejected

    @field_validator("evidence")
    @classmethod
    def _finite(cls, evidence: dict[str, JsonValue]) -> dict[str, JsonValue]:
        json.dumps(evidence, allow_nan=False)
        return evidence

    def trajectory(self, side: Side) -> Trajectory:
        """The episode up to one of the turns, which is its last step; its outcome is unknown."""
        turn: Turn = getattr(self, side)
        last = Step(observation=self.observation, thought=turn.thought, action=turn.action, actor=turn.actor)
        return Trajectory(
            id=f"{self.id}/{side}",
            steps=(*self.history, last),
            score=None,
            success=None,
            **{name: getattr(self, name) for name in ("env", "task", "seed", "instruction", "source")},
        )

    def row(self) -> dict[str, Any]:
        """The JSON object of one line."""
        made = self.model_dump(exclude_none=True, exclude={"evidence"})
        return {**made, "evidence": self.evidence} if self.evidence else made


def iter_pairs(path: str | Path, on_error: OnError = "stop", dropped: list[InputError] | None = None) -> Iterator[Pair]:
    """Stream pairs from a JSONL file.

    Args:
        path: the file.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` goes on.
        dropped: with ``"skip"``, gets the error of every line that was left out.

    Raises:
        InputError: names file, line and field: a missing or unknown key, a history that is not as long as ``step``
            says, equal turns, an id that stands twice; also when the file is missing or holds nothing usable.
    """
    return (item for _, item in rows_by_id(Pair, path, on_error, dropped))


def read_pairs(path: str | Path, on_error: OnError = "stop", dropped: list[InputError] | None = None) -> list[Pair]:
    """:func:`iter_pairs` as a list."""
    return list(iter_pairs(path, on_error, dropped))


def write_pairs(path: str | Path, items: Iterable[Pair]) -> None:
    """Write pairs to a JSONL file, atomically."""
    write_parts(path, (json.dumps(p.row(), ensure_ascii=False, allow_nan=False) + "\n" for p in items))
