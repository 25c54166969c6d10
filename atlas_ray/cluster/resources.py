"""What each stage of a recipe asks of a cluster: which actors, and what each takes. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from ..errors import InputError
from ..recipe.finetune import Tuning
from ..recipe.loading import Recipe
from ..recipe.of_run import policy_of
from ..recipe.select import ASK_ORACLE, BY_BASE

Who = Literal["workers", "engines", "trainers", "env-runners"]


@dataclass(frozen=True)
class ResourceRequest:
    """``count`` equal actors, which exist at the same time as the others of their ``stage`` and ``part``.

    ``group`` is the custom resource of the nodes that may hold them, by ``[placement]``; None: any node.
    """

    stage: str
    part: str
    who: Who
    count: int
    cpus: float
    gpus: float
    group: str | None = None


@dataclass(frozen=True)
class Total:
    """CPUs and GPUs of several requests."""

    cpus: float = 0.0
    gpus: float = 0.0


def total_of(requests: Iterable[ResourceRequest]) -> Total:
    """The sum of what they ask for."""
    asked = list(requests)
    return Total(sum(r.count * r.cpus for r in asked), sum(r.count * r.gpus for r in asked))


def by_part(requests: Iterable[ResourceRequest]) -> list[tuple[str, str, list[ResourceRequest]]]:
    """(stage, part, requests of that time), in the order of the pipeline."""
    return [(*key, list(group)) for key, group in groupby(requests, lambda r: (r.stage, r.part))]


def peak_of(requests: Iterable[ResourceRequest]) -> Total:
    """The most CPUs that are asked for at one time, and the most GPUs, perhaps at another."""
    totals = [total_of(asked) for _, _, asked in by_part(requests)]
    return Total(max((t.cpus for t in totals), default=0.0), max((t.gpus for t in totals), default=0.0))


def resource_requests(recipe: Recipe, gpus: bool = True) -> list[ResourceRequest]:
    """What every stage asks for, in the order of the pipeline; of trainings that ``parallel = "auto"`` fits in, one.

    Args:
        recipe: the recipe.
        gpus: whether the cluster has any; then a trainer takes one.
    """
    atlas = [*_collect(recipe), *_select(recipe), *_finetune(recipe, gpus), *_evaluate(recipe)]
    return [*atlas, *_switch(recipe), *_rounds(recipe, gpus)]


def worker_request(recipe: Recipe, stage: str = "", part: str = "") -> ResourceRequest:
    """The workers that play with a model: with engine actors they need none of its CPUs and GPUs."""
    engine, where = recipe.engine, recipe.placement.workers
    if engine.actors:
        return ResourceRequest(stage, part, "workers", recipe.workers, recipe.worker_cpus, 0.0, where)
    return ResourceRequest(
        stage, part, "workers", recipe.workers, max(recipe.worker_cpus, engine.cpus), engine.gpus, where
    )


def player_requests(
    recipe: Recipe, stage: str = "", part: str = "", models: int = 1, runners: int = 0
) -> list[ResourceRequest]:
    """The workers of a recipe, their environment runners, and the engine actors of so many models that answer both."""
    engine, where = recipe.engine, recipe.placement
    engines = min(engine.actors, recipe.workers + runners) * models
    asked = [
        worker_request(recipe, stage, part),
        ResourceRequest(stage, part, "engines", engines, engine.cpus, engine.gpus, where.engines),
        ResourceRequest(stage, part, "env-runners", runners, 1.0, 0.0, where.workers),
    ]
    return [r for r in asked if r.count]


def scorer_request(recipe: Recipe, stage: str = "", part: str = "") -> ResourceRequest:
    """The actors that score with models of their own, in the places of the engine actors where there are any."""
    engine, where = recipe.engine, recipe.placement
    if engine.actors:
        return ResourceRequest(stage, part, "engines", engine.actors, engine.cpus, engine.gpus, where.engines)
    return ResourceRequest(stage, part, "workers", recipe.workers, engine.cpus, engine.gpus, where.workers)


def _collect(recipe: Recipe) -> Iterator[ResourceRequest]:
    if recipe.collect and recipe.collect.switch:
        yield from player_requests(recipe, "collect", "episodes", _models_of_policy(recipe.collect.switch))
    elif recipe.collect and recipe.collect.agent:
        yield from player_requests(recipe, "collect", "episodes", int(not recipe.collect.agent.base_url))
    elif recipe.collect and recipe.collect.levels and recipe.workers:
        yield ResourceRequest("collect", "experts", "workers", recipe.workers, 1.0, 0.0, recipe.placement.workers)


def _models_of_policy(name: str) -> int:
    """How many models of a policy run in engines of ours; of one that is not here, two."""
    try:
        return len(policy_of(name, "collect.switch").local)
    except InputError:
        return 2


def _select(recipe: Recipe) -> Iterator[ResourceRequest]:
    config = recipe.select
    if config is None:
        return
    for selector in config.selectors:
        if selector in ("value", "deviation", "advised", "verified") or (
            selector in ASK_ORACLE and not config.oracle.base_url
        ):
            yield from player_requests(recipe, "select", selector)
        elif selector in (*BY_BASE, "distilled") and recipe.workers:
            yield scorer_request(recipe, "select", selector)
    if config.start_after:
        yield from player_requests(recipe, "select", "start_after")


def _finetune(recipe: Recipe, gpus: bool) -> Iterator[ResourceRequest]:
    config = recipe.finetune
    if config is None:
        return
    yield from _trainers(recipe, "finetune", config, len(config.arms) * len(config.seeds), gpus)


def _trainers(recipe: Recipe, stage: str, config: Tuning, runs: int, gpus: bool) -> Iterator[ResourceRequest]:
    """The trainers of so many models."""
    if config.workers:
        replicas = 1 if config.parallel == "auto" else min(config.parallel, runs)
        count = replicas * config.workers
        yield ResourceRequest(stage, "models", "trainers", count, 1.0, float(gpus), recipe.placement.trainers)


def _evaluate(recipe: Recipe) -> Iterator[ResourceRequest]:
    if recipe.evaluate:
        yield from player_requests(recipe, "evaluate", "episodes")


def _switch(recipe: Recipe) -> Iterator[ResourceRequest]:
    """Who plays and who trains are there one after the other, but the engine actors all the time."""
    if recipe.switch is None:
        return
    runners = recipe.switch.env_runners * max(1, recipe.workers)
    for part in ("episodes", "trainings"):
        for request in player_requests(recipe, "switch", part, len(recipe.switch.local), runners):
            if part == "trainings" and request.who == "workers":
                yield replace(request, who="trainers", group=recipe.placement.trainers)
            elif part == "trainings" or request.who != "env-runners":
                yield request


def _rounds(recipe: Recipe, gpus: bool) -> Iterator[ResourceRequest]:
    """What a round asks for that its switch does not: who tunes QUICK, one training seed after the other."""
    if recipe.rounds is not None and recipe.switch is not None:  # (others ask for what their own stages ask for)
        yield from _trainers(recipe, "rounds", recipe.rounds.finetune, len(recipe.rounds.arms), gpus)
