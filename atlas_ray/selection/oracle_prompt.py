"""What the oracle is shown, and in which pieces: the wording, which is ours, and a trajectory as data.

What a trajectory holds may have been written by anyone, so between two lines with a random word every line of it begins
with a letter and a bar, whatever ends its lines. Only our own lines have no bar. Invisible and control characters are
shown as ``\ufffd``, and what looks like a special token is broken by a space, because many servers read such a token
where it stands in a message. The system message is the same for every trajectory.

The word is drawn anew for every conversation. An answer is kept under the hash of the same prompt written with a fixed
word, so the cache does not know which word was drawn, and one that leaked opens nothing later.

A trajectory that fits the context is asked about once. For a longer one the plan is made first, from a listing without
observations, and then its windows are marked, which end where sub-goals end. No step is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.records import Part, Step, Trajectory
from ..data.tool_calls import readable
from .oracle_answer import (
    LONGEST_GOAL,
    LONGEST_REASON,
    STEP_TOKENS,
    CriticalStep,
    Limits,
    OracleAnswer,
    SubGoal,
    answer_schema,
)
from .oracle_task import CRITICAL, OracleTask

_OPEN, _CLOSE = "===== record {word} begins =====", "===== record {word} ends ====="
AGAIN = "Your answer cannot be used: {problem}.\nAnswer again, with the corrected JSON object and nothing else."
LONGEST_QUOTE = 400
"""Characters of a refused answer that the model is shown again."""
_QUOTED_CUT = " [the rest of your answer is left out here]"

_MESSAGE_TOKENS, _SPARE_TOKENS = 8, 64
"""What a chat template may add to each message, and to a conversation."""
_AGAIN_TOKENS = 320
"""A refused answer, as far as it is shown again, and what is wrong with it."""

_LOOKS_SPECIAL = re.compile(r"<(?=[^\s<>=\d-])|\[(?=/?[A-Za-z_]+\])")


def sanitize(text: str) -> str:
    """Text in which nothing is invisible and nothing looks like a special token; line ends stay.

    The second is a rule of thumb, for servers that read special tokens in messages: ``<``, or ``[`` of a single word in
    brackets, gets a space behind it.
    """
    kept = (c if c.isprintable() or c in "\t\n" else " " if c.isspace() else "\ufffd" for c in text)
    return _LOOKS_SPECIAL.sub(r"\g<0> ", "".join(kept))


def _barred(letter: str, text: str) -> str:
    # splitlines knows every character that some reader takes for the end of a line
    return "".join(f"{letter}| {sanitize(line)}\n" for line in text.splitlines() or [""])


def step_lines(index: int, step: Step, brief: bool = False) -> str:
    """A step as lines of the record; ``brief`` leaves the observation out.

    A tool call is shown by name and arguments, and each of several messages of an observation behind who wrote it.
    """
    seen = "" if brief else _barred("o", _observed(step))
    thought = "" if step.thought is None else _barred("t", step.thought)
    return f"step {index}\n{seen}{thought}{_barred('a', readable(step.action))}"


def _observed(step: Step) -> str:
    seen = step.seen()
    if len(seen) < 2:
        return step.observation
    return "\n".join(f"({_writer(part)})\n{text}" for part, text in seen)


def _writer(part: Part) -> str:
    who = "the tool" if part.role == "tool" else f"the {part.role}"
    return f"{who}{f' {part.name}' if part.name else ''}{f' [{part.id}]' if part.id else ''}"


@dataclass(frozen=True)
class OraclePrompt:
    """One question to the oracle: lines of the record, what may be answered, and how the episode ended."""

    record: str
    limits: Limits
    steps: int
    brief: bool = False
    success: bool | None = None

    def messages(self, word: str) -> list[dict[str, str]]:
        """The conversation, with ``word`` in the lines around the record."""
        limits, task = self.limits, self.limits.task
        numbers: dict[str, Any] = {
            "first": limits.first,
            "last": limits.last,
            "goals": limits.goals,
            "most": limits.most,
            "goal": LONGEST_GOAL,
            "reason": LONGEST_REASON,
            "then": "Then" if limits.plan else "Give",
            "none": task.some if limits.least else task.none,
            "ended": task.ended(self.success),
        }
        tasks = [task.plan.format(**numbers)] if limits.plan else []
        tasks += [task.marks.format(**numbers)] if limits.most else []
        form = json.dumps(_form(answer_schema(limits))).replace('"NUMBER"', "NUMBER")
        head = task.head.format(**numbers, steps=self.steps, left_out=task.brief if self.brief else "")
        body = f"{head}\n{_OPEN.format(word=word)}\n{self.record}{_CLOSE.format(word=word)}\n\n"
        asked = "\n\n".join([*tasks, f"The form of the answer: {form}"])
        return [{"role": "system", "content": task.system}, {"role": "user", "content": body + asked}]

    def word(self) -> str:
        """A random word that the record does not hold."""
        while (word := secrets.token_hex(8)) in self.record:
            pass
        return word

    def key(self, model: str, temperature: float | None) -> str:
        """What the answer is kept under: a hash of model, temperature, schema and the prompt with a fixed word."""
        warmth = None if temperature is None else float(temperature)
        return _sha256([model, warmth, answer_schema(self.limits), self.messages("WORD")])


def _form(part: dict[str, Any]) -> Any:
    """An example of what a schema describes."""
    if part["type"] == "object":
        return {name: _form(inner) for name, inner in part["properties"].items()}
    if part["type"] == "array":
        return [_form(part["items"])]
    return "..." if part["type"] == "string" else "NUMBER"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _goals(plan: Iterable[SubGoal]) -> str:
    return "".join(_barred("p", f"steps {goal.first} to {goal.last}: {goal.goal}") for goal in plan)


def whole_prompt(trajectory: Trajectory, most: int, task: OracleTask = CRITICAL) -> OraclePrompt:
    """Asks for plan and marks of a whole trajectory."""
    steps = "".join(step_lines(i, step) for i, step in enumerate(trajectory.steps))
    last = len(trajectory.steps) - 1
    limits = Limits(0, last, True, most, int(not task.every), task)
    return OraclePrompt(_barred("g", trajectory.instruction) + steps, limits, last + 1, success=trajectory.success)


def plan_prompt(
    trajectory: Trajectory, part: range, before: Sequence[SubGoal], task: OracleTask = CRITICAL
) -> OraclePrompt:
    """Asks for the plan of a part, from thoughts and actions alone, behind the sub-goals of the parts before it."""
    steps = "".join(step_lines(i, trajectory.steps[i], brief=True) for i in part)
    record = _barred("g", trajectory.instruction) + _goals(before) + steps
    limits = Limits(part.start, part.stop - 1, True, 0, task=task)
    return OraclePrompt(record, limits, len(trajectory.steps), brief=True, success=trajectory.success)


def part_prompt(
    trajectory: Trajectory, part: range, plan: Sequence[SubGoal], most: int, task: OracleTask = CRITICAL
) -> OraclePrompt:
    """Asks for the marks of a part, under the plan of the whole; only a whole trajectory must have a critical step."""
    steps = "".join(step_lines(i, trajectory.steps[i]) for i in part)
    record = _barred("g", trajectory.instruction) + _goals(plan) + steps
    least = int(len(part) == len(trajectory.steps) and not task.every)
    limits = Limits(part.start, part.stop - 1, False, most, least, task)
    return OraclePrompt(record, limits, len(trajectory.steps), success=trajectory.success)


def reprompt(answer: str, problem: str) -> list[dict[str, str]]:
    """What a conversation is continued with after an answer that is not taken."""
    said = sanitize(answer.strip()[:LONGEST_QUOTE]) or "(no answer)"
    if len(answer.strip()) > LONGEST_QUOTE:
        said += _QUOTED_CUT
    return [{"role": "assistant", "content": said}, {"role": "user", "content": AGAIN.format(problem=problem)}]


def prompt_sha256(task: OracleTask = CRITICAL) -> str:
    """The version of the prompt: a hash of every kind of conversation about a fixed trajectory."""
    steps = (Step(observation="o", thought="t", action="a"),) * 2
    sample = Trajectory(
        id="-", env="-", task="-", seed=0, instruction="g", steps=steps, score=1.0, success=True, source="-"
    )
    plan = [SubGoal("p", 0, 1)]
    prompts = [
        whole_prompt(sample, 1, task),
        plan_prompt(sample, range(1, 2), plan, task),
        part_prompt(sample, range(2), plan, 1, task),
        part_prompt(sample, range(1), plan, 1, task),
    ]
    if task.tells_outcome:
        ends = (sample.model_copy(update={"success": success}) for success in (False, None))
        prompts += [whole_prompt(ended, 1, task) for ended in ends]
    return _sha256([[a.messages("WORD"), answer_schema(a.limits)] for a in prompts] + [reprompt("x" * 1000, "y")])


Questions = Generator[list[OraclePrompt], list[OracleAnswer], tuple[list[SubGoal], list[CriticalStep]]]
"""What is asked about a trajectory, answer by answer; ends with the plan and the marks."""


class UnfitError(Exception):
    """A trajectory cannot be asked about, or no answers about its windows make one. ``kind`` is what is counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class TokenBudget:
    """``context`` tokens for a conversation with its answer, of which ``max_tokens`` are for the answer."""

    context: int
    max_tokens: int
    count: Callable[[str], int]

    def prompt_tokens(self, prompt: OraclePrompt) -> int:
        """Tokens of a question."""
        return sum(self.count(m["content"]) + _MESSAGE_TOKENS for m in prompt.messages(prompt.word()))

    def left(self, prompt: OraclePrompt) -> int:
        """Tokens by which the record of a question may still grow, an answer and one reprompt set aside."""
        return self.context - self.max_tokens - _AGAIN_TOKENS - _SPARE_TOKENS - self.prompt_tokens(prompt)


def questions(trajectory: Trajectory, most: int, budget: TokenBudget, task: OracleTask = CRITICAL) -> Questions:
    """Yields what to ask next and takes the answers; returns the plan and at most ``most`` marks.

    Where the task is about every step, ``most`` is their number, and all of them are marked.

    Raises:
        UnfitError: a step alone is too long, the windows are more than ``most``, or none holds a critical step.
    """
    steps = trajectory.steps
    whole = whole_prompt(trajectory, most, task)
    if whole.limits.tokens <= budget.max_tokens and budget.left(whole) >= 0:
        (answer,) = yield [whole]
        return list(answer.plan), list(answer.critical_steps)
    # a line end joins what was counted apart
    brief, full = ([budget.count(step_lines(i, s, b)) + 1 for i, s in enumerate(steps)] for b in (True, False))
    longest = max(1, budget.max_tokens // STEP_TOKENS * len(steps) // most)

    def parts_of(plan: Sequence[SubGoal]) -> list[range]:
        left = budget.left(part_prompt(trajectory, range(0), plan, most, task))
        parts = windows(full, left, [goal.first for goal in plan], longest)
        if len(parts) > most:
            raise UnfitError("too long", f"it falls into {len(parts)} windows, more than the {most} steps to be marked")
        return parts

    parts_of([])  # what fails without a plan needs none asked for
    plan: list[SubGoal] = []
    while (start := plan[-1].last + 1 if plan else 0) < len(steps):
        left = budget.left(plan_prompt(trajectory, range(start, start), plan, task))
        (answer,) = yield [plan_prompt(trajectory, range(start, _reach(brief, start, left, len(steps))), plan, task)]
        plan += answer.plan
    parts = parts_of(plan)
    given = shares([len(part) for part in parts], most, budget.max_tokens // STEP_TOKENS)
    answers = yield [part_prompt(trajectory, p, plan, n, task) for p, n in zip(parts, given, strict=True)]
    critical_steps = [step for answer in answers for step in answer.critical_steps]
    if not critical_steps:
        raise UnfitError("nothing marked", f"none of its {len(parts)} windows holds a critical step")
    return plan, critical_steps


def _reach(costs: Sequence[int], start: int, budget: int, most: int) -> int:
    """How far the steps from ``start`` on fit, at most ``most`` of them."""
    end = start
    while end < min(len(costs), start + most) and costs[end] <= budget:
        budget -= costs[end]
        end += 1
    if end == start:
        raise UnfitError("too long", f"step {start} needs {costs[start]} tokens, and {max(budget, 0)} are left for it")
    return end


def windows(costs: Sequence[int], budget: int, cuts: Iterable[int], longest: int) -> list[range]:
    """Steps of the given costs in consecutive windows, each at most ``room`` and ``longest`` steps.

    A window that does not hold the rest ends at the last of ``cuts`` that it can reach, else where it is full.

    Raises:
        UnfitError: a step alone is too long.
    """
    found, start, cuts = list[range](), 0, sorted(cuts)
    while start < len(costs):
        end = _reach(costs, start, budget, longest)
        if end < len(costs):
            end = max((c for c in cuts if start < c <= end), default=end)
        found.append(range(start, end))
        start = end
    return found


def shares(lengths: Sequence[int], most: int, each: int) -> list[int]:
    """How many of ``most`` critical steps each window may have: one, and more where it has many steps.

    No window gets more than its steps or ``each``; ``most`` must be at least the number of windows.
    """
    given = [1] * len(lengths)
    for _ in range(most - len(lengths)):
        open_ = [i for i, length in enumerate(lengths) if given[i] < min(length, each)]
        if open_:
            given[max(open_, key=lambda i: lengths[i] / given[i])] += 1
    return given
