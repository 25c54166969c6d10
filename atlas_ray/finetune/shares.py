"""Weights that each of FSDP2's workers reads for its own share alone, out of a model's safetensors.

A worker that loads the whole model first needs room for all of it in float32, and a machine with eight GPUs holds eight
such workers. Here a model begins without storage (PyTorch's ``meta`` device), FSDP2 cuts it up, and
``torch.distributed.checkpoint`` reads what each worker holds, one piece of a matrix at a time. The numbers are those of
loading it whole: ``benchmarks/finetune_memory.py`` has the memory of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.loading import adapted, load_config, resolve
from ..recipe.loading import Finetune
from .adapters import add_adapters
from .packing import causal_lm
from .process_group import ProcessGroup
from .state import local


def unread_model(config: Finetune, group: ProcessGroup, seed: int) -> tuple[Any, Path] | None:
    """:func:`empty_model` of ``config``, and the directory to read its parameters from.

    None where ``group`` has to load it whole: without FSDP2, for a base that is an adapter itself, a model of one's own
    making, and a base that names its weights otherwise than its model does, since transformers makes these from others.

    Raises:
        InputError: there is no such model.
    """
    if config.strategy != "fsdp" or group.size == 1 or config.scratch or adapted(config.base) is not None:
        return None
    directory = _directory(resolve(config.base))
    model = empty_model(config, directory, seed)
    return (model, directory) if _unread(causal_lm(model)) <= _held(directory) else None


def empty_model(config: Finetune, directory: Path, seed: int) -> Any:
    """A causal LM in float32 whose parameters have no storage; what no file holds is there: buffers and adapters.

    Args:
        config: of the recipe; with adapters this is a peft model.
        directory: of the base.
        seed: of the adapters.

    Raises:
        InputError: there is no such model.
        AtlasError: an adapter's target is no part of the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(load_config(config.base), dtype=torch.float32)
    model.tie_weights()  # (each got an empty parameter of its own)
    with suppress(OSError):  # it has none of its own
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return add_adapters(model, config, seed) if config.lora else model


def _by_file(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names that files have for them; peft calls those of what it adapts otherwise."""
    for name, p in model.named_parameters():
        yield name.replace(".base_layer.", "."), p


def _unread(model: nn.Module) -> set[str]:
    return {name for name, p in _by_file(model) if p.is_meta}


def read_shares(module: nn.Module, models: Sequence[nn.Module], directory: Path, group: ProcessGroup) -> None:
    """Give parameters without storage their values; every worker of ``group`` calls it.

    Args:
        module: cut up by FSDP2 already; holds the ``models``.
        models: causal LMs of the same base; adapters in them have their values already.
        directory: with the base's safetensors.
        group: the workers.

    Raises:
        InputError: a file cannot be read, or holds a matrix of another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    unread = [_unread(model) for model in models]
    kept = {name: local(t).to(group.device, copy=True) for name, t in _tensors(module) if not t.is_meta}
    module.to_empty(device=group.device)
    for name, tensor in _tensors(module):
        if name in kept:
            local(tensor).copy_(kept[name])
    for model, names in zip(models, unread, strict=True):
        reader = HuggingFaceStorageReader(str(directory))
        wanted = {name: p for name, p in _by_file(model) if name in names}
        try:
            load(wanted, storage_reader=reader, process_group=group.mesh.get_group())
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise InputError(f"its weights cannot be read: {first}", directory) from error


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


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
