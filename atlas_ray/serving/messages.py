"""What a client asks of an episode, what it is told, and why not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..data.parsing import LONGEST_ACTION
from ..errors import AtlasError

LONGEST_TEXT = 100_000
"""Characters of an instruction or an observation."""
MOST_ACTIONS = 10_000
"""Actions that are offered in one step."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
HALF = re.compile("[\ud800-\udfff]")
"""A surrogate: in a string of Python each is one that lacks the other."""


class Refused(AtlasError, RuntimeError):
    """A request that cannot be done.

    Args:
        message: why.
        status: HTTP's word for it.
        where: the field of the request that is at fault, outermost first.
    """

    code = "request_refused"

    def __init__(self, message: str, status: int, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(message, status, where)
        self.message, self.status, self.where = message, status, where

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.where))}: {self.message}" if self.where else self.message


class ActRequest(NamedTuple):
    """What an episode looks like now, and what may be done; no actions where the models write theirs.

    ``step`` is the number of the step that is asked for, from 0: the one that was answered last gets its answer again,
    and no other than the next goes on. Without it the next is meant; or, where it ``may_repeat`` and says the very same
    as the request before, that one, but only once in a row (see docs/serving.md).
    """

    observation: str
    actions: Sequence[str] = ()
    step: int | None = None
    may_repeat: bool = False

    def like(self, other: ActRequest) -> bool:
        """Whether the same is seen, and the same may be done."""
        return self.observation == other.observation and list(self.actions) == list(other.actions)


@dataclass(frozen=True)
class Answer:
    """What to do.

    ``model``: whose answer it is. ``called``: whether that is not the first model, QUICK. ``calls``: of the episode,
    this one included. ``calls_left``: None without a budget. ``step``: its number, from 0.
    """

    action: str
    thought: str | None
    model: str
    called: bool
    calls: int
    calls_left: int | None
    step: int


def check_task(instruction: str) -> None:
    """Refuse a task that cannot be read.

    Raises:
        Refused: it is too long, or holds half of a surrogate pair.
    """
    _check_text(instruction, ("instruction",))


def check_request(request: ActRequest) -> None:
    """Refuse what no model could be asked, before anything is done with it.

    Raises:
        Refused: a text is too long or holds half of a surrogate pair; an action is blank, or holds a control character
            other than a tab or the end of a line; there are too many.
    """
    _check_text(request.observation, ("observation",))
    if len(request.actions) > MOST_ACTIONS:
        raise Refused(f"are {len(request.actions)}, and may be {MOST_ACTIONS}", 422, ("actions",))
    for number, action in enumerate(request.actions):
        where = ("actions", number)
        _check_text(action, where, LONGEST_ACTION)
        if _CONTROL.search(action):
            raise Refused("holds a control character", 422, where)
        if all(unicodedata.category(c)[0] == "Z" or unicodedata.category(c) in ("Cc", "Cf") for c in action):
            raise Refused("is blank", 422, where)


def _check_text(text: str, where: tuple[str | int, ...], most: int = LONGEST_TEXT) -> None:
    if len(text) > most:
        raise Refused(f"has {len(text)} characters, and may have {most}", 422, where)
    if HALF.search(text):
        raise Refused("holds half of a surrogate pair, which is no character", 422, where)
