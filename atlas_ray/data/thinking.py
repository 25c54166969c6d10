"""Takes from a model's reply what it thought before its answer, and special tokens that leaked. The rules are ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

THINKING = (
    "<think>",
    "<thinking>",
    "[THINK]",
    "<seed:think>",
    "◁think▷ ◁/think▷",
    "<|START_THINKING|> <|END_THINKING|>",
    "<|channel|>analysis<|message|> <|end|>",
)
"""An opening tag and, behind a space, its end. Alone, ``<x>`` ends with ``</x>``, ``[X]`` with ``[/X]``."""

# "<|im_end|>" and its kind; DeepSeek's have other bars
_SPECIAL = r"(?:<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|</s>|<eos>|<end_of_turn>|<\|?endoftext\|?>|\[/INST\])"
_LEADING = re.compile(
    r"\s*(?:<s>|<bos>|<start_of_turn>\s*model\b|<\|im_start\|>\s*assistant\b|<\|assistant\|>|<\|begin_of_text\|>"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final\s*<\|message\|>)"
)
# in the middle of a line it is a text about the token
_ENDED = re.compile(rf"{_SPECIAL}(?=\s*(?:\Z|\n|{_SPECIAL}|<start_of_turn>))")
_TRAILING = re.compile(rf"{_SPECIAL}\Z")
_LONGEST_SPECIAL = 44


class Split(NamedTuple):
    """What was thought, and the reply without it. ``open``: a block was begun and not ended."""

    reasoning: str | None
    rest: str
    open: bool


def tag_pair(tag: str) -> tuple[str, str]:
    """Opening and closing tag of an entry such as ``"<think>"`` or ``"<|A|> <|B|>"``.

    Raises:
        ValueError: its end cannot be told.
    """
    parts = tag.split()
    if len(parts) == 2:
        return parts[0], parts[1]
    if len(parts) == 1 and len(tag) > 2 and (tag[0], tag[-1]) in (("<", ">"), ("[", "]")) and tag[1] not in "/|":
        return tag, f"{tag[0]}/{tag[1:]}"
    raise ValueError(f"{tag!r} must be an opening tag such as <think> or [THINK], or an opening and a closing one")


@lru_cache(64)
def _tags(thinking: tuple[str, ...]) -> re.Pattern[str] | None:
    pairs = [tag_pair(tag) for tag in thinking]
    opening, closing = ("|".join(re.escape(pair[i]) for pair in pairs) for i in (0, 1))
    return re.compile(f"(?P<open>{opening})|(?P<close>{closing})", re.IGNORECASE) if pairs else None


def split_thinking(text: str, thinking: Sequence[str] = THINKING) -> Split:
    """Take out of a reply what was thought before the answer.

    A block is what stands between a tag and its end; without an end it goes to the end of the text. A closing tag alone
    ends a block that the prompt began: all before it was thought, unless a block was ended already and nothing follows.

    Args:
        text: what the model wrote.
        thinking: the tags, see :data:`THINKING`; none takes nothing out.
    """
    tags = _tags(tuple(thinking))
    if tags is None:
        return Split(None, text, False)
    thought, kept = list[str](), list[str]()
    at, open_, closed, end = 0, False, False, len(text.rstrip())
    for found in tags.finditer(text):
        if found["open"]:
            if not open_:
                kept.append(text[at : found.start()])
                at, open_ = found.end(), True
        elif open_:
            thought.append(text[at : found.start()])
            at, open_, closed = found.end(), False, True
        elif found["close"].startswith("<|"):  # such a token ends other things too
            continue
        elif found.end() < end or not closed:
            thought.append("".join([*kept, text[at : found.start()]]))
            kept, at, closed = [], found.end(), True
        else:
            kept.append(text[at : found.start()])
            at = found.end()
    (thought if open_ else kept).append(text[at:])
    reasoning = "\n".join(s for part in thought if (s := part.strip()))
    return Split(reasoning or None, "".join(kept).lstrip("\n") if thought else text, open_)


def turn_end(text: str, start: int = 0) -> re.Match[str] | None:
    """The special token with which a turn ends, from ``start`` on: one at the end of a line, or before another."""
    return _ENDED.search(text, start)


def strip_specials(text: str) -> str:
    """A reply without the head of a turn before it and the special tokens behind it."""
    start, end = 0, len(text.rstrip())
    while leading := _LEADING.match(text, start):
        start = leading.end()
    while trailing := _TRAILING.search(text, max(start, end - _LONGEST_SPECIAL), end):
        end = trailing.start()
        while end > start and text[end - 1].isspace():
            end -= 1
    return text[start:end]
