"""A model of a run in this process, which plays the dialogues of many sessions in batches. Imports torch."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..agents.rollout import decision_seed
from ..agents.spec import agent_spec
from ..agents.token_agent import Agent, LostAnswer
from ..data.exchange.turns import compose
from ..recipe.gateway import GatewayModel
from ..recipe.loading import Recipe
from ..switching.spending import Usage
from .local import Dialogue, Played
from .replies import ApiError
from .upstream import UpstreamError


class Player:
    """A model that plays in this process. Requests that wait are answered in one batch.

    Args:
        recipe: says how models act.
        thread: in which it works.
        model: of the recipe's table, without ``base_url``.

    Raises:
        InputError: the model cannot be had.
    """

    def __init__(self, recipe: Recipe, thread: ThreadPoolExecutor, model: GatewayModel) -> None:
        self.name, self._style, self._thread = model.model, recipe.style, thread
        spec = replace(agent_spec(recipe, model.model, model.warmth or 0.0), slots=recipe.num_envs)
        self._engine = spec.new_engine(0)
        self._agent: Agent = spec.new_agent(self._engine, (model.price_prompt, model.price_completion))
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._waiting: list[tuple[str, Dialogue, asyncio.Future[Played | UpstreamError]]] = []
        self._task: asyncio.Task[None] | None = None

    async def play(self, name: str, dialogue: Dialogue) -> Played | UpstreamError:
        """See :class:`atlas_ray.gateway.local.Plays`."""
        if self._agent.needs_list and not dialogue.actions:
            what = "a model of a run picks one of the actions: offer them as structured_outputs = {choice: [...]}"
            told = ApiError(400, what, "invalid_value", "structured_outputs")
            return UpstreamError(told, retryable=False, free=True)
        future: asyncio.Future[Played | UpstreamError] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, dialogue, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """See :class:`atlas_ray.gateway.local.Plays`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)

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
                if not future.done():
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

    def _act(self, rows: list[int], dialogues: list[Dialogue]) -> list[Played | UpstreamError]:
        found: dict[int, Played | UpstreamError] = {}
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
                said = compose(decision.thought, decision.action) if self._style == "react" else decision.action
                found[n] = Played(said, Usage(sizes[n] + cost.read, cost.written))
        return [found[n] for n in range(len(rows))]
