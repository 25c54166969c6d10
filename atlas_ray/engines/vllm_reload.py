"""Other weights for a vLLM that runs: which it can take, and how it is given them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import AtlasError
from ..models.loading import load_config, resolve
from .reloading import CannotReloadError
from .vllm_setup import Loaded, lora_request, rank_of, shape_of


def check_reload(loaded: Loaded, dtype: str, model: str, adapter: Path | None) -> None:
    """Refuse weights that a vLLM which runs cannot take.

    Raises:
        CannotReloadError: says why.
        InputError: the model or the adapter cannot be had.
    """
    config = load_config(model)
    shape = shape_of(config)
    if differ := [name for name in {**shape, **loaded.shape} if shape.get(name) != loaded.shape.get(name)]:
        raise CannotReloadError(f"{model} has another {differ[0]}")
    if shape.get("quantization_config"):
        raise CannotReloadError(f"{model} is quantised")
    said = str(config.dtype).removeprefix("torch.")
    if not loaded.on_cpu and {said, dtype} == {"float16", "bfloat16"}:
        raise CannotReloadError(f"{model} is in {said}, the engine computes in {dtype}")
    if adapter is not None and rank_of(adapter) > loaded.rank:
        raise CannotReloadError(f"there is no room for an adapter of the rank of {adapter}")


def take_weights(loaded: Loaded, model: str, adapter: Path | None) -> Loaded:
    """Give a vLLM that runs the weights of a model, and an adapter from now on; what it has cached is dropped.

    Raises:
        AtlasError: blocks of the cache are in use.
    """
    source = resolve(model)
    engine = loaded.llm.llm_engine
    if source != loaded.source:
        loaded.llm.collective_rpc("reload_weights", kwargs={"weights_path": source})
        if loaded.on_cpu:
            loaded.llm.collective_rpc(_pack_heads)
    # prefixes are found by their tokens alone: those of the old weights would be found, too
    if not engine.reset_prefix_cache():
        raise AtlasError("vLLM holds on to what it has cached under the old weights")
    return replace(loaded, source=source, lora=lora_request(adapter))


def _pack_heads(worker: Any) -> None:
    """On a CPU an LM head has a packed copy of its weights; where it is tied, vLLM 0.32 goes on with the old one."""
    for layer in worker.get_model().modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():  # (others have nothing but their copy)
            layer.quant_method.process_weights_after_loading(layer)
