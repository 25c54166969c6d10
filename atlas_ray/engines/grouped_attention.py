"""Attention over shared keys without copying them.

With a mask, transformers repeats keys and values for every query head before torch's attention, in every layer and
every pass: for one new token behind a long prefix that is nearly all of the time. Here the query heads that share keys
stand below each other as queries of one head instead, which is the same sum of the same products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.config import text_config

NAME = "atlas_grouped"


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Implements transformers' attention interface.

    Args:
        module: the layer.
        query: ``[R, H, L, D]``.
        key, value: ``[R, H / G, C, D]``.
        attention_mask: added to the weights, ``[R, 1, L, C]``.
        dropout, scaling, is_causal, kwargs: as in ``sdpa_attention_forward``.

    Returns:
        ``[R, L, H, D]`` and None.
    """
    (rows, heads, length, width), shared = query.shape, key.shape[1]
    groups = heads // shared
    if groups == 1 or attention_mask is None or attention_mask.shape[1] != 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    below = query.reshape(rows, shared, groups * length, width)
    mask = attention_mask.expand(-1, groups, -1, -1).reshape(rows, 1, groups * length, -1)
    out = F.scaled_dot_product_attention(below, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: Any) -> None:
    """Let a model whose query heads share keys attend this way, if it would use torch's attention."""
    config = text_config(model.config)
    shared = getattr(config, "num_key_value_heads", None)
    if model.config._attn_implementation == "sdpa" and shared and shared < config.num_attention_heads:
        ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
        # without it a mask of padding would be dropped for whoever else uses the model
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
