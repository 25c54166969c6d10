"""An agent turns the history of an episode into the next thought and action, through an engine."""

from __future__ import annotations

import copy
import uuid
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal, Self

import torch

from ..data.parsing import LONGEST_ACTION, Parsed, Style, Tally, parse
from ..data.records import Step
from ..data.replies import Replies
from ..data.thinking import THINKING, split_thinking
from ..engines import Engine
from ..engines.tries import TRIE_TOKENS, build_tries, choose
from ..errors import InputError
from .catch_up import ReadProgress, check_window
from .decisions import Decision, LostAnswer, TokenCost, confidence, digest
from .player import CountsTokens, Places, Player
from .rendering import Prompt
from .rendering_chat import make_renderer
from .unknown_words import Reader

__all__ = [
    "NO_ANSWER",
    "Agent",
    "CountsTokens",
    "Decide",
    "Decision",
    "LostAnswer",
    "Places",
    "Player",
    "TokenCost",
    "confidence",
    "counted",
    "digest",
    "shared",
]

Decide = Literal["score", "generate"]

_CUES: dict[Style, str] = {"react": "Thought:", "action": "Action:"}
NO_ANSWER = "(no answer)"
"""The action of one that has none to say: the environment answers it."""
_MOST_RETOLD = 4
"""Most tokens of a thought that is read again, for each that was written: tokenizers cut a text anew."""
_LONGEST_OFFER = 64
"""Tokens kept free for the separator and the longest action that is scored."""


@dataclass
class _Episode:
    """Token ids before the first step, of the steps, and of the present observation; and how far it was read."""

    header: list[int] = field(default_factory=list)
    past: deque[list[int]] = field(default_factory=deque)
    present: list[int] = field(default_factory=list)
    progress: ReadProgress = field(default_factory=ReadProgress)
    kept: list[int] = field(default_factory=list)
    """Of the last prompt that was counted, and what was written behind it."""

    @property
    def shown(self) -> Iterator[list[int]]:
        """The steps that are shown."""
        return islice(self.past, self.progress.first, None)


