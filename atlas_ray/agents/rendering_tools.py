"""Conversations of agents that call tools, in a model's chat template with ``tools``, for training.

The whole conversation is written by the template at once, one more message behind it, so that every turn stands as the
template shows an earlier one. What it writes to ask for an answer holds a special token that no text can write, so the
turns of the agent are found behind it, each up to the special token that ends a turn: these spans, and nothing else,
are what the model must write. Special tokens in the texts of a conversation are taken as text: while the template
writes, each is broken by a character that occurs nowhere else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

from ..data.records import Part, Step, Trajectory
from ..data.tool_calls import ToolCall, calls_of, write_calls
from ..data.tool_conversation import Message, agent_message, seen_messages
from ..errors import InputError
from .chat_template import write
from .rendering import Rendered
from .unknown_words import Unknown

_log = logging.getLogger(__name__)
_MARK = "a1b2c3"
_PRIVATE = range(0xE000, 0xF8FF)


class Encoder(Protocol):
    """What makes ids of the parts of a conversation.

    ``unknown`` counts what is encoded, if somebody asks for it; ``special`` are the ids of the special tokens.
    """

    tokenizer: Any
    unknown: Unknown | None
    special: frozenset[int]

    def piece(self, text: str, inside: bool, split: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are text if ``split``. ``inside``: it stands behind no special token."""
        ...

    def alike(self, parts: list[int], whole: list[int]) -> bool:
        """Whether two lists of ids are the same conversation, though perhaps cut otherwise."""
        ...


