"""What each stage of a recipe asks of a cluster: which actors, and what each takes. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from ..recipe.loading import Recipe

Who = Literal["workers", "engines", "trainers", "env-runners"]


@dataclass(frozen=True)
class Demand:
    """``count`` actors alike, which are there at the same time as the others of their ``stage`` and ``part``.

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
    """CPUs and GPUs of several demands."""

    cpus: float = 0.0
    gpus: float = 0.0


def together(demands: Iterable[Demand]) -> Total:
    """What they ask for together."""
    asked = list(demands)
    return Total(sum(d.count * d.cpus for d in asked), sum(d.count * d.gpus for d in asked))


def parts(demands: Iterable[Demand]) -> list[tuple[str, str, list[Demand]]]:
    """Stage, part and what is asked for at that time, in the order of the pipeline."""
    return [(*key, list(group)) for key, group in groupby(demands, lambda d: (d.stage, d.part))]


def most(demands: Iterable[Demand]) -> Total:
    """The CPUs that are asked for at one time, at most, and the GPUs, perhaps at another."""
    totals = [together(asked) for _, _, asked in parts(demands)]
    return Total(max((t.cpus for t in totals), default=0.0), max((t.gpus for t in totals), default=0.0))


def demands(recipe: Recipe, gpus: bool = True) -> list[Demand]:
    """What every stage asks for, in the order of the pipeline; of trainings that ``parallel = "auto"`` fits in, one.

    Args:
        recipe: the recipe.
        gpus: whether the cluster has any; then a trainer takes one.
    """
    return [*_collect(recipe), *_select(recipe), *_finetune(recipe, gpus), *_evaluate(recipe), *_switch(recipe)]


def worker(recipe: Recipe, stage: str = "", part: str = "") -> Demand:
    """The workers that play with a model: with engine actors they need none of its CPUs and GPUs."""
    engine, where = recipe.engine, recipe.placement.workers
    if engine.actors:
        return Demand(stage, part, "workers", recipe.workers, recipe.worker_cpus, 0.0, where)
    return Demand(stage, part, "workers", recipe.workers, max(recipe.worker_cpus, engine.cpus), engine.gpus, where)


def playing(recipe: Recipe, stage: str = "", part: str = "", models: int = 1, runners: int = 0) -> list[Demand]:
    """The workers of a recipe, their environment runners, and the engine actors of so many models that answer both."""
    engine, where = recipe.engine, recipe.placement
    engines = min(engine.actors, recipe.workers + runners) * models
    asked = [
        worker(recipe, stage, part),
        Demand(stage, part, "engines", engines, engine.cpus, engine.gpus, where.engines),
        Demand(stage, part, "env-runners", runners, 1.0, 0.0, where.workers),
    ]
    return [d for d in asked if d.count]


def scoring(recipe: Recipe, stage: str = "", part: str = "") -> Demand:
    """The actors that score with models of their own, in the places of the engine actors where there are any."""
    engine, where = recipe.engine, recipe.placement
    if engine.actors:
        return Demand(stage, part, "engines", engine.actors, engine.cpus, engine.gpus, where.engines)
    return Demand(stage, part, "workers", recipe.workers, engine.cpus, engine.gpus, where.workers)


def _collect(recipe: Recipe) -> Iterator[Demand]:
    if recipe.collect and recipe.collect.levels and recipe.workers:
        yield Demand("collect", "experts", "workers", recipe.workers, 1.0, 0.0, recipe.placement.workers)


def _select(recipe: Recipe) -> Iterator[Demand]:
    config = recipe.select
    if config is None:
        return
    for selector in config.selectors:
        if selector == "value" or (selector == "oracle" and not config.oracle.base_url):
            yield from playing(recipe, "select", selector)
        elif selector == "perplexity" and recipe.workers:
            yield scoring(recipe, "select", selector)
    if config.start_after:
        yield from playing(recipe, "select", "start_after")


def _finetune(recipe: Recipe, gpus: bool) -> Iterator[Demand]:
    config = recipe.finetune
    if config is None or not config.workers:
        return
    runs = len(config.arms) * len(config.seeds)
    teams = 1 if config.parallel == "auto" else min(config.parallel, runs)
    yield Demand("finetune", "models", "trainers", teams * config.workers, 1.0, float(gpus), recipe.placement.trainers)


def _evaluate(recipe: Recipe) -> Iterator[Demand]:
    if recipe.evaluate:
        yield from playing(recipe, "evaluate", "episodes")


def _switch(recipe: Recipe) -> Iterator[Demand]:
    """Who plays and who trains are there one after the other, but the engine actors all the time."""
    if recipe.switch is None:
        return
    runners = recipe.switch.env_runners * max(1, recipe.workers)
    for part in ("episodes", "trainings"):
        for demand in playing(recipe, "switch", part, len(recipe.switch.local), runners):
            if part == "trainings" and demand.who == "workers":
                yield replace(demand, who="trainers", group=recipe.placement.trainers)
            elif part == "trainings" or demand.who != "env-runners":
                yield demand
