"""Many sequences in one row without padding, and no work behind the last layer but at the positions that are asked for.

Both are exact: a sequence attends to itself alone, and the rest of a transformer works position by position.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from .ragged import obstacle, pass_dtype, ragged_attention

NAME = "atlas_packed"

# Whose layers are residual + attention, then residual + MLP, and whose logits are the head of the last hidden state.
# Every family here is compared with its own transformers forward in the tests; others are run one sequence at a time.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


def causal_lm(model: Any) -> Any:
    """The causal LM itself, which holds the adapters that a peft model put into it."""
    return model.get_base_model() if hasattr(model, "disable_adapter") else model


def packs(model: Any) -> bool:
    """Whether sequences of this model can share a row."""
    return model.config.model_type in FAMILIES


def attention_of(model: Any, device: torch.device, dtype: torch.dtype) -> str:
    """How the sequences of a pass attend while this model is trained, for its log.

    Args:
        model: a causal LM.
        device: of its passes.
        dtype: that they compute in.
    """
    if not packs(model):
        return "the model's own, one sequence at a time"
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    why = obstacle(device, dtype, width, getattr(config, "attention_dropout", 0.0))
    if why is None:
        return "varlen_attn, one call for all sequences of a row"
    return f"scaled_dot_product_attention, one call for neighbours of one length, and not varlen_attn: {why}"


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: Sequence[int] = (),
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the sequences that stand in one row; transformers' attention interface.

    One call of PyTorch's kernel for ragged sequences where that can be, else one for neighbours of one length.

    Args:
        module: the layer.
        query: ``[1, H, T, D]``.
        key, value: ``[1, H / G, T, D]``.
        attention_mask: none.
        dropout, scaling: as in ``scaled_dot_product_attention``.
        lengths: of the sequences, which add up to T; without them the row is one.
        sliding_window: most positions that one sees, itself included.
        kwargs: what other kinds of attention take.

    Returns:
        ``[1, T, H, D]`` and None.
    """
    (_, heads, _, width), shared = query.shape, key.shape[1]
    lengths = tuple(lengths or query.shape[2:3])
    if obstacle(query.device, pass_dtype(query), width, dropout) is None:
        return ragged_attention(query, key, value, lengths, scaling, sliding_window), None
    outs, start = [], 0
    for length, same in itertools.groupby(lengths):
        count = len(list(same))
        span = slice(start, start := start + count * length)
        q, k, v = (
            x[0, :, span].unflatten(1, (count, length)).transpose(0, 1)  # [count, heads, length, D]
            for x in (query, key, value)
        )
        if shared != heads:
            k, v = (x.repeat_interleave(heads // shared, 1) for x in (k, v))
        mask = None
        if sliding_window is not None and length > sliding_window:
            ago = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
            mask = (ago >= 0) & (ago < sliding_window)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        outs.append(out.transpose(1, 2).reshape(count * length, heads, width))
    return torch.cat(outs)[None], None


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Within, the model attends by :func:`packed_attention` and its last layer ends at the positions ``at``.

    Backward passes belong inside too: gradient checkpointing runs the layers again. No model, or one that cannot, is
    left as it is.
    """
    if model is None or not packs(model):
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # (takes seconds)

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    before, layer = model.config._attn_implementation, model.get_decoder().layers[-1]
    model.set_attn_implementation(NAME)
    layer.forward = _narrow(layer, type(layer).forward.__get__(layer))
    try:
        yield
    finally:
        del layer.forward
        model.set_attn_implementation(before)


def _narrow(layer: Any, whole: Any) -> Any:
    """The forward of a last layer whose MLP sees only the positions ``at`` of the row."""

    def forward(hidden_BTD: torch.Tensor, at: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if at is None:
            return whole(hidden_BTD, **kwargs)
        attended_BTD, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_BTD), **kwargs)
        hidden_BND = (hidden_BTD + attended_BTD)[:, at]
        return hidden_BND + layer.mlp(layer.post_attention_layernorm(hidden_BND))

    return forward


def hidden_at(
    model: Any, ids_T: torch.Tensor, lengths: Sequence[int], at_N: torch.Tensor, narrow: bool = True
) -> torch.Tensor:
    """Last hidden states ``[N, D]`` at positions ``at_N`` of the row ``ids_T`` of sequences of ``lengths``.

    Call it within :func:`packed`.
    """
    position_ids = torch.cat([torch.arange(n) for n in lengths]).to(ids_T.device)
    given = {"input_ids": ids_T[None], "position_ids": position_ids[None], "use_cache": False, "lengths": lengths}
    if narrow:
        return model.get_decoder()(**given, at=at_N).last_hidden_state[0]
    return model.get_decoder()(**given).last_hidden_state[0, at_N]
