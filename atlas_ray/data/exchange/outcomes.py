"""How an episode ended, where its record says so: by a field, or by what the environment said last. Never assumed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from .reading import JsonRecord

SUCCESS_FIELDS = (
    "success",
    "is_success",
    "task_success",
    "succeeded",
    "successful",
    "won",
    "solved",
    "is_solved",
    "resolved",
    "passed",
    "correct",
    "is_correct",
    "outcome",
)
SCORE_FIELDS = ("score", "reward", "final_score", "final_reward", "total_reward", "outcome_reward")
_INSIDE = ("metadata", "meta", "info", "extra_info")
_YES = ("true", "yes", "success", "succeeded", "successful", "won", "win", "pass", "passed", "solved", "resolved", "1")
_NO = ("false", "no", "failure", "fail", "failed", "unsuccessful", "lost", "loss", "unsolved", "unresolved", "0")
_MARKS = r"[\"'*`_\s]*"
_NUMBER = r"(?P<{0}>zero\b|[-\u2212]?(?:\d+(?:\.\d+)?|\.\d+))(?!\w|[.,]\d)"
_SCORE = re.compile(
    r"(?:\b(?:reward|score|return)s?\b(?:\s*\((?:min|max|range)?[^()\n]{0,30}\))?"
    rf"(?:{_MARKS}(?:=|:|\uff1a|\[SEP\]|\b(?:is|was|of|equals)\b){_MARKS}(?:only\s+|just\s+)?|\s+(?=[-\d.]+\W*\Z))"
    rf"|\bscored\s+(?:only\s+)?){_NUMBER.format('value')}"
    rf"\s*(?:(?P<percent>%)|(?:/|out of|of)\s*{_NUMBER.format('most')})?",
    re.IGNORECASE,
)
_SUCCESS = re.compile(
    rf"\b(?:success(?:ful)?|won|solved|completed)\b{_MARKS}(?:=|:|\bis\b|\bwas\b){_MARKS}"
    r"(?P<value>true|false|yes|no|1|0)\b(?!\.\d)",
    re.IGNORECASE,
)
_THING = r"(?:task|episode|mission|quest|game|problem)"
_FAILED = re.compile(
    rf"\b{_THING}\b(?:\s+\w+)?\s*(?:is|was|has|:)?\s*(?:been\s+)?"
    r"(?:failed|failure|unsuccessful|unsolved|not\s+(?:been\s+)?(?:solved|completed|successful|finished))\b"
    rf"|\byou\s+(?:have\s+)?(?:failed|lost)(?:\s+(?:the|this)\s+{_THING})?\W*$"
    rf"|\bfailed to (?:solve|complete|finish) the {_THING}\b|\A\W*(?:failed|failure|fail|unsuccessful)\W*\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class EpisodeOutcome:
    """``success`` and ``score`` (0 to 1) of an episode, each None where nobody said."""

    success: bool | None = None
    score: float | None = None

    def filled(self, stated: bool | None) -> EpisodeOutcome:
        """What is missing by what is ``stated`` of such episodes; a success without a score has 1, a failure 0."""
        success = stated if self.success is None else self.success
        score = float(success) if self.score is None and success is not None else self.score
        return EpisodeOutcome(success, score)


def of_number(value: float) -> EpisodeOutcome:
    """The outcome by a score or reward on 0 to 1.

    1 is a success, 0 and below none; between them, and above 1, success is unknown.

    Above 1 the score is on another scale, so it is unknown too; so is one below 0.
    """
    if not math.isfinite(value):
        return EpisodeOutcome()
    success = True if value == 1 else False if value <= 0 else None
    return EpisodeOutcome(success, float(value) if 0 <= value <= 1 else None)


def of_value(value: object) -> EpisodeOutcome | None:
    """The outcome by a field's value: true or false, a word for it, or a number; None where it is none of these."""
    if value is None:
        return EpisodeOutcome()
    if isinstance(value, bool):
        return EpisodeOutcome(value)
    if isinstance(value, int | float):
        return of_number(float(value))
    if isinstance(value, str):
        word = value.strip().casefold()
        if word in _YES or word in _NO:
            return EpisodeOutcome(word in _YES)
        try:
            return of_number(float(word))
        except ValueError:
            return EpisodeOutcome() if word in ("", "unknown", "none", "null", "n/a") else None
    return None


def at_field(value: Any, name: str) -> Any:
    """What stands under a field, given by its dotted name; None where there is nothing."""
    if isinstance(value, dict) and name in value:
        return value[name]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def of_fields(record: JsonRecord, success_field: str | None, other_scale: Collection[str] = ()) -> EpisodeOutcome:
    """The outcome by a record's own fields; with ``success_field`` by that one alone.

    Args:
        record: the record.
        success_field: dotted name of the field that says whether it was a success.
        other_scale: score fields that go beyond 1 somewhere, so that 1 is no success and no value a score.

    Raises:
        InputError: ``success_field`` holds no outcome.
    """
    if success_field is not None:
        found = of_value(at_field(record.value, success_field))
        if found is None:
            value = at_field(record.value, success_field)
            raise record.error(f"says neither success nor failure: must be true or false, is {value!r}", success_field)
        return found
    places = [record.value, *(v for k in _INSIDE if isinstance(v := record.value.get(k), dict))]
    told = [found for p in places for k in SUCCESS_FIELDS if p.get(k) is not None and (found := of_value(p[k]))]
    success = next((t.success for t in told if t.success is not None), None)
    score = next((t.score for t in told if t.score is not None), None)
    for name, value in ((k, p[k]) for p in places for k in SCORE_FIELDS if number_of(p.get(k)) is not None):
        found = of_number(number_of(value) or 0.0)
        if name in other_scale:
            found = EpisodeOutcome(False if found.success is False else None, 0.0 if found.score == 0 else None)
        return EpisodeOutcome(
            found.success if success is None else success, found.score if found.score is not None else score
        )
    return EpisodeOutcome(success, score)


def number_of(value: object) -> float | None:
    """A number, also one that is written as a string; None for anything else and for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def beyond_one(value: dict[str, Any]) -> set[str]:
    """The score fields of a record that are above 1, so on another scale than 0 to 1."""
    places = [value, *(v for k in _INSIDE if isinstance(v := value.get(k), dict))]
    return {k for p in places for k in SCORE_FIELDS if (number_of(p.get(k)) or 0.0) > 1}


def of_texts(texts: Iterable[str]) -> EpisodeOutcome:
    """The outcome by the last text of the environment, behind the last step, that tells a reward or success."""
    found = EpisodeOutcome()
    for text in texts:
        if (told := of_text(text)) != EpisodeOutcome():
            found = told
    return found


def of_text(text: str) -> EpisodeOutcome:
    """The outcome in a text: ``reward = 0``, ``Your score is 0.5``, ``3 of 10``, ``success: false``, ``failed``."""
    scores = list(_SCORE.finditer(text))
    found = EpisodeOutcome()
    if scores:
        match = scores[-1]
        word = match["value"].casefold().replace("\u2212", "-")
        value = 0.0 if word == "zero" else float(word)
        most = 100.0 if match["percent"] else float(match["most"]) if match["most"] else 1.0
        found = of_number(value / most) if most > 0 else EpisodeOutcome()
    said = list(_SUCCESS.finditer(text))
    if said:
        return EpisodeOutcome(said[-1]["value"].casefold() in _YES, found.score)
    return EpisodeOutcome(False, found.score) if found.success is None and _FAILED.search(text) else found
