"""The episodes that a page holds for its viewer: chosen ones first, then as many of the evaluation as fit.

Texts repeat from step to step and from model to model, so each is held once: an episode is numbers and places in a
list of texts. `viewer.js` reads this and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..data.records import Annotation, Step, Trajectory, first_problem
from ..data.tool_calls import readable
from ..errors import InputError
from .episode_view import RecordedEpisode, recorded_episodes
from .page import short
from .run import Run
from .selection import Marks, in_turn

MOST_BYTES = 1_500_000
"""About how much of a page its episodes may take."""
_EXPERT = 40  # episodes with marks; the others are in the evaluation's way
_STEPS = 200  # of one episode
_LONG = 2000  # characters of one text


@dataclass
class _Texts:
    """Every text once, and how many bytes all took."""

    places: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def place(self, text: str) -> int:
        cut = short(text, _LONG)
        if cut not in self.places:
            self.bytes += len(json.dumps(cut, ensure_ascii=False).encode("utf-8", "replace")) + 1
            self.places[cut] = len(self.places)
        return self.places[cut]


@dataclass(frozen=True)
class Collected:
    """What the viewer gets, and which episodes it does not.

    Attributes:
        value: the JSON of the page.
        count: how many episodes it holds.
        told: sentences on what was left out.
    """

    value: dict[str, Any]
    count: int
    told: tuple[str, ...]


def collect(run: Run, most_bytes: int = MOST_BYTES) -> Collected:
    """Episodes of a run for its viewer, at most about so many bytes of them.

    Raises:
        InputError: a file is not what it should be; names it.
    """
    texts, size = _Texts(), 0
    episodes: list[dict[str, Any]] = []
    told: list[str] = []

    def take(episode: dict[str, Any]) -> bool:
        nonlocal size
        size += len(json.dumps(episode, separators=(",", ":"))) + 1
        if episodes and size + texts.bytes > most_bytes:
            return False
        episodes.append(episode)
        return True

    for recorded in recorded_episodes(run.root) if run.policies else ():
        take(_recorded(recorded, texts))
    marks = run.marks
    if marks is not None:
        marked = _marked(marks)[:_EXPERT]
        shown = sum(take(_expert(t, marks, texts)) for t in marked)
        if left := len(marks.trajectories) - shown:
            told.append(f"{left:,} of {len(marks.trajectories):,} expert episodes are left out.")
    told += _evaluation(run, texts, take)
    return Collected({"texts": list(texts.places), "episodes": episodes}, len(episodes), tuple(told))


def _marked(marks: Marks) -> list[Trajectory]:
    """Those with marks to look at first, each environment in turn."""
    names = [name for name in marks.found if name != "all"]

    def count(t: Trajectory) -> int:
        return sum(bool(marks.found[name].get(t.id) and marks.found[name][t.id].critical) for name in names)

    return sorted(in_turn(marks.trajectories), key=count, reverse=True)


def _episode(
    kind: str, who: str, env: str, seed: int, goal: str, success: bool | None, steps: Sequence[Step], texts: _Texts
) -> dict[str, Any]:
    """One episode as `viewer.js` reads it; ``n`` is how many steps it really has."""
    return {
        "kind": kind,
        "who": short(who, 80),
        "env": short(env, 80),
        "seed": seed,
        "goal": texts.place(goal),
        "ok": success,
        "n": len(steps),
        "steps": [_step(step, texts) for step in steps[:_STEPS]],
    }


def _step(step: Step, texts: _Texts) -> dict[str, Any]:
    """What it saw, thought and did as places of texts; what is not known is left out."""
    row: dict[str, Any] = {"o": texts.place(step.observation), "a": texts.place(readable(step.action))}
    if step.thought:
        row["t"] = texts.place(step.thought)
    if step.reward:
        row["r"] = round(step.reward, 4)
    if step.actor:
        row["by"] = short(step.actor, 80)
    if step.probability is not None:
        row["p"] = round(step.probability, 4)
    if (values := getattr(step, "values", None)) is not None:
        row["q"] = [None if value is None else round(value, 4) for value in values]
    return row


def _recorded(recorded: RecordedEpisode, texts: _Texts) -> dict[str, Any]:
    r = recorded
    episode = _episode("switch", r.policy, r.env, r.seed, r.instruction, r.success, r.steps, texts)
    return {**episode, "budget": r.budget}


def _expert(t: Trajectory, marks: Marks, texts: _Texts) -> dict[str, Any]:
    episode = _episode("expert", t.source, t.env, t.seed, t.instruction, t.success, t.steps, texts)
    own = {name: found[t.id] for name, found in marks.found.items() if t.id in found}
    return {**episode, "marks": {name: _marks(annotation, texts) for name, annotation in own.items()}}


def _marks(annotation: Annotation, texts: _Texts) -> dict[str, list[int]]:
    """By step: places of its category and reason, as far as there are any."""
    found = {}
    for step in annotation.critical:
        category, reason = (annotation.categories or {}).get(step), (annotation.reasons or {}).get(step)
        found[str(step)] = [texts.place(category or "critical"), *([texts.place(reason)] if reason else [])]
    return found


def _evaluation(run: Run, texts: _Texts, take: Any) -> list[str]:
    """Take episodes of the evaluation while they fit, the first ones of every model and level first."""
    path, places = run.layout.evaluation_episodes, run.outcomes.offsets
    if not places:
        return []
    by_level: dict[str, list[int]] = {}
    for _, level, seed in places:
        by_level.setdefault(level, []).append(seed)
    ranks = {level: {seed: i for i, seed in enumerate(sorted(set(seeds)))} for level, seeds in by_level.items()}
    order = sorted(places, key=lambda key: ranks[key[1]][key[2]])  # stable: models and levels as they were played
    shown = 0
    for t in _read(path, [places[key] for key in order]):
        kept = _episode("evaluation", t.source, t.env, t.seed, t.instruction, t.success, t.steps, texts) if t else None
        if kept is not None and not take(kept):
            break
        shown += 1
    if shown == len(order):
        return []
    return [
        f"{len(order) - shown:,} of {len(order):,} episodes of the evaluation are left out, so that the page stays "
        f"small: it has the first of every model and level. All are in {path.relative_to(run.root)}."
    ]


def _read(path: Path, offsets: Sequence[int]) -> Iterator[Trajectory | None]:
    """The trajectories of these rows; None of one that ended before its first step, or kept none."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            row: Mapping[str, Any] = json.loads(file.readline())
            if row.get("trajectory") is None:
                yield None
                continue
            try:
                yield Trajectory.model_validate(row["trajectory"])
            except ValidationError as error:
                name, message = first_problem(error)
                raise InputError(message, path, None, f"trajectory.{name}") from None
