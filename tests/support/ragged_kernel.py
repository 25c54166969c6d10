"""PyTorch's ``varlen_attn`` by plain attention: a machine without a CUDA device can then test what calls it."""

import inspect
import itertools

import torch
from torch.nn.attention.varlen import varlen_attn

_SIGNATURE = inspect.signature(varlen_attn)


def plain_varlen_attn(*args, **kwargs):
    """Attention within each sequence, in float64; takes what ``varlen_attn`` takes, and is as strict."""
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    query, key, value, starts, max_q = (
        given.arguments[name] for name in ("query", "key", "value", "cu_seq_q", "max_q")
    )
    scale, (left, right), gqa = (given.arguments[name] for name in ("scale", "window_size", "enable_gqa"))
    assert starts.dtype == torch.int32 and starts is given.arguments["cu_seq_k"]
    assert query.dtype == key.dtype == value.dtype
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert right == 0, "causal"
    if (groups := query.shape[1] // key.shape[1]) > 1:
        assert gqa
    outs = []
    for start, end in itertools.pairwise(starts.tolist()):
        assert end - start <= max_q
        q = query[start:end].transpose(0, 1).double()
        k, v = (x[start:end].transpose(0, 1).repeat_interleave(groups, 0).double() for x in (key, value))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        ago = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (ago >= 0) & ((ago <= left) if left >= 0 else True)
        outs.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1).to(query.dtype))
    return torch.cat(outs)
