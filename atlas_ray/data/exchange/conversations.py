"""A record's conversation: which turns are steps, and what stands before and behind them.

Before the first step may stand system turns, the instructions with their acknowledgement, and rounds of another problem
as an example; behind the last one what the environment showed last, and remarks after an outcome was told. A turn
without an action anywhere else is refused, so that no step is lost; docs/formats.md has the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import json_kind
from ..thinking import THINKING
from .outcomes import EpisodeOutcome, of_text
from .reading import KEYS, JsonRecord, turns_key
from .turns import AgentTurn, Turn, beside, read_agent_turn, read_turn

Reasoning = Literal["drop", "thought"]
Examples = Literal["refuse", "drop", "steps"]
_ACKNOWLEDGED = re.compile(
    r"\W*(?:ok(?:ay)?|sure|yes|yep|understood|got it|fine|alright|all right|certainly|of course|absolutely|great|noted"
    r"|no problem|acknowledged|ready|thanks?(?: you)?|i(?:'m| am) ready|i (?:have )?(?:understand|understood|see)"
    r"|i(?:'ll| will) (?:follow|try|do my best|help|comply|keep|be)|let'?s (?:begin|start))\b"
    r"|\W*(?:\u597d\u7684|\u660e\u767d)",
    re.IGNORECASE,
)
_HEADED = re.compile(r"^[\W_]*(?:\d+[.)]\s*)?act(?:ion)?\b", re.IGNORECASE | re.MULTILINE)
_LONGEST_ACKNOWLEDGEMENT = 600
_EXAMPLE = re.compile(
    r"\W*(?:here(?:'s| is| are)\s+)?(?:an?\s+|one\s+|the\s+|some\s+)?(?:worked\s+|sample\s+|first\s+)?"
    r"(?:examples?|demonstrations?|demo|sample|illustration|for example|for instance)\b",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"\b(?:new|next|real|actual|another|different|your|own)\s+"
    r"(?:problem|task|one|game|episode|question|turn|instance)\b"
    r"|\bnow\b[^.\n]{0,20}\byour turn\b|\bend of (?:the )?(?:example|demonstration)\b|\binstruction\s*:",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """How records are read where they leave it open.

    Attributes:
        success: the outcome of episodes that do not say; None leaves it unknown.
        success_field: dotted name of the field that says whether an episode was a success.
        reasoning: ``"drop"`` leaves out what was thought beside or before an answer, ``"thought"`` makes it thought.
        examples: what becomes of leading turns that are flagged false where nothing tells whether they are an example.
        thinking: tags around what was thought, as :func:`atlas_ray.data.thinking.split_thinking` takes them.
        tools: JSON schemas of the tools that agents could call whose records do not say them.
    """

    success: bool | None = None
    success_field: str | None = None
    reasoning: Reasoning = "drop"
    examples: Examples = "refuse"
    thinking: tuple[str, ...] = THINKING
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The turns of a record in order: ``head`` of them stand before what the first step saw.

    ``action_turns`` are the indices of the turns in which the agent acts, each of which answers the turn before it.
    ``agent_turns`` has what every turn of the agent says. ``examples``: how many rounds in the head are of another
    problem. ``beside``: the system prompt that stands beside the turns. ``tools``: schemas of an agent that calls
    tools, whose steps :mod:`atlas_ray.data.exchange.tool_turns` reads; None of others.
    """

    record: JsonRecord
    key: str
    turns: tuple[Turn, ...]
    head: int
    action_turns: tuple[int, ...]
    agent_turns: dict[int, AgentTurn] = field(repr=False)
    beside: str = ""
    examples: int = 0
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def tail(self) -> int:
        """The first turn behind the last step."""
        return self.action_turns[-1] + 1

    @property
    def instruction(self) -> str:
        """What the agent was told beforehand: system prompts, and the first turn where it was acknowledged.

        Where an example stands in front of all, and there is no system prompt, its first turn holds the instructions.
        """
        head = self.turns[: self.head]
        told = [self.beside, *(t.text for t in head if t.role == "system")]
        first = next((n for n, t in enumerate(head) if t.role == "human"), None)
        if first is not None and (not any(map(str.strip, told)) or self._acknowledged(first + 1)):
            told.append(head[first].text)
        parts = list(dict.fromkeys(part for part in told if part.strip()))
        return "\n\n".join(parts) if parts else max(told, key=len)

    def _acknowledged(self, number: int) -> bool:
        said = self.agent_turns.get(number)
        return said is None or said.action is None or _ACKNOWLEDGED.match(self.turns[number].text) is not None

    @property
    def last_words(self) -> list[str]:
        """What the environment said behind the last step."""
        return [t.text for t in self.turns[self.tail :] if t.role != "gpt"]

    def where(self, number: int, key: str | None = None) -> str:
        """The field of a turn, or of ``key`` in it; without one, of its text."""
        return f"{self.key}[{number}].{key or self.turns[number].text_key}"


