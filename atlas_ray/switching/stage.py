"""The LONDI stage: train the switches of a recipe, then compare them with the baselines on the same episodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..agents import Agent
from ..engines import TransformersEngine
from ..progress import duration, track
from ..recipe import Recipe, Switch
from ..results import interval
from ..rollout import SWITCH_SELECT, SWITCH_TEST, SWITCH_TRAIN, EnvSpec, env_spec, seed_block
from ..workers import ActorPool, chunks
from .encoders import make_encoder
from .environment import SwitchingVectorEnv
from .evaluate import Always, Policy, Random, play_switching
from .policy import SwitchPolicy
from .text import TextGame
from .train import train_switch

UNIT = "FLOPs/episode"


@dataclass(frozen=True)
class Contestant:
    """A policy of the comparison: a learned switch (``directory``), always one ``action``, or a random ``rate``."""

    name: str
    directory: str | None = None
    action: int | None = None
    rate: float | None = None
    budget: int | None = None
    cost: float | None = None

    def policy(self, seed: int) -> Policy:
        """The policy itself."""
        if self.directory is not None:
            return SwitchPolicy.load(self.directory)
        return Random(self.rate, seed) if self.rate is not None else Always(self.action or 0)


@dataclass(frozen=True)
class TrainTask:
    """One switch to train."""

    recipe: Recipe
    run_dir: str
    contestant: Contestant


@dataclass(frozen=True)
class PlayTask:
    """A chunk of test episodes of one policy."""

    recipe: Recipe
    contestant: Contestant
    seeds: tuple[int, ...]
    record: bool = False


def switch_stage(recipe: Recipe, run_dir: str | Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train, compare, aggregate; everything that is done already is skipped.

    Writes ``checkpoints/switch-cost0.05/`` and the like, ``switch/episodes.jsonl`` (a row an episode),
    ``switch/policies.json`` (the rows returned) and ``switch/replay.json`` (one episode of the last budget's switch, or
    of the last switch, step by step).

    Args:
        recipe: one with a ``[switch]`` table.
        run_dir: the run directory.
        say: told a line of progress now and then.

    Returns:
        A row a policy, as in ``results.json``.
    """
    settings, run_dir = _settings(recipe), Path(run_dir)
    log = files.RunLog(run_dir)
    learned = learned_switches(settings, run_dir)

    def retried(task: Any, attempt: int, reason: str) -> None:
        log.event("switch", "worker lost", policy=task.contestant.name, attempt=attempt, reason=reason)
        say(f"  {task.contestant.name}: a worker died, trying again ({attempt})")

    with ActorPool[Any, Any](recipe.workers, on_retry=retried) as pool:
        todo = [c for c in learned if not (Path(c.directory or "") / "config.json").is_file()]
        if todo:
            say(f"  training {len(todo)} switches of {settings.steps} steps, {recipe.workers or 1} at a time")
        with _following(run_dir / "metrics.jsonl", say):
            for _ in pool.stream(_train, [TrainTask(recipe, str(run_dir), c) for c in todo]):
                pass

        path = run_dir / "switch" / "episodes.jsonl"
        rows = files.recover_jsonl(path)
        plain = [Contestant("always-quick", action=0), Contestant("always-deepthink", action=1)]
        rows += _play(pool, recipe, [*plain, *learned], rows, path)
        matched = [_matched(c, rows) for c in learned]
        rows += _play(pool, recipe, matched, rows, path)

        replay = run_dir / "switch" / "replay.json"
        if not replay.is_file():
            shown = learned[-1]
            seed = _worth_showing(rows, shown.name)
            _, played = next(iter(pool.stream(_play_chunk, [PlayTask(recipe, shown, (seed,), record=True)])))
            about = {"policy": shown.name, "budget": shown.budget, "seed": seed, "success": played[0]["success"]}
            files.write_json(replay, {**about, **played[0]["episode"]})

    order = dict.fromkeys([*plain, *learned, *matched])
    policies = [summary(c, [r for r in rows if r["policy"] == c.name]) for c in order]
    files.write_json(run_dir / "switch" / "policies.json", policies)
    return policies


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
                if row["stage"] == "switch":
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


def learned_switches(settings: Switch, run_dir: Path) -> list[Contestant]:
    """The switches to train, in the order of the recipe: costs, then budgets."""
    where = run_dir / "checkpoints"
    costs = [Contestant(f"londi(c={c:g})", str(where / f"switch-cost{c:g}"), cost=c) for c in settings.costs]
    budgets = [Contestant(f"londi-b(n={n})", str(where / f"switch-budget{n}"), budget=n) for n in settings.budgets]
    return [*costs, *budgets]


