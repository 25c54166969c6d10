"""PyTorch's kernel for ragged sequences, ``varlen_attn``: one call for all sequences of a row, on GPUs alone."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention import varlen

WIDEST = 192
"""Above this flash attention's backward pass asks for certain GPUs."""


def obstacle(device: torch.device, dtype: torch.dtype, width: int, dropout: float = 0.0) -> str | None:
    """Why sequences cannot go through the kernel; None where they can.

    Args:
        device: of the pass.
        dtype: that the pass computes attention in.
        width: of a head.
        dropout: of attention.
    """
    if device.type != "cuda":
        return "it runs on CUDA devices only"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if width % 8 or width > WIDEST:
        return f"it does not take heads of width {width}"
    if dropout:
        return "it has no dropout"
    return _missing(device)


@lru_cache
def _missing(device: torch.device) -> str | None:
    if not torch.backends.cuda.is_flash_attention_available():
        return "this PyTorch is built without flash attention"
    if "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
        return f"that of PyTorch {torch.__version__} takes no shared keys"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is too old for it"
    return None


def pass_dtype(query: torch.Tensor) -> torch.dtype:
    """What attention of ``query`` is computed in; autocast does not know the kernel, so this is asked."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def ragged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Causal attention within each sequence of a row, in one call.

    Args:
        query: ``[1, H, T, D]``.
        key, value: ``[1, H / G, T, D]``.
        lengths: of the sequences, which add up to T.
        scaling: as in ``scaled_dot_product_attention``.
        sliding_window: most positions that one sees, itself included.

    Returns:
        ``[1, T, H, D]``, in :func:`pass_dtype`.
    """
    dtype, starts, longest = pass_dtype(query), _starts(lengths, query.device), max(lengths)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out: Any = varlen.varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=window,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None]


@lru_cache(maxsize=2)
def _starts(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where each sequence begins and the last ends, int32: the same for all layers of a pass."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
