"""What an import left out, or could not tell: to be said, and to be logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ..kept import Outcomes
from ..reasons import Reasons, counted, told
from ..records import Trajectory
from .conversations import Conversation, Options
from .outcomes import at_field

_SHOWN = 3
_WORDS = {
    "invented": "{of} went on with rounds that the agent invented, and end before them",
    "reasoning": '{of} came with reasoning, which is left out; collect.reasoning = "thought" takes it for the thought',
    "behind": "{of} had text behind the action, which is left out",
    "examples": "{of} are of another problem and stand in front as an example: they are no steps",
    "closing": "{of} stand behind the end: they are no steps",
}


def _many(count: int, word: str, words: str) -> str:
    return f"{count:,} {word if count == 1 else words}"


@dataclass
class Notices:
    """Counts of one import.

    ``conversations``: records with turns; ``without_field``: those without the field of the outcome.

    ``counts`` has turns and ``records`` of it trajectories, by kind; ``unknown`` are trajectories without an outcome,
    ``bad`` the errors of records that were left out, and ``left_out`` the episodes that were not to be kept.
    """

    records: int = 0
    conversations: int = 0
    without_field: int = 0
    unknown: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)
    bad: list[InputError] = field(default_factory=list)
    left_out: Outcomes = field(default_factory=Outcomes)

    def leave_out(self, conversation: Conversation | None, item: Trajectory, options: Options) -> None:
        """Count a trajectory that is not kept."""
        self.left_out = self.left_out.add(item.success)
        self._count_record(conversation, options)

    def _count_record(self, conversation: Conversation | None, options: Options) -> None:
        if conversation is not None:
            self.conversations += 1
            if options.success_field is not None:
                self.without_field += at_field(conversation.record.value, options.success_field) is None

    def add(self, conversation: Conversation | None, item: Trajectory, options: Options) -> None:
        """Count a trajectory, and the record it was read from."""
        self.records += 1
        self.unknown += item.success is None
        self._count_record(conversation, options)
        if conversation is None:
            return
        said = [conversation.agent_turns[n] for n in conversation.action_turns]
        found = {
            "invented": sum(s.invented for s in said),
            "reasoning": sum(s.reasoning for s in said) if options.reasoning == "drop" else 0,
            "behind": sum(s.behind for s in said),
            "examples": conversation.examples,
            "closing": sum(t.role == "gpt" for t in conversation.turns[conversation.tail :]),
        }
        for kind, turns in found.items():
            self.counts[kind] += turns
            self.of[kind] += bool(turns)

    def lines(self) -> Iterator[str]:
        """A sentence for everything that is worth one."""
        if self.bad:
            yield f"{_many(len(self.bad), 'record', 'records')} could not be read and left out; the first:"
            yield from (f"  {error}" for error in self.bad[:_SHOWN])
            if len(self.bad) > _SHOWN:
                yield f"  of all: {told(self._reasons())}"
        if any(self.left_out):
            yield f"left out by collect.keep: {self.left_out.words()}"
        if self.without_field:
            yield f"{self.without_field} of {self.conversations} records do not have the field of collect.success_field"
        if self.unknown:
            yield (
                f"the outcome of {self.unknown} of {self.records} trajectories is unknown, which counts as no success: "
                "collect.success_field names a field that tells it, collect.success states it"
            )
        for kind, words in _WORDS.items():
            if self.counts[kind]:
                turns = _many(self.counts[kind], "turn", "turns")
                yield words.format(of=f"{turns} of {_many(self.of[kind], 'trajectory', 'trajectories')}")

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, values) of what goes to ``events.jsonl``."""
        if self.bad:
            why = [str(error) for error in self.bad[:_SHOWN]]
            yield "dropped", {"records": len(self.bad), "why": why, "reasons": dict(self._reasons())}
        if any(self.left_out):
            yield "left out", {**self.left_out._asdict(), "why": "collect.keep"}
        if self.unknown:
            yield "unknown outcome", {"trajectories": self.unknown}
        for kind in _WORDS:
            if self.counts[kind]:
                yield f"import: {kind}", {"turns": self.counts[kind], "trajectories": self.of[kind]}

    def _reasons(self) -> Reasons:
        """Why records were left out, and how many for each reason, wherever in them it is."""
        return counted(f"{error.field}: {error.message}" if error.field else error.message for error in self.bad)
