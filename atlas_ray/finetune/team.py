"""The workers that train one model together, and how they share it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ..cluster.container import usable_cpus
from ..errors import AtlasError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """The workers of one model. Without a mesh it is this process alone.

    Args:
        rank: of this worker in the team.
        size: workers in the team.
        number: of the team among those that train side by side.
        mesh: their one-dimensional device mesh.
        device: where this worker computes.
    """

    rank: int = 0
    size: int = 1
    number: int = 0
    mesh: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the team, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.mesh.get_group())
        return values

    def together(self, work: Callable[[], Value], leader: bool = False) -> Value | None:
        """``work`` of every worker, or of the leader alone, after which all go on or all raise.

        Without this, others would wait for ever for one that failed.

        Raises:
            AtlasError: what the first worker that failed raised.
        """
        result, error = None, None
        if not leader or self.rank == 0:
            try:
                result = work()
            except AtlasError as caught:
                error = caught
        if self.size == 1:
            if error:
                raise error
            return result
        errors: list[AtlasError | None] = [None] * self.size
        dist.all_gather_object(errors, error, group=self.mesh.get_group())
        for found in errors:
            if found:
                raise found
        return result


def make_team(size: int) -> Team:
    """The team of this Ray Train worker, among as many teams of ``size`` as there are workers for."""
    import ray.train.torch
    from torch.distributed.device_mesh import init_device_mesh

    device = ray.train.torch.get_device()
    if not dist.is_initialized():
        return Team(device=device)
    world, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh(device.type, (world // size, size), mesh_dim_names=("team", "worker"))
    return Team(rank % size, size, rank // size, mesh["worker"], device)


def half(precision: str, device: torch.device) -> bool:
    """Whether the passes compute in bfloat16; ``auto`` does on GPUs that have it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def share_model(module: nn.Module, layers: list[nn.Module], team: Team, strategy: str, bfloat16: bool) -> Any:
    """What the team calls in place of ``module``: gradients are then averages over the workers.

    Args:
        module: with the loss as its output, so that every parameter is used in a call of it.
        layers: of its transformers, which FSDP2 gathers one by one.
        team: who trains.
        strategy: ``ddp`` or ``fsdp`` (``fully_shard``).
        bfloat16: FSDP2 gathers weights and computes in it; gradients are summed in float32.
    """
    if team.size == 1:
        return module
    if strategy == "ddp":
        ids = [team.device.index] if team.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, process_group=team.mesh.get_group(), gradient_as_bucket_view=True
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bfloat16
        else MixedPrecisionPolicy()
    )
    for layer in layers:
        fully_shard(layer, mesh=team.mesh, mp_policy=policy)
    return fully_shard(module, mesh=team.mesh, mp_policy=policy)


def sync(module: Any, last: bool) -> AbstractContextManager[Any]:
    """DDP exchanges gradients in the last micro-batch of an optimiser step only.

    FSDP2 does in every one: what it had not exchanged it would keep whole, in float32, on every worker.
    """
    whole = isinstance(module, nn.parallel.DistributedDataParallel)
    return module.no_sync() if whole and not last else nullcontext()


def threads(workers: int) -> int:
    """Threads of one of ``workers`` processes on this machine."""
    return max(1, usable_cpus() // workers)
