"""Logged episodes that a switch can learn from: a gateway's record, or trajectories that say who acted.

Each step needs its ``actor`` and the ``probability`` with which that model was chosen, within what the budget allowed;
each episode an outcome. What is left out is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..data.exchange.sources import reading
from ..data.gateway_record import Record, SessionUsage
from ..data.hub import is_on_hub
from ..data.parsing import Style, action_in
from ..data.records import Step, Trajectory, actor, actor_number, iter_numbered, load_json
from ..errors import InputError

FIELD = "switch.logs"


@dataclass(frozen=True)
class LoggedEpisode:
    """An episode as it was logged.

    Attributes:
        id: of its trajectory.
        texts: what a switch reads at each step, goal and observation.
        actors: number of the model that took each step.
        probabilities: with which it was chosen.
        outcome: what was reported of its end, 0..1.
        success: whether the goal was reached; None where only a score between 0 and 1 is known.
        money: dollars of each step, what was reserved and kept included; None where nothing says so.
        numbers: of its steps, from 0, where a record tells them: some were not answered, or its first ones are another
            session's. None: 0, 1, 2 and so on.
        actions: what was done at each step.
        same: whether QUICK would have done what DEEPTHINK did, of the steps at which a gateway asked both; else None.
    """

    id: str
    texts: tuple[str, ...]
    actors: tuple[int, ...]
    probabilities: tuple[float, ...]
    outcome: float
    success: bool | None
    money: tuple[float, ...] | None
    numbers: tuple[int, ...] | None = None
    actions: tuple[str, ...] = ()
    same: tuple[bool | None, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether its past is here: it did not go on where another session had been."""
        return not self.numbers or not self.numbers[0]


@dataclass(frozen=True)
class Logs:
    """What was read. ``dropped``: episodes that were left out, by reason."""

    episodes: tuple[LoggedEpisode, ...]
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(len(episode.actors) for episode in self.episodes)

    def words(self) -> str:
        """One line for people."""
        left_out = "".join(f"; left out: {n:,} {why}" for why, n in sorted(self.dropped.items()))
        return f"{len(self.episodes):,} logged episodes, {self.steps:,} steps{left_out}"


def read_logs(
    places: Sequence[str | Path],
    models: int,
    behaviour: float | None = None,
    whole: bool = False,
    style: Style = "action",
) -> Logs:
    """Read logged episodes.

    Args:
        places: each a directory that a gateway has recorded to, a run directory, a directory of ``.jsonl`` files of
            trajectories, or one such file; the last two on the hub, too, as ``hf://datasets/ORG/NAME/PATH``.
        models: how many models there are to choose from.
        behaviour: probability of a call, at steps that do not say theirs: every model but the first was called with an
            even share of it. None: such a step is refused.
        whole: leave out, and count, sessions that went on where another had been, whose record has not their past.
        style: of what a gateway's models say, in which their actions are read.

    Raises:
        InputError: nothing to learn from is there, or a step lacks its actor or probability; names file, line, field.
    """
    episodes: list[LoggedEpisode] = []
    dropped: Counter[str] = Counter()
    seen: dict[Path, str | Path] = {}
    for place in places:
        with reading(Path(place).expanduser() if not is_on_hub(place) else place) as source:
            for path, record in _files(source.path, place, seen):
                for line, trajectory in iter_numbered(path):
                    if trajectory.success is None and trajectory.score is None:
                        dropped["without an outcome"] += 1
                    elif not any((trajectory.instruction, *(step.observation for step in trajectory.steps))):
                        dropped["without what was seen (record_content is false)"] += 1
                    else:
                        usage = None if record is None else record.usage(trajectory.id)
                        spent = None
                        if usage is not None and usage.is_file():
                            spent = load_json(SessionUsage, usage)
                            if len(spent.steps) < len(trajectory.steps):
                                what = f"tells of {len(spent.steps)} steps, and {path} holds {len(trajectory.steps)}"
                                raise InputError(what, usage, None, "steps")
                        found = _episode(trajectory, spent, models, behaviour, path, line)
                        if record is not None:
                            found = replace(found, actions=tuple(action_in(said, style) for said in found.actions))
                        if whole and not found.is_whole:
                            dropped["that went on from another session (signals ask for their past)"] += 1
                        else:
                            episodes.append(found)
    logs = Logs(tuple(episodes), dropped)
    if not episodes:
        raise InputError(f"nothing to learn from: {logs.words()}", places[0], None, FIELD)
    return logs