class ToolRenderer:
    """Turns conversations with tool calls into token ids.

    Args:
        encoder: makes ids of texts.
        settings: given to the template.

    Raises:
        InputError: the template refuses such conversations, leaves out calls or results, is not append-only, or ends no
            turn with a special token; or the tokenizer writes parts of a conversation otherwise than the whole.

    Attributes:
        drops_thoughts: the template leaves out what stands beside a call.
    """

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        self._encoder, self._tokenizer, self._settings = encoder, encoder.tokenizer, settings
        self._ids = {str(self._tokenizer.convert_ids_to_tokens(i)): i for i in encoder.special}
        self._names = sorted(self._ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, self._names)))
        self.drops_thoughts, self._warned = False, False
        self._cue, self._ends, self._in_pieces = "", re.compile(""), True
        self._probe()

    def render(self, trajectory: Trajectory) -> Rendered:
        """The whole conversation with the span of every turn of the agent, its end included.

        Raises:
            InputError: the template refuses it, or is not append-only in it; names the trajectory.
        """
        messages, turns = _messages(trajectory)
        if self.drops_thoughts and not self._warned and any(s.thought and calls_of(s.action) for s in trajectory.steps):
            self._warned = True
            _log.warning("the chat template writes no text beside a tool call, so thoughts there are not trained")
        with _of(trajectory):
            hidden, mark = self._hide([messages, list(trajectory.tools or ())])
            return self._render(hidden[0], turns, hidden[1], mark)

    def thought_lengths(self, trajectory: Trajectory) -> list[int]:
        """How many tokens of each turn stand before its action, which is its calls or what it says without any.

        They are the thought and the white space behind it; a token that holds something of the action is the action's.

        Raises:
            InputError: the template refuses the conversation, or writes a thought otherwise than it is.
        """
        messages, turns = _messages(trajectory)
        with _of(trajectory):
            (messages, tools, thoughts), mark = self._hide(
                [messages, list(trajectory.tools or ()), [(step.thought or "").strip() for step in trajectory.steps]]
            )
            text, places = self._laid(messages, turns, tools, mark)
            found = []
            for (start, end), step, thought in zip(places, trajectory.steps, thoughts, strict=True):
                if not thought or (self.drops_thoughts and calls_of(step.action)):
                    found.append(0)
                    continue
                at = text.find(thought, start, end)
                if at < 0:
                    raise _refused("writes a thought otherwise than it is")
                behind = at + len(thought)
                behind += len(text[behind:end]) - len(text[behind:end].lstrip())
                ids, whole = (self._tokens(text, start, to, mark) for to in (behind, end))
                pairs = enumerate(zip(ids, whole, strict=False))
                found.append(next((n for n, (one, other) in pairs if one != other), len(ids)))
            return found

    def _render(self, messages: list[Message], turns: Sequence[int], tools: list[Any], mark: str) -> Rendered:
        text, places = self._laid(messages, turns, tools, mark)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        done = 0
        for start, end in places:
            ids += self._tokens(text, done, start, mark)
            begun = len(ids)
            ids += self._tokens(text, start, end, mark)
            spans.append((begun, len(ids)))
            done = end
        return Rendered(ids, spans)

    def _laid(
        self, messages: list[Message], turns: Sequence[int], tools: list[Any], mark: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template writes, and where in it each turn of the agent begins and ends."""
        text = self._write([*messages, *_after(messages[-1])], tools, ask=False)
        if mark and f"{ord(mark):04x}" in text.lower():
            raise _refused("escapes characters, so that special tokens in its texts cannot be told from its own")
        prompt = self._write(messages[: turns[-1]], tools, ask=True)
        if not text.startswith(prompt):
            raise _refused("is not append-only: what it writes before an answer depends on what follows")
        cues = [(found.start(), found.end()) for found in re.finditer(re.escape(self._cue), text)]
        if len(cues) != len(turns):
            raise _refused(f"begins {len(cues)} of {len(turns)} turns of the agent as it asks for an answer")
        places = []
        for (_, start), (following, _) in pairwise([*cues, (len(text), len(text))]):
            end = self._ends.search(text, start, following)
            if end is None:
                raise _refused("ends a turn of the agent with no special token")
            places.append((start, end.end()))
        return text, places

    def _tokens(self, text: str, start: int, end: int, mark: str) -> list[int]:
        """Ids of a part of the conversation, in which special tokens are the template's own."""
        inside = start > 0 and not any(text.endswith(name, 0, start) for name in self._names)
        if not mark and self._encoder.unknown is None:
            return self._encoder.piece(text[start:end], inside, split=False)
        ids: list[int] = []
        for piece in self._split(text[start:end]):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += self._encoder.piece(piece.replace(mark, "") if mark else piece, inside)
            inside = False  # now behind a special token
        return ids

    def _split(self, text: str) -> Iterator[str]:
        """The special tokens of a text, and what stands between them."""
        at = 0
        for found in self._specials.finditer(text):
            yield from (text[at : found.start()], found.group()) if found.start() > at else (found.group(),)
            at = found.end()
        if at < len(text):
            yield text[at:]

    def _write(self, messages: Sequence[Message], tools: Sequence[Any], ask: bool) -> str:
        try:
            return str(write(self._tokenizer, messages, ask, tools=list(tools) or None, **self._settings))
        except Exception as error:  # templates are programs, and raise what programs do
            raise _refused(f"refuses it ({' '.join(str(error).split())})") from None

    def _hide(self, value: Any) -> tuple[Any, str]:
        """The texts of a value with every special token in them broken by a character, and this character."""
        texts = list(_texts(value))
        if not any(map(self._specials.search, texts)):
            return value, ""
        if not self._in_pieces:
            raise InputError("its texts hold special tokens, which this tokenizer cannot write as text")
        there = "".join(texts).lower()
        free = (chr(code) for code in _PRIVATE if chr(code) not in there and f"{code:04x}" not in there)
        mark = next(free, None)
        if mark is None:
            raise InputError("its texts hold special tokens, and every character of Unicode's private use area")
        return _mapped(value, lambda text: self._broken(text, mark)), mark

    def _broken(self, text: str, mark: str) -> str:
        # one after the other, as a token may be left when another one is broken
        while found := self._specials.search(text):
            at = found.start() + (len(found.group()) + 1) // 2
            text = f"{text[:at]}{mark}{text[at:]}"
        return text

    # --- what the template does ---

    def _probe(self) -> None:
        """Find out what the template writes around the turns of the agent.

        Raises:
            InputError: it cannot be used.
        """
        messages, turns = _messages(_SAMPLE)
        tools = list(_SAMPLE.tools or ())
        texts = {n: (self._write(messages[:n], tools, False), self._write(messages[:n], tools, True)) for n in turns}
        self._cue = _only({asked.removeprefix(told) for told, asked in texts.values()})
        if not self._cue or any(told + self._cue != asked for told, asked in texts.values()):
            raise _refused("does not ask for every answer by the same words behind the conversation")
        if not self._specials.search(self._cue):
            raise _refused("asks for an answer without a special token, so that a text could do so too")
        ends = set()
        for n in turns:
            last = self._write(messages[: n + 1], tools, False)
            begun = last.rfind(self._cue)
            if begun < len(texts[n][0]):
                raise _refused("begins a turn of the agent otherwise than it asks for an answer")
            found = self._specials.findall(last, begun + len(self._cue))
            if not found:
                raise _refused("ends a turn of the agent with no special token")
            ends.add(found[-1])
        self._ends = re.compile("|".join(map(re.escape, sorted(ends))))
        whole = self._write([*messages, *_after(messages[-1])], tools, False)
        _check_complete(whole)
        self.drops_thoughts = f"{_MARK} thought" not in whole
        if any(not whole.startswith(asked) for _, asked in texts.values()):
            raise _refused("is not append-only: what it writes before an answer depends on what follows")
        rendered = self._render(messages, turns, tools, "")
        upto = self._tokenizer(whole, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        if not self._encoder.alike(rendered.ids, upto[: _length(upto, rendered, self._encoder.special)]):
            raise _refused("is written by the tokenizer otherwise in parts than as a whole")
        pieces = self._render(messages, turns, tools, chr(_PRIVATE[0]))
        self._in_pieces = self._encoder.alike(pieces.ids, rendered.ids) and len(pieces.spans) == len(rendered.spans)


def _length(whole: Sequence[int], rendered: Rendered, special: Iterable[int]) -> int:
    """How many ids of the whole reach up to the end of the last turn, by the special tokens before it."""
    known = set(special)
    wanted = sum(i in known for i in rendered.ids)
    seen = 0
    for number, i in enumerate(whole):
        seen += i in known
        if seen == wanted:
            return number + 1
    return len(whole)


def _only(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else ""


@contextmanager
def _of(trajectory: Trajectory) -> Iterator[None]:
    """Name the trajectory in errors that are raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"trajectory {trajectory.id!r}: {error.message}", field="prompt") from None


def _refused(why: str) -> InputError:
    return InputError(f"the chat template, of a conversation with tool calls, {why}", field="prompt")


def _messages(trajectory: Trajectory) -> tuple[list[Message], list[int]]:
    """The messages of a trajectory as templates want them, and which are the agent's.

    A result that does not say which call it answers is of the calls before it in their order, and of this tool.
    """
    messages: list[Message] = []
    turns: list[int] = []
    if trajectory.instruction:
        messages.append({"role": "system", "content": trajectory.instruction})
    calls: list[ToolCall] = []
    for step in trajectory.steps:
        results = 0
        for message in seen_messages(step):
            if message["role"] == "tool":
                named = {c.id: c for c in calls if c.id is not None}
                call = named.get(str(message.get("tool_call_id"))) or (calls[results] if results < len(calls) else None)
                results += 1
                if call is not None:
                    about = {"name": call.name} | ({"tool_call_id": call.id} if call.id is not None else {})
                    message = about | message
            messages.append(message)
        turns.append(len(messages))
        messages.append(agent_message(step, as_object=True))
        calls = list(calls_of(step.action) or ())
    return messages, turns


def _after(message: Message) -> list[Message]:
    """What may follow a message of the agent: results of its calls, or a user."""
    calls = message.get("tool_calls")
    if not calls:
        return [{"role": "user", "content": "-"}]
    return [
        {
            "role": "tool",
            "content": "-",
            "name": c["function"]["name"],
            **({"tool_call_id": c["id"]} if "id" in c else {}),
        }
        for c in calls
    ]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _mapped(inner, change) for name, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list) else value


def _check_complete(whole: str) -> None:
    """A template that knows nothing of tools leaves them out.

    Raises:
        InputError: something of the sample is missing.
    """
    for what in ("name", "value", "result", "answer", "goal", "rules", "question"):
        times = whole.count(f"{_MARK} {what}" if what != "name" else f"{_MARK}_name")
        if not times:
            raise _refused(f"leaves out {_PARTS[what]}")


_PARTS = {
    "name": "which tool is called",
    "value": "the arguments of a call",
    "result": "the result of a tool",
    "answer": "an answer without calls",
    "goal": "what the user said",
    "rules": "the system message",
    "question": "what the user said last",
}


def _sample() -> Trajectory:
    def seen(text: str) -> dict[str, Any]:
        return {"observation": text, "parts": (Part(role="tool", id="call00001", length=len(text)),)}

    action = write_calls([ToolCall(f"{_MARK}_name", {"x": f"{_MARK} value"}, "call00001")])
    steps = (
        Step(observation=f"{_MARK} goal", action=action),
        Step(**seen(f"{_MARK} result"), thought=f"{_MARK} thought", action=action),
        Step(**seen("one more"), action=f"{_MARK} answer"),
        Step(observation=f"{_MARK} question", action=action),
        Step(**seen("the last"), action="Done."),
    )
    tool = {"name": "other", "description": "d", "parameters": {"type": "object", "properties": {}, "required": []}}
    about: dict[str, Any] = {"id": "sample", "env": "-", "task": "-", "seed": 0, "source": "-"}
    tools = ({"type": "function", "function": tool},)
    return Trajectory(**about, score=None, success=None, instruction=f"{_MARK} rules", steps=steps, tools=tools)


_SAMPLE = _sample()
