"""The Q network of a switch in plain torch: what RLlib trains is what a saved policy runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from .features import BUDGET_ENTRY

QUICK, DEEPTHINK = 0, 1


class QNetwork(nn.Module):
    """Q values ``[B, 2]`` of QUICK and DEEPTHINK for features ``[B, F]``.

    The head gives a value v and an advantage a; ``Q = (v - a / 2, v + a / 2)``, a dueling head for two actions: the
    advantage of a call is small beside the value and would be lost in two separate outputs.

    Args:
        inputs: F.
        hidden: widths of the hidden layers.
        budgeted: whether a call is masked, to minus infinity, where the budget entry of the features is 0.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], budgeted: bool) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        self.budgeted = budgeted

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        """Q values, minus infinity where a call is masked."""
        value_B1, advantage_B1 = self.layers(features_BF).split(1, dim=-1)
        q_B2 = torch.cat([value_B1 - advantage_B1 / 2, value_B1 + advantage_B1 / 2], dim=-1)
        if not self.budgeted:
            return q_B2
        # a large negative number in place of -inf would be picked by epsilon-greedy and pull on the loss
        spent_B = features_BF[..., BUDGET_ENTRY] == 0
        masked_B2 = torch.stack([torch.zeros_like(spent_B), spent_B], dim=-1)
        return q_B2.masked_fill(masked_B2, -torch.inf)
