"""Reads the thought and the action in a model's reply, or says what is wrong with it; for play and for imports.

A reply never becomes an action that it does not name. Ours, and all that is forgiven: what a model thinks before it
answers, special tokens that leak, headings in Markdown, numbered, by other words or as tags, code fences, quotes, text
behind the action, and, where there is a list of admissible actions, case, white space and punctuation. As in AgentGym,
the last ``Action:`` counts; the text ends where the model goes on to write an observation of its own. docs/formats.md
has the table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Literal, get_args

from .thinking import THINKING, split_thinking, strip_specials, turn_end

Style = Literal["react", "action"]
Problem = Literal["ok", "no action", "not admissible", "empty", "too long"]
LONGEST_ACTION = 1000
"""Characters; a longer action is none."""
LONGEST_REPLY = 100_000
"""Characters without what was thought before; a longer reply is not read."""
LONGEST_THINKING = 4_000_000
"""Characters of a reply with what was thought before; a longer one is not read."""

_S = "(?:[^\\S\n]|[\u200b\u200e\u2060])"
_C = "[:\uff1a\ufe55\u2236]"
_LISTED = rf"(?:(?:[-+*>\u2022]|(?P<hash>\#{{1,6}})|\(?\d{{1,2}}[.)]){_S}+)?"
_NUMBER = rf"(?:{_S}*(?:\#?\d{{1,4}}|\(\d{{1,4}}\)|\[\d{{1,4}}\]))?"
# with a colon; or, as a Markdown heading or in bold, alone on its line
_WITH_COLON = rf"(?(mark)(?:(?P=mark){_S}*{_C}|{_S}*{_C}(?:{_S}*(?P=mark))?)|{_S}*{_C})"
_ALONE = rf"(?(mark)(?P=mark)|(?(hash)(?:{_S}*\#{{1,6}})?|(?!))){_S}*$"


def _headed(words: str) -> re.Pattern[str]:
    heading = rf"^{_S}*{_LISTED}(?P<mark>\*{{1,3}}|_{{1,2}}|`)?{_S}*(?:{words}){_NUMBER}(?:{_WITH_COLON}|{_ALONE})"
    return re.compile(heading, re.IGNORECASE | re.MULTILINE)


_ACTION = _headed(rf"(?:(?:next|final|chosen){_S}+)?action|act")
_THOUGHT = _headed("thoughts?|think|reasoning")
_INPUT = _headed(rf"action{_S}+input")
_OBSERVATION = _headed("observations?|obs|environment|user|human")
_INLINE = re.compile(rf"(?:(?<=[.!?;:)\]\"'”*…]){_S}+|^)(?:Action|ACTION){_NUMBER}{_S}*{_C}", re.MULTILINE)
_ANYWHERE = re.compile(rf"\b(?:Action|ACTION){_NUMBER}{_S}*{_C}")
_TAGGED = re.compile(r"<(action|act)>(?P<inside>.*?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_TAG = re.compile(r"<(thoughts?|reasoning|reflection)>(?P<inside>.*?)</\1>", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(```|~~~)[ \t]*([^`\s]*)[^`\n]*$", re.MULTILINE)
_WRAPS = (("```", "```"), ("`", "`"), ("**", "**"), ("__", "__"), ("*", "*"), ('"', '"'), ("'", "'"), ("“", "”"))
_OPENING = frozenset(start[0] for start, _ in _WRAPS)
_SENTENCE = re.compile(r"[.!?;](?=[ \t])")
_COUNTED = re.compile(r"\(?\d{1,2}[.)][ \t]+(?=\S)")
_BRACKET = re.compile(r"[ \t]+\([^()]*\)[.!]?$")
_BREAK = re.compile("\r\n|[\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Parsed:
    """What was found in a reply.

    ``thought`` is None where there is none, and in the ``action`` style. ``action`` is the admissible action in the
    list's own wording, else the action as written; None when the problem is that there is none. By the first three
    readings compare. ``reasoning`` is what was thought before the answer, in a block of its own; it is part of neither.
    ``invented``: the model went on to write an observation of its own, and what it wrote from there on is left out.
    ``behind``: other text behind the action is left out.
    """

    thought: str | None
    action: str | None
    problem: Problem
    reasoning: str | None = field(default=None, compare=False)
    invented: bool = field(default=False, compare=False)
    behind: bool = field(default=False, compare=False)


class Tally(Counter[Problem]):
    """How often each outcome came."""

    def note(self, parsed: Parsed) -> None:
        """Count one reply."""
        self[parsed.problem] += 1

    def describe(self) -> dict[str, int]:
        """Every outcome and its count, those that never came too."""
        return {problem: self[problem] for problem in get_args(Problem)}


@dataclass(frozen=True)
class _Turn:
    """A reply taken apart: what stands before the action and what behind its heading. ``loose``: no heading."""

    before: str
    section: str
    loose: bool = False
    mark: str = ""
    """An emphasis that began before the heading and has not ended with it."""


def parse(
    reply: str,
    style: Style = "react",
    admissible: Sequence[str] = (),
    longest: int = LONGEST_ACTION,
    thinking: Sequence[str] = THINKING,
) -> Parsed:
    """Read a reply. It never raises.

    Args:
        reply: what the model wrote.
        style: ``"react"`` expects ``Thought:`` and ``Action:``; a reply that is an admissible action and nothing else
            is taken too. ``"action"`` expects an action alone; headings are tolerated.
        admissible: the actions that count. Empty: any action does; it is the fenced block, else the first line.
        longest: most characters of an action.
        thinking: tags of what is thought before the answer, as :func:`split_thinking` takes them.

    The action is matched to ``admissible`` word for word, then without regard to case, white space and punctuation
    (signs and points of numbers count). Where that fits several, it fits none. Behind the action may follow: more
    lines, a sentence after ``.``, ``!``, ``?`` or ``;``, a remark in brackets where no admissible action has brackets.
    In the ``action`` style it may also stand in the reply's only fenced block, or be the only admissible one among its
    lines. An ``Action:`` in the middle of a sentence counts only where an admissible action follows it. What stands
    under ``Action Input:``, or in a block of code whose language is the action, belongs to the action.
    """
    if len(reply) > LONGEST_THINKING:
        return Parsed(None, None, "too long")
    reasoning, text, _ = split_thinking(_BREAK.sub("\n", reply).replace("\ufeff", ""), thinking)
    text = strip_specials(text)
    if len(text) > LONGEST_REPLY:
        return Parsed(None, None, "too long", reasoning)
    if not text.strip():
        return Parsed(None, None, "empty", reasoning)
    offers = _Offers(admissible)
    tagged = [s for found in _THOUGHT_TAG.finditer(text) if (s := found["inside"].strip())]
    text = _THOUGHT_TAG.sub("", text)
    turn, invented = _take_apart(text, offers)
    if turn.loose and style == "react":
        whole = offers.find(turn.section)
        return Parsed(None, whole, "no action" if whole is None else "ok", reasoning, invented)
    written, named, behind = _written(turn)
    thought = _thought(turn.before, written)
    thought = None if style == "action" else ("\n".join(tagged) if tagged and not thought else thought)
    candidates = _candidates(turn.section, [written, *named], offers.bare)
    found = next((a for c in candidates if (a := offers.find(c)) is not None), None)
    if found is None and turn.loose:
        found = offers.only(turn.section.split("\n"))
    about = (reasoning, invented, behind)
    if found is not None:
        return Parsed(thought, found, "ok", *about)
    if not written:
        return Parsed(thought, None, "no action", *about)
    if len(written) > longest:
        return Parsed(thought, None, "too long", *about)
    return Parsed(thought, written, "not admissible" if admissible else "ok", *about)


def action_in(said: str, style: Style) -> str:
    """What an assistant's turn did; where no action can be read, all that was said."""
    return parse(said, style).action or said


