"""When the oracle stops early, because more answers would be paid for in vain. The rules are ours."""

from __future__ import annotations

from typing import Literal, get_args

from ..engines.chat_refusals import shown
from ..errors import AtlasError, EndpointError

NoAnswer = Literal["endpoint", "out of tokens", "filtered", "context"]
"""Why an answer is missing: the server failed or takes no such request, which another time or another recipe may mend;
thinking used up the limit; a filter; the conversation is too long."""
NO_ANSWER: dict[str, NoAnswer] = {"empty": "out of tokens", "filtered": "filtered", "context": "context"}
"""By the kind of an :class:`atlas_ray.errors.EndpointError`; all others are ``"endpoint"``."""
_WAYS_OUT = {
    "endpoint": "see whether the server is well, and takes what select.oracle says",
    "out of tokens": "raise select.oracle.max_tokens, or let the model think less (select.oracle.extra)",
    "cut off": "raise select.oracle.max_tokens, or let the model think less (select.oracle.extra)",
    "filtered": "the server's filter refuses what the trajectories say, so take another server",
    "context": "lower select.oracle.context to what the model can read",
    "too long": "the model does not end its answers, so take another one (select.oracle.model)",
}
_BY_CHANCE, _EARLY = 2, 10
"""Lost answers that are allowed in any case; from how many on the oracle may stop before all were asked."""
_QUOTED = 80


def no_answer_kind(error: EndpointError) -> NoAnswer:
    """What an endpoint's error means here."""
    return NO_ANSWER.get(error.kind, "endpoint")


def way_out(kind: str) -> str:
    """What helps against answers that are refused or lost for this reason."""
    other = "the model does not keep to the form: take another one (select.oracle.model), or look at what it is sent"
    return _WAYS_OUT.get(kind, other)


class FailureStreak:
    """Counts failures in a row that have the same reason, and stops the oracle when they are too many.

    Until the first answer that is taken, answers count, and the oracle asks one question at a time, so that none beyond
    them is paid for. Then trajectories count that are given up.

    Args:
        most: 0 never ends it.

    Attributes:
        proven: an answer was taken, or nothing is counted.
    """

    def __init__(self, most: int) -> None:
        self.most, self.proven = most, not most
        self._kind, self._count, self._last = "", 0, ""

    def answered(self) -> None:
        """An answer was taken."""
        if not self.proven:
            self.proven, self._count = True, 0

    def refused(self, kind: str, reason: str, answer: str = "") -> None:
        """An answer was refused, or there was none.

        Raises:
            AtlasError: it was the last of too many.
        """
        self._last = shown(answer[:_QUOTED])
        if not self.proven:
            self._note(kind, reason, "answers")

    def trajectory_ended(self, kind: str | None, reason: str = "") -> None:
        """A trajectory was annotated (None), or given up.

        Raises:
            AtlasError: it was the last of too many.
        """
        if kind is None:
            self._count = 0
        elif self.proven and self.most:
            self._note(kind, reason, "trajectories")

    def _note(self, kind: str, reason: str, what: str) -> None:
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        if self._count == self.most:
            began = f"; the last answer begins {self._last!r}" if self._last else ""
            raise AtlasError(
                f"the oracle: {self._count} {what} in a row {_what_failed(kind)} ({shown(reason)}{began}), so it "
                f"stops: {way_out(kind)}. select.oracle.stop_after says how many it takes; good "
                "answers are kept"
            )


def _what_failed(kind: str) -> str:
    return f"got none: {kind}" if kind in get_args(NoAnswer) else f"are refused alike, as {kind!r}"


def too_many_lost(lost: int, asked: int, most: float, early: bool = False) -> bool:
    """Whether more answers are lost than the limit allows.

    Args:
        lost: answers that are missing.
        asked: conversations.
        most: the share that may be lost, ``max_lost_answers`` of the recipe.
        early: not all have been asked yet.
    """
    return lost > most * asked + (_BY_CHANCE if most else 0) and (not early or lost >= _EARLY)
