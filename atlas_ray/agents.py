"""An agent turns the history of an episode into the next thought and action, through an engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, Protocol

import torch

from .engines import Engine
from .engines.transformers import choose
from .errors import InputError
from .parsing import LONGEST_ACTION, Parsed, Tally, parse
from .rendering import Prompt, Style
from .rendering_chat import make_renderer
from .trajectory import Step

Decide = Literal["score", "generate"]

_CUES: dict[Style, str] = {"react": "Thought:", "action": "Action:"}
_NO_ANSWER = "(no answer)"
_LONGEST_OFFER = 64
"""Tokens kept free for the separator and the longest action that is scored."""


@dataclass(frozen=True)
class Decision:
    """What an agent does: its thought, if it has one, and its action."""

    thought: str | None
    action: str


class Places(Protocol):
    """What can hold so many episodes at a time."""

    @property
    def slots(self) -> int:
        """Episodes at a time."""
        ...


class Player(Protocol):
    """Who plays episodes side by side, each in a slot of its ``engine``."""

    @property
    def engine(self) -> Places:
        """Where its text comes from."""
        ...

    @property
    def needs_list(self) -> bool:
        """Whether it cannot act without the admissible actions, however dear it is to list them."""
        ...

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Begin an episode in ``slot``, with the ``steps`` that were already taken."""
        ...

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Append a step, whoever took it, and the observation that followed."""
        ...

    def fits(self, slot: int) -> bool:
        """Whether there is room for one more turn."""
        ...

    def act(self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]) -> Sequence[Decision]:
        """One decision for each of ``slots``; ``actions`` are those offered to it."""
        ...


@dataclass
class _Episode:
    """Token ids: what stands before the first step, the steps that are shown, and the present observation."""

    header: list[int] = field(default_factory=list)
    past: deque[list[int]] = field(default_factory=deque)
    present: list[int] = field(default_factory=list)


class Agent:
    """Plays up to ``engine.slots`` episodes side by side, each in a slot.

    To ``score``, a thought is generated freely up to the separator, and the action is the likeliest of the offered ones
    (as GLAM scores them), or a sample of them. To ``generate``, the model writes the whole turn, which
    :func:`atlas_ray.parsing.parse` reads; the offered actions may be none, and then any will do. Where that is not
    "ok", the action as written, or the whole reply where there is none, goes to the environment, which answers it.
    Sampling depends on the seed given for the decision, never on the batch.

    Args:
        engine: the model.
        style: ``"react"`` thinks before it acts.
        temperature: 0 is greedy.
        prompt: ``"chat"`` prompts the model in its own chat template.
        decide: ``"score"`` or ``"generate"``.
        window: how many past steps the model sees. None: all; then the prompt is only ever appended to, and what the
            engine kept of it holds. With a window the beginning moves at every step, so nothing behind the header can
            be reused and the whole window is fed each time; but the prompt stops growing, and an episode may outlive
            the context.
        thought_tokens: most tokens of a thought.
        action_tokens: most tokens of an action that is generated.

    Raises:
        InputError: ``window`` is negative, or the tokenizer cannot be used so; see the renderers.

    Attributes:
        tally: outcomes of all replies that were generated.
    """

    def __init__(
        self,
        engine: Engine,
        style: Style = "react",
        temperature: float = 0.0,
        *,
        prompt: Prompt = "plain",
        decide: Decide = "score",
        window: int | None = None,
        thought_tokens: int = 16,
        action_tokens: int = 32,
    ) -> None:
        if window is not None and window < 0:
            raise InputError("must be 0 or more", field="window")
        self.engine, self.temperature = engine, temperature
        self.renderer = make_renderer(engine.tokenizer, style, prompt)
        self.decide, self.window = decide, window
        self.thought_tokens, self.action_tokens = thought_tokens, action_tokens
        self.tally = Tally()
        self._episodes = [_Episode() for _ in range(engine.slots)]

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Begin an episode in ``slot``, with the ``steps`` that were already taken."""
        past = map(self.renderer.past, steps)
        self._episodes[slot] = _Episode(
            self.renderer.header(instruction), deque(past, self.window), self.renderer.context(observation)
        )

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Append a step, whoever took it, and the observation that followed."""
        episode = self._episodes[slot]
        episode.past.append(episode.present + self.renderer.turn(step) + self.renderer.gap)
        episode.present = self.renderer.context(observation)

    def prompt(self, slot: int) -> list[int]:
        """What the model sees when it has to act in ``slot``."""
        episode = self._episodes[slot]
        return [*episode.header, *chain.from_iterable(episode.past), *episode.present]

    def fits(self, slot: int) -> bool:
        """Whether one more turn fits into the model's context."""
        more = self._longest_reply if self.decide == "generate" else self.thought_tokens + _LONGEST_OFFER
        episode = self._episodes[slot]
        shown = len(episode.header) + sum(map(len, episode.past)) + len(episode.present)
        return shown + more <= self.engine.context

    def act(self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[Decision]:
        """One decision for each of ``slots``; ``actions`` are those offered to it."""
        if not slots:
            return []
        prompts = [self.prompt(s) for s in slots]
        if self.decide == "score":
            return self._score(prompts, slots, actions, seeds)
        stop, most = self.renderer.stops, self._longest_reply
        written = self.engine.generate(prompts, slots, stop, most, self.temperature, seeds)
        return [self._read(ids, offered) for ids, offered in zip(written, actions, strict=True)]

    def _score(
        self,
        prompts: list[list[int]],
        slots: Sequence[int],
        actions: Sequence[Sequence[str]],
        seeds: Sequence[int],
    ) -> list[Decision]:
        if not all(actions):
            raise InputError(
                "this environment lists no actions to score: let the model write them (generate)", field="agent.decide"
            )
        thoughts: list[str | None] = [None] * len(slots)
        separator = self.renderer.separator
        if separator:
            stop = [separator[0], *self.renderer.stops]
            written = self.engine.generate(prompts, slots, stop, self.thought_tokens, self.temperature, seeds)
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

    @property
    def needs_list(self) -> bool:
        """Whether the offered actions are all that it can do."""
        return self.decide == "score"

    @property
    def _longest_reply(self) -> int:
        thought = self.thought_tokens if self.renderer.style == "react" else 0
        return thought + len(self.renderer.separator) + self.action_tokens

    def _read(self, written: Sequence[int], offered: Sequence[str]) -> Decision:
        reply = self.renderer.tokenizer.decode(list(written), skip_special_tokens=True)
        parsed = self._parse(reply, offered, cut=len(written) >= self._longest_reply)
        self.tally.note(parsed)
        action = reply.strip() if parsed.action is None else parsed.action
        return Decision(parsed.thought, action[:LONGEST_ACTION] or _NO_ANSWER)

    def _parse(self, reply: str, offered: Sequence[str], cut: bool) -> Parsed:
        style = self.renderer.style
        # the cue ends the prompt; without it the first heading would be that of a turn the model went on to imagine
        text = _CUES[style] + reply if reply.strip() else ""
        parsed = parse(text, style, offered)
        if not cut:
            return parsed
        # "go to 1" may have become "go to 12", so only whole lines count
        whole = parse(text.rpartition("\n")[0], style, offered)
        return whole if whole.problem == "ok" else replace(parsed, problem="too long")
