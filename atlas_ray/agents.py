"""An agent turns the history of an episode into the next thought and action, through an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .engines import Engine
from .engines.transformers import choose
from .rendering import Renderer, Style
from .trajectory import Step

MAX_THOUGHT = 16


@dataclass(frozen=True)
class Decision:
    """What an agent does: its thought (None in the ``action`` style) and one of the actions it was offered."""

    thought: str | None
    action: str


class Agent:
    """Plays up to ``engine.slots`` episodes side by side, each in a slot.

    A thought is generated freely up to the separator; the action is the likeliest of the offered ones (as GLAM scores
    them), or a sample of them. Sampling depends on the seed given for the decision, never on the batch.

    Args:
        engine: the model.
        style: ``"react"`` thinks before it acts.
        temperature: 0 is greedy.
    """

    def __init__(self, engine: Engine, style: Style = "react", temperature: float = 0.0) -> None:
        self.engine, self.temperature = engine, temperature
        self.renderer = Renderer(engine.tokenizer, style)
        self._prompts: list[list[int]] = [[] for _ in range(engine.slots)]

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Begin an episode in ``slot``, with the ``steps`` that were already taken."""
        self._prompts[slot] = self.renderer.prompt(instruction, steps, observation)

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Append a step, whoever took it, and the observation that followed."""
        self._prompts[slot] += self.renderer.turn(step) + self.renderer.context(observation)

    def fits(self, slot: int) -> bool:
        """Whether one more turn fits into the model's context."""
        return len(self._prompts[slot]) + MAX_THOUGHT + 64 <= self.engine.context

    def act(self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[Decision]:
        """One decision for each of ``slots``, out of the ``actions`` offered to it."""
        if not slots:
            return []
        prompts = [self._prompts[s] for s in slots]
        thoughts: list[str | None] = [None] * len(slots)
        separator = self.renderer.separator
        if separator:
            stop = [separator[0], self.renderer.end_of_turn]
            written = self.engine.generate(prompts, slots, stop, MAX_THOUGHT, self.temperature, seeds)
            thoughts = [self.renderer.decode(w) for w in written]
            # the recorded thought, not the raw ids: the action is scored behind what would be trained
            prompts = [p + self.renderer.thought(t or "") + separator for p, t in zip(prompts, thoughts, strict=True)]
        candidates = [[self.renderer.action(a) for a in offered] for offered in actions]
        scores = self.engine.score(prompts, slots, candidates)
        # another stream than the thought's, which was drawn from the same seed
        streams = [torch.Generator().manual_seed(s ^ 0x5DEECE66D) for s in seeds] if self.temperature else None
        decisions = []
        for i, score in enumerate(scores):
            index = choose(score[None], self.temperature, [streams[i]] if streams else None)[0]
            decisions.append(Decision(thoughts[i], actions[i][index]))
        return decisions
