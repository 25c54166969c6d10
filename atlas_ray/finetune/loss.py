"""The masked loss, exact under any split into workers and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.config import text_config
from .data import Example
from .packing import hidden_at, packs

MOST_LOGITS = 1 << 24
"""Most logits at a time: 64 MiB in float32."""


Soft = Callable[[slice], torch.Tensor]
"""Rows of the base's log-probabilities ``[rows, V]``."""


@dataclass(frozen=True)
class Scale:
    """What turns sums over tokens into the loss of an optimiser step, the same on every worker.

    ``trained`` is the weight of a trained token (1 / their count in the step), ``anchored`` that of an anchored one.
    """

    trained: float
    anchored: float = 0.0


class _SoftCrossEntropy(torch.autograd.Function):
    """Weighted cross entropies of rows of logits that are never held all at once.

    The gradient of a row's cross entropy is softmax minus target, be the target a token or a distribution, so it is
    made in the forward pass, a piece of rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        target_N: torch.Tensor,
        soft: Soft | None,
        scale: Scale,
        rows: int,
    ) -> torch.Tensor:
        count = len(target_N)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        wanted = any(ctx.needs_input_grad)
        grad_ND = torch.empty_like(hidden_ND) if wanted else None
        grad_VD = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        pieces = [slice(i, min(i + rows, count)) for i in range(0, count, rows)]
        pieces += [slice(i, min(i + rows, len(hidden_ND))) for i in range(count, len(hidden_ND), rows)]
        for piece in pieces:
            part = hidden_ND[piece]
            logp = F.log_softmax((part @ head_VD.T.to(part.dtype)).float(), -1)
            if piece.start < count:
                target = target_N[piece, None]
                total -= scale.trained * logp.gather(1, target).sum()
                grad = logp.exp_() if wanted else logp
                grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=grad.dtype))
                weight = scale.trained
            else:
                assert soft is not None
                wished = soft(slice(piece.start - count, piece.stop - count))
                p = wished.exp()
                # 0 log 0 is 0: a base may give a token no probability at all
                total += scale.anchored * torch.where(p > 0, p * (wished - logp), 0.0).sum()
                grad = logp.exp_().sub_(p) if wanted else logp
                weight = scale.anchored
            if grad_ND is not None:
                grad = grad.mul_(weight).to(part.dtype)
                grad_ND[piece] = grad @ head_VD.to(part.dtype)
                if grad_VD is not None:
                    grad_VD += grad.T @ part
        ctx.save_for_backward(grad_ND, None if grad_VD is None else grad_VD.to(head_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, up: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_ND, grad_VD = ctx.saved_tensors
        return grad_ND * up.to(grad_ND.dtype), None if grad_VD is None else grad_VD * up.to(grad_VD.dtype), *[None] * 4


def packs_whole(model: Any) -> bool:
    """Whether a micro-batch is one pass, LM head and all; an adapter on the head makes it a module of another kind."""
    return packs(model) and type(model.get_output_embeddings()) is nn.Linear


class MaskedModel(nn.Module):
    """A causal LM that gives the loss of selected tokens.

    Args:
        model: a causal LM of transformers.
        base: what an anchor holds it to: a frozen copy, or a peft model whose adapters are switched off for that.
            None when there is no anchor, or when its log-probabilities come with the examples.
        lockstep: let the base pass in every micro-batch, since workers that share it out must all pass together.
    """

    def __init__(self, model: Any, base: Any = None, lockstep: bool = False) -> None:
        super().__init__()
        self.model = model
        self.lockstep = lockstep and base is not None
        self.adapters = base if base is not None and hasattr(base, "disable_adapter") else None
        self.base = None if self.adapters is not None else base
        self.narrow, self.rows = True, max(16, MOST_LOGITS // text_config(model.config).vocab_size)

    def forward(self, batch: Sequence[Example], scale: Scale) -> torch.Tensor:
        """The share of one micro-batch in the loss of an optimiser step.

        ``sum over trained tokens of -log p * scale.trained``: with 1 / the number of trained tokens of the whole
        optimiser step, summed over micro-batches and workers, it is the mean over trained tokens (ATLaS masks the loss
        to critical steps; the normalisation is ours). With an anchor (ours) plus
        ``sum over anchored tokens of KL(base || model) * scale.anchored``.

        Hidden states are gathered at the trained positions before the LM head, and its logits are made in pieces.
        Families that :func:`atlas_ray.finetune.packing.packs` does not know run one sequence at a time.

        Args:
            batch: examples; ``Example.base`` holds the base's log-probabilities ``[M, V]`` where they were kept.
            scale: weights of the tokens.
        """
        batch = sorted(batch, key=lambda e: len(e.ids))
        if not packs_whole(self.model):
            return torch.stack([self._alone(example, scale) for example in batch]).sum()
        device = next(self.model.parameters()).device
        ids_T = torch.cat([torch.as_tensor(e.ids, dtype=torch.long) for e in batch])
        starts = torch.tensor([0, *(len(e.ids) for e in batch)]).cumsum(0)[:-1].tolist()
        trained_N = positions(starts, [e.trained for e in batch])
        anchored_M = positions(starts, [e.anchored if scale.anchored else () for e in batch])
        at = (torch.cat([trained_N, anchored_M]) - 1).to(device)
        targets_N, ids_T, lengths = ids_T[trained_N].to(device), ids_T.to(device), [len(e.ids) for e in batch]
        hidden_ND = hidden_at(self.model, ids_T, lengths, at, self.narrow)
        anchored = len(anchored_M) or self.lockstep
        soft = self._soft(batch, ids_T, lengths, at[len(trained_N) :]) if anchored else None
        head = self.model.get_output_embeddings()
        return _SoftCrossEntropy.apply(hidden_ND, head.weight, targets_N, soft, scale, self.rows)

    def _soft(self, batch: Sequence[Example], ids_T: torch.Tensor, lengths: list[int], at_M: torch.Tensor) -> Soft:
        kept_MV = self._kept(batch, ids_T.device)
        if kept_MV is not None:
            return lambda piece: kept_MV[piece]
        base, off = self._base()
        with torch.no_grad(), off:
            base_MD = hidden_at(base, ids_T, lengths, at_M, self.narrow)
        head = base.get_output_embeddings()
        return lambda piece: F.log_softmax((base_MD[piece] @ head.weight.T.to(base_MD.dtype)).float(), -1)

    def _base(self) -> tuple[Any, AbstractContextManager[Any]]:
        if self.adapters is not None:
            return self.model, self.adapters.disable_adapter()
        return self.base, nullcontext()

    @staticmethod
    def _kept(batch: Sequence[Example], device: torch.device) -> torch.Tensor | None:
        parts = [e.base for e in batch if len(e.anchored)]
        if not parts or any(part is None for part in parts):
            return None
        return torch.cat([torch.as_tensor(part) for part in parts]).to(device)

    def _alone(self, example: Example, scale: Scale) -> torch.Tensor:
        """The share of one sequence, by the model's own forward: any attention, scaled and capped logits too."""
        device = next(self.model.parameters()).device
        ids_1L = torch.as_tensor(example.ids, dtype=torch.long, device=device)[None]
        trained_N = torch.as_tensor(example.trained, dtype=torch.long, device=device)
        anchored_M = torch.as_tensor(example.anchored if scale.anchored else (), dtype=torch.long, device=device)
        at = torch.cat([trained_N, anchored_M]) - 1
        logits_NV = self.model(input_ids=ids_1L, use_cache=False, logits_to_keep=at).logits[0].float()
        count = len(trained_N)
        loss = F.cross_entropy(logits_NV[:count], ids_1L[0, trained_N], reduction="sum") * scale.trained
        if len(anchored_M):
            soft_MV = self._kept([example], device)
            if soft_MV is None:
                base, off = self._base()
                with torch.no_grad(), off:
                    kept = base(input_ids=ids_1L, use_cache=False, logits_to_keep=at[count:]).logits[0]
                soft_MV = F.log_softmax(kept.float(), -1)
            p, logp_MV = soft_MV.exp(), F.log_softmax(logits_NV[count:], -1)
            loss = loss + torch.where(p > 0, p * (soft_MV - logp_MV), 0.0).sum() * scale.anchored
        return loss


def positions(starts: Sequence[int], chosen: Sequence[Any]) -> torch.Tensor:
    """Positions in a row of sequences, of positions in each of them and of where each begins."""
    parts = [torch.as_tensor(c, dtype=torch.long) + start for c, start in zip(chosen, starts, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
