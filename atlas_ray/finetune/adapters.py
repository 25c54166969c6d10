"""Low-rank adapters (peft) around a causal LM, whether its weights are there or not yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import AtlasError
from ..models.loading import whole
from ..recipe.loading import Finetune


def add_adapters(model: Any, config: Finetune, seed: int) -> Any:
    """A peft model around ``model``, its adapters in float32.

    Args:
        model: a causal LM. Parameters without storage stay so; the adapters have their values all the same.
        config: of the recipe, with adapters.
        seed: of the adapters' values, which depend on nothing else.

    Raises:
        AtlasError: an adapter's target is no part of the model.
    """
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.targets,
    )
    model.name_or_path = whole(config.base)
    with torch.random.fork_rng(devices=[]), _stand_ins(model):
        torch.manual_seed(seed)
        try:
            model = get_peft_model(model, lora)
        except ValueError as error:
            raise AtlasError(f"finetune.lora.targets: {error}") from error
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[None]:
    """Within, parameters without storage are a number each, repeated: peft puts adapters where their base is.

    Afterwards they are frozen, as peft leaves those of a base.
    """
    places = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if p.is_meta
    ]
    made = {p: nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape), False) for _, _, p in places}  # (tied: one)
    for module, name, p in places:
        setattr(module, name, made[p])
    try:
        yield
    finally:
        for module, name, p in places:
            setattr(module, name, p.requires_grad_(False))
