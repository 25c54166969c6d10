"""Models of a run behind the gateway: a conversation is read as an episode of a text environment.

The first user message is the goal; what stands between two assistant turns is an observation; an assistant turn is a
thought and an action, as :func:`atlas_ray.data.parsing.parse` reads them. The admissible actions are the choices of
vLLM's field ``structured_outputs = {"choice": [...]}`` (or ``guided_choice``). The answer's text is the action, with
the thought before it in the ``react`` style. So a model gets the very prompt that it has in the stages of a run.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..data.parsing import LONGEST_ACTION, Style, action_in, parse
from ..data.records import Step
from ..recipe.gateway import GatewayModel
from ..switching.spending import Usage
from .replies import ApiError, dumped
from .requests import ChatRequest, text_of
from .sse import DONE, StreamedAnswer
from .upstream import UpstreamError

MOST_ACTIONS = 10_000
_UNKNOWN = ("tools", "functions", "response_format")


@dataclass(frozen=True)
class Dialogue:
    """A conversation as an episode so far, and the actions that are offered now."""

    goal: str
    steps: tuple[Step, ...]
    observation: str
    actions: tuple[str, ...]

    @classmethod
    def of(cls, request: ChatRequest, style: Style) -> Dialogue:
        """What a request says.

        Raises:
            ApiError: it offers what are no actions, or wants what a text model does not know.
        """
        body = request.body
        wants = next((name for name in _UNKNOWN if body.get(name) not in (None, [], {"type": "text"})), None)
        if wants or request.choices > 1:
            wants = wants or "n"
            raise ApiError(400, f"a model of a run writes actions and takes no {wants}", "unsupported", wants)
        steps: list[Step] = []
        seen: list[str] = []
        past_goal = False
        for message in request.messages:
            if message["role"] == "assistant":
                observation = "\n".join(seen) or (request.goal if not steps else "")
                steps.append(read_turn(text_of(message), style, observation))
                seen = []
            elif message["role"] in ("user", "tool", "function"):
                if past_goal:
                    seen.append(text_of(message))
                past_goal = True
        return cls(request.goal, tuple(steps), request.observation, _actions(body))


def read_turn(said: str, style: Style, observation: str = "") -> Step:
    """What an assistant's turn thought and did; all that was said is the action where none can be read."""
    return Step(observation=observation, thought=parse(said, style).thought, action=action_in(said, style))


def _actions(body: Mapping[str, Any]) -> tuple[str, ...]:
    outputs = body.get("structured_outputs")
    name, given = "structured_outputs", outputs.get("choice") if isinstance(outputs, dict) else None
    if given is None:
        name, given = "guided_choice", body.get("guided_choice")
    if given is None:
        return ()
    sound = isinstance(given, list) and len(given) <= MOST_ACTIONS
    if not sound or not all(isinstance(a, str) and a.strip() and len(a) <= LONGEST_ACTION for a in given):
        raise ApiError(400, f"{name} must be a list of actions", "invalid_value", name)
    return tuple(given)


class Played(NamedTuple):
    """What a model said, and what it took."""

    said: str
    usage: Usage


class Plays(Protocol):
    """Who plays a dialogue: a model here, or somewhere on a cluster."""

    async def play(self, name: str, dialogue: Dialogue) -> Played | UpstreamError:
        """The next turn. ``name``: of the session, whose beginning the model may have kept."""
        ...

    async def close(self) -> None:
        """Let go of the model."""
        ...


class LocalModel:
    """One of the models of a run, as it answers OpenAI's API.

    Args:
        model: of the recipe's table, without ``base_url``.
        style: in which it acts.
        player: plays.
    """

    def __init__(self, model: GatewayModel, style: Style, player: Plays) -> None:
        self.name, self._style, self._player = model.model, style, player

    async def complete(self, request: ChatRequest) -> tuple[bytes, dict[str, Any], Usage | None]:
        """See :class:`atlas_ray.gateway.upstream.Upstream`."""
        message, usage = await self._message(request)
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return dumped({**self._about("chat.completion"), "choices": [choice], "usage": _said(usage)}), message, usage

    async def stream(self, request: ChatRequest, answer: StreamedAnswer) -> AsyncIterator[bytes]:
        """See :class:`atlas_ray.gateway.upstream.Upstream`: the answer comes in one piece."""
        message, usage = await self._message(request)
        about = self._about("chat.completion.chunk")
        for delta, reason in ((message, None), ({}, "stop")):
            yield self._event(answer, {**about, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        last = answer.take(b"data: " + dumped({**about, "choices": [], "usage": _said(usage)}) + b"\n\n")
        if last is not None:
            yield last
        answer.take(DONE)
        yield DONE

    async def close(self) -> None:
        """See :class:`atlas_ray.gateway.upstream.Upstream`."""
        await self._player.close()

    def _about(self, kind: str) -> dict[str, Any]:
        made = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": made, "object": kind, "created": int(time.time()), "model": self.name}

    def _event(self, answer: StreamedAnswer, chunk: dict[str, Any]) -> bytes:
        event = b"data: " + dumped(chunk) + b"\n\n"
        answer.take(event)
        return event

    async def _message(self, request: ChatRequest) -> tuple[dict[str, Any], Usage]:
        try:
            dialogue = Dialogue.of(request, self._style)
        except ApiError as error:
            raise UpstreamError(error, retryable=False, free=True) from None
        played = await self._player.play(f"{request.session}\n{dialogue.goal}", dialogue)
        if isinstance(played, UpstreamError):
            raise played
        return {"role": "assistant", "content": played.said}, played.usage


def _said(usage: Usage) -> dict[str, int]:
    counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
    return {**counts, "total_tokens": usage.tokens}
