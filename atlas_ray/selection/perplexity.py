"""Steps that surprise the base model most: a control of ATLaS, which finds it far behind critical steps.

A step's perplexity is ``exp`` of the mean negative log-likelihood of the tokens of its turn behind everything before:
thought, separator, action and end of turn, the tokens that a selected step is trained on. Which tokens the paper takes
is not known, so this is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..agents.rendering import Rendered, Renderer
from ..data.records import Annotation, Trajectory, max_critical_steps
from ..models.loading import context_of


@torch.inference_mode()
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
    context = context_of(model, asked, field)
    rendered: dict[str, Rendered] = {}
    problems = []
    for trajectory in trajectories:
        whole = renderer.render(trajectory)
        if len(whole.ids) <= context:
            rendered[trajectory.id] = whole
        else:
            problems.append(
                f"{trajectory.id}: has {len(whole.ids)} tokens, the model takes {context}, so it has no perplexities"
            )
    found: dict[str, list[float]] = {}
    for names in _groups(rendered, micro_tokens):
        measured = _measure(model, [rendered[name] for name in names], renderer.end_of_turn)
        found.update(zip(names, measured, strict=True))
    for name in [name for name, perplexities in found.items() if not all(map(math.isfinite, perplexities))]:
        step = next(t for t, perplexity in enumerate(found.pop(name)) if not math.isfinite(perplexity))
        problems.append(f"{name}: the model gives step {step} no finite perplexity")
    return {t.id: found[t.id] for t in trajectories if t.id in found}, problems


def _groups(rendered: Mapping[str, Rendered], micro_tokens: int) -> list[list[str]]:
    """Ids in groups of like length, each at most ``micro_tokens`` with its padding unless it holds only one."""
    groups: list[list[str]] = []
    for name in sorted(rendered, key=lambda name: len(rendered[name].ids)):
        if groups and (len(groups[-1]) + 1) * len(rendered[name].ids) <= micro_tokens:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _measure(model: Any, batch: Sequence[Rendered], pad: int) -> list[list[float]]:
    """Perplexities of the turns of each episode, in one pass."""
    device = next(model.parameters()).device
    # right padding plus causal attention: no real token sees padding, so no mask is needed
    ids_BL = torch.full((len(batch), max(len(r.ids) for r in batch)), pad)
    for row, episode in enumerate(batch):
        ids_BL[row, : len(episode.ids)] = torch.tensor(episode.ids)
    ids_BL = ids_BL.to(device)
    turns = [(row, start, end) for row, episode in enumerate(batch) for start, end in episode.spans]
    where = [(row, position) for row, start, end in turns for position in range(start, end)]
    row_N, position_N = torch.tensor(where, device=device).T

    # the head sees only the states behind which a turn's token stands; scaled or capped logits stay the model's affair
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda head, given: (given[0][row_N, position_N - 1][None],)
    )
    try:
        logits_NV = model(input_ids=ids_BL, use_cache=False).logits[0]
    finally:
        hook.remove()
    lengths = [end - start for _, start, end in turns]
    surprise_T = torch.stack(
        [
            F.cross_entropy(logits.float(), targets)
            for logits, targets in zip(logits_NV.split(lengths), ids_BL[row_N, position_N].split(lengths), strict=True)
        ]
    )
    return [part.tolist() for part in surprise_T.double().exp().split([len(r.spans) for r in batch])]


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
