"""The loss on pairs of turns (DPO), exact under any split into workers and micro-batches.

With r the log-ratio of a turn, log p(turn) under the model less that under the reference, both sums over the turn's
tokens alone, a pair's loss is

- ``sigmoid``: ``-log sigmoid(beta (r_chosen - r_rejected))`` (DPO, Rafailov et al. 2023, equation 7);
- ``sigmoid_norm``: the same with each r divided by the number of its turn's tokens (length-normalised DPO of Tulu 3,
  Lambert et al. 2024). Of the two losses that the literature calls so this one and not SimPO's: that has no reference,
  so nothing would hold a model that plays whole episodes, most of whose turns are in no pair.

The names are those of TRL's ``DPOConfig.loss_type``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.config import text_config
from ..recipe.loading import Pairs
from .data import Example, PairExample, Trained
from .loss import MOST_LOGITS, packs_whole, positions
from .packing import hidden_at

NOTED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
"""What is said of an optimiser step beside its loss, means over its pairs, as TRL names and computes it: a reward is
``beta r``, not divided by a length; accuracy is the share of pairs whose chosen turn has the larger one."""


@dataclass(frozen=True)
class PairScale:
    """What turns sums into the loss of an optimiser step, the same on every worker.

    ``pair`` is the weight of a pair (1 / their count in the step), ``chosen`` that of a token of a chosen turn in the
    cross entropy (``sft`` / their count).
    """

    pair: float
    chosen: float


def pair_scale(examples: Sequence[Trained], config: Pairs) -> PairScale:
    """The scale of an optimiser step on these pairs."""
    tokens = sum(len(e.parts[0].trained) for e in examples)
    return PairScale(1 / len(examples), config.sft / tokens)


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities of given tokens, from logits never held all at once and made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, target_N: torch.Tensor, rows: int
    ) -> torch.Tensor:
        kind = hidden_ND.device.type
        ctx.save_for_backward(hidden_ND, head_VD, target_N)
        ctx.rows, ctx.cast = rows, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        found = []
        for start in range(0, len(target_N), rows):
            part, target = hidden_ND[start : start + rows], target_N[start : start + rows, None]
            logits = (part @ head_VD.T.to(part.dtype)).float()
            found.append(logits.gather(1, target)[:, 0] - logits.logsumexp(-1))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, up_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, head_VD, target_N = ctx.saved_tensors
        kind, dtype, enabled = ctx.cast
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(target_N), ctx.rows):
            piece = slice(start, start + ctx.rows)
            part, target, up = hidden_ND[piece], target_N[piece, None], up_N[piece, None].float()
            with torch.autocast(kind, dtype, enabled=enabled):
                logits = part @ head_VD.T.to(part.dtype)
            grad = logits.float().softmax(-1).mul_(-up).scatter_add_(1, target, up).to(part.dtype)
            grad_ND[piece] = grad @ head_VD.to(part.dtype)
            if grad_VD is not None:
                grad_VD += grad.T @ part
        return grad_ND, None if grad_VD is None else grad_VD.to(head_VD.dtype), None, None


class PreferenceModel(nn.Module):
    """A causal LM that gives the loss of pairs.

    Args:
        model: a causal LM of transformers.
        config: of the recipe.
    """

    base = None

    def __init__(self, model: Any, config: Pairs) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.narrow, self.rows = True, max(16, MOST_LOGITS // text_config(model.config).vocab_size)

    def forward(self, batch: Sequence[PairExample], scale: PairScale) -> torch.Tensor:
        """The share of one micro-batch in the loss of an optimiser step, and behind it that in its :data:`NOTED`.

        Only the loss has a gradient. Summed over micro-batches and workers it is the mean over pairs, plus ``sft``
        times the mean negative log-probability of the chosen turns' tokens.
        """
        logps_BS = self.turn_logps([part for pair in batch for part in pair.parts]).unflatten(0, (len(batch), 2))
        reference_BS = torch.tensor([pair.reference for pair in batch], dtype=logps_BS.dtype, device=logps_BS.device)
        ratios_BS = logps_BS - reference_BS
        scores_BS = ratios_BS
        if self.config.loss == "sigmoid_norm":
            tokens = [[len(part.trained) for part in pair.parts] for pair in batch]
            scores_BS = ratios_BS / torch.tensor(tokens, device=logps_BS.device)
        loss = -F.logsigmoid(self.config.beta * (scores_BS[:, 0] - scores_BS[:, 1])).sum() * scale.pair
        if scale.chosen:
            loss = loss - logps_BS[:, 0].sum() * scale.chosen
        return torch.cat([loss[None], self._noted(logps_BS.detach(), ratios_BS.detach()) * scale.pair])

    def _noted(self, logps_BS: torch.Tensor, ratios_BS: torch.Tensor) -> torch.Tensor:
        chosen_B, rejected_B = (self.config.beta * ratios_BS).unbind(1)
        right_B = (chosen_B > rejected_B).to(chosen_B.dtype)
        said = (chosen_B, rejected_B, right_B, chosen_B - rejected_B, *logps_BS.unbind(1))
        return torch.stack([values_B.sum() for values_B in said])

    def turn_logps(self, batch: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities ``[B]``, float32, of the trained tokens of each sequence, summed.

        Call it within :func:`atlas_ray.finetune.packing.packed`; families that are not packed run one by one.
        """
        if not packs_whole(self.model):
            return torch.stack([self._alone(example) for example in batch])
        device = next(self.model.parameters()).device
        # neighbours of one length go through the kernel together
        order = sorted(range(len(batch)), key=lambda i: batch[i].size)
        sequences = [batch[i] for i in order]
        lengths = [e.size for e in sequences]
        ids_T = torch.cat([torch.as_tensor(e.ids, dtype=torch.long) for e in sequences])
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        trained_N = positions(starts, [e.trained for e in sequences])
        target_N, at_N = ids_T[trained_N].to(device), (trained_N - 1).to(device)
        hidden_ND = hidden_at(self.model, ids_T.to(device), lengths, at_N, self.narrow)
        logp_N = _TokenLogps.apply(hidden_ND, self.model.get_output_embeddings().weight, target_N, self.rows)
        sums_B = torch.stack([part.sum() for part in logp_N.split([len(e.trained) for e in sequences])])
        return sums_B[torch.tensor(order, device=device).argsort()]

    def _alone(self, example: Example) -> torch.Tensor:
        device = next(self.model.parameters()).device
        ids_1L = torch.as_tensor(example.ids, dtype=torch.long, device=device)[None]
        trained_N = torch.as_tensor(example.trained, dtype=torch.long, device=device)
        logits_NV = self.model(input_ids=ids_1L, use_cache=False, logits_to_keep=trained_N - 1).logits[0].float()
        return -F.cross_entropy(logits_NV, ids_1L[0, trained_N], reduction="sum")
