"""The LONDI stage: train the switches of a recipe, then compare them with the baselines on the same episodes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from ..agents.rollout import SWITCH_SELECT, SWITCH_TEST, seed_block
from ..agents.throughput import replies_told
from ..cluster.result_file import ResultFile
from ..cluster.workers import ActorPool, chunks, worker_pool
from ..data.replies import Losses, Replies, summed
from ..errors import InputError
from ..recipe.loading import Recipe, Switch
from ..recipe.switch import MEASURED
from ..rundir import files
from ..rundir.following import Tail, polling
from ..rundir.layout import RunLayout
from ..rundir.progress import duration, say, track
from .policies import (
    PolicySpec,
    Row,
    baselines,
    learned_policies,
    lost_episode_seeds,
    resolve_budget,
    scorable_episodes,
    single_model_policies,
    summarize_policy,
)
from .tasks import STOPPED, PlayTask, Tally, TrainTask, count_losses, rest, rollout_chunk, seats, train


def switch_stage(recipe: Recipe, run_dir: str | Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train, compare, aggregate; everything that is done already is skipped.

    Writes ``checkpoints/switch-cost0.05-seed0/`` and the like; ``switch/selection.jsonl``, episodes played before the
    test (what a call takes, what a percentage is of, QUICK's margins), and ``switch/usage.json``, what came of them;
    ``switch/episodes.jsonl``, a row a test episode; ``switch/policies.json``, the rows returned; and
    ``switch/replay.json``, one episode of the last budget's switch, or of the last switch, step by step.

    Args:
        recipe: one with a ``[switch]`` table.
        run_dir: the run directory.
        say: told a line of progress now and then.

    Returns:
        A row a policy, as in ``results.json``.

    Raises:
        AtlasError: more of a model's answers than ``max_lost_answers`` are none, or no episode is left to score. What
            ended is kept, and a later call plays what was lost again.
        InputError: the cost is measured in something that no call takes any of.
    """
    stage = _Stage(recipe, Path(run_dir), say)
    with replies_told(stage.log, "switch", stage.replies, say):
        return _compared(stage)


def _compared(stage: _Stage) -> list[dict[str, Any]]:
    recipe, settings, folder = stage.recipe, stage.settings, stage.run_dir / "switch"
    runners = settings.env_runners * max(1, recipe.workers)
    apart = recipe.placement.trainers != recipe.placement.workers
    with (
        worker_pool(recipe, stage.retried, len(settings.local), runners) as pool,
        worker_pool(recipe, stage.retried, len(settings.local), runners, "trainers") if apart else pool as trainers,
        seats(recipe) as seated,
    ):
        stage.pool, stage.trainers, stage.seats = pool, trainers, seated
        selection = _Episodes(stage, folder / "selection.jsonl", "dev", SWITCH_SELECT, settings.evaluate_episodes)
        stage.measure(selection)
        stage.train(learned_policies(settings, stage.run_dir))
        learned = learned_policies(settings, stage.run_dir, stage.resolve(selection))
        stage.train(learned)

        test = _Episodes(stage, folder / "episodes.jsonl", "test", SWITCH_TEST, settings.test_episodes)
        plain = single_model_policies(settings)
        rows = test.play([*plain, *learned])
        rules = baselines(settings, learned, scorable_episodes(rows, "the comparison"), stage.margins(selection))
        rows += test.play(rules)
        kept = scorable_episodes(rows, "the comparison")
        if not (folder / "replay.json").is_file():
            stage.replay(learned, kept)

    if stage.usage:
        files.write_json(folder / "usage.json", {"unit": settings.unit, **stage.usage})
    policies = [
        summarize_policy(
            c, [r for r in rows if r["policy"] == c.name], settings.unit, len(settings.models), lost_episode_seeds(rows)
        )
        for c in [*plain, *learned, *rules]
    ]
    files.write_json(folder / "policies.json", policies)
    stage.close()
    if left_out := lost_episode_seeds(rows):
        stage.say(f"  {len(left_out)} of {len(test.seeds)} episodes are left out for all, as one was lost")
    return policies


def score(
    recipe: Recipe, run_dir: Path, policy_specs: Sequence[PolicySpec], pool: ActorPool[Any, Any], seated: Any
) -> list[Row]:
    """Play policies that are there already on the test episodes that ``switch/episodes.jsonl`` lacks.

    Returns:
        Their episodes, lost ones too.

    Raises:
        AtlasError: more of a model's answers are none than may be.
    """
    stage = _Stage(recipe, run_dir, say)
    stage.pool, stage.seats = pool, seated
    path = RunLayout(run_dir).switch_episodes
    with replies_told(stage.log, "switch", stage.replies):
        return _Episodes(stage, path, "test", SWITCH_TEST, stage.settings.test_episodes).play(policy_specs)


