"""The object under ``atlas_ray`` that our own export writes beside a conversation: what others have no place for."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..records import Step, first_problem
from .reading import JsonRecord
from .survey import META
from .turns import compose


class ExactStep(BaseModel):
    """A step that its turns do not say exactly; ``turn`` is the digest of the turn, where it is not our own form."""

    model_config = ConfigDict(extra="ignore")
    index: int
    thought: str | None = None
    action: str
    observation: str | None = None
    turn: str | None = None

    def holds(self, text: str) -> bool:
        """Whether the turn is still the one that was written."""
        return self.turn == digest(text) if self.turn else compose(self.thought, self.action) == text


class ExactToolStep(BaseModel):
    """A step of a tool-calling agent that its messages, of this digest, do not say exactly."""

    model_config = ConfigDict(extra="ignore")
    index: int
    step: Step
    messages: str


class Meta(BaseModel):
    """The object under ``atlas_ray`` in a record that we wrote: what the neighbours' formats have no place for."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    id: str = Field(min_length=1)
    env: str
    task: str
    seed: int
    score: float | None
    success: bool | None
    source: str
    rewards: list[float]
    actors: list[str | None] | None = None
    probabilities: list[float | None] | None = None
    exact_steps: list[ExactStep] = []
    calls_tools: bool = False
    exact_tool_steps: list[ExactToolStep] = []
    head: int | None = Field(default=None, ge=0)
    tail: int = Field(default=0, ge=0)
    selector: str | None = Field(default=None, min_length=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    categories: dict[int, str] | None = None
    reasons: dict[int, str] | None = None
    prompt_sha256: str | None = None
    model: str | None = None


ANNOTATED = ("selector", "fraction", "categories", "reasons", "prompt_sha256", "model")
ITSELF = ("id", "env", "task", "seed", "score", "success", "source")


def meta_of(record: JsonRecord) -> Meta | None:
    """The object that our own export added, or None.

    Raises:
        InputError: it is not as we write it.
    """
    if record.value.get(META) is None:
        return None
    try:
        return Meta.model_validate_json(json.dumps(record.value[META]), strict=True)
    except ValidationError as error:
        field, message = first_problem(error)
        raise record.error(message, f"{META}.{field}".rstrip(".")) from None


def digest(text: str) -> str:
    """By which a turn is known again."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
