"""What a gateway has written down: ``DIR/trajectories/ID.jsonl``, and ``DIR/usage/ID.json`` with what it took.

The fields are in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError
from .records import Trajectory, iter_trajectories, load_json

Money = Annotated[str, Field(pattern=r"^-?\d{1,20}(\.\d{1,12})?$")]
"""Dollars as an exact text."""
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PricedModel(_Strict):
    """A model and its prices, in dollars per million tokens."""

    model: str
    price_prompt: float = Field(ge=0)
    price_completion: float = Field(ge=0)


class Expense(_Strict):
    """What a session has spent, reservations that were kept included."""

    calls: Count
    tokens: Count
    usd: Money

    @property
    def dollars(self) -> Decimal:
        """The money."""
        return Decimal(self.usd)


class Shadow(_Strict):
    """What QUICK would have done at a step that DEEPTHINK took.

    ``same``: whether it is what DEEPTHINK did; None where one of them did nothing that can be read. ``action`` is empty
    where the record holds no content. Tokens and money are None where the server did not say.
    """

    same: bool | None
    action: str
    prompt_tokens: Count | None
    completion_tokens: Count | None
    usd: Money | None


class StepUsage(_Strict):
    """What a step took. Tokens and money are None where the server did not say.

    ``shadow``: None where QUICK was not asked besides, or gave no answer. Its tokens and money are not the step's.
    """

    step: Count
    model: str
    prompt_tokens: Count | None
    completion_tokens: Count | None
    usd: Money | None
    begun: float
    seconds: float = Field(ge=0)
    shadow: Shadow | None = None


class SessionUsage(_Strict):
    """What a session took. ``models``: from QUICK to DEEPTHINK. ``steps``: those that were answered."""

    id: str
    session: str | None
    models: tuple[PricedModel, ...] = Field(min_length=2)
    spent: Expense
    steps: tuple[StepUsage, ...]


class Recorded(NamedTuple):
    """A session: what was said and done, and what it took."""

    trajectory: Trajectory
    usage: SessionUsage


class Record:
    """A directory that a gateway writes sessions to.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def trajectory(self, session: str) -> Path:
        """The file of a session."""
        return self.root / "trajectories" / f"{session}.jsonl"

    def usage(self, session: str) -> Path:
        """The file with what it took."""
        return self.root / "usage" / f"{session}.json"

    def sessions(self) -> Iterator[Recorded]:
        """All of them, in the order of their ids.

        Raises:
            InputError: the directory holds none, or a file is not what it should be; names file, line and field.
        """
        found = sorted(self.trajectory("*").parent.glob("*.jsonl"))
        if not found:
            raise InputError("holds no session of a gateway: give the directory of its `record`", self.root)
        for path in found:
            for trajectory in iter_trajectories(path):
                yield Recorded(trajectory, self._usage_of(trajectory, path))

    def _usage_of(self, trajectory: Trajectory, path: Path) -> SessionUsage:
        if trajectory.id != path.stem:
            raise InputError(f"must be {path.stem!r}, as the file's name", path, 1, "id")
        place = self.usage(trajectory.id)
        usage = load_json(SessionUsage, place)
        # it is written before the trajectory, and may have gone on since that was read
        if len(usage.steps) < len(trajectory.steps):
            what = f"are {len(usage.steps)}, and the trajectory has {len(trajectory.steps)}"
            raise InputError(what, place, None, "steps")
        return usage