def _take_apart(text: str, offers: _Offers) -> tuple[_Turn, bool]:
    """The turn, and whether an observation was invented behind it."""
    headings = list(_ACTION.finditer(text))
    if not headings and (tagged := list(_TAGGED.finditer(text))):
        return _Turn(text[: tagged[0].start()], tagged[0]["inside"]), len(tagged) > 1
    headings = headings or list(_INLINE.finditer(text)) or _offered(text, offers)
    if not headings:
        section, invented = _own(text, len(text) - len(text.lstrip()) + 1)
        return _Turn("", section, loose=True), invented
    text, invented = _own(text, headings[0].end())
    last = [h for h in headings if h.end() <= len(text)][-1]
    thought = _THOUGHT.search(text, last.end())
    mark = last.groupdict().get("mark") or ""
    closed = not mark or last.group().rstrip().endswith(mark)
    section = text[last.end() : thought.start() if thought else None]
    again = _ANYWHERE.match(section.lstrip())  # "Action: Action: look"
    section = section.lstrip()[again.end() :] if again else section
    return _Turn(text[: last.start()], section, mark="" if closed else mark), invented


def _own(text: str, start: int) -> tuple[str, bool]:
    """A reply up to where its turn ends or an observation begins, behind ``start``; whether the model went on there."""
    ended = turn_end(text, start)
    observed = _OBSERVATION.search(text, start)
    ends = [found.start() for found in (ended, observed) if found]
    if not ends:
        return text, False
    return text[: min(ends)], observed is not None or bool(ended and strip_specials(text[ended.end() :]).strip())


