"""A record of an agent that calls tools: its messages as steps.

Every message of the agent is a step, with calls or, where it speaks to a user, as a text word by word; parallel calls
stay one step. What came since the message before is the observation: results of tools, and what users said. System
messages in front are the instruction. docs/formats.md has the rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import json_kind
from ..records import PART_GAP, Part, Step
from ..thinking import split_thinking, strip_specials
from ..tool_calls import ToolCall, arguments_of, as_text, calls_of, write_calls
from .conversations import Conversation, Options
from .meta import Meta, digest
from .reading import JsonRecord
from .survey import META
from .turns import REASONING_KEYS, AgentTurn, Turn, beside, content_of

Who = Literal["user", "tool", "system", "agent", "exit"]
_WHO: dict[str, Who] = {
    "user": "user",
    "human": "user",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "system": "system",
    "developer": "system",
    "assistant": "agent",
    "exit": "exit",
}
_TURN_ROLES: dict[Who, Literal["human", "gpt", "system"]] = {"agent": "gpt", "system": "system"}
MINI = "mini-swe-agent"


def is_tool_record(record: JsonRecord, key: str, raws: list[Any]) -> bool:
    """Whether a record is of an agent that calls tools, or one of the formats that are always read so.

    Those are mini-swe-agent's, SWE-smith's and tau-bench's; of others a record that names tools, or holds a call or a
    result of one.
    """
    value = record.value
    if isinstance(meta := value.get(META), dict):
        return bool(meta.get("calls_tools"))
    if key == "conversations":
        return False
    if key == "traj" or is_mini(value) or is_smith(value) or value.get("tools") or value.get("functions"):
        return True
    return any(_calls_or_answers(raw) for raw in raws if isinstance(raw, dict))


def is_mini(value: Mapping[str, Any]) -> bool:
    """Whether a record is a trajectory of mini-swe-agent."""
    return str(value.get("trajectory_format")).startswith(MINI)


def is_smith(value: Mapping[str, Any]) -> bool:
    """Whether a record is a row of SWE-smith's trajectories."""
    return value.get("traj_id") is not None and value.get("instance_id") is not None


def _calls_or_answers(raw: dict[str, Any]) -> bool:
    return bool(raw.get("tool_calls") or raw.get("function_call")) or _WHO.get(str(raw.get("role"))) == "tool"


def read_tool_conversation(
    record: JsonRecord, key: str, raws: list[Any], options: Options, meta: Meta | None
) -> Conversation:
    """The messages of a record, checked.

    Raises:
        InputError: names record and field.
    """
    if meta is not None:  # read as it was written, whatever the options are
        options = Options()
    turns = tuple(_turn(record, raw, f"{key}[{number}]") for number, raw in enumerate(raws))
    if not turns:
        raise record.error(_why_empty(record), key)
    head = next((n for n, t in enumerate(turns) if t.role != "system"), len(turns))
    if meta and meta.head is not None:
        head = meta.head
    agents = [n for n, turn in enumerate(turns) if turn.role == "gpt"]
    if not agents:
        result = next((f"[{n}].role" for n, turn in enumerate(turns) if _who(turn) == "tool"), "")
        raise record.error(f"has {len(turns)} messages, and none of the agent", f"{key}{result}")
    exact = {} if meta is None else _exact(meta, turns, agents, head)
    said = {
        number: AgentTurn(exact[step].thought, exact[step].action)
        if step in exact
        else _agent_turn(record, turns[number], f"{key}[{number}]", options)
        for step, number in enumerate(agents)
    }
    made = Conversation(
        record, key, turns, head, tuple(agents), said, beside(record), tools=_tools(record) or options.tools
    )
    if meta is None:
        _check_results(made)
    return made


def _why_empty(record: JsonRecord) -> str:
    info = record.value.get("info")
    if isinstance(info, dict) and info.get("error"):
        return f"is empty, because the run failed: {' '.join(str(info['error']).split())[:200]}"
    return "is empty"


def _turn(record: JsonRecord, raw: object, where: str) -> Turn:
    if not isinstance(raw, dict):
        raise record.error(f"a message must be a JSON object, this is {json_kind(raw)}", where)
    who = _WHO.get(str(raw.get("role")).strip().casefold())
    if who is None:
        raise record.error(f"must be one of {', '.join(_WHO)}, is {raw.get('role')!r}", f"{where}.role")
    content = raw.get("content")
    text, reasoning = ("", []) if content is None else content_of(record, content, f"{where}.content")
    if who == "agent":
        reasoning += [r for k in REASONING_KEYS if isinstance(r := raw.get(k), str) and r not in reasoning]
        blocks = raw.get("thinking_blocks")
        for block in blocks if isinstance(blocks, list) and not reasoning else []:
            if isinstance(block, dict) and isinstance(told := block.get("thinking"), str):
                reasoning.append(told)
    return Turn(_TURN_ROLES.get(who, "human"), text, "\n\n".join(filter(str.strip, reasoning)), raw)


