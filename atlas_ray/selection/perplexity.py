"""Steps that surprise the base model most: a control of ATLaS, which finds it far behind critical steps.

A step's perplexity is ``exp`` of the mean negative log-likelihood of the tokens of its turn behind everything before:
thought, separator, action and end of turn, the tokens that a selected step is trained on. Which tokens the paper takes
is not known, so this is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..agents.rendering import Renderer
from ..data.records import Annotation, Trajectory, max_critical_steps
from ..models.loading import context_of
from .turn_pass import TurnPass, turn_passes


def step_perplexities(
    model: Any,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    micro_tokens: int = 4096,
    asked: int | None = None,
    field: str = "finetune.context",
) -> tuple[dict[str, list[float]], list[str]]:
    """Perplexity of every step, in one pass over each whole trajectory, many trajectories to a pass.

    Args:
        model: a loaded causal LM in evaluation mode, on the device where it shall run.
        renderer: of the model's tokenizer.
        trajectories: with distinct ids.
        micro_tokens: most tokens, padding included, of a pass over more than one trajectory.
        asked: most tokens of a trajectory where the model's configuration states none.
        field: of the recipe that says so.

    Returns:
        (perplexities, problems): T numbers for each trajectory id, in the order of ``trajectories``; why others have
        none, because they are longer than the model's context or because it gives no finite probability.

    Raises:
        InputError: nobody says how long a trajectory may be.
    """
    passes, long = turn_passes(model, renderer, trajectories, micro_tokens, context_of(model, asked, field))
    problems = [f"{why}, so it has no perplexities" for why in long]
    found = {name: _perplexities(turns) for name, turns in passes}
    for name in [name for name, perplexities in found.items() if not all(map(math.isfinite, perplexities))]:
        step = next(t for t, perplexity in enumerate(found.pop(name)) if not math.isfinite(perplexity))
        problems.append(f"{name}: the model gives step {step} no finite perplexity")
    return {t.id: found[t.id] for t in trajectories if t.id in found}, problems


def _perplexities(turns: TurnPass) -> list[float]:
    surprise_T = torch.stack(
        [
            F.cross_entropy(logits.float(), targets)
            for logits, targets in zip(
                turns.logits_NV.split(turns.lengths), turns.targets_N.split(turns.lengths), strict=True
            )
        ]
    )
    perplexities: list[float] = surprise_T.double().exp().tolist()
    return perplexities


def select_by_perplexity(
    trajectory: Trajectory, perplexities: Sequence[float], fraction: float, model: str
) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` steps of the highest perplexity (ATLaS: 30 %); the earlier wins ties."""
    ranked = sorted(range(len(trajectory.steps)), key=lambda t: (-perplexities[t], t))
    critical = sorted(ranked[: max_critical_steps(fraction, len(ranked))])
    return Annotation(
        trajectory_id=trajectory.id,
        selector="perplexity",
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: f"perplexity {perplexities[t]:.1f}" for t in critical},
        model=model,
    )
