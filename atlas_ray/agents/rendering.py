"""One renderer for acting and for training: what is trained is what is prompted, token for token.

An episode is a sequence of pieces, each tokenised alone and only ever appended::

    Goal: {instruction}                           header
    Observation: {observation}                    context, never trained
    Thought: {thought}                            trained when the step is selected
    Action: {action}<end of turn>                 trained when the step is selected

The prompt of step t is therefore a prefix of the training sequence, and its key-value cache can be kept.
Text that comes from an environment is tokenised as text: a special token inside it stays harmless.
:class:`atlas_ray.agents.rendering_chat.ChatRenderer` puts the same texts into a model's chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data.parsing import Style
from ..data.records import Step, Trajectory
from ..errors import InputError
from .unknown_words import Unknown

_LONGEST_KEPT = 4000
"""Characters; longer texts do not repeat, and many of them would fill memory."""
Prompt = Literal["plain", "chat"]


@dataclass(frozen=True)
class Rendered:
    """Token ids of an episode and, for every step, the half-open span ``(start, end)`` of what the agent wrote.

    A span begins after the cue and ends behind the end-of-turn token.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class Renderer:
    """Turns episodes into token ids.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token, which ends a turn.
        style: ``"react"`` writes a thought before every action, ``"action"`` only actions.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.

    Attributes:
        end_of_turn: the token that ends a turn, and is trained.
        stops: tokens with which a model ends its turn; the first is ``end_of_turn``.
        separator: what stands between thought and action.
        gap: what stands between a turn and the next observation.
        unknown: counts what is encoded, if somebody asks for it.
    """

    def __init__(self, tokenizer: Any, style: Style = "react") -> None:
        self.unknown: Unknown | None = None
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token, which is needed to end a turn")
        self.tokenizer = tokenizer
        self.style: Style = style
        self.end_of_turn: int = tokenizer.eos_token_id
        self.stops = [self.end_of_turn]
        self.gap: list[int] = []
        self._pieces: dict[str, list[int]] = {}
        self._cue = "\nThought:" if style == "react" else "\nAction:"
        self.separator = self.encode("\nAction:") if style == "react" else []

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece; special tokens in it are taken as plain text. Pieces repeat, so they are kept."""
        ids = self._pieces.get(text)
        if ids is None:
            if len(self._pieces) > 50_000:
                self._pieces.clear()
            ids = self._tokens(text)
            if len(text) <= _LONGEST_KEPT:
                self._pieces[text] = ids
        if self.unknown is not None:
            self.unknown.note(text, len(ids))
        return list(ids)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out, white space folded to single spaces."""
        return " ".join(self.tokenizer.decode(list(ids), skip_special_tokens=True).split())

    def header(self, instruction: str) -> list[int]:
        """What stands before the first observation."""
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return start + self.encode(f"Goal: {instruction}")

    def context(self, observation: str) -> list[int]:
        """An observation and the cue behind which the agent writes."""
        return self.encode(f"\nObservation: {observation}{self._cue}")

    def action(self, action: str) -> list[int]:
        """The action as it stands in a turn, without the end of turn."""
        return self.encode(f" {' '.join(action.split())}")

    def thought(self, thought: str) -> list[int]:
        """The thought as it stands in a turn; nothing when it is empty."""
        words = " ".join(thought.split())
        return self.encode(f" {words}") if words else []

    def turn(self, step: Step) -> list[int]:
        """What the agent writes in a step: thought, separator, action, end of turn."""
        before = [*self.thought(step.thought or ""), *self.separator] if self.style == "react" else []
        return [*before, *self.action(step.action), self.end_of_turn]

    def past(self, step: Step) -> list[int]:
        """A step that was taken, as it stands before the next observation."""
        return self.context(step.observation) + self.turn(step) + self.gap

    def prompt(self, instruction: str, steps: Iterable[Step], observation: str) -> list[int]:
        """Everything the agent sees when it has to act on ``observation`` after ``steps``."""
        ids = list(self.header(instruction))
        for step in steps:
            ids += self.past(step)
        return ids + self.context(observation)

    def render(self, trajectory: Trajectory) -> Rendered:
        """The whole episode with the span of every turn.

        Raises:
            InputError: its agent calls tools, for which this prompt has no form.
        """
        if trajectory.tools is not None:
            raise InputError(
                f'trajectory {trajectory.id!r} calls tools, which only a chat template can write: set prompt = "chat"',
                field="prompt",
            )
        ids = list(self.header(trajectory.instruction))
        spans: list[tuple[int, int]] = []
        for step in trajectory.steps:
            if spans:
                ids += self.gap
            ids += self.context(step.observation)
            start = len(ids)
            ids += self.turn(step)
            spans.append((start, len(ids)))
        return Rendered(ids, spans)
