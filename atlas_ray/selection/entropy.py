"""Steps at which a model is least sure of what to do: forks in an agent's own runs (ours, after RL at such steps).

A step's entropy is the sum, over the tokens of its action, of the entropy in nats of the model's distribution over its
vocabulary before each. By the chain rule that is the entropy of the whole action as far as the one that was taken tells
it: what an action must end with once it has begun adds nothing, whatever its length. Thoughts, the separator and the
end of turn do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..agents.rendering import Renderer
from ..data.records import Annotation, Trajectory
from ..errors import InputError
from .turn_pass import TurnPass, mark_highest


def refuse_calls(trajectories: Iterable[Trajectory]) -> None:
    """Refuse agents that call tools.

    Raises:
        InputError: there is one; its chat template alone says where in a turn the thought ends and the calls begin.
    """
    for trajectory in trajectories:
        if trajectory.tools is not None:
            raise InputError(
                f"trajectory {trajectory.id!r} calls tools: entropy cannot tell thoughts from calls, take perplexity",
                field="select.selectors",
            )


def entropies(turns: TurnPass, renderer: Renderer, trajectory: Trajectory) -> list[float]:
    """The entropy of the model at each action, in nats."""
    found = []
    for step, logits_NV in zip(trajectory.steps, turns.logits_NV.split(turns.lengths), strict=True):
        count = len(renderer.action(step.action))
        logp_NV = logits_NV[len(logits_NV) - 1 - count : -1].float().log_softmax(-1)
        # a token that cannot come has the log-probability minus infinity, and 0 times that is no number
        found.append(-(logp_NV.exp() * logp_NV.clamp_min(torch.finfo(torch.float32).min)).double().sum())
    numbers: list[float] = torch.stack(found).tolist()
    return numbers


def select_by_entropy(trajectory: Trajectory, entropies: list[float], fraction: float, model: str) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` steps of the highest entropy; the earlier wins ties."""
    return mark_highest(trajectory, entropies, fraction, "entropy", model, "entropy {:.2f} nats")
