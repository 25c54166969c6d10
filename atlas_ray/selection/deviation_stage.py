"""The selector ``deviation`` on Ray actors: the base's decisions, the expert's continuations, then a model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import envs
from ..agents.model_workers import model_workers
from ..agents.rollout import EpisodeResult, EpisodeStarter
from ..agents.spec import AgentSpec, agent_spec
from ..agents.throughput import replies_told
from ..agents.unknown_words import Reader
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import Job, chunks
from ..data.records import Annotation, Step, Trajectory
from ..data.replies import Losses, Replies, summed
from ..recipe.loading import Recipe
from ..rundir.files import RunLog
from ..rundir.progress import say, track
from .deviation import ExpertPlaysOn, Found, StepCount, greedy_decisions, play_on_by_model, select_by_deviation
from .replays import Specs, replay_all, replay_specs
from .scored_stage import check_words, note_played, say_left_out, scores_path

_CHUNK = 8


@dataclass(frozen=True)
class _Task:
    """Trajectories, and for those of the second pass what the first one found and the replies it took."""

    trajectories: tuple[Trajectory, ...]
    specs: Specs
    agent: AgentSpec
    cpu_seconds: float
    found: dict[str, Found] = field(default_factory=dict)
    replies: dict[str, Replies] = field(default_factory=dict)


@dataclass
class _Result:
    """What became of a task: of each trajectory that was not left out its deviations."""

    found: dict[str, Found] = field(default_factory=dict)
    replies: dict[str, Replies] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    spent: StepCount = field(default_factory=StepCount)

    def note(self, finished: EpisodeResult) -> None:
        """Count an episode of the model."""
        if finished.replies:
            self.replies.setdefault(finished.start.id.rpartition("@")[0], Replies()).add(finished.replies)
        if finished.error:
            self.problems.append(f"{finished.start.id}: {finished.error}")


def _compare(task: _Task, state: WorkerState) -> Iterator[_Result]:
    """The first pass: what the base would do, and where that leads if the expert goes on."""
    result, begin = _Result(), state.get_or_create(EpisodeStarter).begin
    replays, result.left_out = replay_all(task.trajectories, task.specs, begin)
    there = [t for t in task.trajectories if t.id in replays]
    decided: dict[str, dict[int, Step]] = {t.id: {} for t in there}
    for finished in greedy_decisions(task.agent.agent(state), there, replays, begin):
        name, _, place = finished.start.id.rpartition("@")
        result.spent.played += len(finished.steps)
        if finished.lost:
            result.left_out[name] = "the model's move at one of its steps was lost"
        elif finished.steps:
            decided[name][int(place)] = finished.steps[0]
        if finished.lost or finished.steps:
            result.note(finished)
    for t in there:
        if t.id in result.left_out:
            continue
        other = {n: step for n, step in sorted(decided[t.id].items()) if step.action != t.steps[n].action}
        try:
            expert = ExpertPlaysOn(t, replays[t.id], begin, task.cpu_seconds, result.spent)
            result.found[t.id] = replace(expert.compare(other), beyond=len(t.steps) - len(decided[t.id]))
        except envs.EnvironmentDiedError as error:
            result.left_out[t.id] = f"lost as the expert played on: {error}"
    yield result


def _play_on(task: _Task, state: WorkerState) -> Iterator[_Result]:
    """The second pass: where the expert could not go on, a model does."""
    begin = state.get_or_create(EpisodeStarter).begin
    result = _Result(replies={name: Replies(counts) for name, counts in task.replies.items()})
    replays, result.left_out = replay_all(task.trajectories, task.specs, begin)
    work = [(t, replays[t.id], task.found[t.id]) for t in task.trajectories if t.id in replays]
    for finished in play_on_by_model(task.agent.agent(state), task.agent.model, work, begin, result.spent):
        result.note(finished)
    for t, _, found in work:
        if found.open:
            result.left_out[t.id] = "an episode that the model played on was lost"
        else:
            result.found[t.id] = found
    yield result


def _rows(task: _Task, result: _Result) -> list[dict[str, Any]]:
    rows = []
    for t in task.trajectories:
        replies = result.replies.get(t.id)
        said: dict[str, Any] = {"replies": replies.row()} if replies else {}
        if (found := result.found.get(t.id)) is None:
            # a later line of one counts; the deviations of the first pass stay those of the line before
            rows += [{"id": t.id, **said}] if said and t.id not in task.found else []
            continue
        scores = {} if found.open else {"scores": found.costs(len(t.steps))}
        rows.append({"id": t.id, **scores, **found.row(), **said})
    return rows


class _Stage:
    """Both passes over the trajectories that are not done, and what they took."""

    def __init__(self, recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> None:
        self.recipe, self.log = recipe, RunLog(run_dir)
        self.file = ResultFile(scores_path(run_dir, "deviation"))
        self.found: dict[str, Found] = {}
        self.replies: dict[str, Replies] = {}
        for row in self.file.rows():
            if "deviations" in row:
                self.found[row["id"]] = Found.from_row(row)
                self.replies[row["id"]] = Replies(row.get("replies", {}))
        self.specs, unplayable = replay_specs(recipe, trajectories)
        self.left_out = {t.id: unplayable[t.env] for t in trajectories if t.env in unplayable and not self.done(t)}
        self.trajectories, self.spent = trajectories, StepCount()
        self.losses = Losses(recipe.max_lost_answers)
        if recipe.select:
            self.losses.note(recipe.select.model, summed(self.replies.values()))

    def done(self, trajectory: Trajectory) -> bool:
        """Whether all that is to be known of a trajectory is known."""
        found = self.found.get(trajectory.id)
        return found is not None and not found.open

    def run(self, title: str, job: Job[_Result], model: str, wanted: Callable[[Trajectory], bool]) -> None:
        """One pass."""
        todo = [t for t in self.trajectories if t.id not in self.left_out and wanted(t)]
        if not todo:
            return
        check_words(self.recipe, self.log, "deviation", model, todo, Reader.enough)
        spec = agent_spec(self.recipe, model)
        with (
            replies_told(self.log, "select", lambda: summed(self.replies.values()), selector="deviation"),
            track(title, len(todo)) as progress,
            model_workers(self.recipe, spec, log_lost_workers(self.log, "select")) as (pool, leased),
        ):
            tasks = [self._task(part, leased) for part in chunks(todo, _CHUNK)]
            for task, result in self.file.stream(pool, job, tasks, _rows):
                self._take(task, result, model)
                words = summed(self.replies.values()).words()
                told = f"{self.spent.played} steps{words and f' · replies: {words}'}"
                progress.advance(len(task.trajectories), told)
            self.losses.check()

    def _task(self, part: list[Trajectory], agent: AgentSpec) -> _Task:
        known = [t.id for t in part if t.id in self.found]
        return _Task(
            tuple(part),
            self.specs,
            agent,
            self.recipe.collect.cpu_seconds if self.recipe.collect else 0.0,
            {name: self.found[name] for name in known},
            {name: self.replies.get(name, Replies()) for name in known},
        )

    def _take(self, task: _Task, result: _Result, model: str) -> None:
        new = summed(result.replies.values())
        new.subtract(summed(task.replies.values()))
        self.found |= result.found
        self.replies |= result.replies
        self.left_out |= result.left_out
        self.spent.played += result.spent.played
        self.spent.replayed += result.spent.replayed
        note_played(self.log, self.losses, model, new, result.problems)


def by_deviation(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    """The steps at which the base's own move costs most, played on by the expert, else by ``select.play_on``.

    Every trajectory stands in ``annotations/scores/deviation.jsonl`` as soon as it is done, with the moves of the base
    and how both ends are, so that a killed run goes on.

    Raises:
        AtlasError: every trajectory was lost, or too many of a model's answers are none. Says why.
        InputError: none of the trajectories can be replayed, or a model's tokenizer knows too little of them.
    """
    config, log = recipe.select, RunLog(run_dir)
    assert config is not None
    stage = _Stage(recipe, run_dir, trajectories)
    stage.run("deviations", _compare, config.model, lambda t: t.id not in stage.found)
    other = config.play_on or config.model
    stage.run("played on by a model", _play_on, other, lambda t: t.id in stage.found and not stage.done(t))
    say_left_out(recipe, run_dir, "deviation", stage.left_out, len(trajectories))
    annotated = [t for t in trajectories if stage.done(t)]
    steps = sum(len(t.steps) for t in annotated)
    by = Counter(made.by or "" for t in annotated for made in stage.found[t.id].deviations.values())
    others = ", ".join(f"{count:,} by {who}" for who, count in by.most_common())
    say(f"  deviation: {config.model} does otherwise at {by.total():,} of {steps:,} steps{others and f': {others}'}")
    if beyond := sum(stage.found[t.id].beyond for t in annotated):
        say(f"  deviation: {beyond:,} steps lie beyond the context of {config.model} and cannot be marked")
    if stage.spent.played:
        say(f"  deviation: {stage.spent.played:,} environment steps, and {stage.spent.replayed:,} to replay")
    log.metric(
        "select",
        selector="deviation",
        rollout_steps=stage.spent.played,
        replayed_steps=stage.spent.replayed,
        trajectories=len(annotated),
        deviations=by.total(),
        beyond_context=beyond,
        played_on=dict(by),
    )
    return [select_by_deviation(t, stage.found[t.id], config.fraction, config.model) for t in annotated]
