"""Models by name: the two that ship with the package, one that was fetched, a directory, or a Hugging Face id."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import InputError
from .fetch import fetched, known

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
        if not (path / "config.json").is_file():
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


def load_model(name: str) -> Any:
    """A causal LM in float32 on a CPU and in its own precision on a GPU; safetensors only, no foreign code."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    return AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype, use_safetensors=True)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(name))


def context_of(model: Any) -> int:
    """Most tokens the model takes."""
    return int(model.config.max_position_embeddings)
