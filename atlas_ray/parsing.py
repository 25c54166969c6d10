"""What a model's reply says: its thought and its action, or what is wrong with it.

A reply never becomes an action that it does not name. Ours, and all that is forgiven: headings in bold or behind a list
mark, code fences, quotes, text behind the action, and, where there is a list of admissible actions, case, white space
and punctuation. Special tokens are text. As in AgentGym, the last ``Action:`` counts; the text ends where the model
goes on to write an observation of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal, get_args

from .rendering import Style

Problem = Literal["ok", "no action", "not admissible", "empty", "too long"]
LONGEST_ACTION = 1000
"""Characters; a longer action is none."""
LONGEST_REPLY = 100_000
"""Characters; a longer reply is not read."""

_MARK = r"^[ \t]*(?:(?:[-*>]|#{1,6})[ \t]+)?(?P<b>\*\*|__)?"
_COLON = r"[ \t]*(?(b)(?:(?P=b)[ \t]*[:\uff1a]|[:\uff1a](?:[ \t]*(?P=b))?)|[:\uff1a])"
_ACTION, _THOUGHT, _OBSERVATION = (
    re.compile(f"{_MARK}{word}{_COLON}", re.IGNORECASE | re.MULTILINE) for word in ("action", "thought", "observation")
)
_INLINE = re.compile(r"\bAction[ \t]*[:\uff1a]")
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^`\n]*$", re.MULTILINE)
_WRAPS = (("```", "```"), ("`", "`"), ("**", "**"), ('"', '"'), ("'", "'"), ("“", "”"))
_SENTENCE = re.compile(r"[.!?;](?=[ \t])")
_BRACKET = re.compile(r"[ \t]+\([^()]*\)[.!]?$")


@dataclass(frozen=True)
class Parsed:
    """What was found in a reply.

    ``thought`` is None where there is none, and in the ``action`` style. ``action`` is the admissible action in the
    list's own wording, else the action as written; None when the problem is that there is none.
    """

    thought: str | None
    action: str | None
    problem: Problem


class Tally(Counter[Problem]):
    """How often each outcome came."""

    def note(self, parsed: Parsed) -> None:
        """Count one reply."""
        self[parsed.problem] += 1

    def describe(self) -> dict[str, int]:
        """Every outcome and its count, those that never came too."""
        return {problem: self[problem] for problem in get_args(Problem)}


def parse(reply: str, style: Style = "react", admissible: Sequence[str] = (), longest: int = LONGEST_ACTION) -> Parsed:
    """Read a reply. It never raises.

    Args:
        reply: what the model wrote.
        style: ``"react"`` expects ``Thought:`` and ``Action:``; a reply that is an admissible action and nothing else
            is taken too. ``"action"`` expects an action alone; headings are tolerated.
        admissible: the actions that count. Empty: any action does; it is the fenced block, else the first line.
        longest: most characters of an action.

    The action is matched to ``admissible`` word for word, then without regard to case, white space and punctuation
    (signs and points of numbers count). Where that fits several, it fits none. Behind the action may follow: more
    lines, a sentence after ``.``, ``!``, ``?`` or ``;``, a remark in brackets where no admissible action has brackets.
    In the ``action`` style it may also stand in the reply's only fenced block, or be the only admissible one among its
    lines.
    """
    text = reply.replace("\r\n", "\n").replace("\r", "\n") if len(reply) <= LONGEST_REPLY else ""
    if not text.strip():
        return Parsed(None, None, "too long" if len(reply) > LONGEST_REPLY else "empty")
    offers = _Offers(admissible)
    headings = list(_ACTION.finditer(text)) or list(_INLINE.finditer(text))
    if headings:
        invented = _OBSERVATION.search(text, headings[0].end())
        end = invented.start() if invented else len(text)
        last = [h for h in headings if h.start() < end][-1]
        thought, section = _thought(text[: last.start()]), text[last.end() : end]
    elif style == "react":
        whole = offers.find(text)
        return Parsed(None, whole, "no action" if whole is None else "ok")
    else:
        thought, section = None, text
    if style == "action":
        thought = None
    loose = style == "action" and not headings
    written = _written(section, loose)
    found = next((a for c in _candidates(section, written, offers.bare) if (a := offers.find(c)) is not None), None)
    if found is None and loose:
        found = offers.only(section.split("\n"))
    if found is not None:
        return Parsed(thought, found, "ok")
    if not written:
        return Parsed(thought, None, "no action")
    if len(written) > longest:
        return Parsed(thought, None, "too long")
    return Parsed(thought, written, "not admissible" if admissible else "ok")


class _Offers:
    """The admissible actions, by wording and by what is left of it without case, space and punctuation."""

    def __init__(self, actions: Sequence[str]) -> None:
        self._exact = frozenset(a for a in actions if a.strip())
        self.bare = not any("(" in action for action in actions)
        self._loose: dict[str, str | None] = {}
        for action in self._exact:
            key = _key_of_offer(action)
            self._loose[key] = None if key in self._loose or not key else action

    def find(self, text: str) -> str | None:
        """The one action that ``text`` is."""
        if not self._exact:
            return None
        text = text.strip()
        return text if text in self._exact else self._loose.get(_key(text))

    def only(self, lines: Sequence[str]) -> str | None:
        """The action that is the only one among ``lines``."""
        found = {a for line in lines if (a := self.find(line)) is not None}
        return found.pop() if len(found) == 1 else None


def _key(text: str) -> str:
    text = f" {unicodedata.normalize('NFC', text).casefold()} "
    kept = []
    for before, c, after in zip(text, text[1:], text[2:], strict=False):
        if unicodedata.category(c)[0] in "PZC" or c == "`":
            # "set -1" and "set 1", "1.5" and "1 5" are different actions
            sign = c == "-" and after.isdigit() and not before.isalnum()
            point = c in ".," and before.isdigit() and after.isdigit()
            c = c if sign or point else " "
        kept.append(c)
    return " ".join("".join(kept).split())


_key_of_offer = lru_cache(8192)(_key)  # the same few are offered again and again; replies are not


def _thought(before: str) -> str | None:
    heading = _THOUGHT.search(before)
    if heading:
        return _unbold(before[heading.end() :].strip())
    return _FENCE.sub("", before).strip() or None


def _fenced(section: str) -> str | None:
    """Contents of the fenced block that ``section`` begins with; a block without an end goes to the end."""
    opening = _FENCE.match(section.lstrip())
    if opening is None:
        return None
    inside: list[str] = []
    for line in section.lstrip()[opening.end() :].split("\n")[1:]:
        if line.strip() == opening[1]:
            break
        inside.append(line)
    return "\n".join(inside).strip()


def _written(section: str, loose: bool) -> str:
    """The action as the model wrote it; empty where it wrote none."""
    fenced = _fenced(section)
    if fenced is None and loose:
        fences = list(_FENCE.finditer(section))
        fenced = _fenced(section[fences[0].start() :]) if len(fences) == 2 else None
    if fenced is not None:
        return fenced
    line = next((s for part in section.split("\n") if (s := part.strip()) and not _FENCE.match(s)), "")
    for _ in _WRAPS:
        line = _unwrap(line)
    return _unbold(line)


def _unwrap(line: str) -> str:
    for start, end in _WRAPS:
        inner = line[len(start) : -len(end)].strip()
        # "a" or "b" is not quoted as a whole
        if line.startswith(start) and line.endswith(end) and inner and start not in inner and end not in inner:
            return inner
    return line


def _unbold(text: str) -> str:
    """Without the end of an emphasis that began before the heading: ``**Action: open door**``."""
    return text[:-2].rstrip() if text.endswith(("**", "__")) and text.count(text[-2:]) == 1 else text


def _candidates(section: str, written: str, brackets: bool) -> Iterator[str]:
    yield section
    yield written
    line = next((s for part in written.split("\n") if (s := part.strip())), "")
    yield line
    if len(line) <= LONGEST_ACTION:
        cuts = list(islice(_SENTENCE.finditer(line), 8))
        if brackets and (remark := _BRACKET.search(line)):
            cuts.append(remark)
        for cut in reversed(cuts):
            yield line[: cut.start()]
