"""The masked loss, exact under any split into workers and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .data import Example


def _hidden_at(model: Any, ids_BL: torch.Tensor, positions_N2: torch.Tensor) -> torch.Tensor:
    """Hidden states that predict the tokens at ``positions_N2`` (row, column), ``[N, D]``."""
    # right padding plus causal attention: no real token sees padding, so no mask is needed
    hidden_BLD = model.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
    return hidden_BLD[positions_N2[:, 0], positions_N2[:, 1] - 1]


def masked_loss(
    model: Any,
    batch: Sequence[Example],
    trained_total: int,
    pad: int,
    anchor_weight: float = 0.0,
    anchor_total: int = 0,
    base: Any = None,
) -> torch.Tensor:
    """The share of one micro-batch in the loss of an optimiser step.

    ``sum over selected tokens of -log p / trained_total``, where ``trained_total`` counts the selected tokens of the
    whole optimiser step over all workers: summed over micro-batches and workers it is the mean over trained tokens
    (ATLaS masks the loss to critical steps; the normalisation is ours). With an anchor (ours) plus
    ``anchor_weight * sum over anchored tokens of KL(base || model) / anchor_total``.

    For models whose logits are the output embeddings of the last hidden state (Llama, Qwen, SmolLM and most others, not
    those that scale or cap logits). Hidden states are gathered at the trained positions before the LM head, so logits
    are ``[N, V]`` for N tokens.
    """
    device = next(model.parameters()).device
    longest = max(len(e.ids) for e in batch)
    ids_BL = torch.full((len(batch), longest), pad, dtype=torch.long)
    for row, example in enumerate(batch):
        ids_BL[row, : len(example.ids)] = torch.tensor(example.ids)
    trained_N2 = torch.tensor([(r, p) for r, e in enumerate(batch) for p in e.trained], dtype=torch.long)
    anchored_M2 = torch.tensor(
        [(r, p) for r, e in enumerate(batch) for p in e.anchored] if anchor_weight else [], dtype=torch.long
    ).reshape(-1, 2)
    positions = torch.cat([trained_N2.reshape(-1, 2), anchored_M2]).to(device)
    ids_BL = ids_BL.to(device)

    logits_NV = model.get_output_embeddings()(_hidden_at(model, ids_BL, positions)).float()
    count = len(trained_N2)
    targets_N = ids_BL[positions[:count, 0], positions[:count, 1]]
    loss = F.cross_entropy(logits_NV[:count], targets_N, reduction="sum") / trained_total
    if len(anchored_M2):
        with torch.no_grad():
            base_MV = base.get_output_embeddings()(_hidden_at(base, ids_BL, positions[count:])).float()
        divergence = F.kl_div(
            F.log_softmax(logits_NV[count:], -1), F.log_softmax(base_MV, -1), reduction="sum", log_target=True
        )
        loss = loss + anchor_weight * divergence / anchor_total
    return loss
