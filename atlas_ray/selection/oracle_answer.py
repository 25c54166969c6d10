"""What the oracle may answer: the schema, a reader that takes nothing else, and the file that keeps what was valid.

All of it is ours. Servers do not have to obey a schema and models do not have to obey a prompt, so every limit is
checked here, whatever was promised. An answer is taken whole or refused whole: nothing is cut, mended or guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ..data.parsing import LONGEST_REPLY, LONGEST_THINKING
from ..data.thinking import THINKING, split_thinking, strip_specials
from ..errors import InputError
from ..rundir.files import append_jsonl, recover_jsonl
from .oracle_task import CRITICAL, OracleTask

Refusal = Literal[
    "empty",
    "cut off",
    "too long",
    "not JSON",
    "wrong form",
    "bad text",
    "bad plan",
    "too many",
    "no such step",
    "repeated step",
    "unknown category",
    "nothing marked",
    "missing step",
]
MOST_GOALS = 8
"""Sub-goals of one answer."""
LONGEST_GOAL = 160
"""Characters."""
LONGEST_REASON = 300
"""Characters."""
GOAL_TOKENS, STEP_TOKENS = 60, 100
"""Tokens that a sub-goal and a critical step of the greatest length take in an answer."""

_FENCED = re.compile(r"(?:```|~~~)(?:json[5lc]?)?[ \t]*\n(.*)\n[ \t]*(?:```|~~~)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class SubGoal:
    """A part of the plan and the steps that it covers, ``first`` to ``last``, both included."""

    goal: str
    first: int
    last: int


@dataclass(frozen=True)
class CriticalStep:
    """A step that is named, its category or label, and why."""

    index: int
    category: str
    reason: str


@dataclass(frozen=True)
class OracleAnswer:
    """An answer that was read: the plan in order, the steps by index. What was not asked for is empty."""

    plan: tuple[SubGoal, ...]
    critical_steps: tuple[CriticalStep, ...]


@dataclass(frozen=True)
class Limits:
    """What an answer may hold.

    It is about the steps ``first`` to ``last``. ``plan``: it begins with sub-goals that cover them. ``most`` and
    ``least`` bound the critical steps; with ``most`` 0 none are asked for. ``task``: what is asked of steps; where that
    is of every one, ``most`` is their number.
    """

    first: int
    last: int
    plan: bool
    most: int
    least: int = 0
    task: OracleTask = CRITICAL

    @property
    def goals(self) -> int:
        """Most sub-goals."""
        return min(MOST_GOALS, self.last - self.first + 1)

    @property
    def tokens(self) -> int:
        """Tokens that the longest valid answer takes."""
        return STEP_TOKENS * self.most + (GOAL_TOKENS * MOST_GOALS if self.plan else 0)


class RefusedError(Exception):
    """An answer that is not taken. The message ends the sentence "it cannot be used: ...", for the model to read."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind: Refusal = kind


def answer_schema(limits: Limits) -> dict[str, Any]:
    """The JSON schema of an answer: the plan first, so that the steps are written behind it."""
    # OpenAI's strict mode knows neither lengths nor bounds on all models, and refuses what it does not know
    goal = _object({"goal": {"type": "string"}, "first": {"type": "integer"}, "last": {"type": "integer"}})
    mark = _object(
        {
            "step": {"type": "integer"},
            limits.task.named: {"type": "string", "enum": list(limits.task.names)},
            "reason": {"type": "string"},
        }
    )
    parts = {"plan": goal} if limits.plan else {}
    if limits.most:
        parts[limits.task.listed] = mark
    return _object({name: {"type": "array", "items": item} for name, item in parts.items()})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_answer(text: str, limits: Limits, cut: bool = False, thinking: Sequence[str] = THINKING) -> OracleAnswer:
    """An answer, checked.

    One JSON object, alone or as the only code block, behind what was thought before it; nothing else is forgiven.

    Args:
        text: what the model wrote.
        limits: what it was asked.
        cut: the server says that it stopped at the limit of tokens.
        thinking: tags of what is thought before the answer.

    Raises:
        RefusedError: anything is wrong; names the first thing.
    """
    try:
        value = _json(text, thinking)
        names = answer_schema(limits)["required"]
        _fields(value, names, "the answer")
        plan = _plan(value["plan"], limits) if "plan" in names else ()
        critical_steps = _named_steps(value[limits.task.listed], limits) if limits.task.listed in names else ()
    except RefusedError as error:
        if cut and error.kind in ("empty", "not JSON"):
            raise RefusedError("cut off", "it was too long and broke off; be brief") from None
        raise
    return OracleAnswer(plan, critical_steps)