def _who(turn: Turn) -> Who:
    return _WHO[str(turn.raw["role"]).strip().casefold()]


# --- what the agent says ---


def _agent_turn(record: JsonRecord, turn: Turn, where: str, options: Options) -> AgentTurn:
    """Thought and action of a message of the agent; it has both or neither.

    Raises:
        InputError: it says nothing and calls nothing, a call is wrong, or a text reads like calls.
    """
    calls = _calls(record, turn.raw, where)
    inside, text, _ = split_thinking(turn.text, options.thinking)
    thinks = "\n\n".join(part for part in (turn.reasoning, inside or "") if part.strip())
    if calls:
        taken = bool(thinks) and (options.reasoning == "thought" or not text)
        thought = "\n\n".join(filter(None, (thinks if taken else "", text))) or None
        return AgentTurn(thought, write_calls(calls), reasoning=bool(thinks) and not taken)
    text = strip_specials(text)
    if not text.strip():
        raise record.error("says nothing and calls no tool", f"{where}.content")
    if calls_of(text) is not None:
        raise record.error("is a text that reads like tool calls: give them as tool_calls", f"{where}.content")
    taken = bool(thinks) and options.reasoning == "thought"
    return AgentTurn(thinks if taken else None, text, reasoning=bool(thinks) and not taken)


def _calls(record: JsonRecord, raw: dict[str, Any], where: str) -> list[ToolCall]:
    told = raw.get("tool_calls")
    if isinstance(told, str):  # in tables
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            raise record.error("must be a list of calls, is a text that is no JSON", f"{where}.tool_calls") from None
    if told:
        if not isinstance(told, list):
            raise record.error(f"must be a list of calls, is {json_kind(told)}", f"{where}.tool_calls")
        return [_call(record, one, f"{where}.tool_calls[{n}]") for n, one in enumerate(told)]
    if raw.get("function_call"):
        return [_call(record, {"function": raw["function_call"]}, f"{where}.function_call", old=True)]
    return []


def _call(record: JsonRecord, raw: object, where: str, old: bool = False) -> ToolCall:
    if not isinstance(raw, dict):
        raise record.error(f"a call must be a JSON object, this is {json_kind(raw)}", where)
    inside = raw.get("function") if raw.get("function") is not None else raw  # tau2-bench has name and arguments there
    at = where if old or inside is raw else f"{where}.function"
    if not isinstance(inside, dict):
        raise record.error(f"must be a JSON object, is {json_kind(inside)}", at)
    if raw.get("type") not in (None, "function"):
        raise record.error(f"must be 'function', is {raw['type']!r}", f"{where}.type")
    name, arguments = inside.get("name"), inside.get("arguments")
    if not isinstance(name, str) or not name.strip():
        raise record.error(f"must be the name of a tool, is {name!r}", f"{at}.name")
    try:
        if isinstance(arguments, dict):
            as_text(arguments)  # which knows no NaN
        elif arguments is None or isinstance(arguments, str):
            arguments = arguments_of(arguments or "")
        else:
            raise ValueError(f"must be a JSON object or its text, is {json_kind(arguments)}")
    except ValueError as error:
        raise record.error(str(error), f"{at}.arguments") from None
    return ToolCall(name, arguments, _id(record, raw.get("id"), f"{where}.id"))