class _Stage:
    """What is shared by the parts of one run of the stage."""

    def __init__(self, recipe: Recipe, run_dir: Path, say: Callable[[str], None]) -> None:
        if recipe.switch is None:
            raise ValueError("the recipe has no [switch] table")
        self.recipe, self.run_dir, self.say = recipe, run_dir.resolve(), say
        self.settings: Switch = recipe.switch
        self.log = files.RunLog(run_dir)
        self.pool: ActorPool[Any, Any]
        self.trainers: ActorPool[Any, Any]
        self.seats: Any = None
        self.tally: Tally = Counter()
        self.usage: dict[str, Any] = {}
        self.mean_call: float | None = None
        self.played: list[_Episodes] = []
        self._events = len(list(files.jsonl_rows(RunLayout(self.run_dir).events)))

    def replies(self) -> Replies:
        """Of all episodes and trainings so far, those of earlier starts of the run too."""
        taught, stopped = {}, list(files.jsonl_rows(RunLayout(self.run_dir).events))[self._events :]
        for row in [*files.jsonl_rows(RunLayout(self.run_dir).metrics), *(r for r in stopped if r["event"] == STOPPED)]:
            if row["stage"] == "switch" and "replies" in row:
                taught[row["policy"]] = row["replies"]
        return summed([*taught.values(), *(c for e in self.played for r in e.rows for c in r.get("replies", ()))])

    def retried(self, task: TrainTask | PlayTask, attempt: int, reason: str) -> None:
        """A worker was lost."""
        self.tally["workers"] += 1
        self.log.event("switch", "worker lost", policy=task.who, attempt=attempt, reason=reason)
        self.say(f"  {task.who}: a worker died, trying again ({attempt})")

    def measure(self, selection: _Episodes) -> None:
        """What a mean call of DEEPTHINK takes, where the cost is measured."""
        if MEASURED not in self.settings.costs:
            return
        rows = scorable_episodes(selection.play([single_model_policies(self.settings)[-1]]), "the mean call")
        self.mean_call = sum(r[self.settings.unit] for r in rows) / sum(r["calls"] for r in rows)
        if not self.mean_call:
            hint = ": give the models a price" if self.settings.unit == "money" else ""
            raise InputError(f"a call of the last model takes none of it{hint}", field="switch.unit")
        self.usage["mean_call"] = self.mean_call

    def resolve(self, selection: _Episodes) -> dict[str, int]:
        """The budgets that percentages stand for: of the calls of the first cost's switches, all of them trained."""
        given = [n for n in self.settings.budgets if isinstance(n, str)]
        if not given:
            return {}
        first = learned_policies(self.settings, self.run_dir)[:1]
        rows = scorable_episodes(selection.play(first), first[0].name)
        calls = fmean(r["calls"] for r in rows)
        budgets = {n: resolve_budget(n, calls) for n in given}
        self.usage |= {"calls": calls, "budgets": budgets}
        self.say(f"  {', '.join(f'{n} is {b}' for n, b in budgets.items())} of {calls:.2f} calls an episode")
        return budgets

    def margins(self, selection: _Episodes) -> list[float]:
        """QUICK's margins in episodes that it played alone, where a threshold wants them."""
        if "threshold" not in self.settings.baselines:
            return []
        # below no threshold, so QUICK acts alone, and is asked for its margin
        watched = PolicySpec("quick, watched", "threshold", tau=-math.inf)
        return [m for row in scorable_episodes(selection.play([watched]), watched.name) for m in row["margins"]]

    def train(self, policy_specs: Sequence[PolicySpec]) -> None:
        """Train those that are not there."""
        tasks = [
            TrainTask(self.recipe, str(self.run_dir), c, training, self.mean_call, self.seats)
            for c in policy_specs
            for training in c.seeds
            if not (c.directory(training) / "config.json").is_file()
        ]
        if not tasks:
            return
        self.say(
            f"  training {len(tasks)} switches of {self.settings.steps} steps, {self.recipe.workers or 1} at a time"
        )
        if self.trainers is not self.pool:
            self.pool.close()  # its CPUs are free for the trainings, or for their environment runners
        # a training says nothing to its pool until its end
        self.trainers.timeout, timeout = math.inf, self.trainers.timeout
        with _following(RunLayout(self.run_dir).metrics, self.say):
            for _, tally in self.trainers.stream(train, tasks):
                self.tally += tally
        self.trainers.timeout = timeout
        if self.trainers is not self.pool:
            self.trainers.close()

    def replay(self, learned: Sequence[PolicySpec], rows: Sequence[Row]) -> None:
        """Play one episode of a switch again, and keep its steps."""
        shown = next((c for c in reversed(learned) if c.budget is not None), learned[-1])
        training = shown.seeds[0]
        own = [r for r in rows if r["policy"] == shown.name and r["training"] == training]
        # a success with calls in it, the one with most QUICK steps; else any episode
        best = max(own, key=lambda r: (r["success"] and r["calls"] > 0, r["calls"] > 0, r["steps"] - r["calls"]))
        task = PlayTask(self.recipe, shown, training, (best["seed"],), "test", self.mean_call, self.seats, record=True)
        _, (row, tally) = next(iter(self.pool.stream(rollout_chunk, [task])))
        self.tally += tally
        if row["lost"]:
            self.log.event("switch", "no replay", policy=task.who, seed=row["seed"], why=row["error"])
            return
        about = {"policy": shown.name, "budget": shown.budget, "seed": best["seed"], "success": row["success"]}
        files.write_json(RunLayout(self.run_dir).switch_replay, {**about, **row["episode"]})

    def close(self) -> None:
        """Say how often the answers that were kept spared a model, and what was lost on the way."""
        asked, kept = self.tally["asked"], self.tally["answered from the cache"]
        if asked:
            self.log.metric("switch", asked=asked, answered_from_cache=kept, cache_share=kept / asked)
            self.say(f"  {kept / asked:.0%} of {asked:,} answers came from the cache")
        if again := self.tally["engine answers"]:
            self.log.event("switch", "engine answers asked again", answers=again)
        faults = [f"{what} {n:,}" for what in ("workers", "env-runners", "engine answers") if (n := self.tally[what])]
        if faults:
            self.say(f"  lost on the way and made up for: {', '.join(faults)}")


