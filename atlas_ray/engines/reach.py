"""What a token may attend to in the transformers engine: all before it, a window of it, or a part of the text."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError
from ..models.config import text_config


@dataclass(frozen=True)
class Reach:
    """How far back a layer sees: ``size`` tokens, itself included, or those of its own ``chunk`` of so many."""

    size: int
    chunk: bool = False

    def sees(self, asking_RL: torch.Tensor, asked_RC: torch.Tensor) -> torch.Tensor:
        """Whether tokens at places ``[R, L]`` reach those at ``[R, C]``: ``[R, L, C]``."""
        asking_RL1, asked_R1C = asking_RL[:, :, None], asked_RC[:, None, :]
        if self.chunk:
            return asking_RL1 // self.size == asked_R1C // self.size
        return asking_RL1 - asked_R1C < self.size


def reaches(model: Any, context: int) -> dict[str, Reach | None]:
    """The reach of each kind of layer, None for all that stands before; of one kind alone the name does not matter.

    Args:
        model: a causal LM.
        context: most tokens of a text; what reaches as far reaches everything.
    """
    config = text_config(model.config)
    window = getattr(config, "sliding_window", None)
    sizes = {
        "sliding_attention": Reach(window) if window and window < context else None,
        "chunked_attention": _chunk(getattr(config, "attention_chunk_size", None), context),
    }
    kinds = getattr(config, "layer_types", None)
    if not kinds:  # (Mistral's and its kin's layers are all alike)
        return {"": sizes["sliding_attention"]}
    found = {kind: sizes.get(kind) for kind in dict.fromkeys(kinds)}
    return found if any(found.values()) else {"": None}


def _chunk(size: int | None, context: int) -> Reach | None:
    return Reach(size, chunk=True) if size and size < context else None


def added_mask(
    past_RC: torch.Tensor,
    seen_RLL: torch.Tensor,
    reach: Reach | None,
    places_RC: torch.Tensor,
    places_RL: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What is added to attention weights, ``[R, 1, L, C + L]``: 0 or minus infinity.

    It is what sdpa makes of a boolean mask in every layer, and eager attention cannot.

    Args:
        past_RC: which kept columns a row has.
        seen_RLL: which new tokens a new token attends to, were its reach without end.
        reach: of the layer.
        places_RC: of the kept tokens in their texts.
        places_RL: of the new ones.
        dtype: of the weights.
    """
    past_RnC = past_RC[:, None]
    if reach is not None:
        past_RnC = past_RnC & reach.sees(places_RL, places_RC)
        # (padding attends to itself, at the place 0 of all padding)
        seen_RLL = seen_RLL & reach.sees(places_RL, places_RL)
    past, new = (
        torch.zeros(x.shape, dtype=dtype, device=x.device).masked_fill_(~x, -torch.inf) for x in (past_RnC, seen_RLL)
    )
    return torch.cat([past.expand(-1, seen_RLL.shape[1], -1), new], dim=-1)[:, None]


def check_kept(model: Any) -> None:
    """Refuse models whose keys and values cannot lie in any column of a slot's cache: they would answer wrongly.

    Raises:
        InputError: it keeps a state instead, or counts places by columns (ALiBi).
    """
    config = text_config(model.config)
    takes = inspect.signature(type(model).forward).parameters
    if model._is_stateful or getattr(config, "alibi", False) or not {"position_ids", "past_key_values"} <= set(takes):
        raise InputError(
            f"the transformers engine keeps the beginnings of texts, and a {config.model_type} model has no keys and "
            'values with places of their own: take engine = "vllm", or another model'
        )