def _offered(text: str, offers: _Offers) -> list[re.Match[str]]:
    """An ``Action:`` anywhere, if an admissible action follows it on its line."""
    found = list(_ANYWHERE.finditer(text))[-1:]
    return [h for h in found if offers.find(text[h.end() :].partition("\n")[0]) is not None]


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


def _thought(before: str, written: str) -> str | None:
    said = list(_ANYWHERE.finditer(before))[-1:]
    if said and written and before[said[0].end() :].strip() == written:  # the action twice, in the line and below it
        before = before[: said[0].start()]
    heading = _THOUGHT.search(before)
    if not heading:
        return _FENCE.sub("", before).strip() or None
    inside = before[heading.end() :]
    while again := _THOUGHT.match(inside.lstrip()):  # a cue of ours, and the model's own heading
        heading, inside = again, inside.lstrip()[again.end() :]
    mark, inside = heading["mark"] or "", inside.strip()
    open_ = mark and not heading.group().rstrip().endswith(mark)
    return inside.removesuffix(mark).rstrip() if open_ else inside


def _fenced(section: str) -> tuple[str, str, str] | None:
    """Language, contents and what follows of the block that ``section`` begins with; without an end it is all."""
    opening = _FENCE.match(section.lstrip())
    if opening is None:
        return None
    lines = section.lstrip()[opening.end() :].split("\n")[1:]
    end = next((n for n, line in enumerate(lines) if line.strip() == opening[1]), len(lines))
    return opening[2], "\n".join(lines[:end]).strip(), "\n".join(lines[end + 1 :])


def _written(turn: _Turn) -> tuple[str, list[str], bool]:
    """The action as the model wrote it, empty where there is none; its name, if it has one; whether more follows."""
    section = turn.section
    if given := _INPUT.search(section):
        name, _, _ = _written(_Turn("", section[: given.start()], mark=turn.mark))
        value, _, behind = _written(_Turn("", section[given.end() :]))
        value = "" if value.casefold() in ("none", "null", "n/a", "{}") else value
        return f"{name} {value}".strip(), [name], behind
    block = _fenced(section)
    if block is None and turn.loose:
        fences = list(_FENCE.finditer(section))
        block = _fenced(section[fences[0].start() :]) if len(fences) == 2 else None
    if block is not None:
        return block[1], [], bool(block[2].strip())
    lines = section.split("\n")
    at = next((n for n, part in enumerate(lines) if part.strip() and not _FENCE.match(part.strip())), None)
    if at is None:
        return "", [], False
    line, rest = lines[at].strip(), "\n".join(lines[at + 1 :])
    line = line.removesuffix(turn.mark).rstrip() if turn.mark else line
    for _ in _WRAPS:
        if (inner := _unwrap(line)) == line:
            break
        line = inner
    following = _fenced(rest)
    if following and following[0] and following[0].casefold() == line.casefold():  # "bash", and a block of it
        return f"{line}\n{following[1]}".strip(), [line], bool(following[2].strip())
    return line, [], bool(_FENCE.sub("", rest).strip())


def _unwrap(line: str) -> str:
    for start, end in _WRAPS if line[:1] in _OPENING else ():
        inner = line[len(start) : -len(end)].strip()
        # "a" or "b" is not quoted as a whole
        if line.startswith(start) and line.endswith(end) and inner and start not in inner and end not in inner:
            return inner
    return line


def _candidates(section: str, written: Sequence[str], brackets: bool) -> Iterator[str]:
    yield section
    yield from written
    line = next((s for part in written[0].split("\n") if (s := part.strip())), "")
    yield line
    if counted := _COUNTED.match(line):
        yield line[counted.end() :]
    if len(line) <= LONGEST_ACTION:
        cuts = list(islice(_SENTENCE.finditer(line), 8))
        if brackets and (remark := _BRACKET.search(line)):
            cuts.append(remark)
        for cut in reversed(cuts):
            yield line[: cut.start()]
