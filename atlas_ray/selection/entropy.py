"""Steps at which a model is least sure of what to do: forks in an agent's own runs (ours, after RL at such steps).

A step's entropy is the sum, over the tokens of its action, of the entropy in nats of the model's distribution over its
vocabulary before each. By the chain rule that is the entropy of the whole action as far as the one that was taken tells
it: what an action must end with once it has begun adds nothing, whatever its length. Thoughts, the separator and the
end of turn do not count.
"""

from __future__ import annotations

import torch

from ..agents.rendering import Renderer
from ..agents.rendering_chat import ChatRenderer
from ..data.records import Annotation, Trajectory
from .turn_pass import TurnPass, mark_highest


def entropies(turns: TurnPass, renderer: Renderer, trajectory: Trajectory) -> list[float]:
    """The entropy of the model at each action, in nats; the calls of a turn are one action, as the template has them.

    Raises:
        InputError: the template writes a thought otherwise than it is, so that nothing tells where the calls begin.
    """
    counts = _action_lengths(turns, renderer, trajectory)
    found = []
    for count, logits_NV in zip(counts, turns.logits_NV.split(turns.lengths), strict=True):
        logp_NV = logits_NV[len(logits_NV) - 1 - count : -1].float().log_softmax(-1)
        # a token that cannot come has the log-probability minus infinity, and 0 times that is no number
        found.append(-(logp_NV.exp() * logp_NV.clamp_min(torch.finfo(torch.float32).min)).double().sum())
    numbers: list[float] = torch.stack(found).tolist()
    return numbers


def _action_lengths(turns: TurnPass, renderer: Renderer, trajectory: Trajectory) -> list[int]:
    """Tokens of each action, which stands before the last token of its turn."""
    if trajectory.tools is None:
        return [len(renderer.action(step.action)) for step in trajectory.steps]
    assert isinstance(renderer, ChatRenderer)  # no other renders tools
    thoughts = renderer.tools.thought_lengths(trajectory)
    return [length - 1 - before for length, before in zip(turns.lengths, thoughts, strict=True)]


def select_by_entropy(trajectory: Trajectory, entropies: list[float], fraction: float, model: str) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` steps of the highest entropy; the earlier wins ties."""
    return mark_highest(trajectory, entropies, fraction, "entropy", model, "entropy {:.2f} nats")
