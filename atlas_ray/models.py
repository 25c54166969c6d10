"""Models by name: the two that ship with the package, one that was fetched, a directory, or a Hugging Face id."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from . import logs
from .errors import InputError
from .fetch import fetched, known
from .files import read_json

SHIPPED = ("tiny-quick", "tiny-deepthink")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(name: str) -> str:
    """What ``from_pretrained`` takes for ``name``.

    Raises:
        InputError: neither a shipped name nor a fetched one nor a directory with a model nor a hub id.
    """
    if name in SHIPPED:
        return str(resources.files("atlas_ray") / "weights" / name)
    if name in known():
        fetched_to = fetched(name)
        if fetched_to is None:
            raise InputError(f"is not on this machine yet: atlas-ray models fetch {name}", name)
        return str(fetched_to)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file() and not adapted(name):
            raise InputError("is no model directory: it has no config.json", path)
        if not list(path.glob("*.safetensors")):
            raise InputError("is a model directory without weights: it has no *.safetensors", path)
        return str(path)
    if _HUB_ID.fullmatch(name):
        return name
    raise InputError(
        f"no model of that name; shipped are {', '.join(SHIPPED)}, to be fetched {', '.join(known())}, "
        "else give a directory or a hub id",
        name,
    )


def adapted(name: str) -> str | None:
    """The base of an adapter's directory, as its configuration names it; None when ``name`` is no such directory."""
    config = Path(name) / "adapter_config.json"
    return str(read_json(config)["base_model_name_or_path"]) if config.is_file() else None


def load_model(name: str, dtype: Any = None) -> Any:
    """A causal LM; safetensors only, no foreign code. Adapters are merged into their base.

    Args:
        name: as :func:`resolve` takes it.
        dtype: of the weights; by default float32 on a CPU and the model's own on a GPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    logs.adopt_transformers()
    dtype = dtype or ("auto" if torch.cuda.is_available() else torch.float32)
    base = adapted(name)
    model = AutoModelForCausalLM.from_pretrained(resolve(base or name), dtype=dtype, use_safetensors=True)
    if base is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, name, use_safetensors=True).merge_and_unload()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model."""
    from transformers import AutoTokenizer

    logs.adopt_transformers()
    return AutoTokenizer.from_pretrained(resolve(name))


def context_of(model: Any) -> int:
    """Most tokens the model takes."""
    return int(model.config.max_position_embeddings)