def read_conversation(
    record: JsonRecord, options: Options, masked: Callable[[], bool], placed: tuple[int | None, int] | None
) -> Conversation:
    """The turns of a record, checked.

    Args:
        record: the record.
        options: how to read what is left open.
        masked: whether the flags of the file are marks on steps, asked only where a record alone cannot tell.
        placed: for a record of our own export, how many turns stand before the first step (None: as :func:`_plain_head`
            says) and how many behind the last one's, so that nothing has to be guessed.

    Raises:
        InputError: names record and field.
    """
    key, raws = raw_turns(record)
    turns = tuple(read_turn(record, raw, f"{key}[{number}]") for number, raw in enumerate(raws))
    said = {
        number: read_agent_turn(turn.text, turn.reasoning, options.thinking, options.reasoning == "thought")
        for number, turn in enumerate(turns)
        if turn.role == "gpt"
    }
    conversation = Conversation(record, key, turns, 0, (), said, beside(record))
    if placed is not None:
        return _placed(conversation, *placed)
    return _example_rounds(_steps(conversation), options, masked)


def raw_turns(record: JsonRecord) -> tuple[str, list[Any]]:
    """Under which key a record has its turns, and the turns as the file has them.

    Raises:
        InputError: it has none, two lists of them, or something else.
    """
    key = _key(record)
    raws = record.value[key]
    if isinstance(raws, str):  # in tables the turns often stand as a text
        try:
            raws = json.loads(raws)
            json.dumps(raws, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise record.error("holds half of a surrogate pair, which is no character", key) from None
        except (ValueError, RecursionError):
            raise record.error("must be a list of turns, is a text that is no JSON", key) from None
    if not isinstance(raws, list):
        raise record.error(f"must be a list of turns, is {json_kind(raws)}", key)
    return key, raws


def _key(record: JsonRecord) -> str:
    if turns_key(record.value) == "traj":
        return "traj"
    there = [k for k in KEYS[:2] if record.value.get(k) is not None]
    if len(there) > 1 and all(record.value[k] for k in there):
        raise record.error("this record has conversations and messages: leave one of them out", there[1])
    if not there:
        names = ", ".join(map(str, list(record.value)[:8])) or "no keys"
        raise record.error(f"must be a list of turns, and is not there; the record has {names}", KEYS[0])
    return next((k for k in there if record.value[k]), there[0])


def _placed(conversation: Conversation, head: int | None, tail: int) -> Conversation:
    """By the places that our own export noted."""
    roles = [turn.role for turn in conversation.turns]
    start = (2 if conversation.key == "conversations" else int(roles[:1] == ["system"])) if head is None else head
    action_turns = tuple(range(start + 1, len(roles) - tail, 2))
    made = Conversation(
        conversation.record,
        conversation.key,
        conversation.turns,
        start,
        action_turns,
        conversation.agent_turns,
        conversation.beside,
    )
    _check_order(made, action_turns[-1] if action_turns else len(roles) - 1, start)
    _check_steps(made)
    return made


def _steps(conversation: Conversation) -> Conversation:
    """Which turns are steps: all of the agent's but an acknowledgement, and remarks behind the end."""
    turns, said = conversation.turns, conversation.agent_turns
    opening = next((n for n, t in enumerate(turns) if t.role != "system"), len(turns))
    answers = [n for n in said if n >= opening]
    first = answers[0] if answers else -1
    acknowledged = first == opening + 1 and _acknowledges(conversation, first, alone=len(answers) == 1)
    action_turns = [n for n in answers if said[n].action is not None and not (acknowledged and n == first)]
    last = action_turns[-1] if action_turns else (answers[-1] if answers else -1)
    head = opening + 2 if acknowledged else opening
    _check_order(Conversation(conversation.record, conversation.key, turns, head, (), said), last, opening)
    for number in answers:
        if said[number].action is not None or (acknowledged and number == first):
            continue
        over = [of_text(t.text) != EpisodeOutcome() for t in turns[last + 1 : number] if t.role != "gpt"]
        if number < last or not action_turns or not any(over):
            hint = (
                "; an acknowledgement needs a flag loss that is false" if number == opening + 1 and action_turns else ""
            )
            raise conversation.record.error(said[number].problem + hint, conversation.where(number))
    made = Conversation(
        conversation.record, conversation.key, turns, head, tuple(action_turns), said, conversation.beside
    )
    _check_steps(made)
    return made


def _check_order(conversation: Conversation, last: int, opening: int) -> None:
    """Up to the last step, the environment and the agent take turns."""
    for number, turn in enumerate(conversation.turns):
        due = ("human", "gpt")[(number - opening) % 2]
        if number >= opening and turn.role != due and (number <= last or last < 0):
            key = "from" if turn.raw.get("from") is not None else "role"
            message = f"this turn must be the {due}'s, is the {turn.role}'s"
            raise conversation.record.error(message, conversation.where(number, key))


def _check_steps(conversation: Conversation) -> None:
    if not conversation.action_turns:
        raise conversation.record.error(f"has {len(conversation.turns)} turns, which is no step yet", conversation.key)


def _acknowledges(conversation: Conversation, number: int, alone: bool) -> bool:
    """Whether the agent's first turn only acknowledges its instructions.

    Raises:
        InputError: it may as well be a step.
    """
    turn, said = conversation.turns[number], conversation.agent_turns[number]
    text = turn.text.strip()
    words = not text or (len(text) <= _LONGEST_ACKNOWLEDGEMENT and _ACKNOWLEDGED.match(text) is not None)
    if said.action is None:
        return (turn.flag is False or words) and not (alone and conversation.key == "messages")
    if not words or turn.flag or _HEADED.search(text) or alone:
        return words and turn.flag is False
    if turn.flag is False:
        return True
    message = "may be an acknowledgement or a step: give it a flag loss, false where it is an acknowledgement"
    raise conversation.record.error(message, conversation.where(number))


# --- rounds of another problem ---


def _example_rounds(conversation: Conversation, options: Options, masked: Callable[[], bool]) -> Conversation:
    """The conversation without rounds of another problem in front.

    Raises:
        InputError: turns that are flagged false stand in front of turns flagged true, and nothing tells what they are.
    """
    flags = [conversation.turns[n].flag for n in conversation.action_turns]
    count = flags.index(True) if True in flags else 0
    flagged = bool(count) and flags == [False] * count + [True] * (len(flags) - count)
    begun = _EXAMPLE.match(_seen(conversation, 0)) is not None
    if not flagged and (not begun or any(flag is not None for flag in flags)):
        return conversation
    if not flagged:
        again = [step for step in range(1, len(flags)) if _told_anew(conversation, step)]
        return _without(conversation, again[0]) if len(again) == 1 else conversation
    if begun or _told_anew(conversation, count):
        return _without(conversation, count)
    if options.examples == "steps" or (options.examples == "refuse" and masked()):
        return conversation
    if options.examples == "drop":
        return _without(conversation, count)
    message = (
        f"its first {count} of {len(flags)} steps are flagged false and all others true: are they an example, or steps "
        'that are not critical? collect.examples = "drop" leaves such turns out, "steps" keeps them'
    )
    raise conversation.record.error(
        message,
        conversation.where(
            conversation.action_turns[0],
            "loss" if "loss" in conversation.turns[conversation.action_turns[0]].raw else None,
        ),
    )


def _seen(conversation: Conversation, step: int) -> str:
    return conversation.turns[conversation.action_turns[step] - 1].text[:400]


def _told_anew(conversation: Conversation, step: int) -> bool:
    """Whether what a step saw begins another problem, in words that do not stand at every step."""
    if not _ANOTHER.search(_seen(conversation, step)) or _EXAMPLE.match(_seen(conversation, step)):
        return False
    return not any(
        _ANOTHER.search(_seen(conversation, n)) for n in range(1, len(conversation.action_turns)) if n != step
    )


def _without(conversation: Conversation, count: int) -> Conversation:
    action_turns: Sequence[int] = conversation.action_turns[count:]
    return Conversation(
        conversation.record,
        conversation.key,
        conversation.turns,
        action_turns[0] - 1,
        tuple(action_turns),
        conversation.agent_turns,
        conversation.beside,
        count,
    )
