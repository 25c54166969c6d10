"""The messages of a tool-calling trajectory, as OpenAI's chat API and chat templates take them."""

from __future__ import annotations

from typing import Any

from .records import Part, Step, Trajectory
from .tool_calls import ToolCall, as_text, calls_of

Message = dict[str, Any]


def seen_messages(step: Step) -> list[Message]:
    """What the agent saw before a step: results of tools with the ids of their calls, and what users said."""
    return [_seen(part, text) for part, text in step.seen()]


def _seen(part: Part, text: str) -> Message:
    message: Message = {"role": part.role, "content": text}
    if part.id is not None:
        message["tool_call_id"] = part.id
    if part.name is not None:
        message["name"] = part.name
    return message


def agent_message(step: Step, as_object: bool = False) -> Message:
    """What the agent wrote in a step.

    Args:
        step: the step.
        as_object: arguments are objects, and a missing content is an empty text, as chat templates want them; else
            arguments are a text of JSON and a missing content is null, as the API has them.
    """
    calls = calls_of(step.action)
    if calls is None and as_object:
        return {"role": "assistant", "content": "\n\n".join(filter(None, (step.thought, step.action)))}
    if calls is None:
        thought = {"reasoning_content": step.thought} if step.thought is not None else {}
        return {"role": "assistant", "content": step.action, **thought}
    content = "" if as_object and step.thought is None else step.thought
    return {"role": "assistant", "content": content, "tool_calls": [_call(call, as_object) for call in calls]}


def _call(call: ToolCall, as_object: bool) -> Message:
    arguments = call.arguments if as_object else as_text(call.arguments)
    named = {"id": call.id} if call.id is not None else {}
    return {**named, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def messages_of(trajectory: Trajectory) -> list[Message]:
    """The whole conversation: the instruction as a system message unless it is empty, then what was seen and said."""
    head = [{"role": "system", "content": trajectory.instruction}] if trajectory.instruction else []
    return [*head, *(m for step in trajectory.steps for m in (*seen_messages(step), agent_message(step)))]
