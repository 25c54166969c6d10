"""The networks of a switch in plain torch: what RLlib trains is what a saved policy runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from .features import BUDGET_ENTRY


class SwitchNetwork(nn.Module):
    """A number ``[B, K]`` for each of the K models (Q values, or the logits of a policy) for features ``[B, F]``.

    The head gives a value v and an advantage of every model over the first; ``Q_k = v + a_k - mean(a)`` with ``a_0 =
    0``. The advantage of a call is small beside the value and would be lost in separate outputs (a dueling head).

    Args:
        inputs: F.
        hidden: widths of the hidden layers.
        models: K.
        budgeted: whether calls are masked, to minus infinity, where the budget entry of the features is 0.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], models: int, budgeted: bool) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], models))
        self.models, self.budgeted = models, budgeted

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        """The numbers, minus infinity where a call is masked."""
        value_B1, advantages_BA = self.layers(features_BF).split([1, self.models - 1], dim=-1)
        advantages_BK = torch.cat([torch.zeros_like(value_B1), advantages_BA], dim=-1)
        q_BK = value_B1 + advantages_BK - advantages_BK.mean(-1, keepdim=True)
        if not self.budgeted:
            return q_BK
        # a large negative number in place of -inf would be picked by epsilon-greedy and pull on the loss
        spent_B1 = features_BF[..., BUDGET_ENTRY, None] == 0
        calls_K = torch.arange(self.models, device=q_BK.device) > 0
        return q_BK.masked_fill(spent_B1 & calls_K, -torch.inf)
