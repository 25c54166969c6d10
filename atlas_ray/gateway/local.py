"""Models of this process behind the gateway: a conversation is read as an episode of a text environment.

The first user message is the goal; what stands between two assistant turns is an observation; an assistant turn is a
thought and an action, as :func:`atlas_ray.data.parsing.parse` reads them. The admissible actions are the choices of
vLLM's field ``structured_outputs = {"choice": [...]}`` (or ``guided_choice``). The answer's text is the action, with
the thought before it in the ``react`` style. So a model gets the very prompt that it has in the stages of a run.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ..agents.rollout import decision_seed
from ..agents.spec import agent_spec
from ..agents.token_agent import Agent, Decision, LostAnswer
from ..data.exchange.turns import compose
from ..data.parsing import LONGEST_ACTION, Style, parse
from ..data.records import Step
from ..errors import InputError
from ..recipe.gateway import GatewayModel
from ..recipe.loading import Recipe
from .budget import Usage
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
        if wants:
            raise ApiError(400, f"a model of a run writes actions and takes no {wants}", "unsupported", wants)
        steps: list[Step] = []
        seen: list[str] = []
        past_goal = False
        for message in request.messages:
            if message["role"] == "assistant":
                steps.append(_step("\n".join(seen) or (request.goal if not steps else ""), text_of(message), style))
                seen = []
            elif message["role"] in ("user", "tool", "function"):
                if past_goal:
                    seen.append(text_of(message))
                past_goal = True
        return cls(request.goal, tuple(steps), request.observation, _actions(body))


def _step(observation: str, said: str, style: Style) -> Step:
    found = parse(said, style, longest=LONGEST_ACTION)
    return Step(observation=observation, thought=found.thought, action=found.action or said)


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


class LocalModel:
    """One of the models of a run. Requests that wait are answered in one batch.

    Args:
        recipe: says how models act.
        model: of the recipe's table, without ``base_url``.
        thread: in which all local models work.

    Raises:
        InputError: the model cannot be had.
    """

    def __init__(self, recipe: Recipe, model: GatewayModel, thread: ThreadPoolExecutor) -> None:
        if recipe.engine.kind == "vllm":
            raise InputError("is not known to the gateway yet: serve the model by `vllm serve`", field="engine.kind")
        self.name, self._style, self._thread = model.model, recipe.style, thread
        spec = replace(agent_spec(recipe, model.model, model.warmth or 0.0), slots=recipe.num_envs)
        self._engine = spec.new_engine(0)
        self._agent: Agent = spec.new_agent(self._engine, (model.price_prompt, model.price_completion))
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._waiting: list[tuple[str, Dialogue, asyncio.Future[tuple[Decision, Usage]]]] = []
        self._task: asyncio.Task[None] | None = None

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
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)

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
            if self._agent.needs_list and not dialogue.actions:
                what = "a model of a run picks one of the actions: offer them as structured_outputs = {choice: [...]}"
                raise ApiError(400, what, "invalid_value", "structured_outputs")
        except ApiError as error:
            raise UpstreamError(error, retryable=False, free=True) from None
        future: asyncio.Future[tuple[Decision, Usage]] = asyncio.get_running_loop().create_future()
        self._waiting.append((f"{request.session}\n{dialogue.goal}", dialogue, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        decision, usage = await future
        said = compose(decision.thought, decision.action) if self._style == "react" else decision.action
        return {"role": "assistant", "content": said}, usage

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            most = self._engine.slots
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            taken: set[int] = set()
            rows = [self._slot(name, taken) for name, _, _ in batch]
            try:
                found = await loop.run_in_executor(self._thread, self._act, rows, [d for _, d, _ in batch])
            except Exception as error:
                told = ApiError(502, f"{self.name} failed: {type(error).__name__}: {error}"[:300], "model_failed")
                found = [UpstreamError(told, retryable=False, free=True)] * len(batch)
            for (_, _, future), result in zip(batch, found, strict=True):
                if future.done():
                    continue
                if isinstance(result, UpstreamError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _slot(self, name: str, taken: set[int]) -> int:
        """The slot that has the beginning of an episode, else the one that was not used for longest."""
        slot = self._slots.pop(name, None)
        if slot is None or slot in taken:
            free = set(range(self._engine.slots)) - set(self._slots.values()) - taken
            old = next((n for n, s in self._slots.items() if s not in taken), None)
            slot = min(free) if free or old is None else self._slots.pop(old)
        taken.add(slot)
        self._slots[name] = slot
        return slot

    def _act(self, rows: list[int], dialogues: list[Dialogue]) -> list[tuple[Decision, Usage] | UpstreamError]:
        found: dict[int, tuple[Decision, Usage] | UpstreamError] = {}
        fit = []
        for n, (row, talk) in enumerate(zip(rows, dialogues, strict=True)):
            self._agent.start(row, talk.goal, talk.steps, talk.observation)
            if self._agent.fits(row):
                fit.append(n)
            else:
                told = ApiError(400, f"the conversation is longer than {self.name} reads", "context_length_exceeded")
                found[n] = UpstreamError(told, retryable=False, free=True)
        sizes = {n: len(self._agent.prompt(rows[n])) for n in fit}
        # an episode by its goal: the same conversation is answered the same way
        seeds = [decision_seed(dialogues[n].goal, len(dialogues[n].steps)) for n in fit]
        decided = self._agent.act([rows[n] for n in fit], [dialogues[n].actions for n in fit], seeds)
        for n, decision in zip(fit, decided, strict=True):
            if isinstance(decision, LostAnswer):
                told = ApiError(502, f"{self.name} gave no answer: {decision.reason}", "model_failed")
                found[n] = UpstreamError(told, retryable=False)
            else:
                cost = decision.token_cost
                found[n] = decision, Usage(sizes[n] + cost.read, cost.written)
        return [found[n] for n in range(len(rows))]


def _said(usage: Usage) -> dict[str, int]:
    counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
    return {**counts, "total_tokens": usage.tokens}