class _Episodes:
    """Episodes of policies in a file: what is there is not played again, but what was lost when the file was opened."""

    def __init__(self, stage: _Stage, path: Path, split: str, use: int, count: int) -> None:
        self.stage, self.file, self.split = stage, ResultFile(path), split
        first = seed_block(stage.recipe.seed, use)
        self.seeds = range(first, first + count)
        self.rows: list[Row] = [row for row in self.file.rows() if not row.get("lost")]
        stage.played.append(self)

    def play(self, policy_specs: Sequence[PolicySpec]) -> list[Row]:
        """All rows of these policies, every training seed of each on the same episodes.

        Raises:
            AtlasError: more of a model's answers are none than may be.
        """
        stage = self.stage
        names, losses = {c.name for c in policy_specs}, Losses(stage.recipe.max_lost_answers)
        known = {(r["policy"], r["training"], r["seed"]) for r in self.rows}
        for row in self.rows:
            if row["policy"] in names:
                count_losses(losses, row["policy"], stage.settings, [row])
        tasks = []
        for c in policy_specs:
            for training in c.training_seeds:
                missing = [s for s in self.seeds if (c.name, training, s) not in known]
                for part in chunks(missing, 4 * stage.settings.num_envs):
                    about = (stage.recipe, c, training, tuple(part), self.split, stage.mean_call, stage.seats)
                    tasks.append(PlayTask(*about))
        label = "test episodes" if self.split == "test" else "episodes before the test"
        with track(label, sum(len(t.seeds) for t in tasks)) as progress:
            rows = lambda task, result: [_row(task, result[0])]  # noqa: E731
            for task, (found, tally) in self.file.stream(stage.pool, rollout_chunk, tasks, rows, rest):
                row = _row(task, found)
                self.rows.append(row)
                stage.tally += tally
                if row["lost"] or row.get("attempts"):
                    lost = {"policy": task.who, "seed": row["seed"], "attempts": row.get("attempts", 1)}
                    stage.log.event("switch", "lost episode", **lost, dropped=row["lost"], why=row.get("error"))
                count_losses(losses, row["policy"], stage.settings, [row])
                losses.check(early=True)
                told = summed(losses.counts.values()).words()
                progress.advance(1, f"{task.who}{told and f' · replies: {told}'}")
        losses.check()
        return [r for r in self.rows if r["policy"] in names]


def _row(task: PlayTask, found: Row) -> Row:
    return {"policy": task.policy_spec.name, "training": task.training, **found}


@contextmanager
def _following(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Say what trainings, which run in other processes, note in the metrics."""
    tail = Tail(path)

    def tell() -> None:
        for row in map(json.loads, tail.lines()):
            if row["stage"] == "switch" and "policy" in row:
                told = Replies(row.get("replies", {})).words()
                say(
                    f"  {row['policy']}: step {row['step']}, objective {row['objective']:.3f}, "
                    f"best {row['best']:.3f}, about {duration(row['eta_seconds'])} left"
                    f"{told and f' · replies: {told}'}"
                )

    with polling(tell, 1.0):
        yield