class Agent:
    """Plays up to ``engine.slots`` episodes side by side, each in a slot.

    To ``score``, a thought is generated freely up to the separator, and the action is the likeliest of the offered ones
    (as GLAM scores them), or a sample of them. To ``generate``, the model writes the whole turn, which
    :func:`atlas_ray.data.parsing.parse` reads; the offered actions may be none, and then any will do. Where that is not
    "ok", the action as written, or the whole reply where there is none, goes to the environment, which answers it. Only
    what was thinking up to the limit is a :class:`LostAnswer`: what the model would do is not known then. Sampling
    depends on the seed given for the decision, never on the batch.

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
        catch_up: most steps that it reads at an answer of those that it missed since its last one; see
            :class:`atlas_ray.agents.catch_up.ReadProgress`. None: all. Not with a ``window``.
        thought_tokens: most tokens of a thought.
        action_tokens: most tokens of an action that is generated.
        thinking: tags of what it thinks before it answers (:data:`atlas_ray.data.thinking.THINKING`).
        name: tells the model apart from others whose answers are kept beside its; by default none has the same.
        price: of a million tokens read and of a million written.
        unknown_share: most tokens, of the first few thousand of instructions and observations and of all later ones,
            that the tokenizer may not know; None does not count.

    Raises:
        InputError: see :func:`check_window`, or the tokenizer cannot be used so; see the renderers.

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
        catch_up: int | None = None,
        thought_tokens: int = 16,
        action_tokens: int = 32,
        thinking: Sequence[str] = THINKING,
        name: str | None = None,
        price: tuple[float, float] = (0.0, 0.0),
        unknown_share: float | None = None,
    ) -> None:
        check_window(window, catch_up)
        self.engine, self.temperature = engine, temperature
        self.name, self.price = name or uuid.uuid4().hex, price
        self.renderer = make_renderer(engine.tokenizer, style, prompt)
        self._reader = None if unknown_share is None else Reader(self.renderer, unknown_share, name or "the model")
        self.decide, self.window, self.catch_up = decide, window, catch_up
        self.thought_tokens, self.action_tokens = thought_tokens, action_tokens
        self.thinking = tuple(thinking)
        self.tally = Tally()
        self._episodes = [_Episode() for _ in range(engine.slots)]

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return self.engine.parameters

    def fork(self) -> Self:
        """The same model with episodes of its own, for another game; what the engine keeps of slots is only a cache."""
        twin = copy.copy(self)
        twin._episodes = [_Episode() for _ in range(self.engine.slots)]
        return twin

    def start(self, slot: int, instruction: str, steps: Sequence[Step], observation: str) -> None:
        """Begin an episode in ``slot``, with the ``steps`` that were already taken.

        Raises:
            InputError: more words are unknown than may be; so does :meth:`advance`.
        """
        past = map(self.renderer.past, steps)
        with self._reading():
            header, present = self.renderer.header(instruction), self.renderer.context(observation)
        progress = ReadProgress(self.catch_up, len(steps))
        self._episodes[slot] = _Episode(header, deque(past, self.window), present, progress)

    def advance(self, slot: int, step: Step, observation: str) -> None:
        """Append a step, whoever took it, and the observation that followed."""
        episode = self._episodes[slot]
        episode.past.append(episode.present + self.renderer.turn(step) + self.renderer.gap)
        episode.progress.taken += 1
        with self._reading():
            episode.present = self.renderer.context(observation)

    def _reading(self) -> AbstractContextManager[None]:
        return nullcontext() if self._reader is None else self._reader.reading()

    def prompt(self, slot: int) -> list[int]:
        """What the model sees when it has to act in ``slot``."""
        episode = self._episodes[slot]
        return [*episode.header, *chain.from_iterable(episode.shown), *episode.present]

    def mark_read(self, slot: int) -> None:
        """Its present prompt is read: what it sees of this state stays what it was."""
        self._episodes[slot].progress.mark(len(self._episodes[slot].present))

    def missed(self, slot: int, cached: int) -> int:
        """Tokens of the prompt behind ``cached`` that are read to catch up."""
        episode = self._episodes[slot]
        return episode.progress.missed(episode.shown, len(episode.header), cached)

    def key(self, slot: int, offered: Sequence[str]) -> bytes | None:
        """What the decision in ``slot`` depends on; None where it is drawn."""
        if self.temperature:
            return None
        how: tuple[Any, ...] = (self.name, self.decide, self.renderer.style, self.thought_tokens, self.action_tokens)
        how += () if self.thinking == THINKING else self.thinking
        return digest(how, array("q", self.prompt(slot)), tuple(offered))

    def on_cache_hit(self, slot: int, decision: Decision) -> None:
        """Called when a cached decision is taken in place of a request: nothing to note."""

    def fits(self, slot: int) -> bool:
        """Whether one more turn fits into the model's context."""
        more = self._longest_reply if self.decide == "generate" else self.thought_tokens + _LONGEST_OFFER
        return self._shown(slot) + more <= self.engine.context

    def _shown(self, slot: int) -> int:
        """Length of :meth:`prompt`."""
        episode = self._episodes[slot]
        return len(episode.header) + sum(map(len, episode.shown)) + len(episode.present)

    def worst_case(self, slot: int, offered: Sequence[str]) -> tuple[int, int]:
        """Most tokens that a decision in ``slot`` reads and writes, the whole prompt included."""
        shown, separator = self._shown(slot), self.renderer.separator
        if self.decide == "generate":
            return shown, self._longest_reply
        candidates = sum(len(self.renderer.action(action)) for action in offered)
        return (
            shown + candidates + (self._longest_tail if separator else 0),
            self.thought_tokens if separator else 0,
        )

    def tokens_of(self, slot: int, decision: Decision | LostAnswer) -> tuple[int, int]:
        """Tokens that a decision in ``slot`` has read and written, the whole prompt included."""
        return self._shown(slot) + decision.token_cost.read, decision.token_cost.written

    def computed_by(self, slot: int, decision: Decision | LostAnswer) -> int:
        """Tokens through the model for a decision in ``slot`` if it keeps the last prompt of the episode, and no more.

        To be asked once for every decision of an episode, before it goes on.
        """
        episode, prompt, cost = self._episodes[slot], self.prompt(slot), decision.token_cost
        # the last token is always fed, for what follows it
        cached = min(shared(episode.kept, prompt), len(prompt) - 1) if episode.kept else 0
        episode.kept = [*prompt, *cost.tail]
        return len(prompt) - cached + cost.read + cost.written

    def act(
        self, slots: Sequence[int], actions: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> list[Decision | LostAnswer]:
        """One decision for each of ``slots``, or why there is none; ``actions`` are those offered to it."""
        if not slots:
            return []
        prompts = [self.prompt(s) for s in slots]
        if self.decide == "score":
            return [*self._score(prompts, slots, actions, seeds)]
        stop, most = self.renderer.stops, self._longest_reply
        written = self.engine.generate(prompts, slots, stop, most, self.temperature, seeds)
        return [
            replace(self._read(ids, offered), token_cost=TokenCost(0, len(fed := ids[: most - 1]), tuple(fed)))
            for ids, offered in zip(written, actions, strict=True)
        ]

    def hidden(self, slots: Sequence[int]) -> torch.Tensor:
        """The model's hidden state behind what it sees in each of ``slots``, ``[len(slots), H]`` float32.

        See :meth:`atlas_ray.engines.Engine.hidden`. :meth:`act` then feeds only the last token of it again.

        Raises:
            InputError: this kind of engine has no hidden states.
        """
        return self.engine.hidden([self.prompt(s) for s in slots], slots)

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
        written: list[list[int]] = [[] for _ in slots]
        tails: list[list[int]] = [[] for _ in slots]
        separator = self.renderer.separator
        if separator:
            stop = [separator[0], *self.renderer.stops]
            written = self.engine.generate(prompts, slots, stop, self.thought_tokens, self.temperature, seeds)
            thoughts = [self.renderer.decode(w) for w in written]
            # the recorded thought, not the raw ids: the action is scored behind what would be trained
            most = self._longest_tail - len(separator)
            tails = [self.renderer.thought(t or "")[:most] + separator for t in thoughts]
            prompts = [p + tail for p, tail in zip(prompts, tails, strict=True)]
        candidates = [[self.renderer.action(a) for a in offered] for offered in actions]
        scores = self.engine.score(prompts, slots, candidates)
        # another stream than the thought's, which was drawn from the same seed
        streams = [torch.Generator().manual_seed(s ^ 0x5DEECE66D) for s in seeds] if self.temperature else None
        decisions = []
        for i, score in enumerate(scores):
            index = choose(score[None], self.temperature, [streams[i]] if streams else None)[0]
            token_cost = _scored(written[i][: self.thought_tokens - 1], tails[i], candidates[i])
            decisions.append(Decision(thoughts[i], actions[i][index], *confidence(score.tolist()), token_cost))
        return decisions

    @property
    def needs_list(self) -> bool:
        """Whether the offered actions are all that it can do."""
        return self.decide == "score"

    @property
    def _longest_tail(self) -> int:
        """Tokens of a thought as it is read again, and of the separator; a bound that no thought gets to."""
        return _MOST_RETOLD * self.thought_tokens + len(self.renderer.separator)

    @property
    def _longest_reply(self) -> int:
        thought = self.thought_tokens if self.renderer.style == "react" else 0
        return thought + len(self.renderer.separator) + self.action_tokens

    def _read(self, written: Sequence[int], offered: Sequence[str]) -> Decision | LostAnswer:
        reply = self.renderer.tokenizer.decode(list(written), skip_special_tokens=True)
        cut = len(written) >= self._longest_reply
        parsed, said = self._parse(reply, offered, cut)
        self.tally.note(parsed)
        replies = counted(parsed, cut)
        if cut and parsed.problem == "empty" and parsed.reasoning is not None:
            replies["lost"] += 1
            field = "thought_tokens" if self.renderer.style == "react" else "action_tokens"
            reason = f"thinking used up all {self._longest_reply} tokens of a reply: raise agent.{field}"
            return LostAnswer(reason, "empty", replies=replies.row())
        replies["fallen back"] += parsed.problem != "ok"
        action = said if parsed.action is None else parsed.action
        return Decision(parsed.thought, action[:LONGEST_ACTION] or NO_ANSWER, replies=replies.row())

    def _parse(self, reply: str, offered: Sequence[str], cut: bool) -> tuple[Parsed, str]:
        """What was found in a reply, and the reply without what was thought before."""
        style = self.renderer.style
        reasoning, said, _ = split_thinking(reply, self.thinking)
        # the cue ends the prompt; without it the first heading would be that of a turn the model went on to imagine
        text = f"{_CUES[style]}\n{said}" if said.strip() else ""
        if "\n" not in said:  # a tokenizer of words writes no line feed before the separator
            text = text.replace(" Action:", "\nAction:")
        parsed = replace(parse(text, style, offered, thinking=()), reasoning=reasoning)
        if cut and parsed.problem != "empty":
            # "go to 1" may have become "go to 12", so only whole lines count
            whole = parse(text.rpartition("\n")[0], style, offered, thinking=())
            parsed = replace(
                whole if whole.problem == "ok" else replace(parsed, problem="too long"), reasoning=reasoning
            )
        return parsed, said.strip()


def counted(parsed: Parsed, cut: bool) -> Replies:
    """The count of one reply; ``cut``: it ended at the limit."""
    outcome = "cut off" if cut and parsed.problem == "too long" else parsed.problem
    return Replies({outcome: 1, "invented": int(parsed.invented)})


def _scored(fed: list[int], tail: list[int], candidates: Sequence[Sequence[int]]) -> TokenCost:
    """Of an action that was scored behind ``tail``, after ``fed`` had gone through the model behind the same prompt."""
    again = len(tail) - shared(fed, tail) if tail else 0
    # a tail that is kept whole leaves the last token to be fed again, for what follows it
    again = max(again, 1) if tail else again
    nodes = sum(len(trie.tokens) for trie in build_tries(candidates, TRIE_TOKENS))
    return TokenCost(again + nodes, len(fed), tuple(tail))


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    return next(i for i in range(most) if a[i] != b[i])
