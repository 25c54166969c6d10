"""The workers that train one model together, and how the model is distributed over them."""

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
class ProcessGroup:
    """The workers that train one model. Without a mesh it is this process alone.

    Args:
        rank: this worker's number in the group.
        size: number of workers in the group.
        replica: this group's number among those that train side by side.
        mesh: the group's one-dimensional device mesh.
        device: where this worker computes.
    """

    rank: int = 0
    size: int = 1
    replica: int = 0
    mesh: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the group, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.mesh.get_group())
        return values

    def run_all_or_raise(self, work: Callable[[], Value], leader: bool = False) -> Value | None:
        """Run ``work`` on every worker, or on the leader alone; then all go on, or all raise the same error.

        Without this, the others would wait for ever for a worker that failed.

        Raises:
            AtlasError: the error of the first worker that failed.
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


def make_process_group(size: int) -> ProcessGroup:
    """The process group of this Ray Train worker: the workers are divided into groups of ``size``."""
    import ray.train.torch

    return own_process_group(size, ray.train.torch.get_device())


def own_process_group(size: int, device: torch.device) -> ProcessGroup:
    """The one of torch.distributed's groups of ``size`` processes that this process is in; it alone without them."""
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        return ProcessGroup(device=device)
    world, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replica", "worker"))
    return ProcessGroup(rank % size, size, rank // size, mesh["worker"], device)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether passes compute in bfloat16; with ``auto`` they do on GPUs that support it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def share_model(module: nn.Module, layers: list[nn.Module], group: ProcessGroup, strategy: str, bfloat16: bool) -> Any:
    """Wrap ``module`` so that its gradients become averages over the group's workers.

    Args:
        module: with the loss as its output, so that every parameter is used in a call of it.
        layers: of its transformers, which FSDP2 gathers one by one.
        group: the workers.
        strategy: ``ddp`` or ``fsdp`` (``fully_shard``).
        bfloat16: FSDP2 gathers weights and computes in it; gradients are summed in float32.
    """
    if group.size == 1:
        return module
    if strategy == "ddp":
        ids = [group.device.index] if group.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, process_group=group.mesh.get_group(), gradient_as_bucket_view=True
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bfloat16
        else MixedPrecisionPolicy()
    )
    for layer in layers:
        fully_shard(layer, mesh=group.mesh, mp_policy=policy)
    return fully_shard(module, mesh=group.mesh, mp_policy=policy)


def sync(module: Any, last: bool, whole: bool) -> AbstractContextManager[Any]:
    """Whether gradients are exchanged in this micro-batch: under DDP in the last one of an optimiser step only.

    FSDP2 does in every one, since what it has not exchanged it keeps whole, in float32, on every worker; with ``whole``
    that is wanted.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if whole:
        module.set_requires_gradient_sync(last)
    return nullcontext()


def threads(workers: int) -> int:
    """Threads for each of ``workers`` processes on this machine."""
    return max(1, usable_cpus() // workers)
