"""Critical steps by a language model that reads the whole trajectory: ATLaS's semantic oracle.

From the paper (our notes on it): the whole expert trajectory is read together with four categories, the plan with its
sub-goals comes first, then at most a share m of the steps is marked. Ours: wording, JSON, 0-based steps, temperature 0,
windows, what is refused, and what becomes of it. A trajectory whose answers stay invalid is left unannotated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from ..engines.openai import Completion
from ..errors import EndpointError, InputError
from ..thinking import THINKING
from ..trajectory import Annotation, Trajectory, cap
from .oracle_answer import (
    CATEGORIES,
    GOAL_TOKENS,
    MARK_TOKENS,
    MOST_GOALS,
    Answer,
    AnswerCache,
    Mark,
    RefusedError,
    SubGoal,
    read,
    schema,
)
from .oracle_prompt import Ask, Room, UnfitError, complaint, prompt_sha256, questions
from .oracle_writer import Writer, tokens_of

_HOPELESS = frozenset({401, 403, 404})
FEWEST, FAR, ERRORS = 8, 0.15, 3.0
"""A share is far from another from so many trajectories on, by so much, and so many standard errors."""


@dataclass(frozen=True)
class OracleConfig:
    """How the oracle is asked.

    Args:
        fraction: m; at most ``cap(fraction, T)`` steps are marked.
        context: most tokens of a conversation and its answer. What does not fit is asked in windows.
        max_tokens: most tokens of an answer, thoughts of a reasoning model included.
        temperature: None leaves it to the server; OpenAI's reasoning models take nothing else.
        reasks: how often an answer that is not valid is asked for again.
        batch: trajectories asked about at a time; their answers are lost when the run is killed meanwhile.
        send_schema: False where the server refuses a JSON schema; answers are checked in any case.
        thinking: tags of what is thought before an answer (:data:`atlas_ray.thinking.THINKING`).

    Raises:
        InputError: names the field.
    """

    fraction: float = 0.3
    context: int = 32_768
    max_tokens: int = 4096
    temperature: float | None = 0.0
    reasks: int = 2
    batch: int = 16
    send_schema: bool = True
    thinking: tuple[str, ...] = THINKING

    def __post_init__(self) -> None:
        least = GOAL_TOKENS * MOST_GOALS + MARK_TOKENS
        for name, holds, message in (
            ("fraction", 0 < self.fraction <= 1, "must be above 0 and at most 1"),
            ("max_tokens", self.max_tokens >= least, f"must be at least {least}, to hold a plan and a mark"),
            ("context", self.context > self.max_tokens, "must be more than max_tokens"),
            ("temperature", self.temperature is None or self.temperature >= 0, "must be 0 or more"),
            ("reasks", self.reasks >= 0, "must be 0 or more"),
            ("batch", self.batch >= 1, "must be 1 or more"),
        ):
            if not holds:
                raise InputError(message, field=name)


class Unannotated(NamedTuple):
    """A trajectory that got no annotation, and why."""

    trajectory_id: str
    reason: str
    kind: str = ""
    """Of the last refusal, ``"endpoint"`` (there was no answer) or ``"too long"``."""


class Prices(NamedTuple):
    """Money for a million tokens."""

    prompt: float
    completion: float


@dataclass
class OracleUsage:
    """What was asked and what came of it.

    ``requests``: conversations sent, of which ``reasked`` followed a refused answer; what an endpoint repeats by itself
    is in its own counts. ``refused``: answers not taken, by kind. ``failed``: conversations without any answer.
    ``unannotated``: trajectories, by the kind of the last refusal, ``"endpoint"`` or ``"too long"``. Tokens are the
    writer's counts, of refused answers too; ``uncounted`` answers came without.
    """

    annotated: int = 0
    unannotated: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    reasked: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


@dataclass
class Estimate:
    """What a run would ask if no answer were refused.

    ``calls``: conversations, beside the ``cache_hits`` that are answered already. ``prompt_tokens`` as counted,
    ``completion_tokens`` at most. ``too_long``: trajectories that no window holds. How a long trajectory falls into
    windows depends on its plan; while that is not known, sub-goals of equal length are assumed.
    """

    trajectories: int = 0
    calls: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    too_long: int = 0


def price(counted: OracleUsage | Estimate, prices: Prices) -> float:
    """What the tokens cost."""
    return (counted.prompt_tokens * prices.prompt + counted.completion_tokens * prices.completion) / 1e6


@dataclass(eq=False)
class _Question:
    """An :class:`Ask` on its way; ``answer`` or ``failure`` (kind and reason) ends it."""

    ask: Ask
    key: str
    talk: list[dict[str, str]]
    answer: Answer | None
    refused: list[str] = field(default_factory=list)
    failure: tuple[str, str] | None = None


@dataclass(eq=False)
class _Job:
    """A trajectory and what is being asked about it."""

    trajectory: Trajectory
    asking: Generator[list[Ask], list[Answer], tuple[list[SubGoal], list[Mark]]]
    questions: list[_Question] = field(default_factory=list)


class Oracle:
    """Annotates trajectories by asking a model.

    Args:
        writer: who is asked.
        config: how.
        cache: file of valid answers (:class:`AnswerCache`), which are not asked for again.
        count: tokens of a text; give the model's own tokenizer where there is one.

    Attributes:
        usage: what was asked so far.
    """

    def __init__(
        self,
        writer: Writer,
        config: OracleConfig,
        cache: str | Path | None = None,
        count: Callable[[str], int] = tokens_of,
    ) -> None:
        self.writer, self.config, self.usage = writer, config, OracleUsage()
        self._room = Room(config.context, config.max_tokens, count)
        self._cache = None if cache is None else AnswerCache(cache, config.thinking)
        self._prompt_sha256 = prompt_sha256()

    def annotate(self, trajectories: Iterable[Trajectory]) -> Iterator[Annotation | Unannotated]:
        """An outcome for every trajectory, as they come, so not in order.

        Valid answers are in the cache before the outcome is yielded.

        Raises:
            EndpointError: 401, 403 or 404, which all others would get too.
            InputError: the writer cannot be used.
        """
        waiting, active = iter(trajectories), list[_Job]()
        while True:
            while len(active) < self.config.batch and (trajectory := next(waiting, None)) is not None:
                job = _Job(trajectory, self._questions(trajectory))
                outcome = self._advance(job)
                if outcome is None:
                    active.append(job)
                else:
                    yield outcome
            if not active:
                return
            self._ask([q for job in active for q in job.questions if q.answer is None])
            for job in list(active):
                outcome = self._advance(job)
                if outcome is not None:
                    active.remove(job)
                    yield outcome

    def estimate(self, trajectories: Iterable[Trajectory]) -> Estimate:
        """What :meth:`annotate` would ask now, without asking."""
        made = Estimate()
        for trajectory in trajectories:
            made.trajectories += 1
            asking = self._questions(trajectory)
            try:
                asks = next(asking)
                while True:
                    asks = asking.send([self._supposed(ask, made) for ask in asks])
            except StopIteration:
                pass
            except UnfitError:
                made.too_long += 1
        return made

    def _supposed(self, ask: Ask, made: Estimate) -> Answer:
        known = self._known(ask)
        if known is not None:
            made.cache_hits += 1
            return known
        made.calls += 1
        made.prompt_tokens += self._room.prompt(ask)
        made.completion_tokens += min(ask.limits.tokens, self.config.max_tokens)
        return _supposed(ask)

    def _questions(self, t: Trajectory) -> Generator[list[Ask], list[Answer], tuple[list[SubGoal], list[Mark]]]:
        return questions(t, cap(self.config.fraction, len(t.steps)), self._room)

    def _key(self, ask: Ask) -> str:
        return ask.key(self.writer.model, self.config.temperature)

    def _known(self, ask: Ask) -> Answer | None:
        return None if self._cache is None else self._cache.get(self._key(ask), ask.limits)

    def _question(self, ask: Ask) -> _Question:
        known = self._known(ask)
        self.usage.cache_hits += known is not None
        return _Question(ask, self._key(ask), ask.messages(ask.word()), known)

    def _advance(self, job: _Job) -> Annotation | Unannotated | None:
        """Take what was answered and see what to ask next; the outcome, when there is nothing."""
        try:
            while True:
                failed = [q.failure for q in job.questions if q.failure is not None]
                if failed:
                    return self._unannotated(job.trajectory, *failed[0])
                answers = [q.answer for q in job.questions if q.answer is not None]
                if len(answers) < len(job.questions):
                    return None
                asks = job.asking.send(answers) if job.questions else next(job.asking)
                job.questions = [self._question(ask) for ask in asks]
        except StopIteration as done:
            return self._annotation(job.trajectory, done.value[1])
        except UnfitError as error:
            return self._unannotated(job.trajectory, error.kind, str(error))

    def _ask(self, asked: Sequence[_Question]) -> None:
        """One answer for each question, or one more refusal, or its failure."""
        alike = defaultdict[tuple[bool, bool], list[_Question]](list)
        for question in asked:
            alike[question.ask.limits.plan, question.ask.limits.most > 0].append(question)
        for group in alike.values():
            results = self.writer.complete_each(
                [q.talk for q in group],
                max_tokens=self.config.max_tokens,
                temperature=self.config.temperature,
                seeds=[int(q.key[:7], 16) + len(q.refused) for q in group],
                json_schema=schema(group[0].ask.limits) if self.config.send_schema else None,
            )
            self.usage.requests += len(group)
            self.usage.reasked += sum(bool(q.refused) for q in group)
            for question, result in zip(group, results, strict=True):
                if isinstance(result, Completion):
                    self._take(question, result)
                else:
                    self.usage.failed += 1
                    question.failure = "endpoint", str(result)
            for result in results:
                if isinstance(result, EndpointError) and result.status in _HOPELESS:
                    raise result

    def _take(self, question: _Question, result: Completion) -> None:
        usage = self.usage
        usage.prompt_tokens += result.prompt_tokens or 0
        usage.completion_tokens += result.completion_tokens or 0
        usage.uncounted += result.prompt_tokens is None or result.completion_tokens is None
        try:
            question.answer = read(
                result.text, question.ask.limits, result.finish_reason == "length", self.config.thinking
            )
        except RefusedError as error:
            kind, times = error.kind, len(question.refused)
            usage.refused[kind] = usage.refused.get(kind, 0) + 1
            # that none is critical may be what the model thinks: doubted once, then the trajectory is left
            insists = kind == "nothing marked" and kind in question.refused
            question.refused.append(kind)
            if insists or times == self.config.reasks:
                question.failure = kind, f"{kind}: {error} (answer {times + 1})"
            else:
                question.talk = question.talk[:2] + complaint(result.text, str(error))
            return
        if self._cache is not None:
            about = {"model": self.writer.model, "temperature": self.config.temperature}
            tokens = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
            self._cache.put(question.key, result.text, **about, **tokens)

    def _annotation(self, trajectory: Trajectory, marks: Sequence[Mark]) -> Annotation:
        self.usage.annotated += 1
        return Annotation(
            trajectory_id=trajectory.id,
            selector="oracle",
            fraction=self.config.fraction,
            critical=tuple(mark.step for mark in marks),
            categories={mark.step: mark.category for mark in marks},
            reasons={mark.step: mark.reason for mark in marks},
            prompt_sha256=self._prompt_sha256,
            model=self.writer.model,
        )

    def _unannotated(self, trajectory: Trajectory, kind: str, reason: str) -> Unannotated:
        self.usage.unannotated[kind] = self.usage.unannotated.get(kind, 0) + 1
        return Unannotated(trajectory.id, reason, kind)


def _supposed(ask: Ask) -> Answer:
    """An answer that was not given, of ordinary length."""
    limits, goal = ask.limits, "find the key of the locked door and bring it to the room behind it"
    cuts = [limits.first + i * (limits.last + 1 - limits.first) // limits.goals for i in range(limits.goals + 1)]
    plan = [SubGoal(goal, a, b - 1) for a, b in pairwise(cuts)] if limits.plan else []
    return Answer(tuple(plan), (Mark(limits.first, CATEGORIES[0], "-"),) if limits.most else ())


def share_warnings(annotations: Iterable[Annotation], trajectories: Iterable[Trajectory]) -> list[str]:
    """A line for each environment in which the selector marks far more or far fewer steps than in most others.

    Compared is, trajectory by trajectory, how much of the cap was used, for the share of steps alone depends on their
    number by rounding: 2 steps of 4 may be marked at m = 0.3, and 6 of 20. Two environments are far apart when the
    means differ by more than 0.15 and by more than 3 standard errors (Welch); one with fewer than 8 trajectories is
    left out. One outlier does not make the others stand out, but where there are only two, both are named.
    """
    known = {t.id: t for t in trajectories}
    found = defaultdict[str, list[tuple[int, int, float]]](list)
    for a in annotations:
        steps, marked = len(known[a.trajectory_id].steps), len(a.critical)
        found[known[a.trajectory_id].env].append((marked, steps, marked / cap(a.fraction, steps)))
    judged = {env: rows for env, rows in sorted(found.items()) if len(rows) >= FEWEST}
    lines = []
    for env, rows in judged.items():
        others = [r for name, r in judged.items() if name != env]
        if 2 * sum(_far([r[2] for r in rows], [r[2] for r in other]) for other in others) > len(others):
            here, there = _shares(rows), _shares([r for other in others for r in other])
            lines.append(f"{env}: {here}; in the other environments {there}")
    return lines


def _far(a: Sequence[float], b: Sequence[float]) -> bool:
    error = math.sqrt(variance(a) / len(a) + variance(b) / len(b))
    return abs(fmean(a) - fmean(b)) > max(FAR, ERRORS * error)


def _shares(rows: Sequence[tuple[int, int, float]]) -> str:
    marked, steps, used = (sum(column) for column in zip(*rows, strict=True))
    return f"{marked / steps:.0%} of the steps are marked, {used / len(rows):.0%} of what the cap allows"
