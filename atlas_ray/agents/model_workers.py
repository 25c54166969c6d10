"""The workers that play with one model, and the engine actors that answer them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..cluster.workers import ActorPool, worker_pool
from ..engines import EnginePool
from ..recipe.loading import Recipe
from .spec import AgentSpec, EndpointSpec

Spec = TypeVar("Spec", AgentSpec, EndpointSpec, AgentSpec | EndpointSpec)


@contextmanager
def model_workers(
    recipe: Recipe, spec: Spec, on_retry: Callable[[Any, int, str], None]
) -> Iterator[tuple[ActorPool[Any, Any], Spec]]:
    """The workers of a recipe while the block lasts, and the spec with their places at its engine actors, if any.

    Workers ask an endpoint themselves.

    Args:
        recipe: the recipe.
        spec: the model, and how it acts.
        on_retry: told (task, attempt, reason) of each lost worker.
    """
    if isinstance(spec, EndpointSpec):
        with worker_pool(recipe, on_retry) as pool:
            yield pool, spec
        return
    placement = recipe.placement.resource_request("engines")
    with (
        worker_pool(recipe, on_retry) as pool,
        EnginePool(recipe.engine, spec.model, recipe.workers, spec.slots, placement) as engines,
    ):
        yield pool, spec.with_leases(engines.leases)
