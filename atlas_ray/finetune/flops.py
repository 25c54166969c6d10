"""What a pass and a training step cost in FLOPs: matrix products only, a multiply-add counted as 2.

Norms, activations, the softmax, the embedding lookup and the optimiser are left out: they are memory traffic rather
than arithmetic. Sequences are packed without padding, and causal attention is counted at the pairs that it needs, so
that these are lower bounds of what a program does. Sliding windows are counted as full causal attention.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..models.config import text_config

if TYPE_CHECKING:
    import torch

# the fields of a mixture of experts or of latent attention look the same and mean something else: only known kinds
_GATED = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "granite", "olmo2", "gemma", "gemma2", "gemma3_text"}
)
_NOT_GATED = frozenset({"phi", "starcoder2"})


@dataclass(frozen=True)
class Shape:
    """A dense causal LM: ``layers`` of grouped attention and an MLP, gated (three matrices) or not (two)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    gated: bool = True

    @property
    def inputs(self) -> int:
        """Weights of one layer's queries, keys and values."""
        return self.hidden * self.head_dim * (self.heads + 2 * self.kv_heads)

    @property
    def output(self) -> int:
        """Weights of one layer's attention output."""
        return self.hidden * self.head_dim * self.heads

    @property
    def down(self) -> int:
        """Weights of one layer's last matrix, from ``intermediate`` back to ``hidden``."""
        return self.intermediate * self.hidden

    @property
    def mlp(self) -> int:
        """Weights of one layer's MLP."""
        return (3 if self.gated else 2) * self.down


def shape_of(config: Any) -> Shape | None:
    """The shape behind a transformers config; None for kinds of models that are not known to have one."""
    if getattr(config, "model_type", None) is None:
        return None
    config = text_config(config)
    kind = config.model_type
    if kind not in _GATED | _NOT_GATED:
        return None
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        gated=kind in _GATED,
    )


def parameters(shape: Shape, tied: bool) -> int:
    """Number of weights, exact for Llama; biases and norms inside attention are left out."""
    layer = shape.inputs + shape.output + shape.mlp + 2 * shape.hidden
    return (1 if tied else 2) * shape.vocab * shape.hidden + shape.layers * layer + shape.hidden


@dataclass(frozen=True)
class _Forward:
    """FLOPs of one forward pass: linear layers, attention, LM head, and two parts of the linear layers."""

    linear: int
    attention: int
    head: int
    first_inputs: int
    down: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head


def _forward(shape: Shape, lengths: Sequence[int], head: int, last: int | None) -> _Forward:
    tokens = sum(lengths)
    mlp_tokens = (shape.layers - 1) * tokens + (tokens if last is None else last)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    return _Forward(
        linear=2 * (shape.layers * tokens * (shape.inputs + shape.output) + mlp_tokens * shape.mlp),
        attention=4 * shape.layers * shape.heads * shape.head_dim * pairs,
        head=2 * head * shape.hidden * shape.vocab,
        first_inputs=2 * tokens * shape.inputs,
        down=2 * mlp_tokens * shape.down,
    )


def forward_flops(shape: Shape, lengths: Sequence[int], head: int, last: int | None = None) -> int:
    """FLOPs of one forward pass.

    Args:
        lengths: tokens of each sequence.
        head: positions at which the LM head makes logits.
        last: positions at which the last layer's MLP is computed; without it all.
    """
    return _forward(shape, lengths, head, last).total


def training_flops(
    shape: Shape,
    lengths: Sequence[int],
    head: int,
    last: int | None = None,
    lora: bool = False,
    checkpointing: bool = False,
) -> int:
    """FLOPs of a forward and a backward pass; the arguments of :func:`forward_flops` and two more.

    A full backward pass costs twice the forward pass, for the gradients of inputs and of weights. With ``lora`` the
    linear layers and the LM head are frozen and need the former only, and the first layer's queries, keys and values
    not even those; attention has no weights and costs twice its forward pass all the same. The adapters themselves are
    left out, a share of about ``rank / hidden``.

    ``checkpointing`` computes every layer once more but for its last matrix, whose result nobody needs (as
    ``torch.utils.checkpoint`` does without reentrance). Fused attention kernels also compute their scores twice, with
    and without it, which is not counted.
    """
    forward = _forward(shape, lengths, head, last)
    backward = 2 * forward.total
    if lora:
        backward -= forward.linear + forward.head + forward.first_inputs
    again = forward.linear + forward.attention - forward.down if checkpointing else 0
    return forward.total + backward + again


def plain_flops(shape: Shape, whole_lengths: Sequence[int], lora: bool = False, checkpointing: bool = False) -> int:
    """Training FLOPs of plain masking: whole sequences without padding, the LM head and every MLP at every position.

    Divided by :func:`training_flops` of what is really computed, it is the most that the latter can gain in time over
    plain masking at the same share of the device's peak.
    """
    return training_flops(shape, whole_lengths, sum(whole_lengths), lora=lora, checkpointing=checkpointing)


def device_peak(device_type: str, dtype: torch.dtype, threads: int) -> float:
    """Measured FLOP/s of square matrix products, the best of some in about 0.2 s: what a training step could reach.

    Args:
        device_type: ``cpu`` or ``cuda``, whose current device is measured.
        dtype: of the matrices.
        threads: of a CPU, which need not be those of this process.
    """
    import torch

    wait = torch.cuda.synchronize if device_type == "cuda" else lambda: None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    best = 0.0
    try:
        for size in (4096, 8192) if device_type == "cuda" else (512, 1024):
            a = torch.randn(size, size, device=device_type, dtype=dtype)
            b = torch.randn(size, size, device=device_type, dtype=dtype)
            out = a @ b
            wait()
            now = time.perf_counter()
            end = now + 0.1
            while now < end:
                begun = now
                torch.matmul(a, b, out=out)
                wait()
                now = time.perf_counter()
                best = max(best, 2 * size**3 / (now - begun))
    finally:
        torch.set_num_threads(before)
    return best
