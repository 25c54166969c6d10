"""What a tokenizer's chat template writes around messages, found out with messages of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..data.parsing import Style
from ..data.thinking import THINKING, tag_pair
from ..errors import InputError

TODAY = datetime(2024, 7, 26)
"""What templates are told that write the date, so that a run can be repeated; Llama's fall back on this day."""
_MARK = "a1b2c3"
_EXCHANGES = 3


@dataclass(frozen=True)
class Frame:
    """A chat template's own text.

    ``head`` stands before the first message, ``ask`` before an answer, ``gap`` behind an answer and before the next
    message, ``tail`` behind the last answer. ``settings`` are given to the template.
    """

    tokenizer: Any
    settings: dict[str, Any]
    head: str = ""
    ask: str = ""
    gap: str = ""
    tail: str = ""

    def write(self, talk: Sequence[str]) -> str:
        """A conversation of user and model in turn, ready for the model's answer if the user spoke last.

        Raises:
            InputError: the template refuses it.
        """
        messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(talk)]
        try:
            return str(write(self.tokenizer, messages, len(talk) % 2 == 1, **self.settings))
        except Exception as error:  # templates are programs, and raise what programs do
            why = " ".join(str(error).split())
            raise refused(f"the chat template refuses messages of user and assistant alone ({why})") from None


def write(tokenizer: Any, messages: Sequence[dict[str, Any]], ask: bool, **settings: Any) -> Any:
    """What a template makes of messages, on :data:`TODAY`."""
    return tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=ask,
        date_string=TODAY.strftime("%d %b %Y"),
        strftime_now=TODAY.strftime,
        **settings,
    )


def frame_of(tokenizer: Any, style: Style) -> Frame:
    """The text of a tokenizer's template around an episode.

    Raises:
        InputError: there is no template; it refuses plain conversations or changes their messages, is not append-only,
            or is not the same every time.
    """
    if not tokenizer.chat_template:
        raise refused("the tokenizer has no chat template")
    try:
        return _probe(Frame(tokenizer, {"enable_thinking": False}), style)
    except InputError:  # Qwen3 then opens the last turn with a block that no earlier turn has
        return _probe(Frame(tokenizer, {}), style)


def refused(why: str) -> InputError:
    """The error of a template that cannot be used."""
    return InputError(f'{why}; use prompt = "plain"', field="prompt")


def _probe(frame: Frame, style: Style) -> Frame:
    talk = [_message(number, style) for number in range(2 * _EXCHANGES + 1)]
    asked = [_around(frame, talk[: 2 * n + 1]) for n in range(_EXCHANGES + 1)]
    head, ask = asked[0]
    gap = asked[1][2]
    if any(around != [head, *[ask, gap] * n, ask] for n, around in enumerate(asked)):
        raise refused(f"the chat template is not append-only: {_why(ask, asked[1][1])}")
    return Frame(frame.tokenizer, frame.settings, head, ask, gap, _around(frame, talk[:2])[-1])


def _why(prompting: str, before: str) -> str:
    """What differs between the end of a prompt and what stands before an answer that was given."""
    more = prompting.removeprefix(before)
    for opening, _ in map(tag_pair, THINKING):
        if opening in more and more != prompting:
            return (
                f"its prompt ends in {opening}, so that an answer would begin within the model's thinking, and earlier "
                "answers have no such block"
            )
    more = before.removeprefix(prompting)
    if more and more != before:
        return f"it writes {more!r} before an answer that was given, and not before one that is asked for"
    return "what it writes around a message depends on what follows"


def _message(number: int, style: Style) -> str:
    """A message of our form that occurs nowhere else, with what a template might escape."""
    text = f"{_MARK}-{number} & <b> \"c\" 'd'  \\n {{e}} Ä\n\nf"
    if number % 2:
        cues = ["Thought:", "Action:"] if style == "react" else ["Action:"]
        return "\n".join(" ".join([cue, *text.split()]) for cue in cues)
    return f"Observation: {text}" if number else f"Goal: {text}\nObservation: {text}"


def _around(frame: Frame, talk: Sequence[str]) -> list[str]:
    """The template's own text before, between and behind messages."""
    text, again = (frame.write(talk) for _ in range(2))
    if text != again:
        raise refused("the chat template writes something else every time")
    around = []
    for content in talk:
        before, _, text = text.partition(content)
        around.append(before)
    around.append(text)
    if _MARK in "".join(around) or len("".join([*around, *talk])) != len(again):
        raise refused("the chat template changes, drops or repeats messages")
    return around
