"""What a run leaves: a model or adapter directory that transformers, peft and vLLM load as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.loading import adapter_config, base_from, context_of, load_config, load_model, load_tokenizer
from ..models.tiny import build_model, build_tokenizer
from ..recipe.loading import Recipe
from ..rundir.disk import writing
from ..rundir.files import atomic_directory, write_json, write_text
from ..rundir.layout import CHECKPOINT_RECORD
from .adapters import add_adapters
from .card import card
from .packing import causal_lm
from .process_group import ProcessGroup, use_bf16


def make_model(recipe: Recipe, device: torch.device, words: Sequence[str] = ()) -> tuple[Any, Any]:
    """Model and tokenizer to begin with, on ``device``: a peft model where adapters are trained.

    Weights are float32; those of a base that stays as it is may be bfloat16. ``words`` are tokens of a new model.

    Raises:
        AtlasError: an adapter's target is no part of the model.
    """
    config = recipe.finetune
    assert config is not None
    if config.scratch:
        return _new_model(recipe, words).to(device), build_tokenizer(words)
    frozen = torch.bfloat16 if config.lora and config.strategy == "ddp" and use_bf16(config.precision, device) else None
    tokenizer, model = load_tokenizer(config.base), load_model(config.base, frozen or torch.float32)
    if config.lora:
        model = add_adapters(model, config, recipe.seed)
    return model.to(device), tokenizer


def _new_model(recipe: Recipe, words: Sequence[str]) -> Any:
    assert recipe.finetune is not None and recipe.finetune.scratch is not None
    return build_model(**recipe.finetune.scratch.model_dump(exclude={"words"}), seed=recipe.seed, words=words)


def outline(recipe: Recipe, words: Sequence[str] = ()) -> tuple[Any, Any]:
    """:func:`make_model` without weights, for a machine that need not have room for them."""
    config = recipe.finetune
    assert config is not None
    with torch.device("meta"):
        if config.scratch:
            return _new_model(recipe, words), build_tokenizer(words)
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(load_config(config.base)), load_tokenizer(config.base)


def context(recipe: Recipe, model: Any) -> int:
    """Longest trajectory in tokens.

    Raises:
        InputError: neither the recipe nor the model's configuration says.
    """
    assert recipe.finetune is not None
    own = context_of(model, recipe.finetune.context, "finetune.context")
    return min(recipe.finetune.context or own, own)


def weights(model: nn.Module, group: ProcessGroup, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """All that is trained, whole and on the CPU, on the first worker; call it on every one."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            value = p.full_tensor() if hasattr(p, "full_tensor") else p  # (every worker has to take part)
            if group.rank == 0:
                found[name] = value.detach().to("cpu", dtype, copy=True)
    return found


def put(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Put what :func:`weights` gave into a model of the same kind."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in values:
                p.copy_(values[name])


def write_model(
    target: Path,
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    about: dict[str, Any],
    values: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the directory of a finished run: weights, tokenizer, ``run.json`` and a model card.

    ``values`` are the weights of a ``model`` that has none.

    Raises:
        StorageError: the disk is full.
    """
    assert recipe.finetune is not None
    dtype = getattr(torch, recipe.finetune.save_dtype)
    model = model.to(dtype)
    if values is not None:
        values = {name: value.to(dtype) for name, value in values.items()}
    # transformers writes on the first process of the world only, without a word; here every group's first one writes
    causal_lm(model).should_save_on_this_rank = lambda is_main_process: is_main_process
    with writing(target), atomic_directory(target) as directory:
        model.save_pretrained(directory, state_dict=values)
        if recipe.finetune.lora:
            about_adapter = adapter_config(directory) | {
                "base_model_name_or_path": base_from(recipe.finetune.base, target)
            }
            write_json(directory / "adapter_config.json", about_adapter)
        tokenizer.save_pretrained(directory)
        write_json(directory / CHECKPOINT_RECORD, about)
        write_text(directory / "README.md", card(recipe, about))