def _id(record: JsonRecord, value: object, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise record.error(f"must be a text, is {value!r}", where)
    return value or None


# --- what it saw ---


def _is_hidden(turn: Turn) -> bool:
    """Whether the agent does not see a message: of tau2-bench's users, the tools that they use themselves."""
    who = _who(turn)
    by_user = who == "tool" and turn.raw.get("requestor") == "user"
    return by_user or (who == "user" and not turn.text and bool(turn.raw.get("tool_calls")))


def _answered(record: JsonRecord, turn: Turn, where: str) -> str | None:
    """The id of the call that a result answers; None where it does not say."""
    raw = turn.raw
    several = raw.get("tool_call_ids")  # SWE-agent's
    if raw.get("tool_call_id") is None and several:
        if not isinstance(several, list) or len(several) != 1:
            raise record.error("must be a list of one id", f"{where}.tool_call_ids")
        return _id(record, several[0], f"{where}.tool_call_ids[0]")
    field = "tool_call_id" if raw.get("tool_call_id") is not None or "requestor" not in raw else "id"
    return _id(record, raw.get(field), f"{where}.{field}")


def _check_results(conversation: Conversation) -> None:
    """Every result answers a call that was made before it.

    Raises:
        InputError: one does not, or the run's end is not at the end.
    """
    record, called, ids = conversation.record, False, set[str | None]()
    for number, turn in enumerate(conversation.turns):
        where = f"{conversation.key}[{number}]"
        if number in conversation.agent_turns:
            calls = calls_of(conversation.agent_turns[number].action or "") or ()
            called, ids = called or bool(calls), ids | {call.id for call in calls}
        elif _who(turn) == "exit" and number < conversation.tail:
            raise record.error("is 'exit', and the agent goes on behind it", f"{where}.role")
        elif _who(turn) == "tool" and not _is_hidden(turn):
            named = _answered(record, turn, where)
            if not called:
                raise record.error("is the result of a tool, and none was called before", f"{where}.role")
            if named is not None and None not in ids and named not in ids:
                raise record.error(f"answers the call {named!r}, which was not made before", f"{where}.tool_call_id")


@dataclass(frozen=True)
class _Seen:
    observation: str
    parts: tuple[Part, ...] | None


def _seen(conversation: Conversation, step: int) -> _Seen:
    """What the agent saw since its message before."""
    before = conversation.action_turns[step - 1] + 1 if step else conversation.head
    parts: list[Part] = []
    texts: list[str] = []
    for number in range(before, conversation.action_turns[step]):
        turn = conversation.turns[number]
        who = _who(turn)
        if _is_hidden(turn) or who == "agent" or who == "exit":
            continue
        told = {}
        if who == "tool":
            name = turn.raw.get("name")
            told = {
                "id": _answered(conversation.record, turn, f"{conversation.key}[{number}]"),
                "name": name if isinstance(name, str) and name else None,
            }
        parts.append(Part(role=who, length=len(turn.text), **told))
        texts.append(turn.text)
    plain = len(parts) == 1 and parts[0] == Part(role="user", length=len(texts[0]))
    return _Seen(PART_GAP.join(texts), None if plain else tuple(parts))


def tool_steps(conversation: Conversation, meta: Meta | None, last_reward: float) -> tuple[Step, ...]:
    """The steps of a record; without our own object every reward is 0 but the last.

    Raises:
        InputError: our own object says them of another number of steps.
    """
    exact = {}
    if meta is not None:
        exact = _exact(meta, conversation.turns, list(conversation.action_turns), conversation.head)
    steps = []
    for number, turn in enumerate(conversation.action_turns):
        if number in exact:
            steps.append(exact[number])
            continue
        seen, said = _seen(conversation, number), conversation.agent_turns[turn]
        about: dict[str, Any] = {"reward": last_reward if number == len(conversation.action_turns) - 1 else 0.0}
        if meta is not None:
            about = {"reward": meta.rewards[number]}
            about |= {"actor": meta.actors[number]} if meta.actors else {}
            about |= {"probability": meta.probabilities[number]} if meta.probabilities else {}
        assert said.action is not None
        steps.append(
            Step(observation=seen.observation, parts=seen.parts, thought=said.thought, action=said.action, **about)
        )
    return tuple(steps)


def _exact(meta: Meta, turns: tuple[Turn, ...], agents: list[int], head: int) -> dict[int, Step]:
    """Steps that our own export noted, where their messages are still those that it wrote."""
    found = {}
    for noted in meta.exact_tool_steps:
        if noted.index < len(agents):
            before = agents[noted.index - 1] + 1 if noted.index else head
            raws = [turn.raw for turn in turns[before : agents[noted.index] + 1]]
            if messages_digest(raws) == noted.messages:
                found[noted.index] = noted.step
    return found


def messages_digest(raws: list[dict[str, Any]]) -> str:
    """By which the messages of a step are known again, flags aside."""
    said = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
    return digest(as_text([{k: raw[k] for k in said if k in raw} for raw in raws]))


# --- the tools ---


def _tools(record: JsonRecord) -> tuple[dict[str, Any], ...]:
    key = "tools" if record.value.get("tools") else "functions"
    told = record.value.get(key)
    if isinstance(told, str):  # in tables
        try:
            told = json.loads(told) if told.strip() else None
        except (ValueError, RecursionError):
            raise record.error("must be a list of JSON schemas, is a text that is no JSON", key) from None
    if not told:
        return ()
    try:
        return tools_of(told)
    except WrongToolsError as error:
        raise record.error(error.why, f"{key}{error.field}") from None


class WrongToolsError(ValueError):
    """Schemas of tools that are none: ``why``, and at which ``field`` of their list."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why


def tools_of(told: object) -> tuple[dict[str, Any], ...]:
    """The schemas of tools in OpenAI's form, from a list in that form or in the old one without ``function``.

    Raises:
        WrongToolsError: it is none.
    """
    if not isinstance(told, list):
        raise WrongToolsError("", f"must be a list of JSON schemas, is {json_kind(told)}")
    found = []
    for number, tool in enumerate(told):
        inside = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inside, dict) or not isinstance(inside.get("name"), str) or not inside["name"]:
            raise WrongToolsError(f"[{number}]", 'must be {"type": "function", "function": {"name": ...}}')
        found.append(tool if inside is not tool else {"type": "function", "function": inside})
    return tuple(found)
