"""Episodes in a model's own chat template, for acting and for training; see :mod:`atlas_ray.agents.rendering`.

The first message of the user is ``Goal: {instruction}``, a line feed and ``Observation: {observation}``; later ones
hold an observation only. The model's are ``Thought: {thought}``, a line feed and ``Action: {action}``, or the action
alone. What the template writes around them is found out with messages of our own
(:mod:`atlas_ray.agents.chat_template`), and
tokenised with its special tokens; the texts of an episode are tokenised without any.

Every turn stands as the template shows an *earlier* one, for so it stands in all later prompts. Qwen3's opens the last
turn of a conversation, and no other, with an empty ``<think>`` block, which is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from ..data.parsing import Style
from ..data.records import Step, Trajectory
from .chat_template import frame_of, refused
from .rendering import Prompt, Rendered, Renderer
from .rendering_tools import ToolRenderer

_GUARD = "\n"
_PROBE = [
    Step(observation="you see a key", thought="take it", action="open the box"),
    Step(observation="nothing here", thought=None, action="turn left"),
    Step(observation="a red door", thought="go on", action="drop it"),
]
_GOAL = "go to the door"


class _Layout(NamedTuple):
    """How the parts of a conversation are cut before they are tokenised.

    ``guard``: where a text is tokenised behind a line feed, which is then left out, because some tokenizers put a space
    before whatever they are given; ``inside``: but not behind a special token. ``joined``: white space of the template
    before an answer belongs to the cue. ``opened``: the word ``Observation:`` belongs to what stands before it.
    """

    guard: Literal["nowhere", "inside", "everywhere"] = "nowhere"
    joined: bool = False
    opened: bool = False


def _layouts() -> Iterator[_Layout]:
    for opened, joined in itertools.product((False, True), repeat=2):
        yield _Layout("nowhere", joined, opened)
        yield _Layout("everywhere", joined, opened)
        yield _Layout("inside", joined, opened)


def make_renderer(tokenizer: Any, style: Style = "react", prompt: Prompt = "plain") -> Renderer:
    """The renderer of a model: plain text, or in its chat template.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or a chat template that cannot be used.
    """
    return ChatRenderer(tokenizer, style) if prompt == "chat" else Renderer(tokenizer, style)


class ChatRenderer(Renderer):
    """Turns episodes into token ids, in the tokenizer's chat template.

    White space at the end of an observation is left out, as many templates do. Templates that write the date get
    26 July 2024, so that a run can be repeated.

    The ids of a conversation are compared with those that the tokenizer itself makes of the whole of it. They are the
    same but where a text ends in what the tokenizer joins with the next line. Where it joins letters across the borders
    of words, the text and the special tokens are the same.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token and a chat template.
        style: ``"react"`` writes a thought before every action, ``"action"`` only actions.

    Raises:
        InputError: there is no template; it refuses plain conversations or changes their messages; it is not
            append-only, or lets an answer begin within the model's thinking; it is not the same every time; no single
            special token ends a turn in it; or the tokenizer writes parts of a conversation otherwise than the whole.
    """

    _layout = _Layout()

    def __init__(self, tokenizer: Any, style: Style = "react") -> None:
        super().__init__(tokenizer, style)
        self._cue = self._cue.lstrip()
        self._frame = frame_of(tokenizer, style)
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = frozenset(added | set(tokenizer.all_special_ids))
        for layout in self._choices():
            self._lay(layout)
            if self._as_whole():
                break
        else:
            raise refused("the tokenizer writes the parts of a conversation in this template otherwise than the whole")
        if self.end_of_turn in self.encode(tokenizer.convert_ids_to_tokens(self.end_of_turn)):
            raise refused("the token that ends a turn in the chat template can be written by a text")

    def render(self, trajectory: Trajectory) -> Rendered:
        """The whole episode with the span of every turn, of an agent that calls tools by :attr:`tools`.

        Raises:
            InputError: the template has no form for its calls.
        """
        return super().render(trajectory) if trajectory.tools is None else self.tools.render(trajectory)

    @cached_property
    def tools(self) -> ToolRenderer:
        """The renderer of agents that call tools, made when the first of them comes.

        Raises:
            InputError: the template cannot be used for it.
        """
        return ToolRenderer(self, self._frame.settings)

    def check_tools(self) -> None:
        """Look whether the template can be used for agents that call tools.

        Raises:
            InputError: it cannot.
        """
        _ = self.tools

    def piece(self, text: str, inside: bool, split: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are text if ``split``. ``inside``: it stands behind no special token."""
        guard = self._layout.guard == "everywhere" or (self._layout.guard == "inside" and inside)
        ids = self._guarded(text, guard, split)
        if self.unknown is not None:
            self.unknown.note(text, len(ids))
        return ids

    def alike(self, parts: list[int], whole: list[int]) -> bool:
        """Whether two lists of ids are the same conversation, though perhaps cut otherwise."""
        return parts == whole or (_joins(self) and self._shown(parts) == self._shown(whole))

    def header(self, instruction: str) -> list[int]:
        """What stands before the first observation."""
        return self._head + self._behind(self._frame.head, f"{self._head_space}Goal: {instruction}{self._goal_end}")

    def context(self, observation: str) -> list[int]:
        """An observation, what the template writes behind it, and the cue behind which the agent writes."""
        text = f"Observation: {observation}".rstrip()
        return self.encode(text[len("Observation:") :] if self._layout.opened else text) + self._ask

    def _tokens(self, text: str) -> list[int]:
        return self._guarded(text, self._layout.guard != "nowhere", split=True)

    def _guarded(self, text: str, guard: bool, split: bool) -> list[int]:
        """Ids of a text; special tokens in it are text if ``split``."""
        # tokenizers keep the flag as state, so that leaving it out would not do
        texts = [text, _GUARD, _GUARD + text] if guard else [text]
        made: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        if guard and made[2][: len(made[1])] == made[1]:
            return made[2][len(made[1]) :]
        return made[0]

    def _behind(self, part: str, text: str) -> list[int]:
        """Ids of a text that follows a part of the template."""
        if (
            self._layout.guard != "inside"
            or not part
            or self._guarded(part, False, split=False)[-1] not in self.special
        ):
            return self.encode(text)
        ids = self._guarded(text, False, split=True)
        if self.unknown is not None:
            self.unknown.note(text, len(ids))
        return ids

    def _lay(self, layout: _Layout) -> None:
        """Cut the template's own text so, and tokenise it."""
        self._layout, guard = layout, layout.guard != "nowhere"
        self._pieces.clear()
        head, ask, gap, space = self._frame.head, self._frame.ask, self._frame.gap, ""
        self._head_space, self._goal_end = "", "\n"
        opening = list[int]()
        if layout.joined:
            ask, space = self._cut(ask)
        if layout.opened:
            head, self._head_space = self._cut(head)
            gap, gap_space = self._cut(gap)
            self._goal_end = "\nObservation:"
            opening = self._behind(gap, f"{gap_space}Observation:")
        self._head = self._guarded(head, False, split=False)
        self._ask = self._guarded(ask, guard, split=False) + self._behind(ask, space + self._cue)
        self.end_of_turn, *rest = self._guarded(gap, guard, split=False)
        self.gap = rest + opening
        self.stops = list(dict.fromkeys([self.end_of_turn, self.tokenizer.eos_token_id]))
        self.separator = self.encode("\nAction:") if self.style == "react" else []

    def _cut(self, part: str) -> tuple[str, str]:
        """A part of the template without the white space at its end, and that, unless its last token swallows it."""
        bare = part.rstrip()
        swallowed = self._guarded(bare, False, split=False) == self._guarded(part, False, split=False)
        return (part, "") if swallowed else (bare, part[len(bare) :])

    def _choices(self) -> Iterator[_Layout]:
        """The layouts to try, after what the template itself has to be."""
        gap, tail = (self._guarded(text, False, split=False) for text in (self._frame.gap, self._frame.tail))
        special = self.special
        both = zip(gap, tail, strict=False)
        same = list(takewhile(lambda pair: pair[0] == pair[1] and pair[0] in special, both))
        if len(same) != 1:
            last = not tail and gap and gap[0] in special
            also = ": the last turn has no end, and earlier ones run on to the next message" if last else ""
            raise refused(
                f"the chat template does not end every turn of the model with one and the same special token{also}"
            )
        return _layouts()

    def _as_whole(self) -> bool:
        """Whether a conversation has the ids that the tokenizer makes of the whole of it."""
        messages: list[str] = []
        for n, step in enumerate(_PROBE):
            messages.append(
                f"Observation: {step.observation}" if n else f"Goal: {_GOAL}\nObservation: {step.observation}"
            )
            whole = self._guarded(self._frame.write(messages) + self._cue, False, split=False)
            parts = self.prompt(_GOAL, _PROBE[:n], step.observation)
            if not self.alike(parts, whole):
                return False
            thought = f"Thought: {step.thought or ''}".rstrip() + "\n" if self.style == "react" else ""
            messages.append(f"{thought}Action: {step.action}")
        return True

    def _shown(self, ids: list[int]) -> tuple[str, list[int]]:
        """The text of ids, and the special tokens among them."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text, [i for i in ids if i in self.special]


def _joins(renderer: ChatRenderer) -> bool:
    """Whether the tokenizer joins letters of one word with those of the next, so that any cut would leave a trace."""
    parts = ["Thought: take it", "\nAction:", " open the box"]
    for guard in (False, True):
        one, *more = (renderer._guarded(text, guard, split=True) for text in ("".join(parts), *parts))
        if one == list(itertools.chain(*more)):
            return False
    return True