def _json(text: str, thinking: Sequence[str]) -> Any:
    if len(text) <= LONGEST_THINKING:
        text = text.replace("\r\n", "\n").strip("\ufeff \t\r\n")
        # a text within the JSON may speak of tags
        text = text if text.startswith(("{", "```{")) else split_thinking(text, thinking).rest
        text = strip_specials(text).strip("\ufeff \t\r\n")
    if len(text) > LONGEST_REPLY:
        raise RefusedError("too long", f"it has {len(text)} characters; be brief")
    if not text:
        raise RefusedError("empty", "it is empty")
    fenced = _FENCED.fullmatch(text)
    try:
        return json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos}"
        raise RefusedError("not JSON", f"it is not one JSON object with nothing around it ({where})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets a thousand deep
        raise RefusedError("not JSON", "it is no JSON that can be read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise RefusedError("wrong form", "a field stands twice in one object")
    return dict(pairs)


def _no_number(_: str) -> NoReturn:
    raise RefusedError("not JSON", "it holds NaN or Infinity, which is no JSON")


def _fields(value: Any, names: Iterable[str], what: str) -> None:
    names = list(names)
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise RefusedError("wrong form", f"{what} must be an object with the fields {', '.join(names)} and no others")


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise RefusedError("wrong form", f"{what} must be a list")
    return value


def _integer(value: Any, what: str) -> int:
    if type(value) is not int:  # True is an int for isinstance
        raise RefusedError("wrong form", f"{what} must be a whole number")
    return value


def _line(value: Any, longest: int, what: str) -> str:
    """A text as one line, white space folded."""
    if not isinstance(value, str):
        raise RefusedError("wrong form", f"{what} must be a string")
    line = " ".join(value.split())
    if not line or len(line) > longest or not line.isprintable():
        raise RefusedError("bad text", f"{what} must be a sentence of 1 to {longest} printable characters")
    return line


def _plan(value: Any, limits: Limits) -> tuple[SubGoal, ...]:
    items, due, found = _list(value, "plan"), limits.first, []
    if not 1 <= len(items) <= limits.goals:
        raise RefusedError("bad plan", f"plan has {len(items)} sub-goals; it must have 1 to {limits.goals}")
    for number, item in enumerate(items):
        what = f"plan[{number}]"
        _fields(item, ("goal", "first", "last"), what)
        goal = _line(item["goal"], LONGEST_GOAL, f"{what}.goal")
        first, last = (_integer(item[name], f"{what}.{name}") for name in ("first", "last"))
        if first != due or not first <= last <= limits.last:
            raise RefusedError(
                "bad plan",
                f"{what} covers the steps {_number(first)} to {_number(last)}; its first must be {due}, its last at "
                f"least that and at most {limits.last}",
            )
        found.append(SubGoal(goal, first, last))
        due = last + 1
    if due != limits.last + 1:
        raise RefusedError("bad plan", f"the plan ends at step {due - 1}; it must go on to step {limits.last}")
    return tuple(found)


def _named_steps(value: Any, limits: Limits) -> tuple[CriticalStep, ...]:
    task = limits.task
    items, found = _list(value, task.listed), dict[int, CriticalStep]()
    if len(items) > limits.most and not task.every:
        raise RefusedError(
            "too many",
            f"it marks {len(items)} steps; at most {limits.most} are allowed, so keep those that matter most",
        )
    for number, item in enumerate(items):
        what = f"{task.listed}[{number}]"
        _fields(item, ("step", task.named, "reason"), what)
        step = _integer(item["step"], f"{what}.step")
        if not limits.first <= step <= limits.last:
            raise RefusedError(
                "no such step", f"{what}.step is {_number(step)}; the steps are {limits.first} to {limits.last}"
            )
        if step in found:
            raise RefusedError("repeated step", f"step {step} is marked twice")
        name, reason = item[task.named], item["reason"]
        if name not in task.names:
            raise RefusedError("unknown category", f"{what}.{task.named} must be one of: {', '.join(task.names)}")
        silent = name in task.silent and isinstance(reason, str) and not reason.strip()
        found[step] = CriticalStep(step, name, "" if silent else _line(reason, LONGEST_REASON, f"{what}.reason"))
    if len(found) < limits.least:
        raise RefusedError("nothing marked", "it marks no step, but an expert's episode has one that decided it")
    if task.every and (left := [step for step in range(limits.first, limits.last + 1) if step not in found]):
        raise RefusedError(
            "missing step", f"it leaves out step {left[0]}; each of the steps {limits.first} to {limits.last} needs one"
        )
    return tuple(found[step] for step in sorted(found))


def _number(value: int) -> str:
    return str(value) if abs(value) < 10**9 else "beyond all steps"


class OracleCache:
    """Valid answers in an append-only JSONL file, by key: what was asked once and answered well is not asked again.

    Their texts are kept, and read as strictly again when they are used, so that a file that was changed by hand gives
    nothing that a model could not have given.

    Args:
        path: the file.
        thinking: tags of what is thought before an answer.

    Raises:
        InputError: the file is no such cache.
    """

    def __init__(self, path: str | Path, thinking: Sequence[str] = THINKING) -> None:
        self.path, self._thinking = Path(path), tuple(thinking)
        try:
            self._texts = {str(row["key"]): str(row["answer"]) for row in recover_jsonl(self.path)}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"is no file of the oracle's answers ({error!r})", self.path) from None

    def get(self, key: str, limits: Limits) -> OracleAnswer | None:
        """The answer under ``key``; None where there is none, or none that is valid."""
        text = self._texts.get(key)
        try:
            return None if text is None else read_answer(text, limits, thinking=self._thinking)
        except RefusedError:
            return None

    def put(self, key: str, text: str, **about: Any) -> None:
        """Keep a valid answer; ``about`` is written beside it."""
        append_jsonl(self.path, [{"key": key, "answer": text, **about}])
        self._texts[key] = text
