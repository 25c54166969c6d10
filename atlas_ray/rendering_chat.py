"""Episodes in a model's own chat template, for acting and for training; see :mod:`atlas_ray.rendering`.

The first message of the user is ``Goal: {instruction}``, a line feed and ``Observation: {observation}``; later ones
hold an observation only. The model's are ``Thought: {thought}``, a line feed and ``Action: {action}``, or the action
alone. What the template writes around them is found out with messages of our own, and tokenised with its special
tokens; the texts of an episode are tokenised without any.

Every turn stands as the template shows an *earlier* one, for so it stands in all later prompts. Qwen3's opens the last
turn of a conversation, and no other, with an empty ``<think>`` block, which is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any

from .errors import InputError
from .parsing import Style
from .rendering import Prompt, Renderer

_TODAY = datetime(2024, 7, 26)  # the day that Llama's templates fall back on
_MARK = "a1b2c3"
_EXCHANGES = 3


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

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token and a chat template.
        style: ``"react"`` writes a thought before every action, ``"action"`` only actions.

    Raises:
        InputError: there is no template; it refuses plain conversations or changes their messages; it is not
            append-only; it is not the same every time; or no single special token ends a turn in it.
    """

    def __init__(self, tokenizer: Any, style: Style = "react") -> None:
        super().__init__(tokenizer, style)
        self._cue = self._cue.lstrip()
        if not tokenizer.chat_template:
            raise _refused("the tokenizer has no chat template")
        try:
            pieces = self._probe(enable_thinking=False)
        except InputError:  # Qwen3 then opens the last turn with a block that no earlier turn has
            pieces = self._probe()
        head, ask, gap, tail = map(self._with_specials, pieces)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        both = zip(gap, tail, strict=False)
        if len(list(takewhile(lambda pair: pair[0] == pair[1] and pair[0] in special, both))) != 1:
            raise _refused("the chat template does not end every turn of the model with one and the same special token")
        self._head, self._ask = head, ask
        self.end_of_turn, self.gap = gap[0], gap[1:]
        self.stops = list(dict.fromkeys([self.end_of_turn, *self.stops]))

    def header(self, instruction: str) -> list[int]:
        """What stands before the first observation."""
        return self._head + self.encode(f"Goal: {instruction}\n")

    def context(self, observation: str) -> list[int]:
        """An observation, what the template writes behind it, and the cue behind which the agent writes."""
        return self.encode(f"Observation: {observation}".rstrip()) + self._ask + self.encode(self._cue)

    def _with_specials(self, text: str) -> list[int]:
        # tokenizers keep the flag as state, so that leaving it out would not do
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return ids

    def _probe(self, **settings: Any) -> tuple[str, str, str, str]:
        """What stands before the first message, before an answer, behind an answer, and behind the last one."""
        talk = [self._message(number) for number in range(2 * _EXCHANGES + 1)]
        asked = [self._around(talk[: 2 * n + 1], **settings) for n in range(_EXCHANGES + 1)]
        head, ask = asked[0]
        gap = asked[1][2]
        if any(around != [head, *[ask, gap] * n, ask] for n, around in enumerate(asked)):
            raise _refused(
                "the chat template is not append-only: what it writes around a message depends on what follows"
            )
        return head, ask, gap, self._around(talk[:2], **settings)[-1]

    def _message(self, number: int) -> str:
        """A message of our form that occurs nowhere else, with what a template might escape."""
        text = f"{_MARK}-{number} & <b> \"c\" 'd'  \\n {{e}} Ä\n\nf"
        if number % 2:
            cues = ["Thought:", "Action:"] if self.style == "react" else ["Action:"]
            return "\n".join(" ".join([cue, *text.split()]) for cue in cues)
        return f"Observation: {text}" if number else f"Goal: {text}\nObservation: {text}"

    def _around(self, talk: Sequence[str], **settings: Any) -> list[str]:
        """The template's own text before, between and behind messages."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(talk)]
        try:
            text, again = (
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=len(talk) % 2 == 1,
                    date_string=_TODAY.strftime("%d %b %Y"),
                    strftime_now=_TODAY.strftime,
                    **settings,
                )
                for _ in range(2)
            )
        except Exception as error:  # templates are programs, and raise what programs do
            why = " ".join(str(error).split())
            raise _refused(f"the chat template refuses messages of user and assistant alone ({why})") from None
        if text != again:
            raise _refused("the chat template writes something else every time")
        around = []
        for content in talk:
            before, _, text = text.partition(content)
            around.append(before)
        around.append(text)
        if _MARK in "".join(around) or len("".join([*around, *talk])) != len(again):
            raise _refused("the chat template changes, drops or repeats messages")
        return around


def _refused(why: str) -> InputError:
    return InputError(f'{why}; use prompt = "plain"', field="prompt")
