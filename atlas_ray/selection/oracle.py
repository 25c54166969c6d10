"""Marks by a language model that reads the whole trajectory: ATLaS's semantic oracle, and one that finds mistakes.

From the paper (our notes on it): the whole expert trajectory is read together with four categories, the plan with its
sub-goals comes first, then at most a share m of the steps is marked. Ours: wording, JSON, 0-based steps, temperature 0,
windows, what is refused, and what becomes of it. A trajectory whose answers stay invalid is left unannotated. What is
asked of the steps is an :class:`.oracle_task.OracleTask`; all else is the same for all of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from ..data.records import Annotation, Trajectory, max_critical_steps
from ..data.replies import Replies, ReplyOutcome
from ..data.thinking import split_thinking
from ..engines.chat_endpoint import Completion
from ..errors import AtlasError, EndpointError
from .chat_backend import ChatBackend, tokens_of
from .oracle_answer import (
    CriticalStep,
    OracleAnswer,
    OracleCache,
    RefusedError,
    SubGoal,
    answer_schema,
    read_answer,
)
from .oracle_counts import Estimate, OracleConfig, OracleUsage, Unannotated
from .oracle_prompt import OraclePrompt, Questions, TokenBudget, UnfitError, prompt_sha256, questions, reprompt
from .oracle_stop import FailureStreak, NoAnswer, no_answer_kind
from .oracle_task import CRITICAL, OracleTask

FEWEST, FAR, ERRORS = 8, 0.15, 3.0
"""A share is far from another from so many trajectories on, by so much, and so many standard errors."""
_OUTCOMES: dict[str, ReplyOutcome] = {
    "empty": "empty",
    "cut off": "cut off",
    "too long": "too long",
    "no such step": "not admissible",
}


class Prices(NamedTuple):
    """Money for a million tokens."""

    prompt: float
    completion: float


def price(counted: OracleUsage | Estimate, prices: Prices) -> float:
    """What the tokens cost."""
    return (counted.prompt_tokens * prices.prompt + counted.completion_tokens * prices.completion) / 1e6


@dataclass(eq=False)
class _Question:
    """An :class:`OraclePrompt` that was sent; ``answer`` or ``failure`` (kind and reason) ends it."""

    prompt: OraclePrompt
    key: str
    messages: list[dict[str, str]]
    answer: OracleAnswer | None
    replies: Replies
    refused: list[str] = field(default_factory=list)
    failure: tuple[str, str] | None = None


@dataclass(eq=False)
class _Job:
    """A trajectory, what is being asked about it and what came of that."""

    trajectory: Trajectory
    replies: Replies
    asking: Questions
    questions: list[_Question] = field(default_factory=list)


class Oracle:
    """Annotates trajectories by asking a model.

    Args:
        backend: the model that is asked.
        config: how.
        cache: file of valid answers (:class:`OracleCache`), which are not asked for again.
        count: tokens of a text; give the model's own tokenizer where there is one.
        task: what is asked about the steps.

    Attributes:
        usage: what was asked so far.
        replies: what became of it, by trajectory; an answer from the cache counts like the one that was given.
    """

    def __init__(
        self,
        backend: ChatBackend,
        config: OracleConfig,
        cache: str | Path | None = None,
        count: Callable[[str], int] = tokens_of,
        task: OracleTask = CRITICAL,
    ) -> None:
        self.backend, self.config, self.usage = backend, config, OracleUsage()
        self.task = task
        self.replies: dict[str, Replies] = {}
        self._budget = TokenBudget(config.context, config.max_tokens, count)
        self._cache = None if cache is None else OracleCache(cache, config.thinking)
        self._prompt_sha256 = prompt_sha256(task)
        self._streak = FailureStreak(config.stop_after)

    def annotate(self, trajectories: Iterable[Trajectory]) -> Iterator[Annotation | Unannotated]:
        """An outcome for every trajectory, as they come, so not in order.

        Valid answers are in the cache before the outcome is yielded.

        Raises:
            AtlasError: ``stop_after`` refusals of one kind came in a row.
            EndpointError: one which all others would get too, as of a key or an address.
            InputError: the backend cannot be used.
        """
        waiting, active = iter(trajectories), list[_Job]()
        while True:
            while len(active) < self.config.batch and (trajectory := next(waiting, None)) is not None:
                replies = self.replies[trajectory.id] = Replies()
                job = _Job(trajectory, replies, self._questions(trajectory))
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
                prompts = next(asking)
                while True:
                    prompts = asking.send([self._supposed(prompt, made) for prompt in prompts])
            except StopIteration:
                pass
            except UnfitError:
                made.too_long += 1
        return made

    def _supposed(self, prompt: OraclePrompt, made: Estimate) -> OracleAnswer:
        known = self._known(prompt)
        if known is not None:
            made.cache_hits += 1
            return known
        made.calls += 1
        made.prompt_tokens += self._budget.prompt_tokens(prompt)
        made.completion_tokens += min(prompt.limits.tokens, self.config.max_tokens)
        return _supposed(prompt)

    def _questions(self, t: Trajectory) -> Questions:
        most = len(t.steps) if self.task.every else max_critical_steps(self.config.fraction, len(t.steps))
        return questions(t, most, self._budget, self.task)

    def _key(self, prompt: OraclePrompt) -> str:
        return prompt.key(self.backend.model, self.config.temperature)

    def _known(self, prompt: OraclePrompt) -> OracleAnswer | None:
        return None if self._cache is None else self._cache.get(self._key(prompt), prompt.limits)

    def _question(self, prompt: OraclePrompt, replies: Replies) -> _Question:
        known = self._known(prompt)
        self.usage.cache_hits += known is not None
        if known is not None:
            replies["ok"] += 1
            self._streak.answered()
        return _Question(prompt, self._key(prompt), prompt.messages(prompt.word()), known, replies)

    def _advance(self, job: _Job) -> Annotation | Unannotated | None:
        """Take what was answered and see what to ask next; the outcome, when there is nothing."""
        try:
            while True:
                failed = [q.failure for q in job.questions if q.failure is not None]
                if failed:
                    self._streak.trajectory_ended(*failed[0])
                    return self._unannotated(job.trajectory, *failed[0])
                answers = [q.answer for q in job.questions if q.answer is not None]
                if len(answers) < len(job.questions):
                    return None
                prompts = job.asking.send(answers) if job.questions else next(job.asking)
                job.questions = [self._question(prompt, job.replies) for prompt in prompts]
        except StopIteration as done:
            return self._annotation(job.trajectory, done.value[1])
        except UnfitError as error:
            return self._unannotated(job.trajectory, error.kind, str(error))

    def _ask(self, asked: Sequence[_Question]) -> None:
        """One answer for each question, or one more refusal, or its failure."""
        alike = defaultdict[tuple[bool, bool], list[_Question]](list)
        for question in asked:
            alike[question.prompt.limits.plan, question.prompt.limits.most > 0].append(question)
        for waiting in alike.values():
            while waiting and not self._streak.proven:
                self._ask_alike(waiting[:1])
                if waiting[0].answer or waiting[0].failure:
                    del waiting[0]
            if waiting:
                self._ask_alike(waiting)

    def _ask_alike(self, group: Sequence[_Question]) -> None:
        results = self.backend.complete(
            [q.messages for q in group],
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seeds=[int(q.key[:7], 16) + len(q.refused) for q in group],
            json_schema=answer_schema(group[0].prompt.limits) if self.config.send_schema else None,
            return_exceptions=True,
        )
        self.usage.requests += len(group)
        self.usage.reasked += sum(bool(q.refused) for q in group)
        ends: AtlasError | None = None
        for question, result in zip(group, results, strict=True):
            question.replies["asked again"] += bool(question.refused)
            try:
                if isinstance(result, Completion):
                    self._take(question, result)
                else:
                    self.usage.prompt_tokens += result.tokens[0]
                    self.usage.completion_tokens += result.tokens[1]
                    self._lose(question, no_answer_kind(result), str(result))
            except AtlasError as error:  # the others are paid for, so what they say is kept
                ends = ends or error
        for result in results:
            if isinstance(result, EndpointError) and result.for_all:
                raise result
        if ends is not None:
            raise ends

    def _lose(self, question: _Question, kind: NoAnswer, reason: str) -> None:
        self.usage.failed += 1
        question.replies.add({"lost": 1, "empty": int(kind == "out of tokens")})
        question.failure = kind, reason
        self._streak.refused(kind, reason)

    def _take(self, question: _Question, result: Completion) -> None:
        usage, cut = self.usage, result.finish_reason == "length"
        usage.prompt_tokens += result.prompt_tokens or 0
        usage.completion_tokens += result.completion_tokens or 0
        usage.uncounted += result.prompt_tokens is None or result.completion_tokens is None
        if cut and not split_thinking(result.text, self.config.thinking).rest.strip():
            # with the same limit it would be empty again
            limit = f"its limit of {self.config.max_tokens} tokens (max_tokens)"
            return self._lose(question, "out of tokens", f"the answer is empty at {limit}: thinking used it up")
        try:
            question.answer = read_answer(result.text, question.prompt.limits, cut, self.config.thinking)
        except RefusedError as error:
            return self._refuse(question, result.text, error)
        question.replies["ok"] += 1
        self._streak.answered()
        if self._cache is not None:
            about = {"model": self.backend.model, "temperature": self.config.temperature}
            tokens = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
            self._cache.put(question.key, result.text, **about, **tokens)
        return None

    def _refuse(self, question: _Question, text: str, error: RefusedError) -> None:
        kind, times = error.kind, len(question.refused)
        self.usage.refused[kind] = self.usage.refused.get(kind, 0) + 1
        question.replies[_OUTCOMES.get(kind, "not valid")] += 1
        # that none is critical may be what the model thinks: doubted once, then the trajectory is left
        insists = kind == "nothing marked" and kind in question.refused
        question.refused.append(kind)
        if insists or times == self.config.max_reprompts:
            question.failure = kind, f"{kind}: {error} (answer {times + 1})"
        else:
            question.messages = question.messages[:2] + reprompt(text, str(error))
        self._streak.refused(kind, str(error), text)

    def _annotation(self, trajectory: Trajectory, critical_steps: Sequence[CriticalStep]) -> Annotation:
        self.usage.annotated += 1
        self._streak.trajectory_ended(None)
        return Annotation(
            trajectory_id=trajectory.id,
            selector=self.task.selector,
            fraction=1.0 if self.task.every else self.config.fraction,
            critical=tuple(step.index for step in critical_steps if step.category in self.task.marked),
            categories={step.index: step.category for step in critical_steps},
            reasons={step.index: step.reason for step in critical_steps if step.reason},
            prompt_sha256=self._prompt_sha256,
            model=self.backend.model,
        )

    def _unannotated(self, trajectory: Trajectory, kind: str, reason: str) -> Unannotated:
        self.usage.unannotated[kind] = self.usage.unannotated.get(kind, 0) + 1
        return Unannotated(trajectory.id, reason, kind)


def _supposed(prompt: OraclePrompt) -> OracleAnswer:
    """An answer that was not given, of ordinary length."""
    limits, goal = prompt.limits, "find the key of the locked door and bring it to the room behind it"
    cuts = [limits.first + i * (limits.last + 1 - limits.first) // limits.goals for i in range(limits.goals + 1)]
    plan = [SubGoal(goal, a, b - 1) for a, b in pairwise(cuts)] if limits.plan else []
    named = range(limits.first, limits.last + 1) if limits.task.every else range(limits.first, limits.first + 1)
    steps = [CriticalStep(i, limits.task.names[0], "-") for i in named] if limits.most else []
    return OracleAnswer(tuple(plan), tuple(steps))


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
        found[known[a.trajectory_id].env].append((marked, steps, marked / max_critical_steps(a.fraction, steps)))
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
