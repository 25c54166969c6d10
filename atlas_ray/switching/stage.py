"""The LONDI stage: train the switches of a recipe, then compare them with the baselines on the same episodes."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import files
from ..errors import InputError
from ..progress import duration, say, track
from ..recipe import Recipe, Switch
from ..rollout import SWITCH_SELECT, SWITCH_TEST, seed_block
from ..schema_switch import MEASURED
from ..workers import ActorPool, chunks, worker_pool
from .compare import Contestant, Row, baselines, budget_of, learned_switches, summary, unlearned
from .work import PlayTask, Tally, TrainTask, play_chunk, seats, train


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
        InputError: the cost is measured in something that no call takes any of.
    """
    stage = _Stage(recipe, Path(run_dir), say)
    settings, folder = stage.settings, stage.run_dir / "switch"
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
        stage.train(learned_switches(settings, stage.run_dir))
        learned = learned_switches(settings, stage.run_dir, stage.resolve(selection))
        stage.train(learned)

        test = _Episodes(stage, folder / "episodes.jsonl", "test", SWITCH_TEST, settings.test_episodes)
        plain = unlearned(settings)
        rows = test.play([*plain, *learned])
        rules = baselines(settings, learned, rows, stage.margins(selection))
        rows += test.play(rules)
        if not (folder / "replay.json").is_file():
            stage.replay(learned, rows)

    if stage.usage:
        files.write_json(folder / "usage.json", {"unit": settings.unit, **stage.usage})
    policies = [
        summary(c, [r for r in rows if r["policy"] == c.name], settings.unit, len(settings.models))
        for c in [*plain, *learned, *rules]
    ]
    files.write_json(folder / "policies.json", policies)
    stage.close()
    return policies


def score(
    recipe: Recipe, run_dir: Path, contestants: Sequence[Contestant], pool: ActorPool[Any, Any], seated: Any
) -> list[tuple[dict[str, Any], list[Row]]]:
    """Play policies that are there already on the test episodes of a recipe, those that are missing in
    ``switch/episodes.jsonl``.

    Returns:
        For each policy its row as in ``results.json``, and its episodes.
    """
    stage = _Stage(recipe, run_dir, say)
    stage.pool, stage.seats = pool, seated
    settings = stage.settings
    path = run_dir / "switch" / "episodes.jsonl"
    rows = _Episodes(stage, path, "test", SWITCH_TEST, settings.test_episodes).play(contestants)
    own = {c.name: [r for r in rows if r["policy"] == c.name] for c in contestants}
    return [(summary(c, own[c.name], settings.unit, len(settings.models)), own[c.name]) for c in contestants]


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

    def retried(self, task: TrainTask | PlayTask, attempt: int, reason: str) -> None:
        """A worker was lost."""
        self.tally["workers"] += 1
        self.log.event("switch", "worker lost", policy=task.who, attempt=attempt, reason=reason)
        self.say(f"  {task.who}: a worker died, trying again ({attempt})")

    def measure(self, selection: _Episodes) -> None:
        """What a mean call of DEEPTHINK takes, where the cost is measured."""
        if MEASURED not in self.settings.costs:
            return
        rows = selection.play([unlearned(self.settings)[-1]])
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
        rows = selection.play(learned_switches(self.settings, self.run_dir)[:1])
        calls = fmean(r["calls"] for r in rows)
        budgets = {n: budget_of(n, calls) for n in given}
        self.usage |= {"calls": calls, "budgets": budgets}
        self.say(f"  {', '.join(f'{n} is {b}' for n, b in budgets.items())} of {calls:.2f} calls an episode")
        return budgets

    def margins(self, selection: _Episodes) -> list[float]:
        """QUICK's margins in episodes that it played alone, where a threshold wants them."""
        if "threshold" not in self.settings.baselines:
            return []
        # below no threshold, so QUICK acts alone, and is asked for its margin
        watched = Contestant("quick, watched", "threshold", tau=-math.inf)
        return [m for row in selection.play([watched]) for m in row["margins"]]

    def train(self, contestants: Sequence[Contestant]) -> None:
        """Train those that are not there."""
        tasks = [
            TrainTask(self.recipe, str(self.run_dir), c, training, self.mean_call, self.seats)
            for c in contestants
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
        self.trainers.silence, silence = math.inf, self.trainers.silence
        with _following(self.run_dir / "metrics.jsonl", self.say):
            for _, tally in self.trainers.stream(train, tasks):
                self.tally += tally
        self.trainers.silence = silence
        if self.trainers is not self.pool:
            self.trainers.close()

    def replay(self, learned: Sequence[Contestant], rows: Sequence[Row]) -> None:
        """Play one episode of a switch again, and keep its steps."""
        shown = next((c for c in reversed(learned) if c.budget is not None), learned[-1])
        training = shown.seeds[0]
        own = [r for r in rows if r["policy"] == shown.name and r["training"] == training]
        # a success with calls in it, the one with most QUICK steps; else any episode
        best = max(own, key=lambda r: (r["success"] and r["calls"] > 0, r["calls"] > 0, r["steps"] - r["calls"]))
        task = PlayTask(self.recipe, shown, training, (best["seed"],), "test", self.mean_call, self.seats, record=True)
        _, (played, tally) = next(iter(self.pool.stream(play_chunk, [task])))
        self.tally += tally
        about = {"policy": shown.name, "budget": shown.budget, "seed": best["seed"], "success": played[0]["success"]}
        files.write_json(self.run_dir / "switch" / "replay.json", {**about, **played[0]["episode"]})

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
    """Episodes of policies in a file: what is there is not played again."""

    def __init__(self, stage: _Stage, path: Path, split: str, use: int, count: int) -> None:
        self.stage, self.path, self.split = stage, path, split
        first = seed_block(stage.recipe.seed, use)
        self.seeds = range(first, first + count)
        self.rows: list[Row] = files.recover_jsonl(path)

    def play(self, contestants: Sequence[Contestant]) -> list[Row]:
        """All rows of these policies, every training seed of each on the same episodes."""
        stage = self.stage
        known = {(r["policy"], r["training"], r["seed"]) for r in self.rows}
        tasks = []
        for c in contestants:
            for training in c.members:
                missing = [s for s in self.seeds if (c.name, training, s) not in known]
                for part in chunks(missing, 4 * stage.settings.num_envs):
                    about = (stage.recipe, c, training, tuple(part), self.split, stage.mean_call, stage.seats)
                    tasks.append(PlayTask(*about))
        label = "test episodes" if self.split == "test" else "episodes before the test"
        with track(label, sum(len(t.seeds) for t in tasks)) as progress:
            for task, (played, tally) in stage.pool.stream(play_chunk, tasks):
                rows = [{"policy": task.contestant.name, "training": task.training, **row} for row in played]
                files.append_jsonl(self.path, rows)
                self.rows += rows
                stage.tally += tally
                progress.advance(len(rows), task.who)
        names = {c.name for c in contestants}
        return [r for r in self.rows if r["policy"] in names]


@contextmanager
def _following(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Say what trainings, which run in other processes, note in the metrics."""
    done = threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        position = start
        last = False
        while not last:
            last = done.wait(1.0)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(position)
                text = file.read()
            complete = text[: text.rfind(b"\n") + 1]
            position += len(complete)
            for row in map(json.loads, complete.splitlines()):
                if row["stage"] == "switch" and "policy" in row:
                    say(
                        f"  {row['policy']}: step {row['step']}, objective {row['objective']:.3f}, "
                        f"best {row['best']:.3f}, about {duration(row['eta_seconds'])} left"
                    )

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
