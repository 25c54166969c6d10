"""Over how many GPUs vLLM can split a model: tensor parallelism gives each an equal share of the heads."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .config import text_config

_MOST_SAID = 16


def check_split(config: Any, gpus: int, name: str) -> None:
    """Refuse to split a model over so many GPUs.

    Args:
        config: of the model.
        gpus: over which it is to be split; 1 for none.
        name: of the model.

    Raises:
        InputError: names ``engine.gpus``, what cannot be shared out, and the numbers that can be.
    """
    if not (why := _unequal(config, gpus)):
        return
    fit = ", ".join(str(n) for n in range(1, _MOST_SAID + 1) if not _unequal(config, n))
    raise InputError(f"{gpus} GPUs cannot share the {why} of {name}: it can be split over {fit}", field="engine.gpus")


def _unequal(config: Any, gpus: int) -> str:
    """What of a model cannot be shared out equally; nothing where all can.

    Fewer heads of keys and values than GPUs are repeated. What a mixture of experts shares is left to vLLM.
    """
    text = text_config(config)
    heads = getattr(text, "num_attention_heads", None)
    keys = getattr(text, "num_key_value_heads", None) or heads
    wide = getattr(text, "intermediate_size", None)
    if isinstance(heads, int) and heads % gpus:
        return f"{heads} attention heads"
    if isinstance(keys, int) and max(keys, gpus) % min(keys, gpus):
        return f"{keys} heads of keys and values"
    if isinstance(wide, int) and not getattr(text, "num_experts", None) and wide % gpus:
        return f"{wide} columns of the feed-forward layers"
    return ""
