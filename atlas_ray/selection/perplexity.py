"""Steps that surprise the base model most: a control of ATLaS, which finds it far behind critical steps.

A step's perplexity is ``exp`` of the mean negative log-likelihood of the tokens of its turn behind everything before:
thought, separator, action and end of turn, the tokens that a selected step is trained on. Which tokens the paper takes
is not known, so this is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..agents.rendering import Renderer
from ..data.records import Annotation, Trajectory
from .turn_pass import TurnPass, mark_highest, measured_steps


def step_perplexities(
    model: Any, renderer: Renderer, trajectories: Sequence[Trajectory], *settings: Any, **more: Any
) -> tuple[dict[str, list[float]], list[str]]:
    """Perplexity of every step by trajectory id, and why others have none: :func:`measured_steps` with this measure."""
    found, problems = measured_steps(model, renderer, trajectories, {"perplexity": perplexities}, *settings, **more)
    return found["perplexity"], problems


def perplexities(turns: TurnPass, renderer: Renderer, trajectory: Trajectory) -> list[float]:
    """The perplexity of each turn."""
    surprise_T = torch.stack(
        [
            F.cross_entropy(logits.float(), targets)
            for logits, targets in zip(
                turns.logits_NV.split(turns.lengths), turns.targets_N.split(turns.lengths), strict=True
            )
        ]
    )
    found: list[float] = surprise_T.double().exp().tolist()
    return found


def select_by_perplexity(
    trajectory: Trajectory, perplexities: Sequence[float], fraction: float, model: str
) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` steps of the highest perplexity (ATLaS: 30 %); the earlier wins ties."""
    return mark_highest(trajectory, perplexities, fraction, "perplexity", model, "perplexity {:.1f}")