def summary(contestant: Contestant, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One policy's row: ``success`` with a 95 % Wilson interval, and means over its episodes."""
    episodes = len(rows)
    success, *ci95 = interval([[r["success"] for r in rows]])
    calls, steps = sum(r["calls"] for r in rows), sum(r["steps"] for r in rows)
    terms = {"budget": contestant.budget, "cost": contestant.cost}
    return {
        "name": contestant.name,
        **{k: v for k, v in terms.items() if v is not None},
        "success": success,
        "return": sum(r["return"] for r in rows) / episodes,
        "ci95": ci95,
        "deepthink_share": calls / steps,
        "deepthink_calls_per_episode": calls / episodes,
        "compute": sum(r["flops"] for r in rows) / episodes,
        "compute_unit": UNIT,
        "budget_violations": sum(r["violations"] > 0 for r in rows),
        "episodes": episodes,
    }


def _settings(recipe: Recipe) -> Switch:
    if recipe.switch is None:
        raise ValueError("the recipe has no [switch] table")
    return recipe.switch


def _matched(contestant: Contestant, rows: list[dict[str, Any]]) -> Contestant:
    """Random calls at the share of a learned switch, to two digits, under the same budget."""
    own = [r for r in rows if r["policy"] == contestant.name]
    rate = round(sum(r["calls"] for r in own) / sum(r["steps"] for r in own), 2)
    limit = "" if contestant.budget is None else f", n={contestant.budget}"
    return Contestant(f"random(p={rate:.2f}{limit})", rate=rate, budget=contestant.budget)


def _worth_showing(rows: list[dict[str, Any]], name: str) -> int:
    """Seed of a success with calls in it, the one with most QUICK steps; else of any episode."""
    own = [r for r in rows if r["policy"] == name]
    best = max(own, key=lambda r: (r["success"] and r["calls"] > 0, r["calls"] > 0, r["steps"] - r["calls"]))
    return int(best["seed"])


def _play(
    pool: ActorPool[Any, Any],
    recipe: Recipe,
    contestants: Iterable[Contestant],
    done: list[dict[str, Any]],
    path: Path,
) -> list[dict[str, Any]]:
    """Play the test episodes that are not in ``done`` and append them to ``path``."""
    first = seed_block(recipe.seed, SWITCH_TEST)
    seeds = range(first, first + _settings(recipe).test_episodes)
    known = {(r["policy"], r["seed"]) for r in done}
    tasks = []
    for contestant in dict.fromkeys(contestants):
        missing = [s for s in seeds if (contestant.name, s) not in known]
        tasks += [PlayTask(recipe, contestant, tuple(c)) for c in chunks(missing, 4 * _settings(recipe).num_envs)]
    new: list[dict[str, Any]] = []
    with track("test episodes", sum(len(t.seeds) for t in tasks)) as progress:
        for task, played in pool.stream(_play_chunk, tasks):
            rows = [{"policy": task.contestant.name, **row} for row in played]
            files.append_jsonl(path, rows)
            new += rows
            progress.advance(len(rows), task.contestant.name)
    return new


def _specs(recipe: Recipe, split: str) -> list[EnvSpec]:
    settings = _settings(recipe)
    return [env_spec(recipe, level, settings.max_steps, split) for level in settings.levels]


def _agents(recipe: Recipe, kept: dict[str, Any]) -> tuple[Agent, ...]:
    settings = _settings(recipe)
    key = f"switch {settings.models} {settings.num_envs} {recipe.style} {recipe.prompt}"
    if key not in kept:
        engines = (TransformersEngine(m.model, settings.num_envs) for m in settings.models)
        kept[key] = tuple(Agent(engine, recipe.style, prompt=recipe.prompt) for engine in engines)
    found: tuple[Agent, ...] = kept[key]
    return found


def _play_chunk(task: PlayTask, kept: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    yield play_switching(
        task.contestant.policy(task.recipe.seed),
        _agents(task.recipe, kept),
        _specs(task.recipe, "test"),
        task.seeds,
        task.contestant.budget,
        task.contestant.cost or 0.0,
        task.record,
    )


def _train(task: TrainTask, kept: dict[str, Any]) -> Iterator[bool]:
    recipe, contestant = task.recipe, task.contestant
    settings = _settings(recipe)
    agents = _agents(recipe, kept)
    budget, cost = contestant.budget, contestant.cost or 0.0
    log = files.RunLog(task.run_dir)

    def make_env(first_seed: int) -> SwitchingVectorEnv:
        game = TextGame(_specs(recipe, "train"), agents, settings.num_envs, make_encoder("hashing", settings.features))
        return SwitchingVectorEnv(game, first_seed, budget, cost)

    def evaluate(policy: SwitchPolicy) -> dict[str, float]:
        first = seed_block(recipe.seed, SWITCH_SELECT)
        seeds = range(first, first + settings.evaluate_episodes)
        rows = play_switching(policy, agents, _specs(recipe, "dev"), seeds, budget, cost)
        names = ("objective", "return", "success", "calls")
        return {name: sum(r[name] for r in rows) / len(rows) for name in names}

    train_switch(
        contestant.directory or "",
        settings,
        make_env,
        evaluate,
        seed_block(recipe.seed, SWITCH_TRAIN),
        settings.features,
        budget,
        cost,
        lambda row: log.metric("switch", policy=contestant.name, **row),
    )
    yield True
