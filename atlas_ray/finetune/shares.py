"""Weights that each of FSDP2's workers reads for its own share alone, out of a model's safetensors.

A worker that loads the whole model first needs room for all of it in float32, and a machine with eight GPUs holds eight
such workers. Here a model begins without storage (PyTorch's ``meta`` device), FSDP2 cuts it up, and
``torch.distributed.checkpoint`` reads what each worker holds, one piece of a matrix at a time. The numbers are those of
loading it whole: ``benchmarks/finetune_memory.py`` has the memory of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.loading import adapted, load_config, resolve
from ..recipe.loading import Finetune
from .process_group import ProcessGroup


def unread_model(config: Finetune, group: ProcessGroup) -> tuple[Any, Path] | None:
    """A causal LM in float32 whose parameters have no storage yet, and the directory to read them from.

    None where ``group`` has to load it whole: without FSDP2, for an adapter or a model of one's own making, and for a
    base that names its weights otherwise than its model does, since transformers makes these from others.

    Raises:
        InputError: there is no such model.
    """
    if (
        config.strategy != "fsdp"
        or group.size == 1
        or config.lora
        or config.scratch
        or adapted(config.base) is not None
    ):
        return None
    directory = _directory(resolve(config.base))
    model = empty_model(config.base, directory)
    return (model, directory) if {name for name, _ in model.named_parameters()} <= _held(directory) else None


def empty_model(base: str, directory: Path) -> Any:
    """A causal LM whose parameters have no storage; its buffers, which no file holds, are there.

    Raises:
        InputError: there is no such model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_config(base)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()  # (each got an empty parameter of its own)
    with suppress(OSError):  # it has none of its own
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


def read_shares(module: nn.Module, models: Iterable[nn.Module], directory: Path, group: ProcessGroup) -> None:
    """Give parameters without storage their values; every worker of ``group`` calls it.

    Args:
        module: cut up by FSDP2 already; holds the ``models``.
        models: causal LMs of the same base.
        directory: with the base's safetensors.
        group: the workers.

    Raises:
        InputError: a file cannot be read, or holds a matrix of another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    buffers = {name: buffer.to(group.device, copy=True) for name, buffer in module.named_buffers()}
    module.to_empty(device=group.device)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    for model in models:
        reader = HuggingFaceStorageReader(str(directory))
        try:
            load(dict(model.named_parameters()), storage_reader=reader, process_group=group.mesh.get_group())
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise InputError(f"its weights cannot be read: {first}", directory) from error


def _directory(place: str) -> Path:
    """Where the files of a model lie, of one of the hub in its cache."""
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.json"]))


def _held(directory: Path) -> set[str]:
    """Names of the tensors in all safetensors of a directory."""
    from safetensors import SafetensorError, safe_open

    held: set[str] = set()
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                held.update(file.keys())
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read: {error}", path) from error
    return held