def _files(root: Path, place: str | Path, seen: dict[Path, str | Path]) -> Iterator[tuple[Path, Record | None]]:
    """Every file of trajectories of a place, and the record that it belongs to."""
    folder = root / "trajectories" if (root / "trajectories").is_dir() else root
    found = [root] if root.is_file() else [p for p in sorted(folder.glob("*.jsonl")) if p.name[0] != "."]
    if not found:
        what = "holds no .jsonl file of trajectories" if root.is_dir() else "no such file or directory"
        raise InputError(what, root, None, FIELD)
    for path in found:
        if (before := seen.setdefault(path.resolve(), place)) is not place:
            raise InputError(f"its episodes would count twice: they are in {before} too", path, None, FIELD)
        yield path, Record(root) if folder != root else None


def _episode(
    trajectory: Trajectory,
    usage: SessionUsage | None,
    models: int,
    behaviour: float | None,
    path: Path,
    line: int,
) -> LoggedEpisode:
    score, success = trajectory.score, trajectory.success
    outcome = float(score if score is not None else success or 0)
    if success is None and outcome in (0.0, 1.0):
        success = outcome == 1.0
    actors, probabilities = [], []
    for number, step in enumerate(trajectory.steps):
        who, chance = _choice(step, models, behaviour, path, line, f"steps.{number}")
        actors.append(who)
        probabilities.append(chance)
    money = None if usage is None else _money(usage, len(actors))
    numbers = None if usage is None else tuple(step.step for step in usage.steps[: len(actors)])
    if numbers == tuple(range(len(actors))):
        numbers = None
    texts = tuple(f"{trajectory.instruction}\n{step.observation}" for step in trajectory.steps)
    actions = tuple(step.action for step in trajectory.steps)
    same: tuple[bool | None, ...] = (None,) * len(actors)
    if usage is not None:
        same = tuple(None if step.shadow is None else step.shadow.same for step in usage.steps[: len(actors)])
    chosen = (tuple(actors), tuple(probabilities))
    return LoggedEpisode(trajectory.id, texts, *chosen, outcome, success, money, numbers, actions, same)


def _choice(step: Step, models: int, behaviour: float | None, path: Path, line: int, where: str) -> tuple[int, float]:
    """Who acted, and how likely that was."""
    if step.actor is None:
        raise InputError("says not who acted", path, line, f"{where}.actor")
    who = actor_number(step.actor, models)
    if who is None:
        known = ", ".join(actor(n, models) for n in range(models))
        raise InputError(f"{step.actor!r} is none of the recipe's models: {known}", path, line, f"{where}.actor")
    if step.probability is not None:
        chance = step.probability
    elif behaviour is None:
        what = "says not how likely this model was; if a constant share of the steps was called, give switch.behaviour"
        raise InputError(what, path, line, f"{where}.probability")
    else:
        chance = behaviour / (models - 1) if who else 1 - behaviour
    if not chance:
        raise InputError("is 0, and yet this model acted", path, line, f"{where}.probability")
    return who, chance


def _money(usage: SessionUsage, steps: int) -> tuple[float, ...]:
    """Dollars of each step. What no step says, as no usage came, is shared by those that it may be of."""
    known = [None if step.usd is None else float(step.usd) for step in usage.steps[:steps]]
    beside = sum(float(step.shadow.usd or 0) for step in usage.steps if step.shadow is not None)
    rest = max(0.0, float(usage.spent.usd) - beside - sum(n for n in known if n is not None))
    unknown = [n for n, usd in enumerate(known) if usd is None] or [steps - 1]
    found = [usd or 0.0 for usd in known]
    for n in unknown:
        found[n] += rest / len(unknown)
    return tuple(found)
